"""Stochastic gradient descent."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .base import Slot, check_options


@dataclass(frozen=True)
class SGD:
    """w <- w - lr * g.   No slot variables. Equals tf.tpu.experimental.embedding.SGD and optax.sgd.

    >>> from embsim.optimizers import one_row
    >>> one_row(SGD(learning_rate=0.5), w=[1.0, 2.0], g=[2.0, -4.0])
    ([0.0, 4.0],)
    """

    learning_rate: float | Callable[..., Any] = 0.01
    use_gradient_accumulation: bool = True
    clip_weight_min: float | None = None
    clip_weight_max: float | None = None
    weight_decay_factor: float | None = None
    multiply_weight_decay_factor_by_learning_rate: bool | None = None
    clipvalue: float | tuple[float | None, float | None] | None = None
    low_dimensional_packing_status: bool = False

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return ()

    def coefficients(self, learning_rate: float) -> dict[str, float]:
        return {"lr": learning_rate}

    def rule(self, ops: Any) -> Callable[..., Any]:
        def rule(w: Any, g: Any, slots: Any, c: Any) -> Any:
            return w - c.lr * g, slots

        return rule
