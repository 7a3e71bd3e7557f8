"""LookupPlan: the sparse samples x rows matrix of gains G of one step and one table, on devices.

Each device has a part of the samples and a shard of the table. What it needs for its samples, each
row once, it asks of the shards that hold it:

    asked        [shards, rows]      local rows that this device asks of each shard, ascending
    slot         [positions]         of each id: its row in what comes back, [shards * rows]
    sample gain  [positions]         as in embsim.plan, of this device's samples
    by_row       the same positions sorted by slot: slot, sample, gain

On one device nothing is asked: `slot` is then the row of the table itself. All is padded to static
capacities: padding positions have a sample, or by_row a slot, that is out of range and dropped;
padding rows lie beyond the table.

For kernels that take them in chunks (_chunks.py) positions stand there, and sample, or by_row's
slot, is counted within its block; what a chunk has not is never looked at.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from embsim.plan import LookupPlan as HostPlan

from ._chunks import Chunks, Sizes, ordered
from ._mesh import Shards
from .capacity import Capacities, Capacity
from .placement import Placement

Ranges = Sequence[tuple[int, int]]  # of samples, in the order in which a device holds them
SizesOf = Callable[[int, int], Sizes | None]  # of samples, positions: Kernels.sizes


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class SortedRows:
    """The contributions of a plan, sorted by row, each row's in their order."""

    slot: Any  # int32 [positions], ascending
    sample: Any  # int32 [positions]
    gain: Any  # float32 [positions]
    chunks: Chunks | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class LookupPlan:
    """G of one step and table: output row s is the sum of gain[j] * W[row[j]] over the positions j
    of sample s.

    int32 arrays, `gain` float32; on a mesh the devices' parts, one after the other. `local_rows`
    [1] is the number of rows of the table on this shard, without padding, `shard_rows` with it;
    `one_id_each` says that sample j is position j, for every j; such positions are in no chunks.
    """

    asked: Any
    slot: Any
    sample: Any
    gain: Any
    by_row: SortedRows
    local_rows: Any
    samples: int = field(metadata={"static": True})
    one_id_each: bool = field(metadata={"static": True})
    shard_rows: int = field(metadata={"static": True})
    chunks: Chunks | None = None


@dataclass(frozen=True, eq=False)
class Cut:
    """A plan cut into devices' parts, before it is padded.

    Args:
      parts, groups: of each device, its plan, and where in `unique` the rows of each shard begin.
      need: what the parts need, and `samples` and `one_id_each` as in LookupPlan.
    """

    placement: Placement
    parts: Sequence[HostPlan]
    groups: Sequence[np.ndarray]
    need: Capacity
    samples: int
    one_id_each: bool


def no_chunks(samples: int, positions: int) -> None:
    return None


def device_plan(
    plan: HostPlan,
    parts: Sequence[Ranges],
    capacities: Capacities,
    shards: Shards,
    sizes: SizesOf = no_chunks,
) -> LookupPlan:
    """The plan of a step on the devices, of which device p has the samples of parts[p].

    Of several processes each has the whole plan.

    Raises:
      CapacityError: a batch that does not fit; nothing is dropped.
    """
    made = cut(plan, parts, shards)
    capacity = capacities.fitting(plan.table, made.need)
    return put_cut(made, capacity, made.one_id_each, shards, shards.put, sizes)


def cut(plan: HostPlan, parts: Sequence[Ranges], shards: Shards) -> Cut:
    """The plan of the samples parts[p] of each device p."""
    placement = Placement(plan.num_rows, shards.size)
    locals_ = [_local(plan, ranges, placement) for ranges in parts]
    groups = [_groups(local, placement) for local in locals_]
    need = Capacity(
        max(len(local.row) for local in locals_), max(int(np.diff(g).max()) for g in groups)
    )
    samples = max(local.samples for local in locals_)
    one_id_each = all(
        len(local.row) == samples == local.samples and bool((np.diff(local.splits) == 1).all())
        for local in locals_
    )
    return Cut(placement, locals_, groups, need, samples, one_id_each)


def put_cut(
    cut: Cut,
    capacity: Capacity,
    one_id_each: bool,
    shards: Shards,
    put: Callable[[np.ndarray], jax.Array],
    sizes: SizesOf = no_chunks,
) -> LookupPlan:
    """Padded to `capacity`, on the devices: `put` is shards.put of all devices' parts, or
    shards.put_own of those of this process."""
    n, slots = capacity.positions, shards.size * capacity.rows
    bags = None if one_id_each else sizes(cut.samples, n)
    by_row = sizes(slots, n)
    made = [
        _padded(part, group, capacity, cut.samples, cut.placement)
        for part, group in zip(cut.parts, cut.groups, strict=True)
    ]
    asked = put(np.concatenate([part.asked for part in made]))
    bag = _laid_out([part.bags for part in made], cut.samples, n, bags, put)
    row = _laid_out([part.by_row for part in made], slots, n, by_row, put)
    rows = [cut.placement.rows_in_shard(shard) for shard in range(shards.size)]
    (slot, sample, gain), chunks = bag
    (from_sample, to_slot, by_row_gain), row_chunks = row
    return LookupPlan(
        asked,
        slot,
        sample,
        gain,
        SortedRows(to_slot, from_sample, by_row_gain, row_chunks),
        shards.put(np.array(rows, np.int32)),
        cut.samples,
        one_id_each,
        cut.placement.local_rows,
        chunks,
    )


