"""How long lookups and updates take on a TPU, XLA's beside the Pallas kernels'.

Many steps stand in one program, so that it is not the host's time that is taken; the kernels take
turns, so that what changes with time changes for both.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from embsim import Adagrad, FeatureConfig, RaggedTensor, TableConfig
from embsim.state import State

from ..embedding import Embedding
from .common import Chip, Found, SkippedError, Told

SIDES = ("xla", "pallas")
ROWS, SAMPLES, BAG, PLANS = 2**20, 4096, 16, 4
REPEATS, SECONDS, STEPS_MAX = 5, 0.25, 2000
RATE, EXPONENT = 0.1, 1.05


def times(what: str, dim: int, ids: str, chip: Chip, told: Told) -> Found:
    """(note, numbers) of one case. Milliseconds of a step, medians."""
    if chip.interpreted:
        raise SkippedError("times are taken on a TPU only")
    return measured(what, dim, ids, rows_that_fit(dim), told)


def rows_that_fit(dim: int) -> int:
    """A power of two: tables and slots of both sides, once copied, in half of the memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    memory, rows = stats.get("bytes_limit", 2**33), ROWS
    while rows > 2**14 and 8 * rows * 4 * max(dim, 128) > memory / 2:
        rows //= 2
    return rows


def measured(what: str, dim: int, ids: str, rows: int, told: Told, samples: int = SAMPLES) -> Found:
    batches = [drawn(ids, rows, samples, seed) for seed in range(PLANS)]
    goes: dict[str, Callable[[int], None]] = {}
    for side in SIDES:
        told(f"{side}: compiles")
        goes[side] = prepared(what, side, dim, rows, batches)
    steps = {side: enough(go) for side, go in goes.items()}
    taken: dict[str, list[float]] = {side: [] for side in SIDES}
    for repeat in range(REPEATS):
        told(f"{repeat + 1} of {REPEATS}")
        for side, go in goes.items():
            taken[side].append(clocked(go, steps[side]) / steps[side])
    distinct = float(np.mean([len(np.unique(each.values)) for each in batches]))
    touched = samples * BAG if what == "lookup" else distinct
    one, other = (median(taken[side]) for side in SIDES)
    data = {"what": what, "dim": dim, "ids": ids, "table_rows": rows, "samples": samples}
    data |= {"ids_per_step": samples * BAG, "distinct_rows": distinct, "ratio": one / other}
    for side, seconds in (("xla", one), ("pallas", other)):
        data |= {
            f"{side}_ms": 1e3 * seconds,
            f"{side}_ns_per_row": 1e9 * seconds / touched,
            f"{side}_all_ms": [1e3 * each for each in taken[side]],
            f"{side}_steps": steps[side],
        }
    note = f"xla {1e3 * one:.3f} ms, pallas {1e3 * other:.3f} ms, ratio {one / other:.2f}"
    return note, data


def drawn(ids: str, rows: int, samples: int, seed: int) -> RaggedTensor:
    draw = np.random.default_rng(seed)
    if ids == "uniform":
        found = draw.integers(0, rows, samples * BAG)
    else:
        sums = np.cumsum(np.arange(1, rows + 1) ** -EXPONENT)
        ranks = np.searchsorted(sums, draw.uniform(0, sums[-1], samples * BAG))
        found = np.random.default_rng(99).permutation(rows)[np.minimum(ranks, rows - 1)]
    return RaggedTensor(found.astype(np.int64), np.arange(samples + 1) * BAG)


def prepared(
    what: str, side: str, dim: int, rows: int, batches: list[RaggedTensor]
) -> Callable[[int], None]:
    """A function of the number of steps that returns when they are done."""
    optimizer = Adagrad(RATE)
    table = TableConfig(rows, dim, combiner="sum", optimizer=optimizer, name="t")
    embedding = Embedding(FeatureConfig(table), kernels=side)
    for batch in batches:
        embedding.plan(batch)  # capacities are learned
    stacked: Any = jax.tree.map(lambda *a: jnp.stack(a), *(embedding.plan(b) for b in batches))
    slots = {s.name: np.full((rows, dim), s.initial, np.float32) for s in optimizer.slots}
    state = embedding.put(
        State(embedding.specs, {"t": np.ones((rows, dim), np.float32)}, {"t": slots})
    )
    gradients = jnp.full((len(batches[0].row_splits) - 1, dim), 1e-3, jnp.float32)
    numbers = embedding.coefficients(0)
    if what == "lookup":
        looked_up = jax.jit(partial(_lookups, embedding))
        return lambda steps: jax.block_until_ready(looked_up(state, stacked, gradients, steps))
    updated = jax.jit(partial(_updates, embedding), donate_argnums=0)
    held = [state]

    def go(steps: int) -> None:
        held.append(updated(held.pop(), stacked, gradients, numbers, steps))
        jax.block_until_ready(held[0])

    return go


def _lookups(embedding: Embedding, state: Any, plans: Any, zero: Any, steps: Any) -> Any:
    """All activations are added up, so that none is left out."""

    def body(step: Any, total: Any) -> Any:
        return total + embedding.lookup(state, _chosen(plans, step))

    return lax.fori_loop(0, steps, body, zero)


def _updates(
    embedding: Embedding, state: Any, plans: Any, gradients: Any, numbers: Any, steps: Any
) -> Any:
    def body(step: Any, state: Any) -> Any:
        return embedding.update(state, _chosen(plans, step), gradients, numbers)

    return lax.fori_loop(0, steps, body, state)


def _chosen(plans: Any, step: Any) -> Any:
    """Another plan in each step, so that no work can be taken out of the loop."""
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, step % PLANS, keepdims=False), plans)


def clocked(go: Callable[[int], None], steps: int) -> float:
    start = time.perf_counter()
    go(steps)
    return time.perf_counter() - start


def enough(go: Callable[[int], None]) -> int:
    """Steps that take about SECONDS."""
    clocked(go, PLANS)  # compiles
    steps = PLANS
    for seconds in (SECONDS / 10, SECONDS):  # the first few are mostly dispatch
        steps = max(PLANS, min(STEPS_MAX, int(steps * seconds / clocked(go, steps))))
    return steps
