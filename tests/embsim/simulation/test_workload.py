"""Workloads: sizes and costs by hand."""

import pytest

from embsim.simulation.popularity import uniform
from embsim.simulation.workload import Table, Workload, dcn, dlrm, mlp


def test_sizes_of_tables():
    table = Table(1000, 16, 2.5, tables=3, slots=1 / 16)
    assert table.bytes == 4 * 1000 * (16 + 1) * 3
    made = Workload("x", (table, Table(10, 8, 1, slots=2)), 64, 0, 0)
    assert made.ids == 2.5 * 3 + 1
    assert made.activations == 16 * 3 + 8
    assert made.bytes == table.bytes + 4 * 10 * 8 * 3


def test_a_table_s_popularity_is_its_law_or_zipf():
    assert Table(100, 8).popularity.probability.tolist() == [0.01]
    assert Table(100, 8, alpha=1.0).popularity.probability[0] == pytest.approx(1 / 5.187, rel=1e-3)
    law = uniform(7)
    assert Table(100, 8, law=law).popularity is law


def test_dense_models_by_hand():
    assert mlp(3, 4, 5) == (32, 32 + 9)
    # 2 features of width 4: 3 vectors, 3 products of 4; the top sees 4 + 3 numbers.
    macs, weights = dlrm(2, 4, (5, 4), (8, 1))
    assert macs == 5 * 4 + 3 * 4 + 7 * 8 + 8
    assert weights == (5 * 4 + 4) + (7 * 8 + 8) + (8 + 1)
    # 12 wide, 2 cross layers of rank 3, down and up; a bias each.
    macs, weights = dcn(2, 4, (5, 4), (8, 1), layers=2, rank=3)
    assert macs == 5 * 4 + 2 * 2 * 3 * 12 + 12 * 8 + 8
    assert weights == (5 * 4 + 4) + 2 * (2 * 3 * 12 + 12) + (12 * 8 + 8) + (8 + 1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rows": 0}, "workload: rows is 0"),
        ({"ids": -1.0}, "workload: ids is -1.0; it must be a number >= 0"),
        ({"slots": float("inf")}, "workload: slots is inf"),
        ({"tables": 0}, "workload: tables is 0"),
    ],
)
def test_what_is_no_table_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Table(**{"rows": 10, "dim": 4} | arguments)
