"""A small model for replays: two tables, three features, a dense model of one vector."""

import numpy as np

import embsim
from embsim.simulation.pipelines import pipeline_of
from embsim.simulation.replay import Dense, replay
from embsim.simulation.timeline import run

SAMPLES = 4
ROWS = {"users": 7, "items": 5}


def features(rows=None, initial=None):
    sizes = rows or ROWS
    made = None if initial is None else lambda shape, dtype: np.full(shape, initial, dtype)
    users = embsim.TableConfig(sizes["users"], 2, made, name="users", combiner="sum")
    items = embsim.TableConfig(sizes["items"], 3, made, name="items", combiner="sum")
    of = {"user": users, "item": items, "seller": items}
    return {name: embsim.FeatureConfig(table, name=name) for name, table in of.items()}


def batches(count, seed=0, samples=SAMPLES, rows=None):
    """(features, inputs) of so many batches; bags of up to two ids."""
    draw, sizes = np.random.default_rng([seed, 1]), rows or ROWS
    made = []
    for _ in range(count):
        ids = {
            "user": draw.integers(0, sizes["users"], (samples, 1)),
            "item": _bags(draw, sizes["items"], samples),
            "seller": draw.integers(0, sizes["items"], samples),
        }
        made.append((ids, draw.integers(-2, 3, samples).astype(np.float32)))
    return made


def _bags(draw, rows, samples):
    return embsim.RaggedTensor.from_row_lengths(
        *_values_and_lengths(draw, rows, draw.integers(0, 3, samples))
    )


def _values_and_lengths(draw, rows, lengths):
    return draw.integers(0, rows, lengths.sum()), lengths


def dense(weight=0.5):
    """Gradients depend on activations, on inputs, and on the dense vector."""

    def gradients(parameters, activations, inputs):
        total = sum(np.sum(each, axis=-1).reshape(-1) for each in activations.values())
        score = np.float32(weight) * total + parameters["bias"] * inputs
        by_feature = {
            name: (np.float32(0.25) * each + score.reshape(-1, *[1] * (each.ndim - 1)))
            for name, each in activations.items()
        }
        return score, by_feature, {"bias": np.mean(score, dtype=np.float32)[None]}

    return Dense({"bias": np.ones(1, np.float32)}, gradients, _descend)


def constant():
    """Gradients of whole numbers that depend on inputs alone, and so no sum of them is rounded."""

    def gradients(parameters, activations, inputs):
        by_feature = {
            name: np.broadcast_to(inputs.reshape(-1, *[1] * (each.ndim - 1)), each.shape).astype(
                np.float32
            )
            for name, each in activations.items()
        }
        return inputs, by_feature, {"bias": inputs[:1]}

    return Dense({"bias": np.zeros(1, np.float32)}, gradients, _sum)


def _descend(parameters, gradients):
    return {"bias": parameters["bias"] - np.float32(0.125) * gradients["bias"]}


def _sum(parameters, gradients):
    return {"bias": parameters["bias"] - gradients["bias"]}


def timeline_of(pipeline, count, seed=0):
    """Times that are drawn: anything may happen that the schedule allows."""
    operations = pipeline.operations(count)
    draw = np.random.default_rng([seed, 2])
    return run(operations, draw.choice([0.0, 0.1, 1.0, 3.0], len(operations)))


def replayed(
    schedule, count=12, seed=0, optimizer=None, model=None, data=None, initial=None, **options
):
    """A replay of one schedule, a text or a Pipeline."""
    pipeline = pipeline_of(schedule) if isinstance(schedule, str) else schedule
    return replay(
        timeline_of(pipeline, count, seed),
        pipeline,
        features(initial=initial),
        optimizer or embsim.SGD(learning_rate=0.25),
        batches(count, seed) if data is None else data,
        model or dense(),
        **options,
    )


def arrays(state):
    """All tables and slots by name."""
    found = {(name, ""): np.asarray(array) for name, array in state.weights.items()}
    for name, slots in state.slots.items():
        found |= {(name, slot): np.asarray(array) for slot, array in slots.items()}
    return found


def assert_same(state, other):
    """To the bit."""
    mine, others = arrays(state), arrays(other)
    assert mine.keys() == others.keys()
    for key, array in mine.items():
        np.testing.assert_array_equal(array.view(np.int32), others[key].view(np.int32), str(key))
