"""Faults on the way from gradients to rows, and of simulated quantization."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...config import QuantizationConfig
from ...plan import LookupPlan
from ...reference import ReferenceBackend
from ...state import State
from ..embsim_engine import EmbsimEngine
from .mutant import mutant

Plans = Mapping[str, LookupPlan]


class OtherGradients(EmbsimEngine):
    """Right: rows get what `changed` makes of each feature's gradient."""

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        super().apply_gradients([None if g is None else self.changed(g) for g in gradients])

    def changed(self, gradient: np.ndarray) -> np.ndarray:
        return gradient


@mutant(
    "check_gradients_are_summed_and_never_averaged",
    "Reason to expect it: losses are means over the batch, and this looks like one.",
)
class GradientsAreAveragedOverSamples(OtherGradients):
    """Gradients are divided by the number of samples."""

    def changed(self, gradient: np.ndarray) -> np.ndarray:
        return gradient / np.float32(self.setup.samples)


@mutant(
    "check_the_update_is_the_adjoint_of_the_lookup",
    "Reason to expect it: the all-to-all of the gradients is not the inverse of the activations'.",
)
class GradientsAreOfTheNextSample(OtherGradients):
    """Sample s gives its rows the gradient of sample s + 1."""

    def changed(self, gradient: np.ndarray) -> np.ndarray:
        return np.roll(gradient, -1, axis=0)


@mutant(
    "check_features_on_one_table_add_their_gradients",
    "Reason to expect it: gradients by table in a dict, filled feature by feature.",
)
class TheLastFeatureOfATableWins(EmbsimEngine):
    """Of several features on a table only the last one's gradient arrives."""

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        tables = [feature.table for feature in self.setup.features]
        last = {table: place for place, table in enumerate(tables)}
        kept = [g if last[tables[i]] == i else None for i, g in enumerate(gradients)]
        super().apply_gradients(kept)


@mutant(
    "check_a_gradient_of_none_is_zero_and_touches",
    "Optimizers skip parameters whose gradient is None, and do not skip zeros: "
    "https://github.com/pytorch/pytorch/pull/42754",
)
class NoneIsNoUpdate(EmbsimEngine):
    """A table whose features all have gradient None is left out of the step's update."""

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        engine: Any = self.embedding._engine  # type: ignore[union-attr]
        pairs = zip(self.setup.features, gradients, strict=True)
        moved = {feature.table.name for feature, g in pairs if g is not None}
        waits = engine._queue.waiting[0]
        plans = {
            name: plan if name in moved else _empty(plan) for name, plan in waits.plans.items()
        }
        put = engine._store.backend.put_plan(plans)
        engine._queue.waiting[0] = replace(waits, plans=plans, device_plan=put)
        super().apply_gradients(gradients)


def _empty(plan: LookupPlan) -> LookupPlan:
    return replace(plan, splits=plan.splits * 0, row=plan.row[:0], gain=plan.gain[:0])


class OtherUpdates(ReferenceBackend):
    """Right: it updates with what `changed` makes of a table's plan."""

    def update(self, state: State, plan: Plans, gradients: Any, coefficients: Any) -> State:
        plans = {name: self.changed(each) for name, each in plan.items()}
        return super().update(state, plans, gradients, coefficients)

    def changed(self, plan: LookupPlan) -> LookupPlan:
        return plan


@mutant(
    "check_the_combiner_is_differentiated",
    "Reason to expect it: the backward pass scatters, and the forward pass alone combines.",
)
class RowsGetTheBareGradient(OtherUpdates):
    """A row gets the sum of the gradients of its samples, without gains."""

    def changed(self, plan: LookupPlan) -> LookupPlan:
        return replace(plan, gain=np.ones_like(plan.gain))


@mutant(
    "check_gradients_are_summed_and_never_averaged",
    "As scale_grad_by_freq of torch.nn.Embedding: "
    "https://docs.pytorch.org/docs/stable/generated/torch.nn.Embedding.html",
)
class GradientsAreDividedByOccurrences(OtherUpdates):
    """A row's gradient is divided by how often the batch names the row."""

    def changed(self, plan: LookupPlan) -> LookupPlan:
        counts = np.diff(plan.by_row.starts)[plan.slot_of].astype(np.float32)
        return replace(plan, gain=plan.gain / counts)


