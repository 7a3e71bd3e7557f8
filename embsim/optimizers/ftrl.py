"""Follow the regularized leader (FTRL-Proximal)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .base import Slot, check_options, check_range


@dataclass(frozen=True)
class FTRL:
    """n = a + g²;  z <- z + g - ((√n - √a) / lr) * w;  a <- n.

    w <- (clip(z, -l1, l1) - z) / ((√n + beta) / lr + 2 l2).

    With learning_rate_power p other than -0.5, √ is the power -p. With
    multiply_linear_by_learning_rate the slot holds lr * z, and a rate of 0 is legal. A fresh row
    that is looked up with gradient 0 becomes 0. Equals tf.tpu.experimental.embedding.FTRL.

    >>> from embsim.optimizers import one_row
    >>> one_row(FTRL(learning_rate=1.0), w=[1.0], g=[4.0], accumulators=[9.0], linears=[0.0])
    ([-0.4000000059604645], [25.0], [2.0])
    """

    learning_rate: float | Callable[..., Any] = 0.001
    learning_rate_power: float = -0.5
    l1_regularization_strength: float = 0.0
    l2_regularization_strength: float = 0.0
    beta: float = 0.0
    initial_accumulator_value: float = 0.1
    use_gradient_accumulation: bool = True
    clip_weight_min: float | None = None
    clip_weight_max: float | None = None
    weight_decay_factor: float | None = None
    multiply_weight_decay_factor_by_learning_rate: bool | None = None
    slot_variable_creation_fn: Callable[..., Any] | None = None
    clipvalue: float | tuple[float | None, float | None] | None = None
    multiply_linear_by_learning_rate: bool = False
    allow_zero_accumulator: bool = False
    low_dimensional_packing_status: bool = False

    def __post_init__(self) -> None:
        check_options(self)
        check_range(
            "FTRL: initial_accumulator_value",
            self.initial_accumulator_value,
            "a number > 0",
            lambda x: x > 0,
        )
        check_range(
            "FTRL: learning_rate_power", self.learning_rate_power, "a number <= 0", lambda x: x <= 0
        )
        for option in ("l1_regularization_strength", "l2_regularization_strength", "beta"):
            check_range(f"FTRL: {option}", getattr(self, option), "a number >= 0", lambda x: x >= 0)

        if not callable(self.learning_rate):
            self.coefficients(self.learning_rate)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("accumulators", self.initial_accumulator_value), Slot("linears"))

    def coefficients(self, learning_rate: float) -> dict[str, float]:
        l1, l2 = self.l1_regularization_strength, self.l2_regularization_strength
        if not self.multiply_linear_by_learning_rate and learning_rate == 0:
            raise ValueError(
                "FTRL: the learning rate is 0, and the rule divides by it; use a rate > 0 or "
                "multiply_linear_by_learning_rate=True"
            )
        return {
            "lr": learning_rate,
            "q": -self.learning_rate_power,
            "l1": l1,
            "l22": 2 * l2,
            "l1r": learning_rate * l1,
            "l22r": 2 * learning_rate * l2,
            "beta": self.beta,
        }

    def rule(self, ops: Any) -> Callable[..., Any]:
        square_root, multiply = (
            self.learning_rate_power == -0.5,
            self.multiply_linear_by_learning_rate,
        )

        def rule(w: Any, g: Any, slots: Any, c: Any) -> Any:
            a, z = slots
            n = a + g * g
            x = ops.sqrt(n) if square_root else ops.power(n, c.q)
            y = ops.sqrt(a) if square_root else ops.power(a, c.q)
            if multiply:
                z = z + (c.lr * g - (x - y) * w)
                u = ops.minimum(ops.maximum(z, -c.l1r), c.l1r) - z
                w = u / ((x + c.beta) + c.l22r)
            else:
                z = z + (g - ((x - y) / c.lr) * w)
                u = ops.minimum(ops.maximum(z, -c.l1), c.l1) - z
                w = u / ((x + c.beta) / c.lr + c.l22)
            return w, (n, z)

        return rule
