"""What a step moves: ids, distinct rows, bytes; expected in closed form, or counted in batches.

Tables are sharded by row over all chips. A chip finds the distinct rows of its samples, asks their
shards for them, and sums bags itself; gradients go back the same way, one for each distinct row of
a chip, and each shard sums what it receives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._numba import kernel
from ..config import integer
from .popularity import Popularity
from .workload import Table, Workload

FLOAT = ID = 4  # bytes
CACHED = 0.2  # of all rows, in a cache: FBGEMM's default load factor
LARGEST = 2**27  # rows of which each has a place of its own while ids are counted


@dataclass(frozen=True)
class Traffic:
    """Of one step on one chip, all tables together.

    Args:
      samples, ids: of this chip.
      asked: distinct rows of these ids.
      changed: distinct rows of the whole batch in this chip's shards.
      asked_bytes: of the rows asked, without slots.
      read_bytes: of rows that lookups read: those asked; where bags are pooled, of every id.
      exchanged_bytes: that travel to the dense model, and as many for gradients.
      changed_bytes: of the rows changed, with slots.
      activation_bytes: that the dense model gets, and gives gradients for.
      input_bytes: ids and dense features that come from the host.
      imbalance: requests to the shard that has most, over the mean; 1 where bags are pooled, since
        it is of the placement of tables then, which is not modelled.
      conflict: by k, the share of a step's distinct rows that one of the k steps before updates.
      stale: by k, the same share of lookups.
      missed: by k, updates that a lookup of rows k steps old misses on average.
      cold: of the rows changed, the share that a cache of the most popular ones lacks; expected,
        also where all else is counted.
    """

    samples: float
    ids: float
    asked: float
    changed: float
    asked_bytes: float
    read_bytes: float
    exchanged_bytes: float
    changed_bytes: float
    activation_bytes: float
    input_bytes: float
    imbalance: float
    conflict: Mapping[int, float]
    stale: Mapping[int, float]
    missed: Mapping[int, float]
    cold: float


@dataclass(frozen=True, eq=False)
class _Part:
    """Of one table: ids and distinct rows of a chip, distinct rows of all, requests to each shard;
    by depth, rows in conflict, lookups of such rows, updates missed by all lookups."""

    ids: float
    asked: float
    changed: float
    load: np.ndarray
    conflict: np.ndarray
    stale: np.ndarray
    missed: np.ndarray


def expected(workload: Workload, chips: int = 1, depths: Sequence[int] = (1,)) -> Traffic:
    """In closed form, of independent ids."""
    chips = integer("traffic: chips", chips, minimum=1)
    samples = workload.samples / chips
    parts = [
        _expected(table.popularity, table.ids * samples, chips, depths) for table in workload.tables
    ]
    return _total(workload, chips, parts, depths)


def _expected(law: Popularity, ids: float, chips: int, depths: Sequence[int]) -> _Part:
    whole = ids * chips
    changed = law.unique(whole)
    return _Part(
        ids,
        law.unique(ids),
        changed,
        _load(law, ids, chips),
        np.array([law.conflict_of_rows(whole, k) for k in depths]) * changed,
        np.array([law.conflict(whole, k) for k in depths]) * whole,
        np.array([law.missed(whole, k) for k in depths]) * whole,
    )


def _load(law: Popularity, ids: float, chips: int) -> np.ndarray:
    """Requests to each shard: the most popular rows where they lie, all others evenly."""
    requests, head = law.hit(ids) * chips, law.head
    load = np.bincount(head % chips, requests[: len(head)], minlength=chips)
    return load + float(law.count[len(head) :] @ requests[len(head) :]) / chips


def counted(
    workload: Workload,
    batches: Sequence[Sequence[np.ndarray]],
    chips: int = 1,
    depths: Sequence[int] = (1,),
) -> Traffic:
    """Counted in the last of consecutive batches.

    Args:
      batches: of each, for every table of the workload an int array [samples, ids]; at least one
        more than the largest of `depths`.

    Raises:
      ValueError: too few batches or tables, or samples that are no multiple of chips.
    """
    chips = integer("traffic: chips", chips, minimum=1)
    if len(batches) <= max(depths, default=0):
        raise ValueError(
            f"traffic: {len(batches)} batches; to count conflicts with {max(depths)} steps before "
            "there must be one more"
        )
    if any(len(batch) != len(workload.tables) for batch in batches):
        found = [len(batch) for batch in batches]
        raise ValueError(
            f"traffic: batches of {found} tables; each must have {len(workload.tables)}"
        )
    parts = [
        _counted([np.asarray(batch[i]) for batch in batches], table, chips, depths)
        for i, table in enumerate(workload.tables)
    ]
    return _total(workload, chips, parts, depths)


def _counted(steps: Sequence[np.ndarray], table: Table, chips: int, depths: Sequence[int]) -> _Part:
    if len(steps[-1]) % chips:
        raise ValueError(
            f"traffic: {len(steps[-1])} samples; it must be a multiple of {chips} chips"
        )
    flat = [np.ascontiguousarray(step, np.int64).reshape(-1) for step in steps]
    if any(len(ids) and not 0 <= ids.min() <= ids.max() < table.rows for ids in flat):
        raise ValueError(f"traffic: ids that are no rows of a table of {table.rows}")
    last, index, rows = flat[-1], flat, table.rows
    if rows > LARGEST:  # number those that there are
        found, dense = np.unique(np.concatenate(flat), return_inverse=True)
        index, rows = np.split(dense, np.cumsum([len(ids) for ids in flat])[:-1]), len(found)
    load, first = np.zeros(chips, np.int64), np.zeros(len(last), np.bool_)
    asked = _requests(last, index[-1], np.zeros(rows, np.int32), chips, load, first)
    missed = {0: np.zeros(len(last), np.int64)}
    for back in range(1, max(depths, default=0) + 1):
        changed = np.zeros(rows, np.bool_)
        changed[index[-1 - back]] = True
        missed[back] = missed[back - 1] + changed[index[-1]]
    return _Part(
        len(last) / chips,
        asked / chips,
        float(np.count_nonzero(first)),
        load.astype(np.float64),
        np.array([np.count_nonzero(missed[k][first]) for k in depths], np.float64),
        np.array([np.count_nonzero(missed[k]) for k in depths], np.float64),
        np.array([missed[k].sum() for k in depths], np.float64),
    )


@kernel
def _requests(ids: Any, index: Any, seen: Any, chips: int, load: Any, first: Any) -> int:
    """Counts each chip's distinct ids, at their shards too; finds where an id comes first."""
    asked, part = 0, len(ids) // chips
    for chip in range(chips):
        for i in range(chip * part, (chip + 1) * part):
            row = index[i]
            if seen[row] != chip + 1:
                first[i] = seen[row] == 0
                seen[row] = chip + 1
                load[ids[i] % chips] += 1
                asked += 1
    return asked


