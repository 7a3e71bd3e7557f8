"""Faults of what is in flight: batches in the queue, lookups ahead, updates that wait."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..._queue import by_feature
from ..embsim_engine import EmbsimEngine
from ..program import Batch
from .mutant import mutant
from .schedule import inside

_TORCHREC = "https://github.com/meta-pytorch/torchrec/pull"
_JAX = "https://github.com/jax-ml/jax-tpu-embedding"


@mutant(
    "check_staleness_is_exact_however_full_the_queue_is",
    "Reason to expect it: asynchronous parameter servers bound the staleness, and are fresher when "
    "they have time: https://github.com/PersiaML/PERSIA",
)
class UpdatesAreAppliedWhenTheQueueIsEmpty(EmbsimEngine):
    """An engine without work brings its tables up to date: at most so stale, not exactly."""

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        super().apply_gradients(gradients)
        core = inside(self)
        if not core._queue.queued and not core._queue.waiting:
            core._store.apply(core.progress.submitted)


@mutant(
    "check_the_nth_dequeue_returns_the_activations_of_the_nth_batch",
    f"jax-tpu-embedding's pipelined lookup returns zeros first, and is one call late: {_JAX}",
)
class OutputsComeOneDequeueLate(EmbsimEngine):
    """Each dequeue returns the activations of the batch before, the first one zeros."""

    def dequeue(self) -> Sequence[Any] | None:
        own = super().dequeue()
        assert own is not None
        late = getattr(self, "_late", [np.zeros_like(each) for each in own])
        self._late = own
        return late


@mutant(
    "check_the_nth_dequeue_returns_the_activations_of_the_nth_batch",
    f"A pipeline that is being filled hands out its placeholders, which are zeros: {_JAX}",
)
class TheFirstStaleStepsReadZeros(EmbsimEngine):
    """Steps that come before the first update is visible read no table at all."""

    def dequeue(self) -> Sequence[Any] | None:
        core = inside(self)
        step = core.progress.dequeued
        found = super().dequeue()
        if core.progress.dequeued == step or step >= core.schedule.staleness or found is None:
            return found
        return [np.zeros_like(each) for each in found]


@mutant(
    "check_enqueueing_far_ahead_gives_the_numbers_of_just_in_time",
    "Reason to expect it: several loader threads that fill one queue.",
)
class TwoBatchesInTheQueueChangePlaces(EmbsimEngine):
    """A batch that is enqueued behind another overtakes it."""

    def enqueue(self, batch: Batch, training: bool = True) -> None:
        super().enqueue(batch, training)
        queued = inside(self)._queue.queued
        queued[-2:] = queued[-2:][::-1]


@mutant(
    "check_enqueueing_far_ahead_gives_the_numbers_of_just_in_time",
    "Prefetched rows went stale before they were used, and the loss was another: "
    "https://github.com/NVIDIA/recsys-examples/issues/280",
)
class LookupsHappenWhenABatchIsEnqueued(EmbsimEngine):
    """A batch reads the version of its enqueue, however long it then waits."""

    def enqueue(self, batch: Batch, training: bool = True) -> None:
        super().enqueue(batch, training)
        core = inside(self)
        if training:
            entry = core._queue.queued[-1]
            core._queue.queued[-1] = replace(entry, activations=_looked_up(core, entry))


@mutant(
    "check_a_lookup_made_ahead_of_a_drain_is_made_again",
    "Rows prefetched for the next batch are not read again after the pipeline was emptied; of such "
    "hazards: https://github.com/pytorch/FBGEMM/pull/1893",
)
class ALookupMadeAheadSurvivesADrain(EmbsimEngine):
    """A lookup is made as soon as its version is there, and never again."""

    def enqueue(self, batch: Batch, training: bool = True) -> None:
        super().enqueue(batch, training)
        core = inside(self)
        queued, progress = core._queue.queued, core.progress
        step = progress.dequeued + sum(entry.training for entry in queued[:-1])
        version = core.schedule.version_read(step, progress.start)
        if training and version == core._store.version:
            queued[-1] = replace(queued[-1], activations=_looked_up(core, queued[-1]))

    def drain(self) -> None:
        kept = list(inside(self)._queue.queued)
        super().drain()
        inside(self)._queue.queued = kept


def _looked_up(core: Any, entry: Any) -> Any:
    """Its activations in the tables as they are now."""
    found = core._store.backend.lookup(core._store.state, entry.device_plan)
    return by_feature(entry.outputs, found)


@mutant(
    "check_a_delayed_update_keeps_the_learning_rate_of_its_own_step",
    "A rate that is read inside the delayed backward pass is that of a later step, unless it "
    f"travels with the gradients: {_JAX}",
)
class ADelayedUpdateTakesTheRateOfALaterStep(EmbsimEngine):
    """The learning rate is read when the update is applied, not when its gradients are given."""

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        core = inside(self)
        now = core._store.coefficients(core.progress.submitted)
        pending = core._store.pending
        pending[:] = [replace(update, coefficients=now) for update in pending]
        super().apply_gradients(gradients)


@mutant(
    "check_enqueueing_far_ahead_gives_the_numbers_of_just_in_time",
    "Reason to expect it: two streams that apply updates without waiting for each other; of such "
    f"races: {_TORCHREC}/2731",
)
class TwoUpdatesInFlightChangePlaces(EmbsimEngine):
    """The newer one of two updates in flight is applied first."""

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        super().apply_gradients(gradients)
        pending = inside(self)._store.pending
        if len(pending) > 1:
            older, newer = pending[-2:]
            pending[-2:] = [replace(newer, step=older.step), replace(older, step=newer.step)]


@mutant(
    "check_the_rows_of_a_lookup_are_all_of_one_version",
    "Semi-synchronous training raced: the lookup of the next batch and the update in flight shared "
    f"rows: {_TORCHREC}/2598",
)
class ALookupReadsHalfOfTheUpdateInFlight(EmbsimEngine):
    """Of the rows that updates in flight touch, a lookup reads every other one updated."""

    def dequeue(self) -> Sequence[Any] | None:
        store = inside(self)._store
        before: dict[str, Any] = {}
        for name, patch in store.patches.items():
            table, rows = store.state.weights[name], patch.rows[::2]
            before[name] = table[rows]
            table[rows] = patch.values.weights[::2]
        try:
            return super().dequeue()
        finally:
            for name, patch in store.patches.items() if before else ():
                store.state.weights[name][patch.rows[::2]] = before[name]


@mutant(
    "check_a_step_of_empty_bags_is_a_step",
    "Batches without ids are left out by some workers, and steps no longer agree: "
    "https://github.com/meta-pytorch/torchrec/issues/189",
)
class AStepOfEmptyBagsIsLeftOut(EmbsimEngine):
    """Where no row was touched there is no update, no version and no step."""

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        core = inside(self)
        waiting = core._queue.waiting
        if waiting and not any(len(plan.row) for plan in waiting[0].plans.values()):
            del waiting[0]
            core._progress = replace(core._progress, dequeued=core._progress.dequeued - 1)
        else:
            super().apply_gradients(gradients)


@mutant(
    "check_steps_dequeued_ahead_read_the_versions_that_they_always_read",
    "Reason to expect it: updates are made at fixed places of a training loop, and a caller that "
    "looks ahead is not in one of them.",
)
class LookupsAheadSeeNoUpdateInFlight(EmbsimEngine):
    """While a step waits for its gradients, no update is applied for the next lookup."""

    def dequeue(self) -> Sequence[Any] | None:
        core = inside(self)
        if not core._queue.waiting:
            return super().dequeue()
        held, core._store.pending = core._store.pending, []
        try:
            return super().dequeue()
        finally:
            core._store.pending = held


@mutant(
    "check_steps_dequeued_ahead_read_the_versions_that_they_always_read",
    "A training forward without its backward is a state that pipelines do not expect: "
    "https://github.com/pytorch/FBGEMM/pull/6120",
)
class OneStepAtATime(EmbsimEngine):
    """A dequeue ahead of the last one's gradients is refused, though its version is there."""

    def dequeue(self) -> Sequence[Any] | None:
        if inside(self)._queue.waiting:
            raise RuntimeError("dequeue: a step waits for its gradients")
        return super().dequeue()
