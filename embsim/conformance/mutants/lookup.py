"""Faults of lookups: combiners, duplicates, empty bags, sequences, ids and rows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...config import FeatureConfig
from ...definition import gains
from ..embsim_engine import EmbsimEngine
from ..program import Bag, Batch, Setup
from .mutant import mutant

SAFE_LOOKUP = (
    "tf.nn.safe_embedding_lookup_sparse, as documented: "
    "https://www.tensorflow.org/api_docs/python/tf/nn/safe_embedding_lookup_sparse"
)


class OwnGains(EmbsimEngine):
    """Right: tables combine by 'sum', and the weights that they are given are the gains."""

    def features(self, setup: Setup) -> list[FeatureConfig]:
        tables = {table: replace(table, combiner="sum") for table in setup.tables.values()}
        return [replace(feature, table=tables[feature.table]) for feature in setup.features]

    def enqueue(self, batch: Batch, training: bool = True) -> None:
        given: list[Any] = []
        for feature, bags in zip(self.setup.features, batch, strict=True):
            sequence = feature.max_sequence_length
            combiner = feature.table.combiner
            given.append(bags if sequence else [self._combined(bag, combiner) for bag in bags])
        super().enqueue(given, training)

    def _combined(self, bag: Bag, combiner: str) -> Bag:
        pairs = [item if isinstance(item, tuple) else (item, 1.0) for item in bag]
        ids, weights = [id_ for id_, _ in pairs], [np.float32(weight) for _, weight in pairs]
        with np.errstate(all="ignore"):
            return list(zip(*self.gains(ids, weights, combiner), strict=True))

    def gains(self, ids: list[int], weights: list[Any], combiner: str) -> tuple[Any, Any]:
        """Ids, and the gain of each."""
        return ids, gains(weights, combiner)


@mutant(
    "check_duplicates_count_as_often_as_they_occur",
    "Reason to expect it: ids are made unique before the lookup, and then counted.",
)
class MeanDividesByTheDistinctIds(OwnGains):
    """mean adds every occurrence of an id, but divides by the weights of the distinct ids."""

    def gains(self, ids: list[int], weights: list[Any], combiner: str) -> tuple[Any, Any]:
        if combiner != "mean":
            return super().gains(ids, weights, combiner)
        d = sum(dict(zip(ids, weights, strict=True)).values())
        return ids, [w / d if d else 0.0 for w in weights]


@mutant(
    "check_duplicates_count_as_often_as_they_occur",
    "Reason to expect it: tf.unique on the ids of a bag, without adding up what they stand for.",
)
class DuplicatesAreDropped(OwnGains):
    """Of an id that occurs twice in a bag only the first occurrence counts."""

    def gains(self, ids: list[int], weights: list[Any], combiner: str) -> tuple[Any, Any]:
        first = dict(reversed(list(zip(ids, weights, strict=True))))
        return super().gains(list(first), list(first.values()), combiner)


@mutant(
    "check_duplicates_count_as_often_as_they_occur",
    "Reason to expect it: equal ids are merged to save lookups, which sqrtn does not allow.",
)
class DuplicatesAreMergedFirst(OwnGains):
    """Weights of equal ids are added before the denominator is computed."""

    def gains(self, ids: list[int], weights: list[Any], combiner: str) -> tuple[Any, Any]:
        merged: dict[int, Any] = {}
        for id_, w in zip(ids, weights, strict=True):
            merged[id_] = merged.get(id_, np.float32(0)) + w
        return super().gains(list(merged), list(merged.values()), combiner)


@mutant(
    "check_mean_divides_by_the_sum_of_the_weights",
    "Weighted means are what bags of embeddings are asked for and lack: "
    "https://github.com/pytorch/pytorch/issues/4068",
)
class MeanDividesByTheCount(OwnGains):
    """mean divides by the number of ids, not by the sum of their weights."""

    def gains(self, ids: list[int], weights: list[Any], combiner: str) -> tuple[Any, Any]:
        if combiner != "mean":
            return super().gains(ids, weights, combiner)
        return ids, [w / np.float32(len(ids)) for w in weights]


@mutant(
    "check_ids_without_weights_have_weight_1",
    "torch.nn.EmbeddingBag, which a port may stand on, has sum, mean and max: "
    "https://docs.pytorch.org/docs/stable/generated/torch.nn.EmbeddingBag.html",
)
class SqrtnIsMean(OwnGains):
    """sqrtn divides by the sum of the weights."""

    def gains(self, ids: list[int], weights: list[Any], combiner: str) -> tuple[Any, Any]:
        return super().gains(ids, weights, "mean" if combiner == "sqrtn" else combiner)


@mutant(
    "check_sqrtn_divides_by_the_root_of_the_sum_of_squares",
    "Reason to expect it: a denominator is accumulated, and its root forgotten.",
)
class SqrtnWithoutTheRoot(OwnGains):
    """sqrtn divides by the sum of the squared weights."""

    def gains(self, ids: list[int], weights: list[Any], combiner: str) -> tuple[Any, Any]:
        if combiner != "sqrtn":
            return super().gains(ids, weights, combiner)
        d = sum(w * w for w in weights)
        return ids, [w / d if d else 0.0 for w in weights]


@mutant(
    "check_a_denominator_of_zero_gives_gain_zero",
    "0 / 0 in means gave NaN in PyTorch: https://github.com/pytorch/pytorch/pull/21400",
)
class ADenominatorOfZeroGivesNaN(OwnGains):
    """Weights that sum to 0 are divided by 0."""

    def gains(self, ids: list[int], weights: list[Any], combiner: str) -> tuple[Any, Any]:
        found = gains(weights, combiner)
        nothing = combiner != "sum" and not any(found)
        return ids, [np.float32("nan") if nothing else gain for gain in found]


@mutant("check_negative_weights_are_plain_arithmetic", SAFE_LOOKUP)
class WeightsThatAreNotPositiveAreDropped(OwnGains):
    """Ids with a weight of 0 or below are pruned before the lookup."""

    def gains(self, ids: list[int], weights: list[Any], combiner: str) -> tuple[Any, Any]:
        kept = [(id_, w) for id_, w in zip(ids, weights, strict=True) if w > 0]
        return super().gains([id_ for id_, _ in kept], [w for _, w in kept], combiner)


@mutant(
    "check_negative_weights_are_plain_arithmetic",
    "Reason to expect it: a guard against denominators that cancel.",
)
class DenominatorsTakeAbsoluteWeights(OwnGains):
    """mean divides by the sum of |w|."""

    def gains(self, ids: list[int], weights: list[Any], combiner: str) -> tuple[Any, Any]:
        if combiner != "mean":
            return super().gains(ids, weights, combiner)
        d = sum(abs(w) for w in weights)
        return ids, [w / d if d else 0.0 for w in weights]


@mutant(
    "check_an_id_of_weight_zero_is_touched",
    "Reason to expect it: entries of gain 0 are the padding of static buffers.",
)
class IdsOfWeightZeroAreNotTouched(OwnGains):
    """An id of gain 0 is left out of the plan."""

    def gains(self, ids: list[int], weights: list[Any], combiner: str) -> tuple[Any, Any]:
        ids, found = super().gains(ids, weights, combiner)
        kept = [(id_, gain) for id_, gain in zip(ids, found, strict=True) if gain != 0]
        return [id_ for id_, _ in kept], [gain for _, gain in kept]


@mutant(
    "check_sum_multiplies_by_the_weights_and_divides_by_nothing",
    "keras-rs discusses when weights of single ids may be discarded; under 'sum' never: "
    "https://github.com/keras-team/keras-rs/pull/83",
)
class WeightsOfSingleIdsAreIgnored(OwnGains):
    """A bag of one id is not combined, so that its weight has no effect."""

    def gains(self, ids: list[int], weights: list[Any], combiner: str) -> tuple[Any, Any]:
        return super().gains(ids, [1.0] if len(ids) == 1 else weights, combiner)


@mutant(
    "check_the_order_of_a_bag_changes_nothing",
    "Reason to expect it: ids are sorted by row for the device, and their weights are not.",
)
class IdsAreSortedAndWeightsAreNot(OwnGains):
    """The ids of a bag are sorted; weight j then belongs to another id."""

    def gains(self, ids: list[int], weights: list[Any], combiner: str) -> tuple[Any, Any]:
        return super().gains(sorted(ids), weights, combiner)


@mutant("check_an_empty_bag_gives_zeros_and_touches_nothing", SAFE_LOOKUP + ": default_id")
class AnEmptyBagIsRow0(OwnGains):
    """A bag without ids looks up id 0."""

    def gains(self, ids: list[int], weights: list[Any], combiner: str) -> tuple[Any, Any]:
        return ([0], [1.0]) if not ids else super().gains(ids, weights, combiner)


@mutant(
    "check_no_id_of_a_large_bag_is_dropped",
    "Static capacities with allow_id_dropping, which users must guess: "
    "https://github.com/keras-team/keras-rs/issues/166",
)
class IdsBeyondTheCapacityAreDropped(OwnGains):
    """A bag holds 16 ids; the rest is dropped in silence."""

    def gains(self, ids: list[int], weights: list[Any], combiner: str) -> tuple[Any, Any]:
        return super().gains(ids[:16], weights[:16], combiner)


@mutant(
    "check_half_a_batch_gives_half_of_the_activations",
    "Reason to expect it: ids are made unique over the batch, and only the first sample keeps its "
    "place.",
)
class AnIdIsLookedUpOnceABatch(EmbsimEngine):
    """Of equal ids in several samples only the first one's lookup counts."""

    def enqueue(self, batch: Batch, training: bool = True) -> None:
        given: list[Any] = []
        for bags in batch:
            seen: dict[Any, int] = {}
            for sample, bag in enumerate(bags):
                for item in bag:
                    seen.setdefault(item, sample)
            given.append([[i for i in bag if seen[i] == s] for s, bag in enumerate(bags)])
        super().enqueue(given, training)


