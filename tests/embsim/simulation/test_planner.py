"""TorchRec's planner, by hand."""

import pytest

from embsim.simulation.planner import estimate
from embsim.simulation.workload import Table, Workload
from embsim.simulation.zoo import workload, workloads


def made(dim, ids=20.0, tables=3):
    return Workload("w", (Table(1000, dim, ids, tables=tables),), 512, 0.0, 0.0)


@pytest.mark.parametrize(("dim", "penalty"), [(128, 1.0), (64, 1.15), (127, 1.15), (32, 1.75)])
def test_by_hand(dim, penalty):
    forward = 3 * 512 * (20 * 8 + 20 * dim * 4 + dim * 4) * penalty / 897e9
    found = estimate(made(dim))
    assert found.forward == pytest.approx(forward)
    assert (found.backward, found.exchange) == (pytest.approx(2 * forward), 0)
    assert found.seconds == pytest.approx(3 * forward)


def test_chips_share_the_tables_and_exchange_activations():
    one, eight, sixteen = (estimate(made(128), chips) for chips in (1, 8, 16))
    assert eight.forward == pytest.approx(one.forward / 8)
    assert eight.exchange == pytest.approx(2 * 3 * 512 * 512 / 8 / 600e9)
    assert sixteen.exchange == pytest.approx(2 * 3 * 512 * 512 / 16 / 12.5e9)


@pytest.mark.parametrize("name", workloads())
def test_it_takes_every_workload(name):
    assert 0 < estimate(workload(name), 8).seconds < 100


def test_no_chip():
    with pytest.raises(ValueError, match=r"planner: chips is 0"):
        estimate(made(128), 0)
