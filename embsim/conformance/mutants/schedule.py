"""Faults of a pipeline's schedule: versions, warm-up, loops, drains and bubbles."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...schedule import Schedule
from ..embsim_engine import EmbsimEngine
from ..program import Setup
from .mutant import mutant

_TORCHREC = "https://github.com/meta-pytorch/torchrec/pull"
_JAX = "https://github.com/jax-ml/jax-tpu-embedding"


def inside(engine: EmbsimEngine) -> Any:
    """embsim's engine: its queue, progress, schedule and store."""
    embedding: Any = engine.embedding
    return embedding._engine


def zero_update(store: Any, update: Any) -> None:
    """The rows of `update` through their optimizer, with gradients of zero."""
    zeros = {name: np.zeros_like(each) for name, each in update.gradients.items()}
    store._made = store.backend.update(store.state, update.device_plan, zeros, update.coefficients)
    store._patches = None


class _OtherSchedule(EmbsimEngine):
    """Runs another schedule than it was asked for."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(replace(setup, schedule=self.other(setup.schedule)))

    def other(self, schedule: Schedule) -> Schedule:
        raise NotImplementedError


@mutant(
    "check_every_lookup_reads_the_version_of_its_schedule",
    "jax-tpu-embedding's pipeline gets the gradients of step i - 2 at step i, easily taken for the "
    f"lag of its lookups, which is one: {_JAX}",
)
class StaleByTwoInsteadOfOne(_OtherSchedule):
    """Lookups are one step older than they must be."""

    def other(self, schedule: Schedule) -> Schedule:
        return replace(schedule, staleness=schedule.staleness + (schedule.staleness == 1))


@mutant(
    "check_staleness_is_exact_however_full_the_queue_is",
    "TensorFlow's SparseCore path leaves its pipelining out, with a line in the log, while "
    "summaries are recorded: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/"
    "python/tpu/tpu_embedding_v3.py",
)
class FreshInsteadOfStale(_OtherSchedule):
    """The schedule is taken and ignored: every lookup sees every update."""

    def other(self, schedule: Schedule) -> Schedule:
        return Schedule()


@mutant(
    "check_every_lookup_reads_the_version_of_its_schedule",
    f"Semi-synchronous pipelines begin at a given batch, inclusive or not: {_TORCHREC}/2739",
)
class TheWarmUpIsOneStepTooLong(_OtherSchedule):
    """The first step after the warm-up is synchronous too."""

    def other(self, schedule: Schedule) -> Schedule:
        return replace(schedule, warmup_steps=schedule.warmup_steps + (schedule.warmup_steps > 0))


class _Late(Schedule):
    def version_read(self, step: int, start: int = 0) -> int:
        late = max(start, step - 1) if self._begins_a_loop(step) else step
        return step if step < self.warmup_steps else super().version_read(late, start)

    def _begins_a_loop(self, step: int) -> bool:
        return self.drain_every is not None and step > 0 and step % self.drain_every == 0


class _SinceDrain(Schedule):
    def version_read(self, step: int, start: int = 0) -> int:
        if step < self.warmup_steps:
            return step
        since = replace(_as(Schedule, self), warmup_steps=max(0, self.warmup_steps - start))
        return start + since.version_read(step - start)


def _as(kind: type[Schedule], schedule: Schedule) -> Schedule:
    return kind(schedule.staleness, schedule.drain_every, schedule.warmup_steps)


@mutant(
    "check_every_lookup_reads_the_version_of_its_schedule",
    "Reason to expect it: whether the flush belongs to the last step of a loop or to the first of "
    "the next one.",
)
class LoopsAreDrainedOneStepLate(_OtherSchedule):
    """The first step of a loop still reads stale tables."""

    def other(self, schedule: Schedule) -> Schedule:
        return _as(_Late, schedule)


@mutant(
    "check_drains_move_the_start_and_loops_begin_where_they_began",
    "Reason to expect it: a loop's counter that is local to the loop starts anew after every stop.",
)
class LoopsAreCountedFromTheLastDrain(_OtherSchedule):
    """A drain in the middle of a loop moves the ends of all later loops."""

    def other(self, schedule: Schedule) -> Schedule:
        return _as(_SinceDrain, schedule)


@mutant(
    "check_drains_move_the_start_and_loops_begin_where_they_began",
    "A pipelined loop must run two steps more than there are batches, and a loop over the batches "
    f"does not: {_JAX}",
)
class TheLastUpdateIsLostAtTheDrain(EmbsimEngine):
    """A drain throws away the newest update that is in flight."""

    def drain(self) -> None:
        inside(self).read()  # refuses what a drain must refuse
        del inside(self)._store.pending[-1:]
        super().drain()


@mutant(
    "check_a_drain_of_nothing_changes_nothing",
    "Reason to expect it: a flush that runs the stages once, where two are filled.",
)
class ADrainLeavesTheNewestUpdateInFlight(EmbsimEngine):
    """The newest update is applied only after the first lookup that follows the drain."""

    def drain(self) -> None:
        core = inside(self)
        core.read()
        late = core._store.pending[-1:]
        del core._store.pending[-1:]
        super().drain()
        start = core.progress.start
        core._store.pending[:0] = [replace(update, step=start) for update in late]


@mutant(
    "check_drains_move_the_start_and_loops_begin_where_they_began",
    "Reason to expect it: what shows the newest tables to a reader is taken for a drain.",
)
class ADrainIsOnlyALook(EmbsimEngine):
    """drain() waits for the updates and does not make them visible to lookups."""

    def drain(self) -> None:
        inside(self).read()


@mutant(
    "check_no_bubble_goes_through_an_optimizer_as_a_gradient_of_zero",
    "jax-tpu-embedding drains with a dense step of zeros and warns that optimizers with slots "
    f"may do a small update: {_JAX}",
)
class ADrainFeedsZerosThroughTheOptimizer(EmbsimEngine):
    """A drain ends with the newest batch once more, its gradients zero."""

    def drain(self) -> None:
        newest = inside(self)._store.pending[-1:]
        super().drain()
        for update in newest:
            zero_update(inside(self)._store, update)


@mutant(
    "check_filling_and_draining_a_pipeline_updates_no_row",
    "jax-tpu-embedding fills its pipeline with a dense step of zeros, on whatever batch is given "
    f"as the placeholder: {_JAX}",
)
class FillingFeedsZerosThroughTheOptimizer(EmbsimEngine):
    """The first update in flight is followed by one of its rows with gradients of zero."""

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        core = inside(self)
        first = core.progress.submitted == core.progress.start
        super().apply_gradients(gradients)
        if first and core._store.pending:
            zero_update(core._store, core._store.pending[-1])


@mutant(
    "check_every_lookup_reads_the_version_of_its_schedule",
    "Reason to expect it: an update that a look or a prefetch has applied is applied again when "
    f"its turn comes; of such hazards: {_TORCHREC}/4191",
)
class AnUpdateInFlightIsAppliedTwice(EmbsimEngine):
    """An update that has to wait is applied two times."""

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        super().apply_gradients(gradients)
        pending = inside(self)._store.pending
        pending += pending[-1:]
