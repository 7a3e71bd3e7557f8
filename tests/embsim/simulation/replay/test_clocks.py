"""Caches with clocks."""

import numpy as np
import pytest

import embsim
from embsim.simulation.pipelines import pipeline_of
from tests.embsim.simulation.replay import world


@pytest.mark.parametrize("optimizer", [embsim.SGD(learning_rate=0.25), embsim.Adagrad()])
def test_one_worker_that_sends_at_once_is_sequential(optimizer):
    """To the bit, where what it sends has come before its next update."""
    pipeline = pipeline_of("row_clocks(1, 0)")
    timeline = world.run(pipeline.operations(12), 1.0)
    data = world.batches(12)
    clocked = world.replay(timeline, pipeline, world.features(), optimizer, data, world.dense())
    plain = world.replayed("sequential()", 12, 0, optimizer)
    world.assert_same(clocked.state, plain.state)
    assert clocked.account.conflict == 0
    for mine, other in zip(clocked.scores, plain.scores, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_one_worker_sees_its_own_updates_at_once():
    """However long it keeps them: with SGD what it scores is what a sequential run scores."""
    clocked = world.replayed("row_clocks(1, 50)", 12)
    plain = world.replayed("sequential()", 12)
    for mine, other in zip(clocked.scores, plain.scores, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert clocked.account.conflict == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_longer_leash_moves_fewer_rows_and_misses_more_updates(seed):
    results = [world.replayed(f"row_clocks(3, {bound})", 60, seed) for bound in (0, 1, 4, 16)]
    got, sent = ([each.rows[name] for each in results] for name in ("got", "sent"))
    assert got == sorted(got, reverse=True) and got[0] > 2 * got[-1]
    assert sent == sorted(sent, reverse=True) and sent[0] > 2 * sent[-1]
    missed = [each.account.mean_missed for each in results]
    assert missed == sorted(missed) and missed[-1] > 2 * missed[0]


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_no_worker_misses_more_than_the_bounds_allow(bound):
    """Of the server's updates at most `bound` as it pulls; of each other worker's at most `bound`
    that it has not sent, and those of batches in flight: two of each, by its clock."""
    workers = 3
    result = world.replayed(f"row_clocks({workers}, {bound})", 60)
    others = workers - 1
    assert (result.account.missed <= result.account.reads * others * (2 * bound + 3)).all()


def test_an_optimizer_that_changes_every_row_is_refused():
    with pytest.raises(ValueError, match=r"table 'users' updates every row at each step; with"):
        world.replayed("row_clocks(2, 1)", optimizer=embsim.Adam(lazy_adam=False))
