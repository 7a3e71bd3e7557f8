"""Plans against coordinates written down one lookup at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embsim import definition
from embsim.batch import Batch, FeatureBatch
from embsim.plan import LookupPlan, Output, build_plans
from tests.embsim.programs import F, assert_same


def feature(bags, combiner="sum", weights=None, shape=None):
    """`bags` of rows; `weights` of the same form."""
    ids = np.array([row for bag in bags for row in bag], np.int32)
    splits = np.cumsum([0, *map(len, bags)])
    flat = None if weights is None else np.array([w for bag in weights for w in bag], F)
    return FeatureBatch(ids, splits, flat, combiner, shape or (len(bags),))


def one_plan(bags, combiner="sum", weights=None, rows=10):
    batch = Batch((feature(bags, combiner, weights),))
    (plans, _) = build_plans(batch, [("t", rows)], ["t"])
    return plans["t"]


def contributions(plan):
    """{row: [(sample, gain, position)]} in order."""
    found = {}
    for position, row in enumerate(plan.row.tolist()):
        entry = (int(plan.sample[position]), float(plan.gain[position]), position)
        found.setdefault(row, []).append(entry)
    return found


def check_sorted_rows(plan):
    by_row, want = plan.by_row, contributions(plan)
    assert by_row.unique.tolist() == sorted(want) == plan.unique.tolist()
    assert by_row.starts[0] == 0
    assert len(by_row.starts) == len(by_row.unique) + 1
    for u, row in enumerate(by_row.unique.tolist()):
        mine = slice(by_row.starts[u], by_row.starts[u + 1])
        columns = (by_row.sample[mine], by_row.gain[mine], by_row.order[mine])
        assert list(zip(*(c.tolist() for c in columns), strict=True)) == want[row], f"row {row}"
    assert plan.unique[plan.slot_of].tolist() == plan.row.tolist()
    types = [by_row.unique.dtype, by_row.starts.dtype, by_row.order.dtype, by_row.sample.dtype]
    assert types == [np.int32, np.int64, np.int64, np.int32]


def test_the_picture_at_the_head_of_the_file():
    plan = one_plan([[3, 7], [], [3]], "mean")
    assert plan.sample.tolist() == [0, 0, 2]
    assert plan.row.tolist() == [3, 7, 3]
    assert plan.gain.tolist() == [0.5, 0.5, 1]
    assert plan.unique.tolist() == [3, 7]
    assert plan.slot_of.tolist() == [0, 1, 0]
    assert plan.by_row.starts.tolist() == [0, 2, 3]
    assert plan.by_row.order.tolist() == [0, 2, 1]
    assert (plan.table, plan.num_rows, plan.samples) == ("t", 10, 3)


@given(st.data())
def test_features_of_a_table_stand_below_each_other_in_config_order(data):
    tables = [("a", 4), ("b", 1), ("unused", 3)]
    count = data.draw(st.integers(1, 5), label="features")
    table_of, parts, want = [], [], {name: [] for name, _ in tables}
    outputs, samples = [], dict.fromkeys(want, 0)
    for _ in range(count):
        name, rows = data.draw(st.sampled_from(tables[:2]), label="table")
        combiner = data.draw(st.sampled_from(["sum", "mean", "sqrtn"]), label="combiner")
        ids = st.integers(0, rows - 1)
        bags = data.draw(st.lists(st.lists(ids, max_size=4), max_size=4), label="bags")
        numbers = st.sampled_from([0.0, 1.0, -2.0, 0.3])
        weights = [[data.draw(numbers, label="weight") for _ in bag] for bag in bags]
        parts.append(feature(bags, combiner, weights, (1, len(bags))))
        table_of.append(name)
        low = samples[name]
        for bag, each in zip(bags, weights, strict=True):
            gain = definition.gains([F(w) for w in each], combiner)
            want[name] += [(samples[name], r, k) for r, k in zip(bag, gain, strict=True)]
            samples[name] += 1
        outputs.append(Output(name, low, samples[name], (1, len(bags))))
    plans, found = build_plans(Batch(tuple(parts)), tables, table_of)
    assert found == tuple(outputs)
    assert list(plans) == ["a", "b", "unused"]
    for name, rows in tables:
        plan = plans[name]
        assert (plan.table, plan.num_rows, plan.samples) == (name, rows, samples[name])
        assert plan.sample.tolist() == [s for s, _, _ in want[name]]
        assert plan.row.tolist() == [r for _, r, _ in want[name]]
        assert_same(f"gains of {name}", plan.gain, np.array([k for _, _, k in want[name]], F))
        types = [plan.splits.dtype, plan.row.dtype, plan.sample.dtype, plan.gain.dtype]
        assert types == [np.int64, np.int32, np.int32, np.float32]
        check_sorted_rows(plan)


@pytest.mark.parametrize("bags", [[], [[]], [[], [], []]], ids=str)
def test_a_plan_without_lookups_touches_nothing(bags):
    plan = one_plan(bags)
    assert plan.samples == len(bags)
    assert [len(x) for x in (plan.row, plan.gain, plan.sample, plan.unique, plan.slot_of)] == [
        0
    ] * 5
    assert plan.by_row.starts.tolist() == [0]
    check_sorted_rows(plan)


def test_a_row_with_gain_zero_is_touched():
    plan = one_plan([[5, 2], [2]], weights=[[0.0, 1.0], [0.0]])
    assert plan.unique.tolist() == [2, 5]
    assert plan.by_row.gain.tolist() == [1, 0, 0]


def test_repeated_ids_are_not_merged():
    plan = one_plan([[1, 1, 1], [1]], "mean")
    assert plan.row.tolist() == [1, 1, 1, 1]
    assert plan.gain.tolist() == [F(1 / 3)] * 3 + [1]
    check_sorted_rows(plan)


def test_the_largest_row_that_a_table_can_have_is_sorted_last():
    last = 2**31 - 2
    plan = one_plan([[last, 0], [last - 1, last]], rows=2**31 - 1)
    assert plan.unique.tolist() == [0, last - 1, last]
    check_sorted_rows(plan)


@pytest.mark.parametrize("bags", [[[4], [4], [0]], [[1, 2], []], [[], [1, 2]], [[1], [], [2, 3]]])
def test_the_sample_of_each_position(bags):
    """One id a sample takes a short cut, which other bags of as many ids must not take."""
    expected = [sample for sample, bag in enumerate(bags) for _ in bag]
    assert one_plan(bags).sample.tolist() == expected


@given(st.data())
def test_a_plan_on_some_rows_names_the_same_rows(data):
    bags = data.draw(st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=4), label="bags")
    more = data.draw(st.sets(st.integers(0, 9)), label="further rows")
    plan = one_plan(bags, "mean")
    kept = np.array(sorted({*plan.row.tolist(), *more}), np.int32)
    local = plan.with_rows(kept)
    assert local.num_rows == len(kept)
    assert kept[local.row].tolist() == plan.row.tolist()
    assert kept[local.unique].tolist() == plan.unique.tolist()
    for mine, whole in ((local.by_row, plan.by_row), (local, plan)):
        assert mine.sample.tolist() == whole.sample.tolist()
        assert mine.gain.tolist() == whole.gain.tolist()
    assert local.row.dtype == np.int32
    assert isinstance(local, LookupPlan)


def test_a_large_plan_is_sorted_like_a_small_one():
    draw = np.random.default_rng(0)
    lengths = draw.integers(0, 60, 3000)
    row = draw.integers(0, 500, lengths.sum()).astype(np.int32)
    gain = draw.normal(size=len(row)).astype(F)
    plan = LookupPlan("t", 500, np.concatenate([[0], np.cumsum(lengths)]), row, gain)
    order = np.argsort(row, kind="stable")
    assert np.array_equal(plan.by_row.order, order)
    assert np.array_equal(plan.by_row.sample, plan.sample[order])
    assert np.array_equal(plan.by_row.gain, gain[order])
    assert np.array_equal(np.diff(plan.by_row.starts), np.bincount(row, minlength=500)[plan.unique])