@mutant(
    "check_an_update_touches_only_the_rows_of_its_plan",
    "Optimizers that treat sparse gradients as dense: "
    "https://github.com/keras-team/keras/issues/18279",
)
class EveryRowIsUpdated(OtherUpdates):
    """Rows that nothing looked up are updated with gradient 0."""

    def changed(self, plan: LookupPlan) -> LookupPlan:
        splits = plan.splits.copy()
        splits[-1] += plan.num_rows
        row = np.concatenate([plan.row, np.arange(plan.num_rows, dtype=np.int32)])
        gain = np.concatenate([plan.gain, np.zeros(plan.num_rows, np.float32)])
        return replace(plan, splits=splits, row=row, gain=gain)


@mutant(
    "check_an_empty_plan_gives_zeros_and_changes_nothing",
    "Reason to expect it: a static buffer is never empty, and its padding names row 0.",
)
class AnEmptyPlanUpdatesRow0(OtherUpdates):
    """An update of a plan without ids is one of row 0."""

    def changed(self, plan: LookupPlan) -> LookupPlan:
        if len(plan.row):
            return plan
        splits = plan.splits.copy()
        splits[1:] += 1
        return replace(plan, splits=splits, row=np.zeros(1, np.int32), gain=np.ones(1, np.float32))


def _levels(weights: np.ndarray, config: QuantizationConfig, rounded: Any) -> np.ndarray:
    """The weights quantized, with `rounded` in place of floor(x + 0.5)."""
    q = np.float32((config.upper - config.lower) / (config.num_buckets - 1))
    low = np.float32(config.lower)
    inside = np.minimum(np.maximum(weights, low), np.float32(config.upper))
    return rounded((inside - low) / q) * q + low


@mutant(
    "check_quantization_rounds_ties_up_and_clips_to_its_limits",
    "Ties that one side rounds to even: https://github.com/blue-oil/blueoil/issues/397",
)
class QuantizationRoundsTiesToEven(ReferenceBackend):
    """A number halfway between two levels goes to the even one."""

    def lookup(self, state: State, plan: Plans) -> dict[str, np.ndarray]:
        weights = dict(state.weights)
        for name, spec in state.specs.items():
            if spec.quantization is not None:
                weights[name] = _levels(weights[name], spec.quantization, np.rint)
        return super().lookup(replace(state, weights=weights), plan)


@mutant(
    "check_quantization_rounds_ties_up_and_clips_to_its_limits",
    "Reason to expect it: activations are quantized, as in quantization-aware training.",
)
class QuantizationIsAfterTheCombiner(ReferenceBackend):
    """The combined activations are quantized, not the rows."""

    def lookup(self, state: State, plan: Plans) -> dict[str, np.ndarray]:
        specs = {name: replace(spec, quantization=None) for name, spec in state.specs.items()}
        found = super().lookup(replace(state, specs=specs), plan)
        for name, spec in state.specs.items():
            if spec.quantization is not None and name in found:
                rounded = _levels(found[name], spec.quantization, lambda x: np.floor(x + 0.5))
                found[name] = rounded.astype(np.float32)
        return found


@mutant(
    "check_quantization_never_touches_the_table_or_the_gradient",
    "Reason to expect it: the lookup keeps what it read for the update, quantized.",
)
class QuantizedNumbersAreTrained(ReferenceBackend):
    """An update starts from the quantized numbers of its rows."""

    def update(self, state: State, plan: Plans, gradients: Any, coefficients: Any) -> State:
        for name, each in plan.items():
            config = state.specs[name].quantization
            if config is not None:
                old = state.weights[name][each.unique]
                levels = _levels(old, config, lambda x: np.floor(x + np.float32(0.5)))
                state.weights[name][each.unique] = levels
        return super().update(state, plan, gradients, coefficients)


@mutant(
    "check_quantization_never_touches_the_table_or_the_gradient",
    "As the gradient of fake quantization does: "
    "https://www.tensorflow.org/api_docs/python/tf/quantization/fake_quant_with_min_max_args",
)
class GradientsOfClippedNumbersAreMasked(ReferenceBackend):
    """A number outside the limits gets no gradient."""

    def update(self, state: State, plan: Plans, gradients: Any, coefficients: Any) -> State:
        old = {name: np.array(array) for name, array in state.weights.items()}
        new = super().update(state, plan, gradients, coefficients)
        for name, spec in state.specs.items():
            if spec.quantization is not None:
                config = spec.quantization
                outside = (old[name] < config.lower) | (old[name] > config.upper)
                new.weights[name][outside] = old[name][outside]
        return new
