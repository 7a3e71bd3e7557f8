"""Several workers, each by its own clock, on one server of tables."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...config import integer
from ..operations import Builder, Operations, Stage
from .base import (
    DENSE,
    HOST_PREP,
    LOOKUP,
    NEVER,
    UPDATE,
    Pipeline,
    Rows,
    Rule,
    at,
    batch,
    together,
)


def bounded_async(workers: int, staleness: int) -> Pipeline:
    """A parameter server with bounded staleness: step c of a worker sees its own updates, those of
    steps before c - staleness of all others, and what else has come. Dense weights likewise."""
    return _async(f"bounded_async({workers}, {staleness})", workers, staleness, fresh_dense=False)


def full_async(workers: int) -> Pipeline:
    """A parameter server without any bound."""
    return _async(f"full_async({workers})", workers, None, fresh_dense=False)


def hybrid(workers: int, staleness: int) -> Pipeline:
    """Embeddings as bounded_async has them, dense weights fresh: all workers reduce them together,
    each step. Persia's."""
    return _async(f"hybrid({workers}, {staleness})", workers, staleness, fresh_dense=True)


SERVER_STAGES = (
    HOST_PREP,
    replace(LOOKUP, resource="server", shared=True),
    Stage("pull", "network"),
    DENSE,
    Stage("all_reduce", "link"),
    Stage("push", "network"),
    replace(UPDATE, resource="server", shared=True),
)


def _async(name: str, workers: int, staleness: int | None, *, fresh_dense: bool) -> Pipeline:
    workers = integer(f"{name}: workers", workers, minimum=1)
    if staleness is not None:
        staleness = integer(f"{name}: staleness", staleness, minimum=0)
    stages = (
        SERVER_STAGES if fresh_dense else tuple(s for s in SERVER_STAGES if s.name != "all_reduce")
    )

    def at_least(batches: np.ndarray) -> np.ndarray:
        if staleness is None:
            return np.zeros_like(batches)
        return np.maximum(batches // workers - staleness, 0) * workers

    def make(batches: int) -> Operations:
        made = Builder((*stages, Stage("clock", "clock", shared=True)))
        each = [np.arange(worker, batches, workers) for worker in range(workers)]
        rows: list[Rows] = [Rows() for _ in each]
        for worker, steps in enumerate(each):
            batch(made, stages, steps, rows[worker], worker)
            made.wait(rows[worker]["lookup"][1:], rows[worker]["update"][:-1])  # its own
        if staleness is not None:
            clocks = _clocks(made, rows, "update", batches, workers)
            for worker, steps in enumerate(each):
                made.wait(rows[worker]["lookup"], at(clocks, steps // workers - staleness - 1))
        if fresh_dense:
            together(made, rows)
        return made.build()

    return Pipeline(name, Rule(at_least, lambda b: np.full_like(b, NEVER)), make, None, workers)


def _clocks(
    made: Builder, rows: Sequence[Rows], stage: str, batches: int, workers: int
) -> np.ndarray:
    """One operation of no time for each clock: that all workers have done that step."""
    clocks = made.add("clock", np.arange(0, batches, workers))
    for mine in rows:
        made.wait(clocks[: len(mine[stage])], mine[stage])
    return clocks
