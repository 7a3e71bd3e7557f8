"""Faults of looks that change what they look at."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..embsim_engine import EmbsimEngine
from ..program import Batch, Setup
from .mutant import mutant
from .schedule import inside

_TORCHREC = "https://github.com/meta-pytorch/torchrec/pull"


def _next_is_inference(engine: EmbsimEngine) -> bool:
    queued, waiting = inside(engine)._queue.queued, inside(engine)._queue.waiting
    return bool(queued) and not queued[0].training and not waiting


@mutant(
    "check_evaluation_does_not_drain",
    f"Training and evaluation that share one pipeline: {_TORCHREC}/3751",
)
class EvaluationDrains(EmbsimEngine):
    """An evaluation empties the pipeline, so that the next training steps read newer tables."""

    def dequeue(self) -> Sequence[Any] | None:
        if _next_is_inference(self):
            self.embedding.drain()
        return super().dequeue()


@mutant(
    "check_evaluation_counts_no_step_of_a_loop_or_a_warm_up",
    "Reason to expect it: one step counter for all batches that are dequeued.",
)
class EvaluationCountsAsAStep(EmbsimEngine):
    """Every dequeue is a step, that of an evaluation too."""

    def dequeue(self) -> Sequence[Any] | None:
        counts = _next_is_inference(self)
        found = super().dequeue()
        if counts:
            core = inside(self)
            dequeued, submitted = core.progress.dequeued + 1, core.progress.submitted + 1
            core._progress = replace(core.progress, dequeued=dequeued, submitted=submitted)
        return found


@mutant(
    "check_an_evaluation_sees_every_submitted_update",
    "Whether an evaluation right after a pipelined step sees its update is not said for "
    "TPUEmbedding: https://www.tensorflow.org/api_docs/python/tf/tpu/experimental/embedding/"
    "TPUEmbedding",
)
class EvaluationSeesStaleTables(EmbsimEngine):
    """An evaluation reads the tables without the updates that are in flight."""

    def dequeue(self) -> Sequence[Any] | None:
        store = inside(self)._store
        held, hidden = store.pending, _next_is_inference(self)
        if hidden:
            store.pending = []
        try:
            return super().dequeue()
        finally:
            if hidden:
                store.pending = held


@mutant(
    "check_an_evaluation_batch_keeps_its_place_between_training_batches",
    f"Training and evaluation that share one pipeline mixed up their batches: {_TORCHREC}/3751",
)
class AnEvaluationBatchGoesToTheHeadOfTheQueue(EmbsimEngine):
    """Evaluation is served before the training batches that were enqueued earlier."""

    def enqueue(self, batch: Batch, training: bool = True) -> None:
        super().enqueue(batch, training)
        if not training:
            queued = inside(self)._queue.queued
            queued.insert(0, queued.pop())


@mutant(
    "check_looks_change_no_later_number",
    "Reason to expect it: tables are retrieved from the device, for which it has to be idle.",
)
class ATableReadDrains(EmbsimEngine):
    """Reading a table applies the updates in flight, for lookups too."""

    def tables(self) -> Mapping[str, Any]:
        self.embedding.drain()
        return super().tables()


@mutant(
    "check_tables_and_slots_show_every_submitted_update",
    "Slots and tables were of different steps in what was read during asynchronous training: "
    "https://github.com/DeepRec-AI/DeepRec/issues/1023",
)
class SlotsLackTheUpdatesInFlight(EmbsimEngine):
    """Tables are shown as if drained, slots as they are."""

    def slots(self) -> Mapping[str, Mapping[str, Any]]:
        inside(self).read()
        return inside(self)._store.state.slots


@mutant(
    "check_tables_are_read_as_if_drained",
    "Host copies of a table are refreshed when a checkpoint is written, and stale between: "
    "https://github.com/tensorflow/tensorflow/blob/master/tensorflow/python/tpu/"
    "tpu_embedding_v2.py",
)
class TablesAreReadWithoutTheUpdatesInFlight(EmbsimEngine):
    """A table that is read lacks what the next lookups do not see yet."""

    def tables(self) -> Mapping[str, Any]:
        inside(self).read()
        return inside(self)._store.state.weights


@mutant(
    "check_a_snapshot_is_a_copy",
    "Reason to expect it: a view costs nothing, and is right until the next update.",
)
class ASnapshotIsAView(EmbsimEngine):
    """snapshot() gives views of tables that go on being trained."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        core = inside(self)
        core.snapshot = lambda **how: core.read("snapshot")
