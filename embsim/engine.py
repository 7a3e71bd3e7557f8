"""enqueue -> dequeue -> apply_gradients over any backend: queues, versions and looks.

    queue      batches that were enqueued, planned and given to the backend, first in first out
    waiting    training steps that were dequeued and have no gradients yet, oldest first
    pending    updates that were submitted; schedule.py says when lookups see them

A failed call changes nothing: everything that can fail comes before the first assignment.
"""

import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from . import schedule as law
from ._queue import Activations, BatchQueue, by_feature, plan_batch
from ._saved import Saved, load_state, saved_state
from ._signals import ctrl_c_waits
from ._turns import Turns
from .backend import Backend, get_backend
from .batch import Batch, make_batch
from .config import FeatureConfig, integer
from .errors import DeadlockError
from .gradients import owned, stack_gradients
from .pending import PendingUpdate
from .plan import Output
from .schedule import Progress, Schedule
from .state import State
from .store import Store
from .tables import resolve_tables


class Engine:
    """Tables under a schedule; usable without a strategy.

    Features, activations and gradients are flat, in the order of `features`.

    Args:
      features: one FeatureConfig per feature; they may share tables.
      optimizer: for the tables that have none of their own.
      names: of the features, for error messages.
      schedule: which version each lookup reads; sequential() by default.
      backend: a name or an instance, see backend.py.
      seed: of the default initial values.
      queue_capacity: batches that may wait undequeued.
      check_numerics: refuse gradients that are not finite.
      trains: False makes an engine that only holds tables: no optimizer is needed.
    """

    def __init__(
        self,
        features: Sequence[FeatureConfig],
        optimizer: Any = None,
        *,
        names: Sequence[str] | None = None,
        schedule: Schedule | None = None,
        backend: str | Backend = "reference",
        seed: int = 0,
        queue_capacity: int = 8,
        check_numerics: bool = False,
        trains: bool = True,
    ) -> None:
        self.features = tuple(features)
        self.names = tuple(names or (f.name or f"feature_{i}" for i, f in enumerate(features)))
        self.schedule = law.checked(schedule)
        self.tables = resolve_tables(features, optimizer, trains=trains)
        self.check_numerics = check_numerics
        self._store = Store(self.tables, get_backend(backend), integer("seed", seed))
        self._queue = BatchQueue(integer("queue_capacity", queue_capacity, minimum=1))
        self._progress = Progress()
        self._outputs: tuple[Output, ...] | None = None  # of the newest batch
        self._before_run: Any = None  # progress and pending updates
        self._saved, self._closed = -1, False  # saved: the steps submitted when it last was
        self._changed = Turns()

    @property
    def progress(self) -> Progress:
        """How many training steps were dequeued and submitted; `start` as at the last drain."""
        return self._progress

    def make_batch(self, features: Sequence[Any], weights: Sequence[Any] | None = None) -> Batch:
        """A validated batch of one replica, from any of the input forms, one per feature."""
        known = (self.features, self.names, [None] * len(self.features))
        return make_batch(features, weights, *known, 1, self.check_numerics)

    def create_tables(self, call: str = "build") -> None:
        """Make tables and slots from their initial values now, not when they are first needed."""
        with self._call(call):
            self._store.state  # noqa: B018 (made when first asked for)

    def enqueue(
        self,
        batch: Batch,
        training: bool = True,
        *,
        blocking: bool = False,
        timeout: float | None = None,
        in_run: bool = False,
    ) -> None:
        """Plan `batch` and append it to the queue.

        `blocking`: wait for room, at most `timeout` seconds, as a thread that loads data should.
        `in_run`: an effect of the strategy's run in progress, undone with it.

        Raises:
          DeadlockError: the queue is full.
          CapacityError: the backend's buffers cannot hold the batch.
        """
        self.create_tables("enqueue")
        entry = plan_batch(batch, self.tables, self._store.backend, training)
        with self._changed:
            has_room = lambda: self._closed or not self._queue.is_full  # noqa: E731
            if not self._changed.wait_for(has_room, timeout if blocking else 0):
                raise DeadlockError(
                    f"enqueue: the queue of capacity {self._queue.capacity} is full "
                    f"({self._contents()}); missing call: dequeue"
                )
            self._check_open("enqueue")
            self._queue.add(entry, in_run=in_run)
            self._outputs = entry.outputs

    def dequeue(self) -> Activations:
        """Activations of the oldest batch: per feature, read-only float32 [*output_shape, dim].

        Raises:
          DeadlockError: nothing is enqueued, or earlier gradients were never given.
        """
        with self._call("dequeue"):
            self._changed.give_way(self._is_whole)
            if not self._queue.queued:
                raise DeadlockError(
                    f"dequeue: nothing is enqueued ({self._contents()}); missing call: enqueue"
                )
            entry, now = self._queue.queued[0], (self._progress, self._contents())
            if entry.training:
                law.check_training_dequeue(self.schedule, *now)
                activations = entry.activations
                if activations is None:
                    version = law.visible(self.schedule, self._progress)
                    found = self._store.lookup(entry.plans, entry.device_plan, version)
                    activations = by_feature(entry.outputs, found)
                self._progress = replace(self._progress, dequeued=self._progress.dequeued + 1)
            else:
                law.check_nothing_waits("dequeue of an inference step", *now)
                found = self._store.look(entry.plans, entry.device_plan)
                activations = by_feature(entry.outputs, found)
            self._queue.take(activations)
            return activations

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        """Submit the update of the oldest dequeued training step that has no gradients.

        One array per feature, of its activations' shape and any float dtype, or None for zeros.
        DeadlockError if no step waits; ValueError or TypeError for another shape, kind or dtype.
        """
        with self._call("apply_gradients"):
            outputs = self._queue.waiting[0].outputs if self._queue.waiting else self._outputs
            by_table, borrowed = stack_gradients(gradients, self, outputs)
            law.check_gradients_expected(self._progress, self._contents())
            entry, step = self._queue.waiting[0], self._progress.submitted
            rates = self._store.coefficients(step)
            update = PendingUpdate(step, entry.plans, entry.device_plan, by_table, rates)
            progress = replace(self._progress, submitted=step + 1)
            visible = law.visible(self.schedule, progress)
            if self._before_run is not None or visible <= step:  # it outlives this call
                update = replace(update, gradients=owned(by_table, borrowed))
            del self._queue.waiting[0]
            self._store.submit(update)
            self._progress = progress
            self._store.apply(visible)

    def drain(self) -> None:
        """Make every submitted update visible to the lookups that follow: a pipeline bubble."""
        with self._call("drain", between_runs=True):
            law.check_nothing_waits("drain", self._progress, self._contents())
            self._progress = replace(self._progress, start=self._progress.dequeued)
            self._queue.forget_activations()
            self._store.apply(self._progress.submitted)

    def abandon(self) -> int:
        """Give up the dequeued steps that wait for gradients; they return to the queue's head.

        Dequeued again, they return the same activations, unless drain() came between.
        """
        with self._call("abandon", between_runs=True):
            count = self._queue.give_up()
            self._progress = replace(self._progress, dequeued=self._progress.dequeued - count)
            return count

    def discard(self) -> int:
        """Drop all batches that are enqueued and not dequeued. Returns how many there were."""
        with self._call("discard", between_runs=True):
            if any(entry.activations for entry in self._queue.queued):  # their lookups happened:
                self._progress = replace(self._progress, start=self._progress.dequeued)
            return self._queue.discard()

    def read(self, call: str = "table read") -> State:
        """All tables and slots as if drained: read-only views, copies where updates are pending."""
        with self._call(call):
            law.check_nothing_waits(call, self._progress, self._contents())
            return self._store.read()

    def snapshot(self, *, blocking: bool = False, timeout: float | None = None) -> State:
        """As `read`, in memory of its own: later training does not change it.

        `blocking`: wait for the end of the step or run in progress, at most `timeout` seconds, as
        a thread that evaluates should. Training begins no other before.
        """
        with self._changed.look(self._is_whole if blocking else None, timeout, self._contents):
            self._check_open("snapshot", between_runs=True)
            return self.read("snapshot").copied()

    @contextmanager
    def saving(self, drain: bool = False) -> Generator[Saved]:
        """What a checkpoint holds: arrays by name (views), the rest as JSON. Other threads wait."""
        with self._changed:  # Ctrl-C is let through: a save that it ends has changed nothing
            self._check_open("save", between_runs=True)
            law.check_nothing_waits("save", self._progress, self._contents())
            store, progress = self._store, self._progress
            if drain:
                drained = replace(progress, start=progress.dequeued)
                yield saved_state(store.read(), self.schedule, drained, [], {})
                self.drain()  # only now: a save that fails changes nothing
            else:
                state = replace(store.backend.get_state(store.state), version=store.version)
                yield saved_state(state, self.schedule, progress, store.pending, store.patches)
            self._saved = progress.submitted

    def prepare_restore(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Any:
        """Check a checkpoint against this engine and return the function that takes it over."""
        with self._call("restore", between_runs=True):
            law.check_nothing_waits("restore", self._progress, self._contents())
            self._queue.check_empty("restore", self._progress)
            state, progress, pending = load_state(arrays, meta, self._store.specs, self.schedule)

        def commit() -> None:
            with self._changed, ctrl_c_waits():
                self._store.replace_with(state, pending)
                self._progress, self._saved = progress, progress.submitted

        return commit

    def close(self) -> None:
        """End this engine. Warns if work is lost, unless an error is on its way."""
        with self._changed:
            if not self._closed and sys.exc_info()[0] is None:
                is_saved = self._saved == self._progress.submitted
                pending = 0 if is_saved else len(self._store.pending)
                self._queue.warn_of_lost_work(self._progress, pending)
            self._closed = True
            self._queue.clear()
            self._store.release()
            self._changed.notify_all()

    def begin_run(self) -> None:
        """Start of strategy.run: the updates of the run are held back until its end."""
        with self._changed, ctrl_c_waits():
            self._changed.give_way(self._is_whole)
            self._before_run = (self._progress, list(self._store.pending))
            self._queue.begin_run()
            self._store.may_apply = law.visible(self.schedule, self._progress)

    def commit_run(self) -> None:
        with self._changed, ctrl_c_waits():
            self._before_run, self._store.may_apply = None, None
            self._queue.commit_run()
            self._store.apply(law.visible(self.schedule, self._progress))
            self._changed.notify_all()

    def rollback_run(self) -> None:
        """Undo the run; what earlier ones submitted and its lookup made visible stays applied."""
        with self._changed, ctrl_c_waits():
            self._progress, pending = self._before_run
            self._queue.rollback_run()
            self._store.forget_pending(pending)
            self._before_run, self._store.may_apply = None, None
            self._changed.notify_all()

    @contextmanager
    def _call(self, name: str, *, between_runs: bool = False) -> Generator[None]:
        with self._changed, ctrl_c_waits():
            self._check_open(name, between_runs)
            yield
            self._changed.notify_all()

    def _check_open(self, name: str, between_runs: bool = False) -> None:
        if self._closed:
            raise RuntimeError(f"{name}: this embedding was closed; make a new one")
        if between_runs and self._before_run is not None:
            raise RuntimeError(f"{name}: a strategy.run is in progress; call it between runs")

    def _is_whole(self) -> bool:
        return self._closed or not (self._queue.waiting or self._before_run)

    def _contents(self) -> str:
        return self._queue.contents(self._progress)