def _total(
    workload: Workload, chips: int, parts: Sequence[_Part], depths: Sequence[int]
) -> Traffic:
    tables = workload.tables
    number = np.array([table.tables for table in tables], np.float64)
    width = np.array([table.dim for table in tables], np.float64) * FLOAT
    ids, asked, changed = (
        number * np.array([getattr(part, name) for part in parts])
        for name in ("ids", "asked", "changed")
    )
    load = sum(n * part.load for n, part in zip(number, parts, strict=True))
    samples, mean = workload.samples / chips, np.mean(load)

    def shares(name: str, whole: float) -> dict[int, float]:
        found = number @ np.stack([getattr(part, name) for part in parts])
        return dict(zip(depths, (found / whole).tolist(), strict=True))

    size, pooled = workload.activation_size, workload.pooled
    activation_bytes = samples * workload.activations * size
    return Traffic(
        samples,
        float(ids.sum()),
        float(asked.sum()),
        float(changed.sum()) / chips,
        float(asked @ width),
        float(ids @ width) if pooled else float(asked @ width),
        activation_bytes if pooled else float(asked @ width) * size / FLOAT,
        float(changed @ (width * [1 + table.slots for table in tables])) / chips,
        activation_bytes,
        float(ids.sum()) * ID + samples * workload.dense_features * FLOAT,
        float(np.max(load) / mean) if mean and not pooled else 1.0,
        shares("conflict", float(changed.sum()) or 1.0),
        shares("stale", float(ids.sum()) * chips or 1.0),
        shares("missed", float(ids.sum()) * chips or 1.0),
        _cold(workload),
    )


def _cold(workload: Workload) -> float:
    cold = distinct = 0.0
    for table in workload.tables:
        ids = table.ids * workload.samples
        cold += table.tables * table.popularity.cold(ids, CACHED)
        distinct += table.tables * table.popularity.unique(ids)
    return cold / distinct if distinct else 0.0


def sampled(
    workload: Workload, generator: np.random.Generator, steps: int
) -> list[list[np.ndarray]]:
    """Batches for `counted`: of each table [samples, ids] by its popularity; ids rounded up."""
    return [
        [
            table.popularity.draw(generator, workload.samples * int(np.ceil(table.ids))).reshape(
                workload.samples, -1
            )
            for table in workload.tables
        ]
        for _ in range(steps)
    ]
