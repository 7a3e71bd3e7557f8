"""Whose dense parameters a step sees."""

import numpy as np
import pytest

import embsim
from embsim.schedule import semi_sync
from embsim.simulation.pipelines import pipeline_of
from embsim.simulation.replay import Dense
from embsim.simulation.replay.dense import mean, total
from tests.embsim.simulation.replay import world


def versions(schedule, count, seed=0):
    """Of each batch: which batches' gradients its dense parameters had, as sets; of the end, too.

    Parameters are a vector with a place for each batch, and the gradient of batch t is -1 there.
    """

    def gradients(parameters, activations, inputs):
        slope = np.zeros(count, np.float64)
        slope[inputs] = -1
        return np.flatnonzero(parameters["w"]).tolist(), {}, {"w": slope}

    model = Dense({"w": np.zeros(count)}, gradients, lambda p, g: {"w": p["w"] - g["w"]})
    pipeline = pipeline_of(schedule)
    timeline = world.timeline_of(pipeline, count, seed)
    table = embsim.TableConfig(3, 1, name="t")
    data = [({"f": [[t % 3]]}, t) for t in range(count)]
    result = world.replay(
        timeline, pipeline, {"f": embsim.FeatureConfig(table)}, embsim.SGD(), data, model
    )
    return timeline, [set(each) for each in result.scores], result.parameters["w"]


@pytest.mark.parametrize(
    "schedule",
    ["sequential()", "stale(3)", "lookahead(2)", "semi_sync(4)", "offload()", "hybrid(1, 2)"],
)
def test_one_worker_s_are_fresh(schedule):
    _, seen, whole = versions(schedule, 9)
    assert seen == [set(range(t)) for t in range(9)]
    np.testing.assert_array_equal(whole, 1)


def test_stashed_gradients_are_one_step_old_after_the_warm_up():
    _, seen, whole = versions("semi_sync(4, True)", 9)
    assert seen == [set(range(semi_sync(4).version_read(t))) for t in range(9)]
    assert seen[4] == {0, 1, 2}
    np.testing.assert_array_equal(whole, 1)


def test_a_window_s_are_those_of_its_beginning():
    _, seen, whole = versions("accumulate(4)", 10)
    assert seen == [set(range(t // 4 * 4)) for t in range(10)]
    np.testing.assert_array_equal(whole, 1)


@pytest.mark.parametrize("schedule", ["hybrid(3, 2)", "row_clocks(3, 1)"])
def test_reduced_ones_have_all_clocks_before(schedule):
    """As a mean over workers."""
    _, seen, whole = versions(schedule, 12)
    assert seen == [set(range(t // 3 * 3)) for t in range(12)]
    np.testing.assert_allclose(whole, 1 / 3)


def test_on_a_server_they_are_read_with_the_rows():
    """And changed with them."""
    timeline, seen, whole = versions("bounded_async(3, 1)", 12, seed=3)
    operations, wanted = timeline.operations, {}
    done = set()
    for event in timeline.events():
        operation = operations[event]
        if operation.stage.reads:
            wanted[operation.batch] = set(done)
        else:
            done.add(operation.batch)
    assert seen == [wanted[t] for t in range(12)]
    assert any(each != set(range(t)) for t, each in enumerate(seen))
    np.testing.assert_array_equal(whole, 1)


def test_a_worker_s_own_are_averaged_now_and_then():
    timeline, seen, _ = versions("replica_sync(2, 3)", 24)
    operations = timeline.operations
    syncs, dense = operations.of("sync"), operations.of("dense")
    for t in range(24):
        own = set(range(t % 2, t, 2))
        before = [s for s in syncs if timeline.ended[s] < timeline.began[dense[t]]]
        begin = max((timeline.began[s] for s in before), default=-1)
        assert seen[t] == own | {j for j in range(24) if timeline.ended[dense[j]] < begin}


def test_arithmetic_on_nests():
    a = {"w": [np.array([1.0, 2.0]), 3], "n": (np.float32(1),)}
    b = {"w": [np.array([3.0, 4.0]), 5], "n": (np.float32(2),)}
    assert total([a, b])["w"][0].tolist() == [4, 6] and total([a, b])["n"] == (3,)
    assert mean([a, b])["w"][0].tolist() == [2, 3] and mean([a, b])["n"] == (1.5,)
    assert mean([a, b])["w"][1] == 3  # a count
