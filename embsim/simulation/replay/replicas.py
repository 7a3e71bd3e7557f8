"""All tables at every worker, averaged now and then while training goes on."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...state import State
from ..operations import Stage
from .dense import moved
from .setting import Setting
from .step import Step


class Replicated:
    """A state for each worker. An average is of what they are as it begins; as it ends, each worker
    has it, with what it has changed since."""

    def __init__(self, setting: Setting, workers: int) -> None:
        self.setting = setting
        self.states = [setting.initial_state() for _ in range(workers)]
        self.seen = [_like(setting.book.made) for _ in range(workers)]  # updates in each row
        self.updates = [0] * workers
        self.rows: dict[str, int] = {}

    def read(self, step: Step, stage: Stage) -> bool:
        """Whether the batch is looked up now: in the worker's own tables."""
        book, seen = self.setting.book, self.seen[step.worker]
        for table in self.setting.specs:
            rows = step.unique(table)
            unseen = book.made[table][rows] - seen[table][rows]
            book.read(step, table, book.missing(step, table) + unseen)
        found = self.setting.backend.lookup(self.states[step.worker], step.planned.device_plan)
        self.setting.looked_up(step, found)
        return True

    def pull(self, step: Step) -> None:
        """As it begins: nothing."""

    def update(self, steps: Sequence[Step]) -> None:
        """As the update of a batch ends."""
        (step,) = steps
        worker = step.worker
        self.states[worker] = self.setting.backend.update(
            self.states[worker],
            step.planned.device_plan,
            step.gradients,
            self.setting.rates.at(self.updates[worker]),
        )
        self.updates[worker] += 1
        self.setting.book.updated(step)
        for table in self.setting.specs:
            self.seen[worker][table][step.unique(table)] += 1

    def push(self, step: Step) -> None:
        """As it ends: nothing."""

    def sync(self) -> Callable[[], None]:
        """As an average begins -> what is to be done as it ends."""
        backend = self.setting.backend
        before = [backend.get_state(state).copied() for state in self.states]
        average, made = _mean(before), _like(self.setting.book.made, copy=True)
        seen = [_like(each, copy=True) for each in self.seen]

        def end() -> None:
            for worker, then in enumerate(before):
                now = backend.get_state(self.states[worker])
                self.states[worker] = backend.put_state(_moved(average, now, then))
                for table, count in made.items():
                    since = self.seen[worker][table] - seen[worker][table]
                    self.seen[worker][table] = count + since

        return end

    def drained(self) -> Any:
        """The mean of all."""
        backend = self.setting.backend
        return backend.put_state(_mean([backend.get_state(each) for each in self.states]))


def _like(counts: dict[str, np.ndarray], copy: bool = False) -> dict[str, np.ndarray]:
    return {name: each.copy() if copy else np.zeros_like(each) for name, each in counts.items()}


def _mean(states: Sequence[State]) -> State:
    def mean(*arrays: np.ndarray) -> np.ndarray:
        return np.asarray(np.mean(arrays, axis=0, dtype=np.float64), np.float32)

    return _map(mean, *states)


def _moved(average: State, now: State, then: State) -> State:
    return _map(moved, average, now, then)


def _map(function: Callable[..., np.ndarray], first: State, *others: State) -> State:
    """The function on every array."""
    states = (first, *others)
    weights = {n: function(*(state.weights[n] for state in states)) for n in first.weights}
    slots = {
        n: {slot: function(*(state.slots[n][slot] for state in states)) for slot in each}
        for n, each in first.slots.items()
    }
    return State(first.specs, weights, slots, first.version)
