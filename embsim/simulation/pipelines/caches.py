"""Caches, replicas and snapshots: which version of a row is read depends on the row."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...config import integer
from ...schedule import Schedule
from ..operations import Builder, Operations, Stage
from .base import (
    DENSE,
    H2D,
    HOST_PREP,
    INPUT,
    LOOKUP,
    NEVER,
    STAGES,
    UPDATE,
    Clocks,
    Pipeline,
    Replicas,
    Rows,
    Rule,
    at,
    batch,
    in_turn,
    read_exactly,
    together,
)


def row_clocks(workers: int, staleness: int) -> Pipeline:
    """Each worker has a cache of rows with clocks. HET's.

    A row is fetched again when the server's is more than `staleness` updates ahead; a worker's own
    updates of a row are sent when there are more than that.
    """
    name = f"row_clocks({workers}, {staleness})"
    staleness = integer(f"{name}: staleness", staleness, minimum=0)
    stages = (
        HOST_PREP,
        Stage("pull", "network", share="pulled"),
        LOOKUP,
        DENSE,
        Stage("all_reduce", "link"),
        UPDATE,
        Stage("push", "network", share="pushed"),
    )
    made = _by_worker(name, workers, stages, fresh_dense=True)
    return replace(made, copies=Clocks(staleness))


def replica_sync(workers: int, every: int) -> Pipeline:
    """Each worker trains its own replica of all tables; all are averaged every so many steps, while
    training goes on. ShadowSync's, local SGD's."""
    name = f"replica_sync({workers}, {every})"
    integer(f"{name}: every", every, minimum=1)
    stages = (HOST_PREP, H2D, LOOKUP, DENSE, UPDATE)
    return replace(_by_worker(name, workers, stages, sync_every=every), copies=Replicas())


def offload(locked: bool = True) -> Pipeline:
    """Tables in the host's memory, a cache of rows on the device.

    What batch t + 1 misses is fetched while batch t is trained.

    locked: a row that a batch in flight will change is fetched when it has been written back, and
    all is exact; otherwise what is missed is one step old. FBGEMM's and TorchRec's.
    """
    stages = (
        *INPUT[:2],
        Stage("evict", "pcie_back", share="missed"),
        Stage("fetch", "pcie", reads=True, share="missed"),
        LOOKUP,
        DENSE,
        UPDATE,
    )

    def before(batches: np.ndarray) -> np.ndarray:
        return batches if locked else np.maximum(batches - 1, 0)

    def make(batches: int) -> Operations:
        made, rows, steps = Builder(stages), Rows(), np.arange(batches)
        batch(made, stages, steps, rows)
        read_exactly(made, rows["lookup"], rows["update"], steps)
        # What is evicted for batch t holds the updates of batch t - 2; it may hold no later ones.
        made.wait(rows["evict"], at(rows["update"], steps - (1 if locked else 2)))
        in_turn(made, rows["dense"])
        return made.build()

    rule = Rule(before, lambda b: b)
    return Pipeline(f"offload(locked={locked})", rule, make, Schedule() if locked else None)


def serving_snapshot(every: int) -> Pipeline:
    """Training without staleness, and a copy of the tables for serving every so many steps."""
    every = integer("serving_snapshot: every", every, minimum=1)
    stages = (*STAGES, Stage("snapshot", "network"))

    def read(batches: np.ndarray) -> np.ndarray:
        return batches

    def make(batches: int) -> Operations:
        made, rows, steps = Builder(stages), Rows(), np.arange(batches)
        batch(made, STAGES, steps, rows)
        read_exactly(made, rows["lookup"], rows["update"], steps)
        in_turn(made, rows["dense"])
        taken = made.add("snapshot", steps[every - 1 :: every])
        made.wait(taken, rows["update"][every - 1 :: every])
        in_turn(made, taken)
        return made.build()

    return Pipeline(f"serving_snapshot({every})", Rule(read, read), make, Schedule())


def _by_worker(
    name: str,
    workers: int,
    stages: tuple[Stage, ...],
    *,
    fresh_dense: bool = False,
    sync_every: int | None = None,
) -> Pipeline:
    """Workers that see their own updates, and of others what caches or replicas have."""
    workers = integer(f"{name}: workers", workers, minimum=1)
    sync = Stage("sync", "network", shared=True)

    def make(batches: int) -> Operations:
        made = Builder((*stages, sync))
        rows: list[Rows] = [Rows() for _ in range(workers)]
        for worker, mine in enumerate(rows):
            batch(made, stages, np.arange(worker, batches, workers), mine, worker)
            made.wait(mine["lookup"][1:], mine["update"][:-1])
        if fresh_dense:
            together(made, rows)
        if sync_every is not None:
            synced(made, rows, batches, sync_every)
        return made.build()

    rule = Rule(np.zeros_like, lambda batches: np.full_like(batches, NEVER))
    return Pipeline(name, rule, make, None, workers)


def synced(made: Builder, rows: Sequence[Rows], batches: int, every: int) -> None:
    """After every so many steps of all workers, one at a time."""
    steps = np.arange(every - 1, batches // len(rows), every)
    syncs = made.add("sync", steps * len(rows))
    for mine in rows:
        made.wait(syncs, mine["update"][steps])
    in_turn(made, syncs)
