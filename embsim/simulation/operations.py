"""What a schedule does, as data: operations, what each waits for, and the resource that it takes.

An operation is one stage of one batch: lookup(7). It takes its resource alone, and begins when all
that it waits for has ended. Tables are touched by two kinds only: a stage that reads them does so
as it begins, one that writes them as it ends.

    >>> lookup = Stage("lookup", "sparsecore", reads=True)
    >>> made = Builder((lookup, Stage("update", "sparsecore", writes=True)))
    >>> lookups, updates = made.add("lookup", range(3)), made.add("update", range(3))
    >>> made.wait(updates, lookups)  # each update for the lookup of its batch
    >>> made.wait(lookups[1:], updates[:-1])  # each lookup for the update before
    >>> print(*made.build())
    lookup(0) update(0) lookup(1) update(1) lookup(2) update(2)
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, SupportsIndex

import numpy as np


@dataclass(frozen=True)
class Stage:
    """One kind of operation.

    Args:
      name: unique among the stages of a schedule.
      resource: what it takes, alone, for its whole time: "sparsecore", "link", "host", ...
      reads: whether it looks up rows, as it begins.
      writes: whether it applies an update, as it ends.
      shared: whether all workers have one such resource between them.
      work: what is done, as stages.py gives it seconds; the name by default.
      share: of that work, the part that is done, by the name that traffic.py gives it; all of it by
        default.
    """

    name: str
    resource: str
    reads: bool = False
    writes: bool = False
    shared: bool = False
    work: str = ""
    share: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "work", self.work or self.name)


@dataclass(frozen=True)
class Operation:
    """One of Operations, to look at."""

    stage: Stage
    batch: int
    worker: int = 0

    def __str__(self) -> str:
        worker = f", worker {self.worker}" if self.worker else ""
        return f"{self.stage.name}({self.batch}{worker})"


@dataclass(frozen=True)
class Resource:
    """What one operation at a time can have; `worker` is None if all workers share it."""

    name: str
    worker: int | None = 0


@dataclass(frozen=True, eq=False)
class Operations:
    """Of a run. Where several could begin on a resource, the first of them does.

    Args:
      stages: the kinds.
      stage: int32 [n], index into `stages`.
      batch, worker: int32 [n].
      edges, waits: operation i waits for waits[edges[i] : edges[i + 1]]; int64 [n + 1], int32 [e].
    """

    stages: tuple[Stage, ...]
    stage: np.ndarray
    batch: np.ndarray
    worker: np.ndarray
    edges: np.ndarray
    waits: np.ndarray

    def __len__(self) -> int:
        return len(self.stage)

    def __getitem__(self, index: SupportsIndex) -> Operation:
        stage = self.stages[self.stage[index]]
        return Operation(stage, int(self.batch[index]), int(self.worker[index]))

    def __iter__(self) -> Iterator[Operation]:
        return (self[index] for index in range(len(self)))

    def of(self, stage: str) -> np.ndarray:
        """Indices of a stage's operations, ascending."""
        return np.flatnonzero(self.stage == index_of(self.stages, stage))

    def waits_of(self, index: SupportsIndex) -> np.ndarray:
        """Indices of the operations that one waits for."""
        at = operator.index(index)
        return self.waits[self.edges[at] : self.edges[at + 1]]

    @property
    def reads(self) -> np.ndarray:
        """bool [n]: whether an operation looks up rows."""
        return np.array([stage.reads for stage in self.stages], bool)[self.stage]

    @property
    def writes(self) -> np.ndarray:
        """bool [n]: whether an operation applies an update."""
        return np.array([stage.writes for stage in self.stages], bool)[self.stage]

    @property
    def resources(self) -> tuple[Resource, ...]:
        """All that any operation takes."""
        return self._taken[0]

    @property
    def resource(self) -> np.ndarray:
        """int32 [n], index into `resources`."""
        return self._taken[1]

    @cached_property
    def _taken(self) -> tuple[tuple[Resource, ...], np.ndarray]:
        names = list(dict.fromkeys(stage.resource for stage in self.stages))
        name = np.array([names.index(stage.resource) for stage in self.stages])[self.stage]
        shared = np.array([stage.shared for stage in self.stages], bool)[self.stage]
        workers = int(self.worker.max(initial=0)) + 2
        key = name * workers + np.where(shared, 0, self.worker + 1)
        found, index = np.unique(key, return_inverse=True)
        taken = (
            Resource(names[k // workers], k % workers - 1 if k % workers else None)
            for k in found.tolist()
        )
        return tuple(taken), index.astype(np.int32)


class Builder:
    """Operations, stage by stage."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        """`stages` are in the order in which a batch goes through them.

        Raises:
          ValueError: two have one name.
        """
        self.stages = tuple(stages)
        names = [stage.name for stage in stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages: names must be unique, found {names}")
        self._columns: list[np.ndarray] = []  # int32 [3, n] each: stage, batch, worker
        self._edges: list[np.ndarray] = []  # int64 [2, e] each: who waits, for whom
        self._count = 0

    def add(self, stage: str, batches: Any, worker: int = 0) -> np.ndarray:
        """One operation of the stage for each batch -> int64 [batches], names of them for `wait`.

        Raises:
          ValueError: no such stage.
        """
        batches = np.array(list(batches) if isinstance(batches, range) else batches, np.int32)
        rest = np.full_like(batches, index_of(self.stages, stage)), np.full_like(batches, worker)
        self._columns.append(np.stack([rest[0], batches, rest[1]]))
        self._count += len(batches)
        return np.arange(self._count - len(batches), self._count)

    def wait(self, operations: np.ndarray, others: np.ndarray) -> None:
        """operations[i] begins after others[i] has ended; -1 is no operation."""
        pairs = np.stack(np.broadcast_arrays(operations, others)).reshape(2, -1)
        self._edges.append(pairs[:, (pairs >= 0).all(axis=0)])

    def build(self) -> Operations:
        """Ordered by batch, within one by stage, then by worker."""
        stage, batch, worker = np.concatenate([np.zeros((3, 0), np.int32), *self._columns], axis=1)
        order = np.lexsort((worker, stage, batch))
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        who, whom = place[np.concatenate([np.zeros((2, 0), np.int64), *self._edges], axis=1)]
        by_who = np.argsort(who, kind="stable")
        edges = np.concatenate([[0], np.cumsum(np.bincount(who, minlength=len(order)))])
        waits = whom[by_who].astype(np.int32)
        columns = stage[order], batch[order], worker[order]
        return Operations(self.stages, *columns, edges, waits)


def index_of(stages: Sequence[Stage], name: str) -> int:
    """Raises ValueError: no such stage."""
    names = [stage.name for stage in stages]
    if name not in names:
        raise ValueError(f"there is no stage {name!r}; it must be one of {tuple(names)}")
    return names.index(name)
