"""Compensations: what they are given, and what becomes of it."""

import numpy as np
import pytest

import embsim
from embsim.simulation.replay import dc_asgd, decayed, drop_if_older
from tests.embsim.simulation.replay import world
from tests.embsim.simulation.replay.test_account import one_row

G = np.array([[1.0, -2.0]], np.float32)
NOW, READ = np.array([[3.0, 1.0]], np.float32), np.array([[1.0, 1.5]], np.float32)


def test_formulas():
    np.testing.assert_array_equal(
        dc_asgd(0.5)(G, NOW, READ, np.array([[2]])), [[1 + 0.5 * 1 * 2, -2 + 0.5 * 4 * -0.5]]
    )
    np.testing.assert_array_equal(decayed()(G, NOW, READ, np.array([[3]])), G / 4)
    np.testing.assert_array_equal(drop_if_older(2)(G, NOW, READ, np.array([[2]])), G)
    np.testing.assert_array_equal(drop_if_older(2)(G, NOW, READ, np.array([[3]])), 0 * G)


@pytest.mark.parametrize("made", [dc_asgd(0.3), decayed(), drop_if_older(0)])
@pytest.mark.parametrize("schedule", ["sequential()", "lookahead(2)"])
def test_what_is_not_stale_stays_as_it_is(made, schedule):
    """To the bit."""
    optimizer = embsim.Adagrad(learning_rate=0.3)
    with_it = world.replayed(schedule, optimizer=optimizer, compensate=made)
    world.assert_same(with_it.state, world.replayed(schedule, optimizer=optimizer).state)


def test_it_gets_rows_as_they_are_and_as_they_were_read():
    """Three ids of one row and stale(2): of the first three batches all read the initial row."""
    seen = []

    def compensate(gradient, now, read, age):
        seen.append((gradient.copy(), now.copy(), read.copy(), age.copy()))
        return gradient

    one_row("stale(2)", 5, [1.0, 1.0, 1.0, 1.0, 1.0], compensate=compensate)
    assert [int(age[0, 0]) for _, _, _, age in seen] == [0, 1, 2, 2, 2]
    for gradient, now, read, age in seen:
        assert gradient.shape == now.shape == read.shape == (1, 2) and age.shape == (1, 1)
        np.testing.assert_array_equal(gradient, [[3, 3]])
        np.testing.assert_allclose(now, read - 3 * age, rtol=1e-6)


def test_what_is_dropped_changes_nothing():
    """stale(1): batch 0 is fresh, all others are one update old."""
    kept = one_row("stale(1)", 6, [1.0] * 6, compensate=drop_if_older(1)).state
    dropped = one_row("stale(1)", 6, [1.0] * 6, compensate=drop_if_older(0)).state
    first = one_row("stale(1)", 1, [1.0]).state
    np.testing.assert_array_equal(dropped.weights["t"], first.weights["t"])
    assert not np.array_equal(kept.weights["t"], first.weights["t"])


def test_of_a_window_each_batch_is_changed_by_itself():
    """Batches of one window miss no update, since none is made in between."""
    plain = world.replayed("accumulate(3)", model=world.constant(), initial=0)
    same = world.replayed("accumulate(3)", model=world.constant(), initial=0, compensate=decayed())
    world.assert_same(plain.state, same.state)


def test_another_form_is_refused():
    with pytest.raises(ValueError, match=r"table 'users' returned float64 \(\d, 2\); it must"):
        world.replayed("stale(1)", compensate=lambda g, n, r, a: g.astype(np.float64))
    with pytest.raises(ValueError, match=r"returned float32 \(1, 2\); it must return float32"):
        world.replayed("stale(1)", compensate=lambda g, n, r, a: g[:1])


@pytest.mark.parametrize("schedule", ["row_clocks(2, 1)", "replica_sync(2, 3)"])
def test_copies_of_workers_are_refused(schedule):
    with pytest.raises(ValueError, match=r"with a compensation; it needs tables that all workers"):
        world.replayed(schedule, compensate=decayed())
