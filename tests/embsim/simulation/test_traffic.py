"""What a step moves: by hand, and expected beside counted."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embsim.simulation.popularity import uniform
from embsim.simulation.traffic import counted, expected, sampled
from embsim.simulation.workload import Table, Workload
from embsim.simulation.zoo import workload

SMALL = Workload("small", (Table(8, 4, 2, slots=1), Table(5, 2, 1, slots=0)), 4, 0, 0, 3)
BATCHES = [
    [np.array([[0, 1], [1, 1], [5, 6], [7, 0]]), np.array([[0], [0], [1], [4]])],
    [np.array([[0, 1], [2, 2], [3, 3], [4, 5]]), np.array([[0], [0], [0], [1]])],
    [np.array([[0, 0], [1, 2], [2, 7], [7, 0]]), np.array([[4], [4], [3], [1]])],
]


def test_by_hand():
    found = counted(SMALL, BATCHES, chips=2, depths=(0, 1, 2))
    assert (found.samples, found.ids) == (2, 2 * 2 + 2)
    # Chip 0 asks for rows 0, 1, 2 and 4; chip 1 for 0, 2, 7 and 1, 3.
    assert found.asked == ((3 + 1) + (3 + 2)) / 2
    assert found.changed == (4 + 3) / 2
    assert found.asked_bytes == 4 * ((3 + 3) * 4 + (1 + 2) * 2) / 2
    assert found.changed_bytes == 4 * (4 * 4 * 2 + 3 * 2) / 2
    assert found.activation_bytes == 4 * 2 * (4 + 2)
    assert found.input_bytes == 4 * 6 + 4 * 2 * 3
    # Shard 0 is asked for 0, 2; 0, 2 and 4; shard 1 for 1; 7 and 1, 3.
    assert found.imbalance == 5 / 4.5
    # Rows 0, 1, 2 and 1 were changed one step before, row 7 and row 4 two steps before.
    assert found.conflict == {0: 0, 1: 4 / 7, 2: 6 / 7}
    assert found.stale == {0: 0, 1: (6 + 1) / 12, 2: (8 + 3) / 12}
    assert found.missed == {0: 0, 1: 7 / 12, 2: (6 + 2 + 2 + 2 + 2 + 2) / 12}


@pytest.mark.parametrize("chips", [1, 8])
@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.2])
def test_expected_is_nearly_what_is_counted(alpha, chips):
    tables = Table(5000, 8, 3, alpha, tables=1), Table(100_000, 16, 1, alpha)
    made = Workload("x", tables, 4096, 0, 0)
    wanted = expected(made, chips, (1, 3))
    found = counted(made, sampled(made, np.random.default_rng(0), 4), chips, (1, 3))
    for name in ("samples", "ids", "activation_bytes", "input_bytes", "cold"):
        assert getattr(found, name) == getattr(wanted, name)
    for name in ("asked", "changed", "asked_bytes", "changed_bytes"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=0.02)
    for name in ("conflict", "stale", "missed"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), abs=0.02)
    assert found.imbalance == pytest.approx(wanted.imbalance, rel=0.1)


def test_tables_that_are_alike_count_as_many():
    one = Workload("one", (Table(1000, 8, 2, 1.1),), 256, 0, 0, 0)
    three = replace(one, tables=(replace(one.tables[0], tables=3),))
    found, single = expected(three, 4), expected(one, 4)
    for name in ("ids", "asked", "changed", "asked_bytes", "changed_bytes", "activation_bytes"):
        assert getattr(found, name) == pytest.approx(3 * getattr(single, name))
    assert found.conflict == pytest.approx(single.conflict)


@settings(max_examples=30)
@given(st.sampled_from([1, 2, 4, 16, 128]), st.floats(0, 1.5))
def test_more_chips_ask_for_more_rows_in_all(chips, alpha):
    made = Workload("x", (Table(10_000, 8, 4, alpha),), 1024, 0, 0)
    one, many = expected(made, 1), expected(made, chips)
    assert many.asked * chips >= one.asked * (1 - 1e-9)
    assert many.changed * chips == pytest.approx(one.changed)
    assert many.conflict == one.conflict and many.imbalance >= 1


def test_ids_of_large_tables_are_counted_by_those_that_there_are():
    """Tables beyond 2 ** 27 rows."""
    small = Workload("x", (Table(1000, 8, 2, 1.1),), 64, 0, 0)
    large = replace(small, tables=(replace(small.tables[0], rows=2**40, law=uniform(1000)),))
    batches = sampled(small, np.random.default_rng(0), 3)
    moved = [[ids * 4 + 2**39 for ids in batch] for batch in batches]
    first, second = counted(small, batches, 4, (2,)), counted(large, moved, 4, (2,))
    assert (first.asked, first.changed, first.stale) == (second.asked, second.changed, second.stale)
    assert second.imbalance == 4  # all are on shard 0


@pytest.mark.parametrize(
    "batches, chips, depths, message",
    [
        (BATCHES, 3, (1,), "4 samples; it must be a multiple of 3 chips"),
        (BATCHES[:1], 1, (1,), "1 batches; to count conflicts with 1 steps before there must be"),
        ([BATCHES[0][:1]], 1, (0,), r"batches of \[1\] tables; each must have 2"),
        ([[BATCHES[0][0] + 3, BATCHES[0][1]]], 1, (0,), "ids that are no rows of a table of 8"),
        (BATCHES, 0, (1,), "chips is 0"),
    ],
)
def test_what_cannot_be_counted_is_refused(batches, chips, depths, message):
    with pytest.raises(ValueError, match=message):
        counted(SMALL, batches, chips, depths)


def test_of_no_ids_there_is_nothing():
    nothing = Workload("nothing", (Table(10, 4, 0),), 8, 0, 0, 0)
    found = expected(nothing, 2)
    assert (found.ids, found.asked, found.imbalance) == (0, 0, 1)
    assert found.conflict == {1: 0} and found.cold == 0


def test_dcnv2_in_closed_form_is_what_is_counted():
    """Of an eighth of its batch, with as many ids a chip."""
    made = replace(workload("dcnv2"), samples=8192)
    wanted = expected(made, 8)
    found = counted(made, sampled(made, np.random.default_rng(0), 2), 8)
    assert found.asked == pytest.approx(wanted.asked, rel=0.01)
    assert found.conflict[1] == pytest.approx(wanted.conflict[1], abs=0.01)
    assert found.stale[1] == pytest.approx(wanted.stale[1], abs=0.01)
