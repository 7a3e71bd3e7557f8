"""Faults of checkpoints in the midst of a pipelined run, of initial values, and of slots."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...config import FeatureConfig, TableConfig
from ...schedule import Schedule
from ...state import State
from ..embsim_engine import EmbsimEngine
from ..program import Setup, Values
from .errors import inside
from .mutant import mutant

Slots = dict[str, dict[str, np.ndarray]]


def _state(engine: EmbsimEngine) -> State:
    """Tables and slots at the version that lookups see; ReferenceBackend's state is the arrays."""
    return inside(engine)._store.state


def _copied(slots: Mapping[str, Mapping[str, np.ndarray]]) -> Slots:
    return {name: {slot: a.copy() for slot, a in each.items()} for name, each in slots.items()}


def _put_slots(engine: EmbsimEngine, slots: Slots) -> None:
    for name, each in slots.items():
        for slot, array in each.items():
            _state(engine).slots[name][slot][...] = array
    inside(engine)._store._patches = None


@mutant(
    "check_updates_in_flight_at_a_save_survive_the_restore",
    "jax-tpu-embedding's pipelined example leaves its loop before the last update is made: "
    "https://github.com/jax-ml/jax-tpu-embedding, and TorchRec's pipelines do not save batches in "
    "flight",
)
class UpdatesInFlightAreNotSaved(EmbsimEngine):
    """A restored run has the tables that lookups saw, without the updates that were pending."""

    def restore(self, saved: Path) -> None:
        super().restore(saved)
        inside(self)._store.forget_pending([])


@mutant(
    "check_a_restore_forgets_what_came_after_the_save",
    "A training step without its counterpart stays in the prefetch pipeline: "
    "https://github.com/pytorch/FBGEMM/pull/6120",
)
class ARestoreKeepsTheUpdatesOfTheRunGivenUp(EmbsimEngine):
    """Updates that were pending when the run was given up are applied to the restored tables."""

    def restore(self, saved: Path) -> None:
        store = inside(self)._store
        given_up = list(store.pending)
        super().restore(saved)
        steps = {update.step for update in store.pending}
        for update in given_up:
            if update.step not in steps:
                store.submit(update)


@mutant(
    "check_the_learning_rate_goes_on_at_the_step_of_the_save",
    "A counter that began at 0 again after a restore: "
    "https://github.com/areal-project/AReaL/issues/1388",
)
class TheLearningRateStartsAgain(EmbsimEngine):
    """After a restore learning rates are asked for with steps that count from 0 again."""

    def restore(self, saved: Path) -> None:
        super().restore(saved)
        store, restored = inside(self)._store, inside(self)._progress.submitted
        own = type(store).coefficients
        store.coefficients = lambda step: own(store, step - restored)


@dataclass(frozen=True)
class _Late(Schedule):
    late: int = 0

    def version_read(self, step: int, start: int = 0) -> int:
        return super().version_read(max(0, step - self.late), start)


@mutant(
    "check_warm_up_and_loops_are_counted_from_the_first_step_of_the_run",
    "The bound on staleness was broken after a recovery, by a counter that began at 0 again while "
    "the version was restored: https://github.com/areal-project/AReaL/issues/1388",
)
class TheStepCounterStartsAgain(EmbsimEngine):
    """After a restore the schedule counts steps from 0 again, versions from where they were."""

    def restore(self, saved: Path) -> None:
        super().restore(saved)
        schedule = self.setup.schedule
        plain = (schedule.staleness, schedule.drain_every, schedule.warmup_steps)
        inside(self).schedule = _Late(*plain, late=inside(self)._progress.dequeued)


@mutant(
    "check_a_restore_brings_back_the_last_drain_before_the_save",
    "Reason to expect it: the pipeline's own counters are not part of the model that is restored.",
)
class TheStartIsNotRestored(EmbsimEngine):
    """After a restore the last drain is still that of the run given up."""

    def restore(self, saved: Path) -> None:
        start = inside(self)._progress.start
        super().restore(saved)
        inside(self)._progress = replace(inside(self)._progress, start=start)


@mutant(
    "check_a_restore_brings_back_the_last_drain_before_the_save",
    "TorchRec's pipelines are drained before a checkpoint is taken: a restart is a bubble.",
)
class ARestoreIsADrain(EmbsimEngine):
    """The first lookups after a restore see every update that was in flight."""

    def restore(self, saved: Path) -> None:
        super().restore(saved)
        self.drain()


