"""When each operation of a schedule runs: list scheduling, deterministic.

A resource that is free takes, of the operations that could begin, the first one in the order of
Operations. Time is in seconds from the beginning of the run.
"""

from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from typing import Any

import numpy as np

from .._numba import kernel
from ..errors import DeadlockError
from .operations import Operations, Resource


@dataclass(frozen=True, eq=False)
class Timeline:
    """Operations with times.

    Args:
      start, end: float64 [n], seconds.
      began, ended: int64 [n], ranks of all beginnings and ends in one sequence: which came first,
        where times are equal too.
    """

    operations: Operations
    start: np.ndarray
    end: np.ndarray
    began: np.ndarray
    ended: np.ndarray

    @property
    def seconds(self) -> float:
        """Until the last operation has ended."""
        return float(self.end.max(initial=0.0))

    @cached_property
    def busy(self) -> dict[Resource, float]:
        """Seconds for which each resource is taken."""
        operations = self.operations
        taken = np.bincount(operations.resource, self.end - self.start)
        return dict(zip(operations.resources, taken.tolist(), strict=True))

    def events(self) -> np.ndarray:
        """Indices of the operations that touch tables, in the order in which they do."""
        operations = self.operations
        touching = np.flatnonzero(operations.reads | operations.writes)
        when = np.where(operations.reads, self.began, self.ended)[touching]
        return touching[np.argsort(when)]

    def seconds_per_batch(self) -> float:
        """Of the steady state: the mean distance between the ends of batches, without the first and
        the last quarter of the run.

        Raises:
          ValueError: fewer than 2 batches.
        """
        batches, of = np.unique(self.operations.batch, return_inverse=True)
        if len(batches) < 2:
            raise ValueError(
                f"seconds per batch of {len(batches)} batches; at least 2 are required"
            )
        ends = np.zeros(len(batches))
        np.maximum.at(ends, of, self.end)
        ends, last = np.sort(ends), len(batches) - 1
        low, high = last // 4, last - last // 4
        return float((ends[high] - ends[low]) / (high - low))


def run(operations: Operations, seconds: Any) -> Timeline:
    """Give every operation its times.

    Args:
      seconds: float64 [n], or one number: how long each takes.

    Raises:
      ValueError: a time that is negative or no number.
      DeadlockError: operations that wait for each other; it names the cycle.
    """
    seconds = np.broadcast_to(np.asarray(seconds, np.float64), (len(operations),))
    wrong = np.flatnonzero(~(np.isfinite(seconds) & (seconds >= 0)))
    if len(wrong):
        raise ValueError(
            f"timeline: {operations[wrong[0]]} takes {seconds[wrong[0]]} seconds; times must "
            "be finite and at least 0"
        )
    start, end, began, ended = (np.zeros(len(operations), d) for d in (float, float, int, int))
    successors, first = _reversed(operations)
    resource = operations.resource
    done = _run(
        resource,
        len(operations.resources),
        np.diff(operations.edges),
        first,
        successors,
        np.ascontiguousarray(seconds),
        start,
        end,
        began,
        ended,
    )
    if done < len(operations):
        cycle = " -> ".join(str(operations[i]) for i in cycle_of(operations))
        raise DeadlockError(
            f"timeline: operations wait for each other, so none of them ever begins: {cycle}; "
            "remove one of these waits"
        )
    return Timeline(operations, start, end, began, ended)


def _reversed(operations: Operations) -> tuple[np.ndarray, np.ndarray]:
    """Who waits for each operation: ascending, with the bounds of each."""
    order = np.argsort(operations.waits, kind="stable")
    who = np.repeat(np.arange(len(operations)), np.diff(operations.edges))[order]
    counts = np.bincount(operations.waits, minlength=len(operations))
    return who, np.concatenate([[0], np.cumsum(counts)])


@kernel
def _run(
    resource: Any,
    resources: int,
    missing: Any,
    first: Any,
    successors: Any,
    seconds: Any,
    start: Any,
    end: Any,
    began: Any,
    ended: Any,
) -> int:
    """-> how many operations ended. `missing` counts what each still waits for."""
    running = [(0.0, 0) for _ in range(0)]  # (end, operation): a heap
    ready = [[0 for _ in range(0)] for _ in range(resources)]  # heaps of operations
    free = np.ones(resources, np.bool_)
    for i in range(len(resource)):
        if missing[i] == 0:
            heappush(ready[resource[i]], i)
    events, done, now = 0, 0, 0.0
    woken = list(range(resources))
    while True:
        for k in woken:
            if free[k] and len(ready[k]) > 0:
                i = heappop(ready[k])
                free[k] = False
                start[i], end[i], began[i] = now, now + seconds[i], events
                events += 1
                heappush(running, (end[i], i))
        woken.clear()
        if len(running) == 0:
            return done
        now = running[0][0]
        while len(running) > 0 and running[0][0] == now:
            i = heappop(running)[1]
            ended[i] = events
            events += 1
            done += 1
            free[resource[i]] = True
            woken.append(resource[i])
            for s in successors[first[i] : first[i + 1]]:
                missing[s] -= 1
                if missing[s] == 0:
                    heappush(ready[resource[s]], s)
                    woken.append(resource[s])


def cycle_of(operations: Operations) -> list[int]:
    """Operations of which each waits for the next, and the last for the first, which is named
    again; [] if there is no cycle."""
    state = np.zeros(len(operations), np.int8)  # 1 on the path, 2 leads to no cycle
    for root in range(len(operations)):
        path, tried = [root], [0]
        if state[root]:
            continue
        state[root] = 1
        while path:
            waits = operations.waits_of(path[-1])
            if tried[-1] == len(waits):
                state[path.pop()] = 2
                tried.pop()
                continue
            following = int(waits[tried[-1]])
            tried[-1] += 1
            if state[following] == 1:
                return [*path[path.index(following) :], following]
            if state[following] == 0:
                state[following] = 1
                path.append(following)
                tried.append(0)
    return []
