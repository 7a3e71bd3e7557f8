"""Optimizers that the kit draws: embsim's with their options, and two of a user's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from ..optimizers import FTRL, SGD, Adagrad, AdagradMomentum, Adam, RowwiseAdagrad, Slot
from .adapter import ALL, Capabilities, asked_of_optimizer
from .program import Rates


@dataclass(frozen=True)
class Counting:
    """A user's optimizer that is exact: w <- w - lr * g, and counts the updates of each row."""

    learning_rate: Any = 1.0
    slots: tuple[Slot, ...] = field(default=(Slot("updates"), Slot("rows", rowwise=True)))

    def coefficients(self, learning_rate: float) -> dict[str, float]:
        return {"lr": learning_rate, "one": 1.0}

    def rule(self, ops: Any) -> Callable[..., Any]:
        def rule(w: Any, g: Any, slots: Any, c: Any) -> Any:
            updates, rows = slots
            return w - c.lr * g, (updates + c.one, rows + c.one)

        return rule


@dataclass(frozen=True)
class EveryOperation:
    """A user's optimizer that uses every operation of `ops`, and both kinds of slots."""

    learning_rate: Any = 0.1
    slots: tuple[Slot, ...] = field(default=(Slot("largest", 0.5, rowwise=True), Slot("sums")))

    def coefficients(self, learning_rate: float) -> dict[str, float]:
        return {"lr": learning_rate, "half": 0.5, "one": 1.0, "third": 1 / 3}

    def rule(self, ops: Any) -> Callable[..., Any]:
        def rule(w: Any, g: Any, slots: Any, c: Any) -> Any:
            largest, sums = slots
            largest = ops.maximum(largest, ops.mean(g * g) + c.one)
            sums = ops.minimum(sums + g, c.one)
            step = ops.where(g > sums, g / ops.sqrt(largest), c.half * sums)
            return w - c.lr * (step * ops.power(largest, -c.third)), (largest, sums)

        return rule


REAL_RATES = (0.1, 1.0, 2.0**-3, Rates((0.3, 0.05)))
EXACT_RATES = (1.0, 0.5, Rates((1.0, 0.5)))

EXACT_OPTIMIZERS: tuple[tuple[Any, dict[str, Any]], ...] = (
    (SGD, {}),
    (Counting, {}),
    (SGD, {"clipvalue": 1.0}),
    (SGD, {"clipvalue": (-1.0, None), "clip_weight_max": 3.0}),
    (SGD, {"clip_weight_min": -2.0, "clip_weight_max": 2.0}),
    (SGD, {"use_gradient_accumulation": False}),
    (SGD, {"weight_decay_factor": 0.5}),
    (SGD, {"weight_decay_factor": 0.5, "multiply_weight_decay_factor_by_learning_rate": False}),
)

# An engine may compile once for each choice of structure; numbers cost nothing.
REAL_OPTIMIZERS: tuple[tuple[Any, dict[str, Any]], ...] = (
    (SGD, {}),
    (SGD, {"clipvalue": 0.5, "weight_decay_factor": 0.1}),
    (SGD, {"use_gradient_accumulation": False, "clip_weight_max": 1.0}),
    (Adagrad, {}),
    (Adagrad, {"clipvalue": (None, 1.0), "clip_weight_min": -1.0, "clip_weight_max": 2.0}),
    (Adagrad, {"use_gradient_accumulation": False, "weight_decay_factor": 0.01}),
    (RowwiseAdagrad, {}),
    (RowwiseAdagrad, {"use_gradient_accumulation": False, "initial_accumulator_value": 0.1}),
    (AdagradMomentum, {"momentum": 0.9}),
    (AdagradMomentum, {"momentum": 0.5, "use_nesterov": True, "beta2": 0.9}),
    (AdagradMomentum, {"exponent": 3, "epsilon": 0.1, "clipvalue": (-0.25, None)}),
    (Adam, {}),
    (Adam, {"sum_inside_sqrt": False, "beta_1": 0.0, "weight_decay_factor": 0.3}),
    (Adam, {"lazy_adam": False}),
    (Adam, {"lazy_adam": False, "weight_decay_factor": 0.1, "clipvalue": 0.3}),
    (FTRL, {}),
    (FTRL, {"l1_regularization_strength": 0.1, "l2_regularization_strength": 0.2, "beta": 0.5}),
    (FTRL, {"multiply_linear_by_learning_rate": True, "l1_regularization_strength": 0.3}),
    (FTRL, {"learning_rate_power": -0.3, "clip_weight_max": 0.5}),
    (EveryOperation, {}),
)


def optimizers(
    can: Capabilities = ALL, regime: str = "exact", kinds: Sequence[type] | None = None
) -> st.SearchStrategy[Any]:
    """Optimizers that the subject does not refuse; of `kinds` alone, if given."""
    structures = EXACT_OPTIMIZERS if regime == "exact" else REAL_OPTIMIZERS
    rates = EXACT_RATES if regime == "exact" else REAL_RATES
    if not can.offers("a learning-rate callable"):
        rates = tuple(rate for rate in rates if not callable(rate))
    chosen: list[st.SearchStrategy[Any]] = []
    for kind, options in structures:
        names = asked_of_optimizer(kind(rates[0], **options))
        if can.offers(*names) and (kinds is None or kind in kinds):
            chosen.append(_optimizer(kind, options, rates))
    return st.one_of(chosen)


def _optimizer(kind: Any, options: dict[str, Any], rates: Sequence[Any]) -> st.SearchStrategy[Any]:
    if "weight_decay_factor" in options and options["weight_decay_factor"] != 0.5:
        factors = st.sampled_from((None, False, True))
        return st.builds(
            lambda rate, by_rate: kind(
                rate, **options, multiply_weight_decay_factor_by_learning_rate=by_rate
            ),
            st.sampled_from(rates),
            factors,
        )
    return st.sampled_from(rates).map(lambda rate: kind(rate, **options))
