"""Replicas that are averaged."""

import numpy as np
import pytest

import embsim
from embsim.simulation.pipelines import replica_sync
from tests.embsim.simulation.replay import world


def test_between_averages_each_worker_trains_alone():
    """And the end is their mean."""
    optimizer, data = embsim.Adagrad(learning_rate=0.5), world.batches(10)
    result = world.replayed("replica_sync(2, 100)", 10, 0, optimizer, data=data)
    alone = [
        world.replayed("sequential()", 5, 0, optimizer, data=data[worker::2]) for worker in (0, 1)
    ]
    for t in range(10):
        np.testing.assert_array_equal(result.scores[t], alone[t % 2].scores[t // 2])
    for key, array in world.arrays(result.state).items():
        both = [world.arrays(each.state)[key].astype(np.float64) for each in alone]
        np.testing.assert_array_equal(array, np.mean(both, axis=0).astype(np.float32))
    assert (result.account.missed > 0).any()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("workers", [2, 4])
def test_the_mean_of_all_has_every_update_once(workers, seed):
    """A part of each, 1 / workers; whatever happens while averages are on their way."""
    optimizer, model = embsim.SGD(learning_rate=1.0), world.constant()
    found = world.replayed(f"replica_sync({workers}, 2)", 16, seed, optimizer, model, initial=0)
    whole = world.replayed("sequential()", 16, seed, optimizer, model, initial=0)
    for key, array in world.arrays(found.state).items():
        np.testing.assert_allclose(array, world.arrays(whole.state)[key] / workers, rtol=1e-6)
    np.testing.assert_allclose(found.parameters["bias"], whole.parameters["bias"] / workers)


def test_averages_make_reads_fresher():
    missed = [
        world.replayed(f"replica_sync(3, {every})", 60).account.mean_missed for every in (1, 4, 20)
    ]
    assert missed[0] < missed[1] < missed[2]


def test_an_average_takes_effect_as_it_ends():
    """Batches of one id, gradient 1: what a worker reads counts the updates that it sees."""
    pipeline, count = replica_sync(2, 2), 12
    operations = pipeline.operations(count)
    names = [operations[i].stage.name for i in range(len(operations))]
    seconds = np.array([{"sync": 1.5, "dense": 1.0}.get(name, 0.0) for name in names])
    timeline = world.run(operations, seconds)
    table = embsim.TableConfig(2, 1, lambda s, d: np.zeros(s, d), name="t")
    model = world.Dense(
        None, lambda p, a, i: (-a["f"][0, 0], {"f": np.ones((1, 1))}, None), lambda p, g: None
    )
    data = [({"f": [[0]]}, None)] * count
    features = {"f": embsim.FeatureConfig(table)}
    sgd = embsim.SGD(learning_rate=1.0)
    result = world.replay(timeline, pipeline, features, sgd, data, model)
    # Each step takes 1 s. Averages begin at 2 s, of 2 and 2, and at 4 s, and end 1.5 s later.
    one = [0, 1, 2, 3, 4, 5]
    assert result.scores == [value for value in one for _ in range(2)]
    others = 0 + 1 + 2 + 3 + 2 + 3  # and worker 1 misses those of worker 0 in flight
    assert result.account.missed.tolist() == [2 * others + 6]
