"""Faults of replicas, shards, and tables side by side."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..embsim_engine import EmbsimEngine
from ..program import Batch, Setup
from .mutant import mutant
from .schedule import inside


class _Gradients(EmbsimEngine):
    """Changes the gradients of a global batch; `size` is the samples of a replica."""

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        size = self.setup.samples // self.setup.replicas
        given = [None if g is None else np.array(g, np.float32) for g in gradients]
        for each in given:
            if each is not None and each.shape[0] == self.setup.samples:
                self.change(each, size)
        super().apply_gradients(given)

    def change(self, gradient: np.ndarray, size: int) -> None:
        raise NotImplementedError


@mutant(
    "check_gradients_of_all_replicas_and_samples_are_added",
    "Data-parallel training averages by default; TPUEmbedding adds, and the caller divides the "
    "loss: https://www.tensorflow.org/api_docs/python/tf/tpu/experimental/embedding/TPUEmbedding",
)
class GradientsAreAveragedOverReplicas(_Gradients):
    """Gradients of replicas are averaged."""

    def change(self, gradient: np.ndarray, size: int) -> None:
        gradient /= self.setup.replicas


@mutant(
    "check_gradients_of_all_replicas_and_samples_are_added",
    "Reason to expect it: an update made in replica 0's program, before the reduction.",
)
class OnlyTheFirstReplicaTrains(_Gradients):
    """The gradients of the first replica alone reach the tables."""

    def change(self, gradient: np.ndarray, size: int) -> None:
        gradient[size:] = 0.0


@mutant(
    "check_a_global_batch_is_that_of_its_replicas_in_order",
    "Reason to expect it: devices are not always numbered as replicas are.",
)
class ReplicasAreInTheOppositeOrder(EmbsimEngine):
    """The last replica gets the first part of a global batch."""

    def enqueue(self, batch: Batch, training: bool = True) -> None:
        size = self.setup.samples // self.setup.replicas
        starts = range(self.setup.samples - size, -1, -size)
        moved = [[bag for low in starts for bag in bags[low : low + size]] for bags in batch]
        super().enqueue(moved, training)


@mutant(
    "check_the_number_of_replicas_changes_nothing",
    "Remainders are dropped where sizes do not divide: "
    "https://github.com/tensorflow/recommenders/issues/240",
)
class IdsThatTheReplicasDoNotDivideAreDropped(EmbsimEngine):
    """Each replica takes the same number of ids, and the remainder of the last is dropped."""

    def enqueue(self, batch: Batch, training: bool = True) -> None:
        kept: list[Any] = []
        for bags in batch:
            room = sum(map(len, bags)) // self.setup.replicas * self.setup.replicas
            short: list[Any] = []
            for bag in bags:
                short.append(list(bag)[: max(room, 0)])
                room -= len(bag)
            kept.append(short)
        super().enqueue(kept, training)


@mutant(
    "check_every_row_of_every_table_is_looked_up_where_it_is_updated",
    "Reason to expect it: of rows that the shards do not divide, TensorFlow's 'div' gives the "
    "first shards one more, others the last ones.",
)
class RowsAreOffByOneOnAnOddNumberOfShards(EmbsimEngine):
    """Three shards: where they do not divide the rows, the longer ones are taken for the last."""

    def enqueue(self, batch: Batch, training: bool = True) -> None:
        moved = [
            [[self._moved(item, feature.table.vocabulary_size) for item in bag] for bag in bags]
            for feature, bags in zip(self.setup.features, batch, strict=True)
        ]
        super().enqueue(moved, training)

    def _moved(self, item: Any, rows: int) -> Any:
        row = item[0] if isinstance(item, tuple) else item
        short, longer = divmod(rows, 3)
        firsts = [shard * short + max(0, shard - 3 + longer) for shard in range(3)]
        shard = max(each for each in range(3) if firsts[each] <= row)
        right = shard * short + min(shard, longer)
        found = min(right + row - firsts[shard], rows - 1)
        return (found, item[1]) if isinstance(item, tuple) else found


@mutant(
    "check_tables_of_one_step_are_independent",
    "Tables of one width are stacked into one, and a table's rows begin where another's end: "
    "https://github.com/keras-team/keras-rs/issues/166",
)
class AnEmptyTableStopsTheOthers(EmbsimEngine):
    """A step in which some table is not touched updates none."""

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        waiting = inside(self)._queue.waiting
        if waiting and not all(len(plan.row) for plan in waiting[0].plans.values()):
            gradients = [None] * len(gradients)
        super().apply_gradients(gradients)


@mutant(
    "check_an_exception_in_one_replica_undoes_its_run",
    "Reason to expect it: what other replicas have submitted is not taken back.",
)
class ARunThatRaisesKeepsItsUpdates(EmbsimEngine):
    """A run that fails is committed as far as it came."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        core = inside(self)
        core.rollback_run = core.commit_run


@mutant(
    "check_each_replica_of_a_run_gets_its_own_part",
    "Reason to expect it: activations go back over a ring of devices, to the neighbour.",
)
class AReplicaGetsTheActivationsOfTheNext(EmbsimEngine):
    """In a run, each replica gets the part of the next one."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        embedding: Any = self.embedding
        border = embedding._border
        by_replica = border.by_replica
        border.by_replica = lambda found: [*by_replica(found)[1:], by_replica(found)[0]]


@mutant(
    "check_where_rows_lie_changes_nothing",
    "SparseCore has a limit of ids per partition, and may drop those beyond it: "
    "https://github.com/keras-team/keras-rs/issues/166",
)
class IdsBeyondTheRoomOfAShardAreDropped(EmbsimEngine):
    """Of each bag, four shards look up two ids each, and drop the rest."""

    def enqueue(self, batch: Batch, training: bool = True) -> None:
        super().enqueue([[self._kept(bag) for bag in bags] for bags in batch], training)

    def _kept(self, bag: Sequence[Any]) -> list[Any]:
        seen: Counter[int] = Counter()
        kept: list[Any] = []
        for item in bag:
            shard = (item[0] if isinstance(item, tuple) else item) % 4
            seen[shard] += 1
            kept += [item] if seen[shard] <= 2 else []
        return kept


@mutant(
    "check_names_and_order_of_tables_and_features_change_nothing",
    "Reason to expect it: dictionaries are flattened in the order of their sorted keys, lists are "
    "not.",
)
class GradientsAreTakenInTheOrderOfTheNames(EmbsimEngine):
    """Gradients of equal shape go to the features in the order of their tables' names."""

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        moved = list(gradients)
        names = [str(feature.table.name) for feature in self.setup.features]
        shapes = [self.setup.activation_shape(i) for i in range(len(names))]
        for shape in set(shapes):
            places = [i for i, each in enumerate(shapes) if each == shape]
            by_name = sorted(places, key=lambda i: names[i])
            for place, other in zip(places, by_name, strict=True):
                moved[other] = gradients[place]
        super().apply_gradients(moved)
