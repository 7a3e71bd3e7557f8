"""Adagrad, without epsilon."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .base import Slot, check_options, check_range


@dataclass(frozen=True)
class Adagrad:
    """a <- a + g²;  w <- w - (lr * g) / √a.   No epsilon; a starts above 0.

    Equals tf.tpu.experimental.embedding.Adagrad. optax's scale_by_rss with eps=0 multiplies by
    1 / √a: the same number before rounding.

    >>> from embsim.optimizers import one_row
    >>> one_row(Adagrad(learning_rate=1.0), w=[1.0], g=[4.0], accumulators=[48.0])
    ([0.5], [64.0])
    """

    learning_rate: float | Callable[..., Any] = 0.001
    initial_accumulator_value: float = 0.1
    use_gradient_accumulation: bool = True
    clip_weight_min: float | None = None
    clip_weight_max: float | None = None
    weight_decay_factor: float | None = None
    multiply_weight_decay_factor_by_learning_rate: bool | None = None
    slot_variable_creation_fn: Callable[..., Any] | None = None
    clipvalue: float | tuple[float | None, float | None] | None = None
    low_dimensional_packing_status: bool = False

    def __post_init__(self) -> None:
        check_options(self)
        check_range(
            "Adagrad: initial_accumulator_value",
            self.initial_accumulator_value,
            "a number > 0",
            lambda x: x > 0,
        )

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("accumulators", self.initial_accumulator_value),)

    def coefficients(self, learning_rate: float) -> dict[str, float]:
        return {"lr": learning_rate}

    def rule(self, ops: Any) -> Callable[..., Any]:
        def rule(w: Any, g: Any, slots: Any, c: Any) -> Any:
            (a,) = slots
            a = a + g * g
            w = w - (c.lr * g) / ops.sqrt(a)
            return w, (a,)

        return rule
