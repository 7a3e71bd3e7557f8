"""Replays: what schedule.py has laws for is to the bit what the engine computes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embsim
from embsim.engine import Engine
from embsim.schedule import Schedule
from embsim.simulation import pipelines
from embsim.simulation.pipelines import of_schedule
from embsim.simulation.replay import Dense
from tests.embsim.simulation.replay import world

LAWS = st.builds(
    Schedule,
    st.integers(0, 4),
    drain_every=st.none() | st.integers(1, 5),
    warmup_steps=st.integers(0, 4),
)
OPTIMIZERS = st.sampled_from(
    [
        embsim.SGD(learning_rate=0.25),
        embsim.Adagrad(learning_rate=lambda step: 0.5 / (1 + step)),
        embsim.Adam(learning_rate=0.1),
        embsim.Adam(learning_rate=0.1, lazy_adam=False),
    ]
)
SEEDS = st.integers(0, 99)
FEW = settings(max_examples=max(5, settings.default.max_examples // 20))
EXACT = [*(f"lookahead({n})" for n in (1, 2, 4)), "offload()", "serving_snapshot(3)"]
EXACT += ["bounded_async(1, 3)", "full_async(1)", "hybrid(1, 2)", "accumulate(1)"]


def engine_run(schedule, optimizer, count, seed, model):
    """The same training by the engine: scores, and the state in the end."""
    features = world.features()
    engine = Engine(tuple(features.values()), optimizer, names=tuple(features), schedule=schedule)
    parameters, scores = model.parameters, []
    for ids, inputs in world.batches(count, seed):
        engine.enqueue(engine.make_batch(list(ids.values())))
        found = dict(zip(features, engine.dequeue(), strict=True))
        score, gradients, slopes = model.gradients(parameters, found, inputs)
        engine.apply_gradients(list(gradients.values()))
        parameters = model.update(parameters, slopes)
        scores.append(score)
    engine.drain()
    return scores, engine.snapshot(), parameters


@settings(max_examples=max(40, settings.default.max_examples // 5))
@given(LAWS, OPTIMIZERS, st.integers(0, 14), SEEDS)
def test_a_schedule_of_schedule_py_gives_the_engine_s_numbers(law, optimizer, count, seed):
    """To the bit: scores, tables, slots, the dense model."""
    scores, state, parameters = engine_run(law, optimizer, count, seed, world.dense())
    result = world.replayed(of_schedule(law, "drawn"), count, seed, optimizer)
    world.assert_same(result.state, state)
    np.testing.assert_array_equal(result.parameters["bias"], parameters["bias"])
    assert len(result.scores) == count
    for mine, other in zip(result.scores, scores, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("schedule", EXACT)
@FEW
@given(OPTIMIZERS, SEEDS)
def test_exact_schedules_equal_the_sequential_one(schedule, optimizer, seed):
    """To the bit, whatever anything takes: rows read early and late are put together."""
    scores, state, _ = engine_run(Schedule(), optimizer, 12, seed, world.dense())
    result = world.replayed(schedule, 12, seed, optimizer, cached=0.5)
    world.assert_same(result.state, state)
    for mine, other in zip(result.scores, scores, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert result.account.conflict == 0


def test_lookahead_reads_early_what_is_not_in_conflict():
    """And only that: the share is one less the conflict rate."""
    rows = {"users": 200, "items": 100}
    data = world.batches(40, samples=8, rows=rows)
    pipeline = pipelines.lookahead(2)
    operations = pipeline.operations(40)
    timeline = world.run(operations, 1.0)
    result = world.replay(
        timeline, pipeline, world.features(rows), embsim.SGD(), data, world.dense()
    )
    early, asked = 0, 0
    lookups, updates = operations.of("lookup_early"), operations.of("update")
    for t, (ids, _) in enumerate(data):
        done = {b for b in range(t) if timeline.ended[updates[b]] < timeline.began[lookups[t]]}
        for names in (("user",), ("item", "seller")):
            mine = touched(ids, names)
            others = [touched(data[b][0], names) for b in range(t) if b not in done]
            early += len(mine - set().union(*others))
            asked += len(mine)
    assert result.rows == {"asked": asked, "early": early}
    assert 0.5 * asked < early < asked


def touched(ids, names):
    flat = [getattr(ids[name], "values", ids[name]) for name in names]
    return set(np.concatenate([np.asarray(each).reshape(-1) for each in flat]).tolist())


def test_accumulated_batches_are_one_large_batch():
    """A window of three batches of 4 is one of 12, to the bit."""
    count, model = 12, world.constant()
    small = world.batches(count)
    large = [joined(small[i : i + 3]) for i in range(0, count, 3)]
    optimizer = embsim.Adagrad(learning_rate=0.3)
    window = world.replayed("accumulate(3)", count, 0, optimizer, model)
    whole = world.replayed("sequential()", 4, 0, optimizer, model, large)
    world.assert_same(window.state, whole.state)


def test_an_unfinished_window_is_updated_in_the_end():
    model = world.constant()
    sgd = embsim.SGD(learning_rate=1.0)
    window = world.replayed("accumulate(5)", 12, 0, sgd, model, initial=0)
    whole = world.replayed("sequential()", 12, 0, sgd, model, initial=0)
    world.assert_same(window.state, whole.state)


def joined(parts):
    ids = {
        "user": np.concatenate([ids["user"] for ids, _ in parts]),
        "item": embsim.RaggedTensor.from_row_lengths(
            np.concatenate([ids["item"].values for ids, _ in parts]),
            np.concatenate([np.diff(ids["item"].row_splits) for ids, _ in parts]),
        ),
        "seller": np.concatenate([ids["seller"] for ids, _ in parts]),
    }
    return ids, np.concatenate([inputs for _, inputs in parts])


EVERY = [
    *("stale(3)", "sparsecore_loop(4, 2)", "semi_sync(5, True)", "lookahead(3)", "accumulate(4)"),
    *("bounded_async(3, 2)", "full_async(3)", "hybrid(3, 2)", "row_clocks(3, 2)"),
    *("offload(locked=False)", "serving_snapshot(4)", "replica_sync(1, 4)"),
]


@pytest.mark.parametrize("schedule", EVERY)
@FEW
@given(seed=SEEDS)
def test_no_update_is_lost_or_doubled(schedule, seed):
    """Gradients of whole numbers, that depend on nothing: their sum is in the tables, whatever the
    order in which they came."""
    optimizer, model = embsim.SGD(learning_rate=0.25), world.constant()
    wanted = world.replayed("sequential()", 12, seed, optimizer, model, initial=0)
    found = world.replayed(schedule, 12, seed, optimizer, model, initial=0)
    world.assert_same(found.state, wanted.state)
    if not schedule.startswith(("hybrid", "row_clocks")):  # which take the mean of workers
        np.testing.assert_array_equal(found.parameters["bias"], wanted.parameters["bias"])


class TestAsync:
    """Against a plain loop over the operations in their order: SGD, one id a sample."""

    @pytest.mark.parametrize("schedule", ["bounded_async(3, 1)", "full_async(3)", "hybrid(3, 2)"])
    @FEW
    @given(seed=SEEDS)
    def test_rows_are_read_as_lookups_begin_and_written_as_updates_end(self, schedule, seed):
        count, rate = 15, np.float32(0.5)
        draw = np.random.default_rng(seed)
        ids = draw.integers(0, 4, count)
        pipeline = pipelines.pipeline_of(schedule)
        timeline = world.timeline_of(pipeline, count, seed)
        table = np.arange(4, dtype=np.float32)
        read, wanted = {}, {}
        for event in timeline.events():
            operation = timeline.operations[event]
            batch = operation.batch
            if operation.stage.reads:
                read[batch] = wanted[batch] = table[ids[batch]]
            else:
                table[ids[batch]] -= rate * read[batch]
        result = world.replay(
            timeline,
            pipeline,
            {"f": embsim.FeatureConfig(embsim.TableConfig(4, 1, lambda s, d: initial(s)))},
            embsim.SGD(learning_rate=0.5),
            [({"f": [[int(i)]]}, None) for i in ids],
            Dense(None, lambda p, a, i: (float(a["f"][0, 0]), a, None), lambda p, g: None),
        )
        assert result.scores == [wanted[t] for t in range(count)]
        np.testing.assert_array_equal(result.state.weights["table_0"][:, 0], table)


def initial(shape):
    return np.arange(shape[0], dtype=np.float32).reshape(shape)


class TestServing:
    def test_scores_by_copies_are_those_of_an_older_model(self):
        """Of the tables after 4, 8, ... batches: copies take no time, and serve from the batch on
        that begins after they have ended."""
        pipeline, count = pipelines.serving_snapshot(4), 14
        timeline = world.run(pipeline.operations(count), 0.0)
        data, sgd = world.batches(count), embsim.SGD(learning_rate=0.25)
        result = world.replay(timeline, pipeline, world.features(), sgd, data, world.dense())
        assert result.served[:5] == [None] * 5
        for t in range(5, count):
            kept = (t - 1) // 4 * 4  # train so many, and then score batch t
            only = [*data[:kept], data[t]]
            wanted = world.replayed("sequential()", kept + 1, 0, sgd, data=only).scores[-1]
            np.testing.assert_array_equal(result.served[t], wanted)
            assert not np.array_equal(result.served[t], result.scores[t])


class TestSeconds:
    def test_a_batch_is_scored_as_its_dense_part_ends(self):
        pipeline = pipelines.sequential()
        timeline = world.run(pipeline.operations(3), 1.0)
        result = world.replay(
            timeline, pipeline, world.features(), embsim.SGD(), world.batches(3), world.dense()
        )
        dense = timeline.operations.of("dense")
        assert result.seconds.tolist() == timeline.end[dense].tolist() == [6.0, 11.0, 16.0]


class TestErrors:
    def test_too_few_batches(self):
        with pytest.raises(ValueError, match=r"data ended after 5 batches, of the 12 of"):
            world.replayed("sequential()", data=world.batches(5))

    def test_other_features(self):
        data = [({"user": [[1]], "thing": [[2]]}, None)]
        with pytest.raises(ValueError, match=r"batch 0 has the features \['thing', 'user'\]; it"):
            world.replayed("sequential()", 1, data=data)

    def test_ids_that_are_no_rows(self):
        ids, inputs = world.batches(1)[0]
        with pytest.raises(ValueError, match=r"feature 'seller'"):
            world.replayed("sequential()", 1, data=[({**ids, "seller": [9, 9, 9, 9]}, inputs)])

    def test_gradients_of_another_shape(self):
        model = Dense(None, lambda p, a, i: (0, {"user": np.zeros(3)}, None), lambda p, g: None)
        with pytest.raises(ValueError, match=r"gradient of feature 'user' has shape \(3,\)"):
            world.replayed("sequential()", 1, model=model)

    @pytest.mark.parametrize("cached", [0.0, 1.5])
    def test_a_cache_of_no_share(self, cached):
        with pytest.raises(ValueError, match=r"cached is .*; it must be above 0 and at most 1"):
            world.replayed("offload()", cached=cached)