@mutant(
    "check_slots_are_saved_with_their_tables_at_one_version",
    "TensorFlow's serving classes restore parameters alone, without slots.",
)
class SlotsAreNotRestored(EmbsimEngine):
    """A restore brings tables back and leaves slots as they are."""

    def restore(self, saved: Path) -> None:
        slots = _copied(_state(self).slots)
        super().restore(saved)
        _put_slots(self, slots)


@mutant(
    "check_slots_are_saved_with_their_tables_at_one_version",
    "Slots of 1e38 after a restore: weights and slots were saved at different moments of an "
    "asynchronous run: https://github.com/DeepRec-AI/DeepRec/issues/1023",
)
class SlotsAreSavedLaterThanTheirTables(EmbsimEngine):
    """A checkpoint has the slots with all updates in them, the tables without those in flight."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.late: dict[Path, Slots] = {}

    def save(self) -> Path:
        path = super().save()
        self.late[path] = _copied(inside(self)._store.read().slots)
        return path

    def restore(self, saved: Path) -> None:
        super().restore(saved)
        _put_slots(self, self.late[saved])


@mutant(
    "check_a_restore_with_work_in_hand_is_refused",
    "Reason to expect it: a loader is reset when a run goes back to a checkpoint.",
)
class ARestoreEmptiesTheQueue(EmbsimEngine):
    """A restore drops the batches that are enqueued, without a word."""

    def restore(self, saved: Path) -> None:
        inside(self)._queue.discard()
        super().restore(saved)


@mutant(
    "check_a_save_changes_nothing",
    "TensorFlow's tables can only be retrieved when the pipeline is drained.",
)
class ASaveIsADrain(EmbsimEngine):
    """A save drains the pipeline of the run that goes on."""

    def save(self) -> Path:
        path = super().save()
        self.drain()
        return path


@mutant(
    "check_a_save_changes_nothing",
    "Reason to expect it: to save complete tables, updates are applied and stay on the list.",
)
class ASaveAppliesWhatStaysInFlight(EmbsimEngine):
    """A save applies the updates that are pending, which are applied again at their step."""

    def save(self) -> Path:
        path = super().save()
        store = inside(self)._store
        for each in store.pending:
            store.backend.update(store.state, each.device_plan, each.gradients, each.coefficients)
        store._patches = None
        return path


@mutant(
    "check_inference_steps_do_not_advance_the_learning_rate",
    "Reason to expect it: a step is counted where a batch is looked up, and inference looks up.",
)
class InferenceCountsAsAStep(EmbsimEngine):
    """The step that learning rates are asked for counts inference steps too."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.looks = 0
        store = inside(self)._store
        own = type(store).coefficients
        store.coefficients = lambda step: own(store, step + self.looks)

    def enqueue(self, batch: Any, training: bool = True) -> None:
        super().enqueue(batch, training)
        self.looks += not training


@mutant(
    "check_slots_have_tensorflow_s_names_and_their_initial_values",
    "torch.optim.Adagrad's initial_accumulator_value is 0, TensorFlow's 0.1.",
)
class AccumulatorsBeginAtZero(EmbsimEngine):
    """Accumulators begin at 0, whatever initial value was asked for."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        for slots in _state(self).slots.values():
            for array in slots.values():
                array[...] = 0


@mutant(
    "check_slots_have_tensorflow_s_names_and_their_initial_values",
    "DeepRec and Keras name Adam's slots m and v, TensorFlow's TPUEmbedding momenta and "
    "velocities: https://github.com/DeepRec-AI/DeepRec/issues/1023",
)
class AdamsSlotsAreCalledMAndV(EmbsimEngine):
    """The slots of Adam have the names that they have in other libraries."""

    def slots(self) -> Mapping[str, Mapping[str, Any]]:
        names = {"momenta": "m", "velocities": "v"}
        return {
            table: {names[slot]: each[slot] for slot in each} if "velocities" in each else each
            for table, each in super().slots().items()
        }


@mutant(
    "check_tables_begin_with_their_initial_values",
    "TensorFlow's SparseCore has row r on shard r mod n: a table in the order of the shards is "
    "shuffled.",
)
class RowsAreInTheOrderOfTheirShards(EmbsimEngine):
    """A table begins with its even rows and then its odd ones, as two shards hold them."""

    def features(self, setup: Setup) -> list[FeatureConfig]:
        tables = {name: self.shuffled(setup, name) for name in setup.tables}
        return [replace(each, table=tables[str(each.table.name)]) for each in setup.features]

    def shuffled(self, setup: Setup, name: str) -> TableConfig:
        rows = setup.initial(name)
        values = Values(np.concatenate([rows[0::2], rows[1::2]]))
        return replace(setup.tables[name], initializer=values)
