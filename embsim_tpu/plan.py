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
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from embsim.plan import LookupPlan as HostPlan

from ._mesh import Shards
from .capacity import Capacities, Capacity
from .placement import Placement

Ranges = Sequence[tuple[int, int]]  # of samples, in the order in which a device holds them


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class SortedRows:
    """The contributions of a plan, sorted by row, each row's in their order."""

    slot: Any  # int32 [positions], ascending
    sample: Any  # int32 [positions]
    gain: Any  # float32 [positions]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class LookupPlan:
    """G of one step and table: output row s is the sum of gain[j] * W[row[j]] over the positions j
    of sample s.

    int32 arrays, `gain` float32; on a mesh the devices' parts, one after the other. `local_rows`
    [1] is the number of rows of the table on this shard, without padding, `shard_rows` with it;
    `one_id_each` says that sample j is position j, for every j.
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


def device_plan(
    plan: HostPlan, parts: Sequence[Ranges], capacities: Capacities, shards: Shards
) -> LookupPlan:
    """The plan of a step on the devices, of which device p has the samples of parts[p].

    Of several processes each has the whole plan.

    Raises:
      CapacityError: a batch that does not fit; nothing is dropped.
    """
    made = cut(plan, parts, shards)
    capacity = capacities.fitting(plan.table, made.need)
    return put_cut(made, capacity, made.one_id_each, shards, shards.put)


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
) -> LookupPlan:
    """Padded to `capacity`, on the devices: `put` is shards.put of all devices' parts, or
    shards.put_own of those of this process."""
    made = [
        _padded(part, group, capacity, cut.samples, cut.placement)
        for part, group in zip(cut.parts, cut.groups, strict=True)
    ]
    columns = [np.concatenate(column) for column in zip(*made, strict=True)]
    asked, slot, sample, gain, *by_row = (put(column) for column in columns)
    rows = [cut.placement.rows_in_shard(shard) for shard in range(shards.size)]
    local_rows = shards.put(np.array(rows, np.int32))
    return LookupPlan(
        asked,
        slot,
        sample,
        gain,
        SortedRows(*by_row),
        local_rows,
        cut.samples,
        one_id_each,
        cut.placement.local_rows,
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


def _padded(
    local: HostPlan, groups: np.ndarray, capacity: Capacity, samples: int, placement: Placement
) -> tuple[np.ndarray, ...]:
    """asked, slot, sample, gain, and by_row's slot, sample, gain."""
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
    n = capacity.positions
    return (
        asked,
        _filled(slot, n, 0),
        _filled(local.sample, n, samples),
        _filled(local.gain, n, 0),
        _filled(sorted_slot, n, shards * capacity.rows),
        _filled(rows.sample, n, 0),
        _filled(rows.gain, n, 0),
    )


def _filled(values: np.ndarray, length: int, padding: int) -> np.ndarray:
    out = np.full(length, padding, values.dtype)
    out[: len(values)] = values
    return out
