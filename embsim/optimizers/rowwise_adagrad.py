"""Adagrad with one accumulator a row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .base import Slot, check_options, check_range


@dataclass(frozen=True)
class RowwiseAdagrad:
    """a <- a + mean(g²);  w <- w - (lr / (√a + eps)) * g.   One accumulator a row.

    Equals FBGEMM's EXACT_ROWWISE_ADAGRAD.

    >>> from embsim.optimizers import one_row
    >>> rule = RowwiseAdagrad(learning_rate=1.0, epsilon=0.0)
    >>> one_row(rule, w=[2.0, 0.0], g=[4.0, 4.0], accumulators=48.0)
    ([1.5, -0.5], 64.0)
    """

    learning_rate: float | Callable[..., Any] = 0.01
    initial_accumulator_value: float = 0.0
    epsilon: float = 1e-8
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
        initial, epsilon = self.initial_accumulator_value, self.epsilon
        check_range(
            "RowwiseAdagrad: initial_accumulator_value", initial, "a number >= 0", lambda x: x >= 0
        )
        check_range("RowwiseAdagrad: epsilon", epsilon, "a number >= 0", lambda x: x >= 0)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("accumulators", self.initial_accumulator_value, rowwise=True),)

    def coefficients(self, learning_rate: float) -> dict[str, float]:
        return {"lr": learning_rate, "eps": self.epsilon}

    def rule(self, ops: Any) -> Callable[..., Any]:
        def rule(w: Any, g: Any, slots: Any, c: Any) -> Any:
            (a,) = slots
            a = a + ops.mean(g * g)
            k = c.lr / (ops.sqrt(a) + c.eps)
            w = w - k * g
            return w, (a,)

        return rule
