"""Adagrad with momentum."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .base import Slot, check_options, check_range


@dataclass(frozen=True)
class AdagradMomentum:
    """a <- a + g²;  h = g / √(a + eps);  m <- mu * m + h;  w <- w - lr * m.   Slots start at 0.

    With beta2 < 1: a <- beta2 * a + (1 - beta2) * g². With exponent k: h = g * (a + eps)^(-1/k).
    With use_nesterov: w <- w - lr * (mu * m + h). Equals TPUEmbedding's AdagradMomentum.

    >>> from embsim.optimizers import one_row
    >>> rule = AdagradMomentum(learning_rate=1.0, momentum=0.5)
    >>> one_row(rule, w=[1.0], g=[2.0], accumulators=[60.0], momenta=[1.0])
    ([0.25], [64.0], [0.75])
    """

    learning_rate: float | Callable[..., Any] = 0.001
    momentum: float = 0.0
    use_nesterov: bool = False
    exponent: float = 2
    beta2: float = 1
    epsilon: float = 1e-10
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
        check_range("AdagradMomentum: epsilon", self.epsilon, "a number > 0", lambda x: x > 0)
        check_range("AdagradMomentum: exponent", self.exponent, "a number > 0", lambda x: x > 0)
        check_range(
            "AdagradMomentum: beta2", self.beta2, "a number from 0 to 1", lambda x: 0 <= x <= 1
        )
        check_range("AdagradMomentum: momentum", self.momentum, "a number >= 0", lambda x: x >= 0)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("accumulators"), Slot("momenta"))

    def coefficients(self, learning_rate: float) -> dict[str, float]:
        return {
            "lr": learning_rate,
            "mu": self.momentum,
            "beta2": self.beta2,
            "c2": 1 - self.beta2,
            "e": -1 / self.exponent,
            "eps": self.epsilon,
        }

    def rule(self, ops: Any) -> Callable[..., Any]:
        sums, square_root, nesterov = self.beta2 == 1, self.exponent == 2, self.use_nesterov

        def rule(w: Any, g: Any, slots: Any, c: Any) -> Any:
            a, m = slots
            a = a + g * g if sums else c.beta2 * a + c.c2 * (g * g)
            h = g / ops.sqrt(a + c.eps) if square_root else g * ops.power(a + c.eps, c.e)
            m = c.mu * m + h
            w = w - c.lr * (c.mu * m + h) if nesterov else w - c.lr * m
            return w, (a, m)

        return rule
