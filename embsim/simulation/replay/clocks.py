"""Caches with clocks: each worker trains rows of its own, and a server has the rows of all.

As a worker pulls, it takes from the server the rows that it lacks, and those that have had more
than `bound` updates there since it took them. As it pushes, it sends the gradients of its rows that
have more than `bound` of them unsent; the server makes one step with the sum of a row's gradients.
A worker's own updates are in its rows at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...lookup import row_gradients
from ...optimizers import updates_every_row
from ...state import State
from ..operations import Stage
from .setting import Setting
from .step import Step, lookup_of_rows, rows_plan


@dataclass(eq=False)
class _Cache:
    """One worker's. By table: `taken`, updates of rows at the server that are in them, -1 for a row
    that it lacks; `seen`, all updates in them; `unsent`, how many gradients are in `sums`."""

    state: State
    taken: dict[str, np.ndarray]
    seen: dict[str, np.ndarray]
    unsent: dict[str, np.ndarray]
    sums: dict[str, np.ndarray]


class Clocked:
    """A server and the caches of workers, each as large as the tables."""

    def __init__(self, setting: Setting, workers: int, bound: int) -> None:
        for name, spec in setting.specs.items():
            if updates_every_row(spec.optimizer):
                raise ValueError(
                    f"replay: the optimizer of table {name!r} updates every row at each step; with "
                    "clocks for rows it must update those of the batch"
                )
        self.setting, self.bound = setting, bound
        self.state = setting.initial_state()
        self.updates = 0
        self.caches = [self._cache() for _ in range(workers)]
        self.at_server = self._counts(0)
        self.rows = {"asked": 0, "got": 0, "sent": 0}

    def read(self, step: Step, stage: Stage) -> bool:
        """Whether the batch is looked up now: of rows that the cache has."""
        mine, book = self.caches[step.worker], self.setting.book
        for table in self.setting.specs:
            rows = step.unique(table)
            step.rows[table] = mine.state.weights[table][rows]
            unseen = book.made[table][rows] - mine.seen[table][rows]
            book.read(step, table, book.missing(step, table) + unseen)
        self.setting.looked_up(step, lookup_of_rows(self.setting.backend, self.setting.specs, step))
        return True

    def pull(self, step: Step) -> None:
        """As it begins."""
        mine = self.caches[step.worker]
        for table in self.setting.specs:
            rows = step.unique(table)
            taken, there = mine.taken[table][rows], self.at_server[table][rows]
            old = rows[(taken < 0) | (there - taken > self.bound)]
            self._push(mine, {table: old[mine.unsent[table][old] > 0]})
            fresh = self.setting.backend.read_rows(self.state, table, old)
            mine.state.weights[table][old] = fresh.weights
            for slot, array in fresh.slots.items():
                mine.state.slots[table][slot][old] = array
            mine.taken[table][old] = mine.seen[table][old] = self.at_server[table][old]
            self.rows["asked"] += len(rows)
            self.rows["got"] += len(old)

    def update(self, steps: Sequence[Step]) -> None:
        """As the update of a batch ends: in the worker's own rows."""
        (step,) = steps
        mine, backend = self.caches[step.worker], self.setting.backend
        rows = {name: step.unique(name) for name in self.setting.specs if len(step.unique(name))}
        small = _taken(mine.state, rows)
        plans = {name: step.planned.plans[name].with_rows(rows[name]) for name in rows}
        gradients = {name: step.gradients[name] for name in rows}
        rates = self.setting.rates.at(mine.state.version)
        made = backend.update(
            backend.put_state(small),
            backend.put_plan(plans),
            gradients,
            {name: rates[name] for name in rows},
        )
        _put(mine.state, rows, backend.get_state(made))
        mine.state = replace(mine.state, version=mine.state.version + 1)
        for name, which in rows.items():
            mine.sums[name][which] += row_gradients(gradients[name], step.planned.plans[name])
            mine.unsent[name][which] += 1
            mine.seen[name][which] += 1
        self.setting.book.updated(step)

    def push(self, step: Step) -> None:
        """As it ends."""
        mine = self.caches[step.worker]
        rows = {name: step.unique(name) for name in self.setting.specs}
        self._push(mine, {n: each[mine.unsent[n][each] > self.bound] for n, each in rows.items()})
        self.updates += 1

    def drained(self) -> Any:
        """The server's state with all gradients in it, worker by worker."""
        for mine in self.caches:
            unsent = {n: np.flatnonzero(each).astype(np.int32) for n, each in mine.unsent.items()}
            self._push(mine, unsent)
        return self.state

    def _push(self, mine: _Cache, rows: dict[str, np.ndarray]) -> None:
        rows = {name: each for name, each in rows.items() if len(each)}
        if not rows:
            return
        plans, gradients = {}, {}
        for name, sizes in self.setting.sizes.items():
            which = rows.get(name, np.zeros(0, np.int32))
            plans[name] = rows_plan(name, sizes, which)
            gradients[name] = mine.sums[name][which]
        backend, rates = self.setting.backend, self.setting.rates.at(self.updates)
        self.state = backend.update(self.state, backend.put_plan(plans), gradients, rates)
        for name, which in rows.items():
            sent = mine.unsent[name][which]
            self.at_server[name][which] += sent
            mine.taken[name][which] += sent
            mine.unsent[name][which] = 0
            mine.sums[name][which] = 0
            self.rows["sent"] += len(which)

    def _cache(self) -> _Cache:
        specs = self.setting.specs
        sums = {n: np.zeros((s.vocabulary_size, s.dim), np.float32) for n, s in specs.items()}
        counts = self._counts(-1), self._counts(0), self._counts(0)
        return _Cache(self.setting.initial_arrays(), *counts, sums)

    def _counts(self, value: int) -> dict[str, np.ndarray]:
        return {name: np.full(rows, value, np.int32) for name, rows in self.setting.sizes.items()}


def _taken(state: State, rows: dict[str, np.ndarray]) -> State:
    """Tables of these rows alone."""
    return State(
        {n: replace(state.specs[n], vocabulary_size=len(each)) for n, each in rows.items()},
        {n: state.weights[n][each] for n, each in rows.items()},
        {
            n: {slot: array[each] for slot, array in state.slots[n].items()}
            for n, each in rows.items()
        },
    )


def _put(state: State, rows: dict[str, np.ndarray], small: State) -> None:
    for name, each in rows.items():
        state.weights[name][each] = small.weights[name]
        for slot, array in state.slots[name].items():
            array[each] = small.slots[name][slot]
