"""Batches between enqueue and gradients, first in, first out."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ._threads import parallel
from .backend import Backend
from .batch import Batch
from .plan import LookupPlan, Output, build_plans
from .schedule import Progress
from .tables import Tables

Activations = tuple[np.ndarray, ...]
SORT = 8  # sorting an id costs about what going through so many floats does


@dataclass(frozen=True, eq=False)
class Enqueued:
    """A planned batch.

    `activations` is set if it was dequeued before and given up with abandon().
    """

    plans: Mapping[str, LookupPlan]
    device_plan: Any
    outputs: tuple[Output, ...]
    training: bool
    activations: Activations | None = None


def plan_batch(batch: Batch, tables: Tables, backend: Backend, training: bool) -> Enqueued:
    """All that needs no table: plans, sorted by row if they will train, put to the backend."""
    if not isinstance(batch, Batch):
        raise TypeError(f"enqueue: found {type(batch).__name__}; pass what make_batch returns")
    sizes = [(spec.name, spec.vocabulary_size) for spec in tables.specs]
    rows = dict(sizes)
    wanted = tuple(rows[table] for table in tables.of_feature)
    if batch.vocabulary_sizes != wanted:
        raise ValueError(
            f"enqueue: the batch was made for tables of {batch.vocabulary_sizes} rows by feature, "
            f"the engine's have {wanted}; make it with this engine's make_batch"
        )
    plans, outputs = build_plans(batch, sizes, tables.of_feature)
    if training:
        ids = sum(len(plan.row) for plan in plans.values())
        parallel([lambda plan=plan: plan.by_row for plan in plans.values()], ids * SORT)
    return Enqueued(plans, backend.put_plan(plans), outputs, training)


@dataclass(frozen=True)
class _BeforeRun:
    """The queue when a run began, and what other threads enqueued since."""

    queued: list[Enqueued]
    waiting: list[Enqueued]
    arrived: list[Enqueued]


class BatchQueue:
    """`queued`: batches not dequeued yet. `waiting`: dequeued training steps without gradients."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.queued: list[Enqueued] = []
        self.waiting: list[Enqueued] = []
        self._before_run: _BeforeRun | None = None

    @property
    def is_full(self) -> bool:
        return len(self.queued) >= self.capacity

    def take(self, activations: Activations) -> None:
        """The oldest batch is dequeued with these activations."""
        entry = self.queued.pop(0)
        if entry.training:
            self.waiting.append(replace(entry, activations=activations))

    def give_up(self) -> int:
        """All waiting steps return to the queue's head with their activations; how many."""
        count = len(self.waiting)
        self.queued, self.waiting = self.waiting + self.queued, []
        return count

    def forget_activations(self) -> None:
        """Steps that were given up are looked up anew."""
        self.queued = [replace(entry, activations=None) for entry in self.queued]

    def add(self, entry: Enqueued, *, in_run: bool) -> None:
        """Append a batch. One from outside a run in progress is no effect of that run."""
        self.queued.append(entry)
        if self._before_run is not None and not in_run:
            self._before_run.arrived.append(entry)

    def begin_run(self) -> None:
        self._before_run = _BeforeRun(list(self.queued), list(self.waiting), [])

    def commit_run(self) -> None:
        self._before_run = None

    def rollback_run(self) -> None:
        """As before the run, with the batches behind it that other threads enqueued meanwhile."""
        before, self._before_run = self._before_run, None
        assert before is not None
        self.queued, self.waiting = before.queued + before.arrived, before.waiting

    def discard(self) -> int:
        """Drop the batches that are not dequeued; how many."""
        count, self.queued = len(self.queued), []
        return count

    def check_empty(self, call: str, progress: Progress) -> None:
        """Raises RuntimeError if batches are enqueued."""
        if self.queued:
            raise RuntimeError(
                f"{call}: batches are enqueued ({self.contents(progress)}), of the run that it "
                "replaces; dequeue them first, or make a new object"
            )

    def warn_of_lost_work(self, progress: Progress, pending: int) -> None:
        """At close: what will never be done."""
        if self.queued or self.waiting or pending:
            warnings.warn(
                f"close: work is given up ({self.contents(progress)}, {pending} updates not yet "
                "applied); drain() or save() first, or abandon what is not wanted",
                stacklevel=4,
            )

    def clear(self) -> None:
        self.queued, self.waiting = [], []

    def contents(self, progress: Progress) -> str:
        """For messages: what is queued, and how far training is."""
        kinds = ["training" if entry.training else "inference" for entry in self.queued]
        return (
            f"queue: {kinds}; dequeued {progress.dequeued} training steps, gradients given for "
            f"{progress.submitted}"
        )


def by_feature(outputs: Sequence[Output], found: Mapping[str, Any]) -> Activations:
    """Activations by table -> read-only views by feature, in each feature's shape."""
    arrays = {name: np.asarray(array) for name, array in found.items()}
    parts: list[np.ndarray] = []
    for output in outputs:
        part = arrays[output.table][output.lo : output.hi].reshape(*output.shape, -1)
        part.flags.writeable = False
        parts.append(part)
    return tuple(parts)
