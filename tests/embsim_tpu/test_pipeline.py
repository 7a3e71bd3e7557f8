"""The training loop against TPUEmbedding on the reference, to the bit.

Numbers are small multiples of powers of two, so that all sums are exact; each gradient depends on
the activations of its step, so that a lookup of another version changes all that follows.
"""

import threading
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import embsim
from embsim import (
    FeatureConfig,
    RaggedTensor,
    Schedule,
    TableConfig,
    semi_sync,
    sequential,
    sparsecore_loop,
    stale,
    tpu_embedding_pipelined,
)
from embsim.conformance import Rates, Values
from embsim.conformance.rules import Counting
from embsim.state import State as HostState
from embsim_tpu import Capacity, Embedding, Example, Pipeline, TrainState, train
from embsim_tpu.pipeline import programs
from tests.embsim.programs import assert_same
from tests.embsim_tpu.conftest import F, mesh_of

STEPS, SAMPLES = 11, 8
SCHEDULES = {
    "sequential": sequential(),
    "tpu_embedding_pipelined": tpu_embedding_pipelined(),
    "sparsecore_loop(1)": sparsecore_loop(1),
    "sparsecore_loop(2)": sparsecore_loop(2),
    "sparsecore_loop(4)": sparsecore_loop(4),
    "semi_sync(3)": semi_sync(3),
    "stale(2)": stale(2),
    "stale(4)": stale(4),
    "stale(3) in loops of 5 after 2": Schedule(3, 5, 2),
}


@cache
def tables():
    """Two tables, one of them shared by two features."""
    draw = np.random.default_rng(0)

    def table(name, rows, dim, combiner):
        values = Values(draw.integers(-8, 9, (rows, dim)).astype(F))
        optimizer = Counting(Rates((1.0, 0.5, 0.25)))
        return TableConfig(rows, dim, values, optimizer, combiner, name)

    items, users = table("items", 17, 2, "sum"), table("users", 5, 1, "sum")
    return {"clicks": FeatureConfig(items), "user": [FeatureConfig(users), FeatureConfig(items, 2)]}


@cache
def data():
    draw, made = np.random.default_rng(1), []
    for _ in range(STEPS):
        lengths = [draw.integers(0, 4, SAMPLES) for _ in range(3)]
        ids = [
            RaggedTensor(draw.integers(0, rows, n.sum()).astype(np.int32), np.cumsum([0, *n]))
            for n, rows in zip(lengths, (17, 5, 17), strict=True)
        ]
        shapes = [(SAMPLES, 2), (SAMPLES, 1), (SAMPLES, 2, 2)]
        noise = [draw.integers(-2, 3, shape).astype(F) for shape in shapes]
        made.append(Example(structure(ids), structure(noise)))
    return made


def structure(leaves):
    return {"clicks": leaves[0], "user": [leaves[1], leaves[2]]}


def leaves(nest):
    return [np.array(nest["clicks"]), *map(np.array, nest["user"])]


def dense_step(carry, activations, inputs):
    gradients = jax.tree.map(lambda a, x: x - jnp.sign(a), activations, inputs)
    return carry + 1, gradients, activations


def embedding_on(devices):
    capacity = Capacity(positions=64, rows=17)
    return Embedding(tables(), mesh=mesh_of(devices), capacity=capacity)


def start(embedding):
    return TrainState(embedding.init(), jnp.zeros((), jnp.int32))


@cache
def reference(schedule, steps=STEPS):
    """(activations of each step, tables, slots) as if drained."""
    with embsim.TPUStrategy().scope():
        made = embsim.TPUEmbedding(tables(), schedule=schedule)
    seen = []
    for example in data()[:steps]:
        made.enqueue(example.features)
        activations = leaves(made.dequeue())
        seen.append(activations)
        noise = leaves(example.inputs)
        made.apply_gradients(
            structure([x - np.sign(a) for a, x in zip(activations, noise, strict=True)])
        )
    snapshot = made.snapshot()
    made.drain()
    made.close()
    weights = {table.name: array for table, array in snapshot.embedding_tables.items()}
    return seen, weights, {t.name: dict(slots) for t, slots in snapshot.slot_variables.items()}


