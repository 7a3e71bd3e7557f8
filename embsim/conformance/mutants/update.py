"""Faults around the rule: what is summed, clipped and decayed, when, and in which rows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...optimizers import SGD, Adam, coefficients, learning_rate_at
from ...optimizers.base import clip_values
from ..embsim_engine import EmbsimEngine
from ._changed import Changed, OtherOptimizers, OtherOptions, OtherRule
from .mutant import mutant


@mutant(
    killed_by="check_duplicate_ids_are_summed_before_the_rule",
    origin="https://github.com/meta-pytorch/torchrec/issues/1298: training differs where inputs "
    "repeat; kernels with atomic adds apply the rule once per occurrence",
)
class DuplicatesAreAppliedOneByOne(OtherOptions, use_gradient_accumulation=False):
    """Each occurrence of an id is an update of its own."""


@mutant(
    killed_by="check_without_accumulation_each_contribution_is_an_update_in_order",
    origin="an engine that always sorts and sums has no other path, and ignores the option",
)
class AccumulationCannotBeTurnedOff(OtherOptions, use_gradient_accumulation=True):
    """use_gradient_accumulation=False is ignored."""


@mutant(
    killed_by="check_gradients_are_clipped_after_they_are_summed",
    origin="TPUEmbedding wants gradient accumulation for clipvalue, because it is the sum that is "
    "clipped; clipping what the model sends is the simple thing to do",
)
class GradientsAreClippedBeforeTheirSum(EmbsimEngine):
    """clipvalue limits each contribution."""

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        clipped: list[Any] = []
        for feature, g in zip(self.setup.features, gradients, strict=True):
            limits = clip_values(feature.table.optimizer)
            clipped.append(g if g is None or limits == (None, None) else np.clip(g, *limits))
        super().apply_gradients(clipped)


@mutant(
    killed_by="check_gradients_are_clipped_after_they_are_summed",
    origin="TPUEmbeddingV2 ignores clipvalue",
)
class GradientsAreNotClipped(OtherOptions, clipvalue=None):
    """clipvalue is ignored."""


@mutant(
    killed_by="check_gradients_are_clipped_after_they_are_summed",
    origin="(-c, c) is what a number means; of a pair the second is easily taken for c",
)
class ClippingIsSymmetric(OtherOptimizers):
    """Of a pair of limits the larger one is used on both sides."""

    def changed(self, optimizer: Any) -> Any:
        limits = [abs(limit) for limit in clip_values(optimizer) if limit is not None]
        return replace(optimizer, clipvalue=max(limits)) if limits else optimizer


@mutant(
    killed_by="check_touched_rows_decay_before_the_rule",
    origin="torch.optim.AdamW decays first, optax.adamw last: libraries differ",
)
class DecayComesAfterTheRule(OtherRule):
    """keep * w is taken of the row that the rule made."""

    kinds = (SGD,)

    def changed(self, optimizer: Any) -> Any:
        if not getattr(optimizer, "weight_decay_factor", None):
            return optimizer
        made = super().changed(optimizer)
        made.weight_decay_factor = None
        made.coefficients = lambda rate: {  # type: ignore[reportUnknownLambdaType]
            **optimizer.coefficients(rate),
            "kept": float(coefficients(optimizer, rate)["keep"]),  # type: ignore[reportUnknownArgumentType]
        }
        return made

    def formula(self, optimizer: Any, ops: Any, w: Any, g: Any, slots: Any, c: Any) -> Any:
        w, slots = optimizer.rule(ops)(w, g, slots, c)
        return c.kept * w, slots


@mutant(
    killed_by="check_touched_rows_decay_before_the_rule",
    origin="dense libraries decay the whole table at each step",
)
class DecayReachesEveryRow(OtherOptimizers):
    """Rows that were not looked up decay too."""

    def changed(self, optimizer: Any) -> Any:
        decays = bool(getattr(optimizer, "weight_decay_factor", None))
        return Changed(optimizer, updates_every_row=True) if decays else optimizer


@mutant(
    killed_by="check_touched_rows_decay_before_the_rule",
    origin="torch.optim.AdamW always multiplies the decay by the rate",
)
class DecayIsAlwaysTimesTheRate(OtherOptions, multiply_weight_decay_factor_by_learning_rate=True):
    """multiply_weight_decay_factor_by_learning_rate is taken for True."""


@mutant(
    killed_by="check_touched_rows_decay_before_the_rule",
    origin="the option is off by default, and easily lost on the way to the device",
)
class DecayIsNeverTimesTheRate(OtherOptions, multiply_weight_decay_factor_by_learning_rate=None):
    """multiply_weight_decay_factor_by_learning_rate is ignored."""


class _Limits(OtherRule):
    """What changes where weights are clipped: the rule does it, between c.low and c.high."""

    def changed(self, optimizer: Any) -> Any:
        limits = [getattr(optimizer, f"clip_weight_{end}", None) for end in ("min", "max")]
        if limits == [None, None]:
            return optimizer
        made = super().changed(optimizer)
        low, high = (3e38 * sign if x is None else x for x, sign in zip(limits, (-1, 1)))  # noqa: B905
        made.coefficients = lambda rate: {  # type: ignore[reportUnknownLambdaType]
            **optimizer.coefficients(rate),
            "low": low,
            "high": high,
        }
        return made


@mutant(
    killed_by="check_weights_are_clipped_after_the_rule_and_slots_never",
    origin="projected optimizers clip the point from which the step is taken",
)
class WeightsAreClippedBeforeTheRule(_Limits):
    """The old row is clipped, the new one is not."""

    def changed(self, optimizer: Any) -> Any:
        made = super().changed(optimizer)
        if made is not optimizer:
            made.clip_weight_min = made.clip_weight_max = None
        return made

    def formula(self, optimizer: Any, ops: Any, w: Any, g: Any, slots: Any, c: Any) -> Any:
        w = ops.minimum(ops.maximum(w, c.low), c.high)
        return optimizer.rule(ops)(w, g, slots, c)


@mutant(
    killed_by="check_weights_are_clipped_after_the_rule_and_slots_never",
    origin="a clip that is written for all outputs of a kernel reaches its slots",
)
class SlotsAreClippedLikeWeights(_Limits):
    """clip_weight_min and clip_weight_max limit the slots too."""

    def formula(self, optimizer: Any, ops: Any, w: Any, g: Any, slots: Any, c: Any) -> Any:
        w, slots = optimizer.rule(ops)(w, g, slots, c)
        return w, tuple(ops.minimum(ops.maximum(each, c.low), c.high) for each in slots)


@mutant(
    killed_by="check_weights_are_clipped_after_the_rule_and_slots_never",
    origin="TPUEmbeddingV2 never passes the limits on to its kernels",
)
class WeightsAreNotClipped(OtherOptions, clip_weight_min=None, clip_weight_max=None):
    """clip_weight_min and clip_weight_max are ignored."""


@mutant(
    killed_by="check_learning_rates_belong_to_the_step_of_their_gradients",
    origin="a delayed update that is computed in the loop body of a later step sees that step's "
    "variables, unless its rate travels with it",
)
class RateOfTheStepThatAppliesIt(OtherOptimizers):
    """A delayed update is scaled by the rate of the step before which it is applied."""

    def changed(self, optimizer: Any) -> Any:
        rate, late = optimizer.learning_rate, self.setup.schedule.staleness
        if not callable(rate):
            return optimizer
        return Changed(optimizer, learning_rate=lambda step: rate(step + late))  # type: ignore[reportUnknownLambdaType]


@mutant(
    killed_by="check_learning_rates_belong_to_the_step_of_their_gradients",
    origin="what a tracer sees once is a constant of the compiled step",
)
class RateIsCompiledIn(OtherOptimizers):
    """A callable rate is asked once, before training."""

    def changed(self, optimizer: Any) -> Any:
        return Changed(optimizer, learning_rate=learning_rate_at(optimizer.learning_rate, 0))


@mutant(
    killed_by="check_coefficients_are_computed_in_float64_and_rounded_once",
    origin="hyperparameters that travel as float32 are subtracted from 1 on the device",
)
class CoefficientsAreRoundedTwice(OtherOptimizers):
    """1 - beta is computed of a beta that was rounded to float32."""

    def changed(self, optimizer: Any) -> Any:
        if not isinstance(optimizer, Adam):
            return optimizer
        betas = {f"beta_{n}": float(np.float32(getattr(optimizer, f"beta_{n}"))) for n in (1, 2)}
        return replace(optimizer, **betas)


@mutant(
    killed_by="check_an_update_sums_clips_decays_applies_the_rule_and_clips",
    origin="with a rate of 1 it makes no difference whether the gradient or the step is clipped",
)
class StepsAreClippedNotGradients(OtherRule):
    """clipvalue limits lr * g."""

    kinds = (SGD,)

    def changed(self, optimizer: Any) -> Any:
        low, high = clip_values(optimizer)
        if low is None or high is None:
            return optimizer
        made = super().changed(optimizer)
        made.clipvalue = None
        made.coefficients = lambda rate: {"lr": rate, "low": low, "high": high}  # type: ignore[reportUnknownLambdaType]
        return made

    def formula(self, optimizer: Any, ops: Any, w: Any, g: Any, slots: Any, c: Any) -> Any:
        return w - ops.minimum(ops.maximum(c.lr * g, c.low), c.high), slots
