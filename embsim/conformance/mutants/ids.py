"""Faults of sequences, and of ids at and beyond the ends of a table."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...config import FeatureConfig
from ..embsim_engine import EmbsimEngine
from ..program import Bag, Batch, Setup
from .mutant import mutant


class OtherBags(EmbsimEngine):
    """Right: it looks up what `bag` makes of each bag."""

    def enqueue(self, batch: Batch, training: bool = True) -> None:
        pairs = zip(self.setup.features, batch, strict=True)
        super().enqueue([[self.bag(f, bag) for bag in bags] for f, bags in pairs], training)

    def bag(self, feature: FeatureConfig, bag: Bag) -> Bag:
        return bag


@mutant(
    "check_position_p_of_a_sequence_holds_the_p_th_id",
    "Reason to expect it: the last position is kept for a mark of the end.",
)
class SequencesAreCutOneTooEarly(OtherBags):
    """A sequence of length L keeps L - 1 ids."""

    def bag(self, feature: FeatureConfig, bag: Bag) -> Bag:
        length = feature.max_sequence_length
        return bag[: length - 1] if length else bag


@mutant(
    "check_positions_beyond_the_sequence_touch_nothing",
    "The default of Keras' pad_sequences, which surprises its users: "
    "https://github.com/keras-team/keras/issues/7901",
)
class SequencesAreCutAtTheFront(OtherBags):
    """A sequence of length L keeps the last L ids."""

    def bag(self, feature: FeatureConfig, bag: Bag) -> Bag:
        length = feature.max_sequence_length
        return bag[-length:] if length else bag


class LongerSequences(EmbsimEngine):
    """Right, but for what it touches: sequences are looked up with two positions more."""

    def features(self, setup: Setup) -> list[FeatureConfig]:
        return [
            replace(each, max_sequence_length=each.max_sequence_length + 2)
            if each.max_sequence_length
            else each
            for each in setup.features
        ]

    def dequeue(self) -> Sequence[Any] | None:
        lengths = [feature.max_sequence_length for feature in self.setup.features]
        found = super().dequeue() or ()
        return [a[:, :n] if n else a for a, n in zip(found, lengths, strict=True)]

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        lengths = [feature.max_sequence_length for feature in self.setup.features]
        super().apply_gradients(
            [
                np.pad(g, ((0, 0), (0, 2), (0, 0))) if n and g is not None else g
                for g, n in zip(gradients, lengths, strict=True)
            ]
        )


@mutant(
    "check_positions_beyond_the_sequence_touch_nothing",
    "Reason to expect it: activations are cut to L positions after the lookup of all ids.",
)
class DroppedPositionsAreTouched(LongerSequences):
    """Rows of positions from L on are looked up and updated, with gradient 0."""


@mutant(
    "check_unused_positions_get_no_gradient",
    "A padding row that training moves: https://github.com/pytorch/pytorch/issues/3711",
)
class UnusedPositionsTrainRow0(OtherBags):
    """A short sequence is padded with id 0; only its activations are masked."""

    def bag(self, feature: FeatureConfig, bag: Bag) -> Bag:
        return [*bag, *[0] * (feature.max_sequence_length - len(bag))]

    def enqueue(self, batch: Batch, training: bool = True) -> None:
        self.batch = batch
        super().enqueue(batch, training)

    def dequeue(self) -> Sequence[Any] | None:
        found = [np.array(array) for array in super().dequeue() or ()]
        for array, bags, feature in zip(found, self.batch, self.setup.features, strict=True):
            for sample, bag in enumerate(bags):
                if feature.max_sequence_length:
                    array[sample, len(bag) :] = 0
        return found


def _each(bag: Bag, change: Callable[[int], int | None]) -> Bag:
    """The bag with other ids; None: without this one."""
    found: list[Any] = []
    for item in bag:
        weighted = isinstance(item, tuple)
        id_ = change(item[0] if weighted else item)
        if id_ is not None:
            found.append((id_, item[1]) if weighted else id_)
    return found


@mutant(
    "check_an_id_outside_its_table_is_refused",
    "As indices of NumPy and JAX arrays do: "
    "https://docs.jax.dev/en/latest/notebooks/Common_Gotchas_in_JAX.html",
)
class NegativeIdsCountFromTheEnd(OtherBags):
    """Id -1 is the last row."""

    def bag(self, feature: FeatureConfig, bag: Bag) -> Bag:
        rows = feature.table.vocabulary_size
        return _each(bag, lambda id_: id_ + rows if -rows <= id_ < 0 else id_)


@mutant(
    "check_an_id_outside_its_table_is_refused",
    "XLA takes the last row: https://github.com/tensorflow/tensorflow/pull/62734",
)
class IdsBeyondTheTableAreTheLastRow(OtherBags):
    """An id that is too large is clamped to vocabulary_size - 1."""

    def bag(self, feature: FeatureConfig, bag: Bag) -> Bag:
        return _each(bag, lambda id_: min(id_, feature.table.vocabulary_size - 1))


@mutant(
    "check_an_id_outside_its_table_is_refused",
    "tf.nn.embedding_lookup gives zeros on GPU, by design: "
    "https://github.com/tensorflow/tensorflow/issues/27033",
)
class IdsOutsideTheTableAreZeros(OtherBags):
    """An id outside the table is dropped."""

    def bag(self, feature: FeatureConfig, bag: Bag) -> Bag:
        rows = feature.table.vocabulary_size
        return _each(bag, lambda id_: id_ if 0 <= id_ < rows else None)


@mutant(
    "check_the_first_and_the_last_row_are_rows_like_any_other",
    "Id 0 is what Keras' mask_zero takes for padding: "
    "https://keras.io/api/layers/core_layers/embedding/",
)
class Row0IsPadding(OtherBags):
    """Id 0 is no id: it gives zeros and is not trained."""

    def bag(self, feature: FeatureConfig, bag: Bag) -> Bag:
        return _each(bag, lambda id_: id_ or None)


@mutant(
    "check_the_first_and_the_last_row_are_rows_like_any_other",
    "Static buffers need a row to pad with; without padding_idx it is one of the table's own: "
    "https://github.com/pytorch/pytorch/issues/3194",
)
class TheLastRowIsPadding(OtherBags):
    """Id vocabulary_size - 1 gives zeros and is not trained."""

    def bag(self, feature: FeatureConfig, bag: Bag) -> Bag:
        last = feature.table.vocabulary_size - 1
        return _each(bag, lambda id_: None if id_ == last else id_)


@mutant(
    "check_the_first_and_the_last_row_are_rows_like_any_other",
    "Rows that shards do not divide evenly: https://github.com/meta-pytorch/torchrec/issues/1591",
)
class TheRowBeyondEvenShardsIsItsNeighbour(OtherBags):
    """Two shards of vocabulary_size // 2 rows: an odd last row is looked up one too low."""

    def bag(self, feature: FeatureConfig, bag: Bag) -> Bag:
        even = feature.table.vocabulary_size // 2 * 2
        return _each(bag, lambda id_: even - 1 if id_ == even > 0 else id_)
