"""Adam without bias correction, lazy by default."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .base import Slot, check_options, check_range


@dataclass(frozen=True)
class Adam:
    """m <- b1 * m + c1 * g;  v <- b2 * v + c2 * g²;  w <- w - (lr * m) / √(v + eps²).

    c1 = 1 - b1, c2 = 1 - b2; no bias correction. With sum_inside_sqrt=False the last line divides
    by √v + eps. Lazy: only touched rows change; lazy_adam=False updates every row of the table at
    each step, with g = 0 where nothing was looked up. Equals tf.tpu.experimental.embedding.Adam;
    the textbook's Adam is this with the rate lr * √(1 - b2^t) / (1 - b1^t).

    >>> from embsim.optimizers import one_row
    >>> adam = Adam(learning_rate=1.0, beta_1=0.5, beta_2=0.75, epsilon=2.0**-30)
    >>> one_row(adam, w=[1.0], g=[4.0], momenta=[4.0], velocities=[16.0])
    ([0.0], [4.0], [16.0])
    """

    learning_rate: float | Callable[..., Any] = 0.001
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-07
    lazy_adam: bool = True
    sum_inside_sqrt: bool = True
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
        check_range("Adam: beta_1", self.beta_1, "a number >= 0 and < 1", lambda x: 0 <= x < 1)
        check_range("Adam: beta_2", self.beta_2, "a number >= 0 and < 1", lambda x: 0 <= x < 1)
        check_range("Adam: epsilon", self.epsilon, "a number > 0", lambda x: x > 0)
        if not self.lazy_adam and not self.use_gradient_accumulation:
            raise ValueError(
                "Adam: lazy_adam=False with use_gradient_accumulation=False; updating every row "
                "needs the accumulated gradient: set use_gradient_accumulation=True or "
                "lazy_adam=True"
            )

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("momenta"), Slot("velocities"))

    @property
    def updates_every_row(self) -> bool:
        return not self.lazy_adam

    def coefficients(self, learning_rate: float) -> dict[str, float]:
        return {
            "lr": learning_rate,
            "b1": self.beta_1,
            "c1": 1 - self.beta_1,
            "b2": self.beta_2,
            "c2": 1 - self.beta_2,
            "eps": self.epsilon,
            "eps2": self.epsilon * self.epsilon,
        }

    def rule(self, ops: Any) -> Callable[..., Any]:
        inside = self.sum_inside_sqrt

        def rule(w: Any, g: Any, slots: Any, c: Any) -> Any:
            m, v = slots
            m = c.b1 * m + c.c1 * g
            v = c.b2 * v + c.c2 * (g * g)
            root = ops.sqrt(v + c.eps2) if inside else ops.sqrt(v) + c.eps
            w = w - (c.lr * m) / root
            return w, (m, v)

        return rule