def compare_tables(embedding, state, schedule, steps=STEPS):
    _, weights, slots = reference(schedule, steps)
    found = embedding.get(state)
    for name, wanted in weights.items():
        assert_same(name, found.weights[name], wanted)
        for slot, values in slots[name].items():
            assert_same(f"{name}, {slot}", found.slots[name][slot], values)


def compare_activations(seen, schedule):
    for step, (found, wanted) in enumerate(zip(seen, reference(schedule)[0], strict=True)):
        for number, (a, b) in enumerate(zip(found, wanted, strict=True)):
            assert_same(f"step {step}, feature {number}", a, b)


def bits(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("prefetch, pause_every", [(0, None), (1, 3), (4, 1)], ids=str)
def test_train_computes_what_the_law_says(devices, schedule, prefetch, pause_every):
    embedding, seen, pauses = embedding_on(devices), [], []

    def on_step(step, metrics):
        assert step == len(seen)
        seen.append(leaves(metrics))

    def on_pause(pipeline):
        pauses.append(pipeline.state.step)
        with pipeline.as_if_drained() as drained:
            compare_tables(embedding, drained, schedule, pauses[-1])

    end = train(
        embedding,
        dense_step,
        iter(data()),
        start(embedding),
        schedule=schedule,
        prefetch=prefetch,
        pause_every=pause_every,
        on_step=on_step,
        on_pause=on_pause,
    )
    compare_activations(seen, schedule)
    compare_tables(embedding, end.tables, schedule)
    assert (end.step, end.version, end.start, end.pending) == (STEPS, STEPS, STEPS, ())
    assert int(end.carry) == STEPS
    every = pause_every or STEPS
    assert pauses == sorted({*range(every, STEPS + 1, every), STEPS})
    assert no_thread()


def no_thread():
    return not [each for each in threading.enumerate() if each.name == "embsim prefetch"]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_steps_by_hand_compute_the_same(schedule):
    """With and without `following`, in any pattern, and with the lookup begun apart."""
    draw = np.random.default_rng(2)
    for pattern in range(3):
        embedding = embedding_on(1)
        pipeline = Pipeline(embedding, dense_step, start(embedding), schedule)
        planned, seen = [pipeline.planned(example) for example in data()], []
        for step, each in enumerate(planned):
            if pattern and draw.integers(2):
                found = pipeline.begin(each)
                assert_same("begin", leaves(found)[0], reference(schedule)[0][step][0])
            follows = planned[step + 1] if step + 1 < STEPS and draw.integers(2) else None
            seen.append(leaves(pipeline.step(each, follows)))
        compare_activations(seen, schedule)
        pipeline.drain()
        compare_tables(embedding, pipeline.state.tables, schedule)
        assert len(pipeline.kinds) <= 5


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_run_that_stops_goes_on_as_if_it_never_had(devices, schedule):
    embedding, seen = embedding_on(devices), []

    def go(state, steps):
        return train(
            embedding,
            dense_step,
            data()[state.step :],
            state,
            schedule=schedule,
            steps=steps,
            on_step=lambda step, metrics: seen.append(leaves(metrics)),
            drain=steps == STEPS,
        )

    state = go(start(embedding), 4)
    assert (state.step, state.start) == (4, 0)
    assert len(state.pending) == state.step - state.version
    other = Pipeline(embedding, dense_step, start(embedding), schedule)
    other.step(other.planned(data()[0]), other.planned(data()[1]))
    other.restore(state)  # forgets what it had begun
    other.step(other.planned(data()[4]))
    seen.append(None)
    state = go(other.state, STEPS)
    seen[4] = reference(schedule)[0][4]
    compare_activations(seen, schedule)
    compare_tables(embedding, state.tables, schedule)


def test_a_drain_is_a_bubble():
    """As TPUEmbedding's: the step that was looked up ahead is looked up again."""
    schedule = stale(2)
    with embsim.TPUStrategy().scope():
        law = embsim.TPUEmbedding(tables(), schedule=schedule)
    embedding = embedding_on(1)
    pipeline = Pipeline(embedding, dense_step, start(embedding), schedule)
    planned = [pipeline.planned(example) for example in data()]
    for step, example in enumerate(data()):
        law.enqueue(example.features)
        wanted = leaves(law.dequeue())
        noise = leaves(example.inputs)
        slopes = [x - np.sign(a) for a, x in zip(wanted, noise, strict=True)]
        law.apply_gradients(structure(slopes))
        found = leaves(pipeline.step(planned[step], (*planned, None)[step + 1]))
        for a, b in zip(found, wanted, strict=True):
            assert_same(f"step {step}", a, b)
        if step in (2, 6):
            law.drain()
            pipeline.drain()
            assert pipeline.state.start == step + 1
    law.drain()
    law.close()


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("raises", [False, True], ids=["", "an error inside"])
def test_looking_changes_no_bit(devices, raises):
    """Of any bits: not-a-numbers with their payload, subnormals, minus zero."""
    embedding, draw = embedding_on(devices), np.random.default_rng(3)

    def noise(array):
        made = draw.integers(0, 2**32, array.shape, np.uint32).view(F)
        made[:3] = F([np.nan, 1e-45, -0.0])[:, None]
        return made

    host = embedding.get(embedding.init())
    weights = {name: noise(array) for name, array in host.weights.items()}
    slots = {t: {s: noise(array) for s, array in each.items()} for t, each in host.slots.items()}
    state = TrainState(embedding.put(HostState(host.specs, weights, slots)), jnp.zeros(()))
    pipeline = Pipeline(embedding, dense_step, state, stale(3))
    planned = [pipeline.planned(example) for example in data()]
    for step in range(5):
        pipeline.step(planned[step], planned[step + 1])
    before = bits((pipeline.state.tables, pipeline.state.carry))
    counts = [(each.step, bits(each.gradients)) for each in pipeline.state.pending]
    assert len(counts) == 2
    error = KeyError("planned") if raises else None
    try:
        with pipeline.as_if_drained() as tables:
            assert bits(tables) != before[: len(bits(tables))]
            if error:
                raise error
    except KeyError as seen:
        assert seen is error
    assert bits((pipeline.state.tables, pipeline.state.carry)) == before
    assert [(each.step, bits(each.gradients)) for each in pipeline.state.pending] == counts


def test_inside_a_look_the_run_cannot_be_touched():
    """Its tables have updates in them that are pending: who saved them would apply those twice."""
    embedding = embedding_on(1)
    pipeline = Pipeline(embedding, dense_step, start(embedding), stale(3))
    planned = [pipeline.planned(example) for example in data()[:5]]
    for each in planned[:4]:
        pipeline.step(each)
    before = bits((pipeline.state.tables, pipeline.state.carry))
    saved = pipeline.state
    with pipeline.as_if_drained():
        for call in (
            lambda: pipeline.state,
            lambda: pipeline.step(planned[4]),
            lambda: pipeline.begin(planned[4]),
            lambda: pipeline.drain(),
            lambda: pipeline.restore(saved),
            lambda: pipeline.as_if_drained().__enter__(),
        ):
            with pytest.raises(RuntimeError, match=r"as_if_drained\(\) is open"):
                call()
        assert int(pipeline.carry) == 4
        pipeline.planned(data()[5])
    assert bits((pipeline.state.tables, pipeline.state.carry)) == before
    pipeline.step(planned[4])
    assert pipeline.state.step == 5


class TestErrors:
    @pytest.mark.parametrize(
        ("item", "message"),
        [
            ({"a": [[1]]}, "a batch of the data is a dict; it must be an Example, or a tuple"),
            ((), "a batch of the data is a tuple of 0"),
            (tuple(range(4)), "a batch of the data is a tuple of 4"),
            (None, "a batch of the data is a NoneType"),
        ],
    )
    def test_of_what_is_no_batch(self, item, message):
        embedding = embedding_on(1)
        with pytest.raises(TypeError, match=message):
            train(embedding, dense_step, [item], start(embedding))

    @pytest.mark.parametrize("devices", [1, 8])
    def test_of_inputs_that_cannot_be_split(self, devices):
        example, embedding = data()[0], embedding_on(devices)
        wrong = [np.float32(1), np.zeros((), F), *([np.zeros(3, F)] if devices > 1 else [])]
        for inputs in wrong:
            with pytest.raises(embsim.BatchError, match="its first axis, the samples, must be a"):
                train(embedding, dense_step, [example._replace(inputs=inputs)], start(embedding))

    @pytest.mark.parametrize(
        ("made", "message"),
        [
            ((1, 2), "returned a tuple of 2; it must"),
            ([1, 2, 3], "a list"),
            (None, "None"),
        ],
    )
    def test_of_what_the_dense_step_returns(self, made, message):
        embedding = embedding_on(1)
        with pytest.raises(TypeError, match=message):
            train(embedding, lambda *_: made, data(), start(embedding))

    @pytest.mark.parametrize(
        ("option", "value"), [("steps", -1), ("pause_every", 0), ("prefetch", -1), ("steps", 1.5)]
    )
    def test_of_numbers_out_of_range(self, option, value):
        embedding = embedding_on(1)
        with pytest.raises(ValueError, match=f"train: {option} is {value}; it must be an int >= "):
            train(embedding, dense_step, data(), start(embedding), **{option: value})

    def test_of_what_is_no_run(self):
        embedding = embedding_on(1)
        with pytest.raises(TypeError, match=r"begins at a State; it must be a TrainState"):
            train(embedding, dense_step, data(), embedding.init())
        with pytest.raises(ValueError, match=r"step 2 with .* version 1 has pending the updates"):
            Pipeline(embedding, dense_step, TrainState(embedding.init(), None, 2, 1))
        pipeline = Pipeline(embedding, dense_step, start(embedding), tpu_embedding_pipelined())
        first, second = (pipeline.planned(example) for example in data()[:2])
        pipeline.step(first, second)
        with pytest.raises(ValueError, match=r"reads version 0 next .* its next lookup has happen"):
            Pipeline(embedding, dense_step, pipeline.state, tpu_embedding_pipelined())

    def failing(self, when):
        for number, example in enumerate(data()):
            if number == when:
                raise KeyError(number)
            yield example

    @pytest.mark.parametrize("prefetch", [0, 1, 4])
    @pytest.mark.parametrize("when", [0, 1, 5])
    def test_of_the_data(self, prefetch, when):
        embedding, seen = embedding_on(1), []
        with pytest.raises(KeyError, match=str(when)):
            train(
                embedding,
                dense_step,
                self.failing(when),
                start(embedding),
                prefetch=prefetch,
                on_step=lambda step, metrics: seen.append(step),
            )
        assert seen == list(range(max(0, when - 1)))  # its lookup overlaps the step before
        assert no_thread()

    @pytest.mark.parametrize("prefetch", [0, 2])
    def test_of_a_batch(self, prefetch):
        bad = data()[2]._replace(features=structure([[[99]] * SAMPLES] * 3))
        embedding = embedding_on(1)
        with pytest.raises(embsim.BatchError, match="id 99"):
            batches = [*data()[:2], bad, *data()[3:]]
            train(embedding, dense_step, batches, start(embedding), prefetch=prefetch)
        assert no_thread()

    def test_of_a_callback(self):
        embedding = embedding_on(1)

        def on_step(step, metrics):
            if step == 3:
                raise KeyError("planned")

        with pytest.raises(KeyError, match="planned"):
            train(embedding, dense_step, data(), start(embedding), on_step=on_step)
        assert no_thread()

    @pytest.mark.parametrize("schedule", [sequential(), tpu_embedding_pipelined()], ids=str)
    @pytest.mark.parametrize("given", [False, True], ids=["", "with inputs"])
    def test_of_a_dense_step_that_is_traced_change_nothing(self, schedule, given):
        embedding, broken = embedding_on(1), []

        def fragile(carry, activations, inputs):
            if broken:
                raise KeyError("planned")
            return dense_step(carry, activations, inputs)

        pipeline = Pipeline(embedding, fragile, start(embedding), schedule)
        planned = [pipeline.planned(example) for example in data()[:4]]
        for step, (each, follows) in enumerate(pairwise(planned)):
            inputs = each.inputs if given else None
            broken.append(True)
            jax.clear_caches()  # so that it is traced again
            state = pipeline.state
            before = bits((state.tables, state.carry))
            with pytest.raises(KeyError, match="planned"):
                pipeline.step(each, follows, inputs)
            assert bits((pipeline.state.tables, pipeline.state.carry)) == before
            assert len(pipeline.state.pending) == len(state.pending)
            broken.clear()
            found = leaves(pipeline.step(each, follows, inputs))
            for a, b in zip(found, reference(schedule)[0][step], strict=True):
                assert_same(f"step {step}", a, b)

    def test_another_batch_may_be_taken_after_an_error(self):
        embedding, broken = embedding_on(1), [True]

        def fragile(carry, activations, inputs):
            if broken:
                raise KeyError("planned")
            return dense_step(carry, activations, inputs)

        pipeline = Pipeline(embedding, fragile, start(embedding))
        first, second = (pipeline.planned(example) for example in data()[:2])
        with pytest.raises(KeyError, match="planned"):
            pipeline.step(first)
        broken.clear()
        pipeline.step(second)
        assert pipeline.state.step == 1


class TestData:
    def test_ends_where_steps_says(self):
        """What is left of it is not touched."""
        embedding, items = embedding_on(1), iter(data())
        state = train(embedding, dense_step, items, start(embedding), steps=4, prefetch=4)
        assert state.step == 4
        assert next(items) is data()[4]
        state = train(embedding, dense_step, items, state, steps=4)
        assert next(items) is data()[5]
        assert state.step == 4

    def test_may_be_empty(self):
        embedding = embedding_on(1)
        state = train(embedding, dense_step, [], start(embedding))
        assert (state.step, state.version) == (0, 0)


class TestPrograms:
    @pytest.mark.parametrize(
        "devices, name",
        [
            (1, "sequential"),
            (1, "sparsecore_loop(2)"),
            (1, "semi_sync(3)"),
            (1, "stale(2)"),
            (1, "stale(3) in loops of 5 after 2"),
            (8, "tpu_embedding_pipelined"),
        ],
    )
    def test_one_for_each_kind_of_tick(self, devices, name):
        schedule = SCHEDULES[name]

        def own_step(*arguments):
            return dense_step(*arguments)

        embedding = embedding_on(devices)
        carry = jax.device_put(jnp.zeros((), jnp.int32), embedding.shards.replicated)
        state = TrainState(embedding.init(), carry)
        pipeline = Pipeline(embedding, own_step, state, schedule)
        planned = [pipeline.planned(example) for example in data()]
        for step, each in enumerate(planned):
            follows = (*planned, None)[step + 1] if step != 4 else None
            pipeline.step(each, follows)
            if step == 7:
                with pipeline.as_if_drained():
                    pass
        pipeline.drain()
        made = programs(embedding.functions, own_step)
        assert made.tick._cache_size() == len(pipeline.kinds) <= 5
        assert made.touched._cache_size() <= 1
        assert made.with_touched._cache_size() <= 1

    def test_are_shared_by_equal_tables(self):
        """Of other names, initial values and rates."""
        one = embedding_on(1).functions
        assert one == embedding_on(1).functions
        assert programs(one, dense_step) is programs(embedding_on(1).functions, dense_step)
        assert programs(one, dense_step) is not programs(embedding_on(8).functions, dense_step)


def test_the_data_is_an_iterable_of_tuples_too():
    embedding, seen = embedding_on(1), []

    def batches() -> Iterator[tuple]:
        for example in data():
            yield example.features, example.inputs

    train(
        embedding,
        dense_step,
        batches(),
        start(embedding),
        on_step=lambda step, metrics: seen.append(leaves(metrics)),
    )
    compare_activations(seen, sequential())
