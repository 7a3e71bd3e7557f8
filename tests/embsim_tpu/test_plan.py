"""Plans on devices against the host's: the same contributions, each where it is needed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embsim.errors import CapacityError
from embsim_tpu._mesh import Shards
from embsim_tpu.capacity import Capacities, Capacity
from embsim_tpu.placement import Placement
from embsim_tpu.plan import device_plan, even_parts
from tests.embsim_tpu.conftest import (
    BUCKETS,
    CAPACITY,
    EXACT,
    F,
    bags_of,
    capacities,
    mesh_of,
    plan_of,
)


def split(array, devices):
    return np.asarray(array).reshape(devices, -1, *np.shape(array)[1:])


def contributions(plan, placement):
    """Of each device, from its part of a device plan: [(sample, row, gain)], and the same sorted by
    row; and what it asks of each shard."""
    devices, found = placement.num_shards, []
    names = ("sample", "slot", "gain")
    columns = [split(getattr(plan, name), devices) for name in names]
    by_row = [split(getattr(plan.by_row, name), devices) for name in names]
    asked = np.asarray(plan.asked).reshape(devices, devices, -1)
    for device in range(devices):
        sample, slot, gain = (column[device] for column in columns)
        real = sample < plan.samples
        rows = slot if devices == 1 else rows_of(slot, asked[device], placement)
        in_order = list(zip(sample[real], rows[real], gain[real], strict=True))
        sample, slot, gain = (column[device] for column in by_row)
        real = slot < asked[device].size
        rows = rows_of(np.where(real, slot, 0), asked[device], placement)
        sorted_ = list(zip(sample[real], rows[real], gain[real], strict=True))
        found.append((in_order, sorted_, asked[device]))
    return found


def rows_of(slot, asked, placement):
    shard, place = np.divmod(slot, asked.shape[1])
    return placement.global_row(shard, asked[shard, place])


@pytest.mark.parametrize("devices", [1, 2, 8])
@settings(max_examples=50)
@given(st.data())
def test_every_device_has_the_contributions_of_its_samples_in_order(devices, data):
    bucket = data.draw(st.sampled_from(BUCKETS))
    bags = data.draw(bags_of(bucket, EXACT, devices))
    placement = Placement(bucket.rows, devices)
    parts = even_parts(bucket.samples, devices)
    host = plan_of(bags, bucket.rows)
    made = device_plan(host, parts, capacities(), Shards(mesh_of(devices)))
    for [(low, high)], (in_order, sorted_, asked) in zip(
        parts, contributions(made, placement), strict=True
    ):
        mine = [(s, row, F(g)) for s, bag in enumerate(bags[low:high]) for row, g in bag]
        assert in_order == mine
        physical = [placement.physical_row(np.int64(row)) for _, row, _ in mine]
        assert sorted_ == [mine[i] for i in np.argsort(physical, kind="stable")]
        wanted = {row for _, row, _ in mine}
        for shard, rows in enumerate(asked):
            there = rows[rows < placement.local_rows]
            assert (np.diff(rows) > 0).all()
            assert {int(r) for r in placement.global_row(shard, there)} == {
                row for row in wanted if placement.shard_of(np.int64(row)) == shard
            }


@settings(max_examples=50)
@given(st.data())
def test_padding_contributes_nothing(data):
    """Its gain is 0 and its place out of range, so that a scatter drops it."""
    bucket = data.draw(st.sampled_from(BUCKETS))
    bags = data.draw(bags_of(bucket, EXACT, 2))
    made = device_plan(
        plan_of(bags, bucket.rows),
        even_parts(bucket.samples, 2),
        capacities(),
        Shards(mesh_of(2)),
    )
    nnz = sum(map(len, bags))
    out_of_range = np.asarray(made.sample) == made.samples
    assert out_of_range.sum() == 2 * CAPACITY.positions - nnz
    assert not np.asarray(made.gain)[out_of_range].any()
    dropped = np.asarray(made.by_row.slot) == 2 * CAPACITY.rows
    assert dropped.sum() == 2 * CAPACITY.positions - nnz
    assert not np.asarray(made.by_row.gain)[dropped].any()
    for name in ("asked", "slot", "sample"):
        assert np.asarray(getattr(made, name)).dtype == np.int32, name
    assert np.asarray(made.gain).dtype == np.float32


@settings(max_examples=50)
@given(st.data())
def test_one_id_each_is_said_exactly_where_it_is_so(data):
    devices = data.draw(st.sampled_from((1, 2, 8)))
    bucket = data.draw(st.sampled_from(BUCKETS))
    bags = data.draw(bags_of(bucket, EXACT, devices))
    parts = even_parts(bucket.samples, devices)
    plan = plan_of(bags, bucket.rows)
    made = device_plan(plan, parts, capacities(), Shards(mesh_of(devices)))
    full = all(high - low == made.samples for [(low, high)] in parts)
    assert made.one_id_each == (full and all(len(bag) == 1 for bag in bags))
    assert made.samples == max(high - low for [(low, high)] in parts)


def test_parts_are_even_and_consecutive():
    assert even_parts(6, 2) == [[(0, 3)], [(3, 6)]]
    assert even_parts(5, 3) == [[(0, 2)], [(2, 4)], [(4, 5)]]
    assert even_parts(1, 3) == [[(0, 1)], [(1, 1)], [(1, 1)]]
    assert even_parts(0, 2) == [[(0, 0)], [(0, 0)]]


def test_a_device_may_have_parts_of_several_features():
    """Two features of 4 samples, one below the other: device 0 has the first half of each."""
    bags = [[(sample, 1.0)] for sample in range(8)]
    parts = [[(0, 2), (4, 6)], [(2, 4), (6, 8)]]
    made = device_plan(plan_of(bags, 8), parts, capacities(), Shards(mesh_of(2)))
    first, second = contributions(made, Placement(8, 2))
    assert [row for _, row, _ in first[0]] == [0, 1, 4, 5]
    assert [row for _, row, _ in second[0]] == [2, 3, 6, 7]
    assert [sample for sample, _, _ in second[0]] == [0, 1, 2, 3]


def test_a_plan_that_does_not_fit_is_refused_whole():
    bags = [[(0, 1.0), (2, 1.0), (4, 1.0)], [(1, 1.0)]]
    fixed = Capacities({"t": Capacity(positions=3, rows=2)})
    with pytest.raises(CapacityError, match=r"'t'.*3 ids.*3 distinct rows.*positions=3, rows=2"):
        device_plan(plan_of(bags, 5), even_parts(2, 2), fixed, Shards(mesh_of(2)))