@mutant(
    "check_an_empty_bag_gives_zeros_and_touches_nothing",
    "Empty bags gave NaN on CUDA: https://github.com/pytorch/pytorch/issues/11739",
)
class AnEmptyBagIsNaN(EmbsimEngine):
    """Activations of a bag without ids are 0 / 0."""

    def enqueue(self, batch: Batch, training: bool = True) -> None:
        self.batch = batch
        super().enqueue(batch, training)

    def dequeue(self) -> Sequence[Any] | None:
        found = [np.array(array) for array in super().dequeue() or ()]
        for array, bags in zip(found, self.batch, strict=True):
            for sample, bag in enumerate(bags):
                if not bag:
                    array[sample] = np.nan
        return found


@mutant(
    "check_a_lookup_repeated_gives_the_same_and_changes_nothing",
    "A lookup in training mode without a backward pass leaks into what follows: "
    "https://github.com/pytorch/FBGEMM/pull/6120",
)
class InferenceIsAStepWithoutGradients(EmbsimEngine):
    """A batch of training=False is a training step whose gradients are zero."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.kinds: list[bool] = []

    def enqueue(self, batch: Batch, training: bool = True) -> None:
        self.kinds.append(training)
        super().enqueue(batch, True)

    def dequeue(self) -> Sequence[Any] | None:
        found = super().dequeue()
        if not self.kinds.pop(0):
            super().apply_gradients([None] * len(self.setup.features))
        return found


@mutant(
    "check_a_lookup_of_real_numbers_is_within_its_computed_bound",
    "Reason to expect it: activations are sent in bfloat16 to save bandwidth.",
)
class ActivationsAreRoundedToBfloat16(EmbsimEngine):
    """Every activation keeps 8 bits of its 24."""

    def dequeue(self) -> Sequence[Any] | None:
        return [bfloat16(array) for array in super().dequeue() or ()]


def bfloat16(array: Any) -> np.ndarray:
    """To the nearest number of 8 bits, as float32."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)
