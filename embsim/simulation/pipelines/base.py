"""A schedule for the simulator, and what its constructors share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...config import integer
from ...schedule import Schedule
from ..operations import Builder, Operations, Stage

HOST_PREP = Stage("host_prep", "host")
H2D = Stage("h2d", "pcie")
ID_A2A = Stage("id_a2a", "link")
LOOKUP = Stage("lookup", "sparse", reads=True)
EMB_A2A = Stage("emb_a2a", "link")
DENSE = Stage("dense", "dense")
GRAD_A2A = Stage("grad_a2a", "link")
UPDATE = Stage("update", "sparse", writes=True)
INPUT = (HOST_PREP, H2D, ID_A2A)
STAGES = (*INPUT, LOOKUP, EMB_A2A, DENSE, GRAD_A2A, UPDATE)

AHEAD = 2  # batches whose input may be prepared before the lookup that is next
NEVER = 2**62  # a batch that does not come
Rows = dict[str, np.ndarray]  # by stage, the operations of batches 0, 1, 2, ...
Batches = Callable[[np.ndarray], np.ndarray]  # numbers of batches, int64


@dataclass(frozen=True)
class Rule:
    """What a lookup may see: the updates of all batches below `at_least`, perhaps of those below
    `below`, and its worker's own.

    Args:
      at_least, below: of a batch number, int64 arrays to int64 arrays.
      applied: of a batch number, that of the update in which its gradients are.
    """

    at_least: Batches
    below: Batches
    applied: Batches = lambda batches: batches


@dataclass(frozen=True)
class Clocks:
    """Each worker has a cache of rows, each with a clock; `bound` as row_clocks has it."""

    bound: int


@dataclass(frozen=True)
class Replicas:
    """Each worker has all tables and dense weights of its own."""


def itself(batches: np.ndarray) -> np.ndarray:
    """Of batch t: the number of batches before it."""
    return batches


@dataclass(frozen=True)
class Pipeline:
    """A schedule for the simulator.

    Args:
      name: as it is written.
      rule: what lookups are to see.
      make: the operations of so many batches.
      law: the schedule of schedule.py that gives the same numbers; None: none does.
      workers: that run by clocks of their own.
      dense_seen: of a batch number, how many batches' updates of dense weights its step sees; of
        one worker.
      copies: what workers have of their own, beside tables that all share; None: nothing.
      depth: batches whose updates are still to come when rows are read for the next one.
    """

    name: str
    rule: Rule
    make: Callable[[int], Operations]
    law: Schedule | None = None
    workers: int = 1
    dense_seen: Batches = itself
    copies: Clocks | Replicas | None = None
    depth: int = 0

    def operations(self, batches: int) -> Operations:
        """Of the batches 0, 1, ...

        Raises:
          ValueError: fewer than 0.
        """
        return self.make(integer(f"{self.name}: batches", batches, minimum=0))


def batch(
    made: Builder, stages: Sequence[Stage], batches: np.ndarray, rows: Rows, worker: int = 0
) -> None:
    """All stages of each batch, each after the one before; input not too far ahead."""
    for before, stage in zip([None, *stages], stages, strict=False):
        rows[stage.name] = made.add(stage.name, batches, worker)
        if before is not None:
            made.wait(rows[stage.name], rows[before.name])
    first = next(stage.name for stage in stages if stage.reads)
    made.wait(rows[stages[0].name][AHEAD:], rows[first][:-AHEAD])


def together(made: Builder, rows: Sequence[Rows]) -> None:
    """Dense gradients are reduced when all workers have theirs."""
    for mine in rows:
        for other in rows:
            n = min(len(mine["all_reduce"]), len(other["dense"]))
            made.wait(mine["all_reduce"][:n], other["dense"][:n])


def read_exactly(made: Builder, reads: np.ndarray, writes: np.ndarray, read: np.ndarray) -> None:
    """reads[t] after the first read[t] writes, and before all others. `read` never decreases."""
    made.wait(reads, at(writes, read - 1))
    last = np.searchsorted(read, np.arange(len(writes)), side="right") - 1
    made.wait(writes, reads[last])


def in_turn(made: Builder, operations: np.ndarray) -> None:
    made.wait(operations[1:], operations[:-1])


def at(operations: np.ndarray, index: np.ndarray) -> np.ndarray:
    """operations[index], -1 where the index is below 0."""
    inside = np.minimum(np.maximum(index, 0), max(len(operations) - 1, 0))
    return np.where(index < 0, -1, operations[inside] if len(operations) else -1)