def even_parts(samples: int, shards: int) -> list[Ranges]:
    """The samples in equal consecutive parts, the last ones shorter."""
    each = -(-samples // shards)
    return [[(min(p * each, samples), min((p + 1) * each, samples))] for p in range(shards)]


def _local(plan: HostPlan, ranges: Ranges, placement: Placement) -> HostPlan:
    """The plan of one device's samples, on the shards' arrays laid one after the other."""
    if placement.num_shards == 1 and list(ranges) == [(0, plan.samples)]:
        return plan
    pieces = [slice(plan.splits[lo], plan.splits[hi]) for lo, hi in ranges]
    lengths = np.concatenate([np.diff(plan.splits[lo : hi + 1]) for lo, hi in ranges])
    splits = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    row = placement.physical_row(np.concatenate([plan.row[piece] for piece in pieces]))
    gain = np.concatenate([plan.gain[piece] for piece in pieces])
    physical = placement.num_shards * placement.local_rows
    return HostPlan(plan.table, physical, splits, row.astype(np.int32, copy=False), gain)


def _groups(local: HostPlan, placement: Placement) -> np.ndarray:
    """Where in `unique` the rows of each shard begin, and the end: [shards + 1]."""
    firsts = np.arange(placement.num_shards + 1) * placement.local_rows
    return np.searchsorted(local.unique, firsts)


@dataclass(frozen=True, eq=False)
class Sums:
    """sum[to[j]] += gain[j] * x[source[j]], for all j in order; `to` is ascending."""

    source: np.ndarray
    to: np.ndarray
    gain: np.ndarray


@dataclass(frozen=True, eq=False)
class Part:
    """Of one device: rows asked for, padded; what its bags and its rows' gradients sum."""

    asked: np.ndarray
    bags: Sums
    by_row: Sums


def _padded(
    local: HostPlan, groups: np.ndarray, capacity: Capacity, samples: int, placement: Placement
) -> Part:
    shards, rows = placement.num_shards, local.by_row
    shard = np.repeat(np.arange(shards), np.diff(groups))
    place = np.arange(len(rows.unique)) - groups[shard]
    # Distinct, ascending and beyond the table: dropped by a scatter.
    asked = np.tile(placement.local_rows + np.arange(capacity.rows, dtype=np.int32), (shards, 1))
    asked[shard, place] = rows.unique - shard * placement.local_rows
    slot_of_unique = (shard * capacity.rows + place).astype(np.int32)
    sorted_slot = np.repeat(slot_of_unique, np.diff(rows.starts))
    if shards == 1:
        slot = local.row
    else:
        slot = np.empty(len(local.row), np.int32)
        slot[rows.order] = sorted_slot
    return Part(
        asked, Sums(slot, local.sample, local.gain), Sums(rows.sample, sorted_slot, rows.gain)
    )


def _laid_out(
    parts: Sequence[Sums],
    sums: int,
    positions: int,
    sizes: Sizes | None,
    put: Callable[[np.ndarray], jax.Array],
) -> tuple[list[jax.Array], Chunks | None]:
    """source, to and gain of all parts on the devices, one after the other, each padded to
    `positions` or in chunks."""
    if sizes is None:
        made = [
            (
                _filled(part.source, positions, 0),
                _filled(part.to, positions, sums),
                _filled(part.gain, positions, 0),
            )
            for part in parts
        ]
        return [put(np.concatenate(column)) for column in zip(*made, strict=True)], None
    count = sizes.chunks(sums, positions)
    columns: list[list[np.ndarray]] = [[], [], [], [], []]
    for part in parts:
        splits = np.concatenate([[0], np.cumsum(np.bincount(part.to, minlength=sums))])
        order = ordered(splits, sizes, count)
        values = part.source, order.within, part.gain
        for column, each in zip(columns, values, strict=False):
            column.append(_filled(each, count * sizes.chunk, 0, order.places))
        columns[3].append(order.counts)
        columns[4].append(order.block)
    *given, counts, block = (put(np.concatenate(column)) for column in columns)
    return given, Chunks(counts, block, sizes, sizes.blocks(sums))


def _filled(
    values: np.ndarray, length: int, padding: int, places: np.ndarray | None = None
) -> np.ndarray:
    out = np.full(length, padding, values.dtype)
    out[slice(len(values)) if places is None else places] = values
    return out
