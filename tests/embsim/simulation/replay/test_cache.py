"""Which rows a cache holds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embsim.simulation.replay.cache import WAYS, Caches
from embsim.simulation.replay.setting import Setting
from tests.embsim.simulation.replay import world


def missed(caches, batch, rows):
    rows = np.array(sorted(set(rows)), np.int32)
    return set(rows[caches.miss("t", rows, batch)].tolist())


@settings(max_examples=40)
@given(st.lists(st.sets(st.integers(0, 79), max_size=40), max_size=12), st.sampled_from([0.4, 0.8]))
def test_of_each_set_the_least_recently_used_goes(batches, share):
    """Against a plain list of rows by last use."""
    caches = Caches({"t": 80}, share)
    sets = max(1, round(80 * share / WAYS))
    held = [{} for _ in range(sets)]  # row -> batch that used it last
    for now, rows in enumerate(batches):
        wanted = {row for row in rows if row not in held[row % sets]}
        for row in sorted(rows - wanted):
            held[row % sets][row] = now
        for row in sorted(wanted):
            lines = held[row % sets]
            if len(lines) == WAYS:
                oldest = min(lines, key=lines.get)
                if lines[oldest] == now:
                    continue
                if sum(used == lines[oldest] for used in lines.values()) > 1:
                    return  # a tie: which of them goes is not defined
                del lines[oldest]
            lines[row] = now
        assert missed(caches, now, rows) == wanted


def test_what_was_just_asked_for_is_held():
    caches = Caches({"t": 1000}, 0.1)
    assert missed(caches, 0, range(60)) == set(range(60))
    assert missed(caches, 1, range(30, 90)) == set(range(60, 90))


def test_a_set_that_one_batch_overfills_keeps_what_came_first():
    caches = Caches({"t": 100}, 0.01)
    assert missed(caches, 0, range(50)) == set(range(50))
    assert missed(caches, 1, range(50)) == set(range(WAYS, 50))


def test_without_locks_rows_that_find_no_place_are_read_one_step_old():
    """Tables in a cache of one set: none of 5 and 7 rows is ever evicted; of 200 many are."""
    small = world.replayed("offload(locked=False)", 20)
    assert small.account.conflict == 0
    rows = {"users": 200, "items": 3}
    data = world.batches(20, samples=60, rows=rows)
    pipeline = world.pipeline_of("offload(locked=False)")
    operations = pipeline.operations(20)
    timeline = world.run(operations, 1.0)
    features = world.features(rows)
    result = world.replay(
        timeline, pipeline, features, world.embsim.SGD(), data, world.dense(), cached=0.01
    )
    assert 0 < result.account.conflict < result.rows["got"] / result.rows["asked"] < 1


@pytest.mark.parametrize("share", [0, -1.0, 1.01, float("nan")])
def test_a_share_is_above_0_and_at_most_1(share):
    with pytest.raises(ValueError, match=r"replay: cached is "):
        Caches({"t": 10}, share)


def test_features_are_named_in_a_setting():
    assert Setting(world.features(), world.embsim.SGD(), "reference", 0).sizes == world.ROWS
