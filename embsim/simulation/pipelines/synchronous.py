"""One worker: what a lookup sees is known beforehand."""

from dataclasses import replace

import numpy as np

from ... import schedule as laws
from ...config import integer
from ...schedule import Schedule
from ..operations import Builder, Operations
from .base import (
    DENSE,
    EMB_A2A,
    GRAD_A2A,
    INPUT,
    LOOKUP,
    STAGES,
    UPDATE,
    Pipeline,
    Rows,
    Rule,
    at,
    batch,
    in_turn,
    read_exactly,
)


def sequential() -> Pipeline:
    """Every lookup sees every earlier update; only a batch's input overlaps."""
    return of_schedule(laws.sequential(), "sequential()")


def tpu_embedding_pipelined() -> Pipeline:
    """Lookups one step old: update(t - 2) and lookup(t) run beside dense(t - 1)."""
    return of_schedule(laws.tpu_embedding_pipelined(), "tpu_embedding_pipelined()")


def stale(k: int) -> Pipeline:
    """Lookups k steps old."""
    return of_schedule(laws.stale(k), f"stale({k})")


def sparsecore_loop(n: int, k: int = 1) -> Pipeline:
    """k steps old inside loops of n steps, each drained at its end."""
    law = Schedule(staleness=k, drain_every=n)
    return of_schedule(law, f"sparsecore_loop({n})" if k == 1 else f"sparsecore_loop({n}, {k})")


def semi_sync(start_batch: int, stash_gradients: bool = False) -> Pipeline:
    """Synchronous for start_batch steps, then one step old: TorchRec's semi-sync pipeline. With
    stash_gradients the dense weights are one step old, too."""
    name = f"semi_sync({start_batch}{', True' if stash_gradients else ''})"
    made = of_schedule(laws.semi_sync(start_batch), name)
    return replace(made, dense_seen=made.rule.at_least) if stash_gradients else made


def of_schedule(law: Schedule, name: str) -> Pipeline:
    """Any schedule of schedule.py: lookup(t) sees the first version_read(t) updates, no others."""

    def read(batches: np.ndarray) -> np.ndarray:
        return np.array([law.version_read(t) for t in batches.tolist()], np.int64)

    def make(batches: int) -> Operations:
        made, rows, steps = Builder(STAGES), Rows(), np.arange(batches)
        batch(made, STAGES, steps, rows)
        read_exactly(made, rows["lookup"], rows["update"], read(steps))
        in_turn(made, rows["dense"])
        return made.build()

    return Pipeline(name, Rule(read, read), make, law, depth=law.staleness)


def lookahead(depth: int) -> Pipeline:
    """Exact: rows that no batch in flight touches are read up to `depth` steps early; the others,
    after their last update. Bagpipe's and ScratchPipe's look-ahead, TorchRec's PEC.

    The updates of rows that the next batch reads go first; the others may come as late as the next
    early lookup that reads them.
    """
    depth = integer("lookahead: depth", depth, minimum=1)
    early = replace(LOOKUP, name="lookup_early", work="lookup", share="quiet")
    late = replace(LOOKUP, name="lookup_late", work="lookup", share="conflict")
    early_a2a = replace(EMB_A2A, name="emb_a2a_early", work="emb_a2a", share="quiet")
    late_a2a = replace(EMB_A2A, name="emb_a2a_late", work="emb_a2a", share="conflict")
    stages = (*INPUT, early, early_a2a, late, late_a2a, DENSE, GRAD_A2A, UPDATE)

    def before(batches: np.ndarray) -> np.ndarray:
        return np.maximum(batches - depth, 0)

    def make(batches: int) -> Operations:
        made, rows, steps = Builder(stages), Rows(), np.arange(batches)
        batch(made, stages, steps, rows)
        read_exactly(made, rows["lookup_late"], rows["update"], steps)
        made.wait(rows["lookup_early"], at(rows["update"], before(steps) - 1))
        in_turn(made, rows["dense"])
        return made.build()

    return Pipeline(f"lookahead({depth})", Rule(before, lambda b: b), make, Schedule(), depth=depth)


def accumulate(window: int) -> Pipeline:
    """One update for each `window` steps, of the sum of their gradients."""
    window = integer("accumulate: window", window, minimum=1)

    def read(batches: np.ndarray) -> np.ndarray:
        return batches // window * window

    def make(batches: int) -> Operations:
        made, rows, steps = Builder(STAGES), Rows(), np.arange(batches)
        batch(made, STAGES[:-1], steps, rows)
        updates = made.add("update", np.arange(window - 1, batches + window - 1, window))
        made.wait(updates[steps // window], rows["grad_a2a"])
        made.wait(rows["lookup"], at(updates, steps // window - 1))
        in_turn(made, rows["dense"])
        return made.build()

    def applied(batches: np.ndarray) -> np.ndarray:
        return read(batches) + window - 1

    name, rule = f"accumulate({window})", Rule(read, read, applied)
    return Pipeline(name, rule, make, depth=window - 1, dense_seen=read)
