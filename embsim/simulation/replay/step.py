"""One batch of a replay, from its first read to its update."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..._queue import Enqueued
from ...backend import Backend
from ...plan import LookupPlan
from ...state import State, TableSpec


@dataclass(eq=False)
class Step:
    """A batch and what has become of it.

    Args:
      batch, worker: its numbers.
      planned: its plans.
      inputs: of the dense model.
      activations: by feature, once they are looked up.
      gradients: by table, float32 [samples, dim], once they are computed.
      slopes: gradients of the dense parameters.
      rows: by table, float32 [unique, dim]: rows as they were read, where that is kept.
      known: by table, bool [unique]: which of them have been read.
      made: by table, int32 [unique]: updates that each row had had when it was read.
      missed: by table, int32 [unique]: updates that the read missed.
    """

    batch: int
    worker: int
    planned: Enqueued
    inputs: Any
    activations: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    gradients: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    rows: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    known: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    made: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    missed: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    slopes: Any = None

    def unique(self, table: str) -> np.ndarray:
        """int32 [unique]: the rows of a table that it touches, ascending."""
        return self.planned.plans[table].unique


def lookup_of_rows(
    backend: Backend, specs: dict[str, TableSpec], step: Step
) -> dict[str, np.ndarray]:
    """Activations by table, of the rows that the step has read, whenever that was."""
    plans = step.planned.plans
    small = {
        name: TableSpec(name, len(rows), specs[name].dim, None, specs[name].quantization)
        for name, rows in step.rows.items()
        if len(rows)
    }
    found: dict[str, Any] = {}
    if small:
        weights = {name: np.array(step.rows[name]) for name in small}
        state = backend.put_state(State(small, weights, {name: {} for name in small}))
        local = {name: plans[name].with_rows(plans[name].unique) for name in small}
        found = dict(backend.lookup(state, backend.put_plan(local)))
    return {
        name: np.asarray(found[name])
        if name in found
        else np.zeros((plan.samples, specs[name].dim), np.float32)
        for name, plan in plans.items()
    }


def joined(plans: Sequence[LookupPlan]) -> LookupPlan:
    """Of one table: their samples one below the other, as one batch."""
    first = plans[0]
    if len(plans) == 1:
        return first
    offsets = np.cumsum([0, *(len(plan.row) for plan in plans)])
    splits = [plan.splits[1:] + offset for plan, offset in zip(plans, offsets[:-1], strict=True)]
    return LookupPlan(
        first.table,
        first.num_rows,
        np.concatenate([np.zeros(1, np.int64), *splits]),
        np.concatenate([plan.row for plan in plans]),
        np.concatenate([plan.gain for plan in plans]),
    )


def rows_plan(table: str, num_rows: int, rows: np.ndarray) -> LookupPlan:
    """One row for each sample, as it is: the plan of gradients that are already summed by row."""
    splits = np.arange(len(rows) + 1, dtype=np.int64)
    return LookupPlan(table, num_rows, splits, rows, np.ones(len(rows), np.float32))
