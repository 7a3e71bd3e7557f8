"""Schedules as operations: lookups see what the law says, whatever anything takes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embsim import schedule as laws
from embsim.schedule import Schedule
from embsim.simulation import pipelines
from embsim.simulation.hazards import hazards
from embsim.simulation.pipelines import CONSTRUCTORS, Pipeline, of_schedule, pipeline_of
from embsim.simulation.timeline import run

LAWS = st.builds(
    Schedule,
    st.integers(0, 5),
    drain_every=st.none() | st.integers(1, 6),
    warmup_steps=st.integers(0, 5),
)
NUMBERS = st.integers(1, 4)
PIPELINES = st.one_of(
    LAWS.map(lambda law: of_schedule(law, "drawn")),
    NUMBERS.map(pipelines.lookahead),
    NUMBERS.map(pipelines.accumulate),
    st.builds(pipelines.bounded_async, NUMBERS, st.integers(0, 3)),
    NUMBERS.map(pipelines.full_async),
    st.builds(pipelines.hybrid, NUMBERS, st.integers(0, 3)),
    st.builds(pipelines.row_clocks, NUMBERS, st.integers(0, 3)),
    st.builds(pipelines.replica_sync, NUMBERS, NUMBERS),
    st.booleans().map(pipelines.offload),
    NUMBERS.map(pipelines.serving_snapshot),
)
ONE_OF_EACH = [
    *("sequential()", "tpu_embedding_pipelined()", "stale(3)", "sparsecore_loop(4)"),
    *("sparsecore_loop(4, 2)", "lookahead(3)", "semi_sync(5)", "semi_sync(5, True)"),
    *("bounded_async(3, 2)", "full_async(3)", "hybrid(3, 2)", "accumulate(4)"),
    *("row_clocks(3, 2)", "offload(locked=True)", "offload(locked=False)"),
    *("replica_sync(3, 4)", "serving_snapshot(4)"),
]


def timed(pipeline, batches, seed):
    operations = pipeline.operations(batches)
    draw = np.random.default_rng(seed)
    seconds = draw.choice([0.0, 0.1, 1.0, 3.0], len(operations))
    return run(operations, seconds)


def touches(timeline):
    operations = timeline.operations
    return [(operations[i].stage.name, operations[i].batch) for i in timeline.events()]


@given(LAWS, st.integers(0, 25), st.integers(0, 99))
def test_the_order_of_lookups_and_updates_is_the_law_of_schedule_py(law, batches, seed):
    """Whatever anything takes."""
    timeline = timed(of_schedule(law, "drawn"), batches, seed)
    assert touches(timeline) == list(law.events(batches))


@given(PIPELINES, st.integers(0, 25), st.integers(0, 99))
def test_no_constructor_has_hazards(pipeline, batches, seed):
    assert hazards(timed(pipeline, batches, seed), pipeline.rule) == []


@pytest.mark.parametrize("text", ONE_OF_EACH)
def test_a_schedule_is_its_name(text):
    made = pipeline_of(text)
    assert isinstance(made, Pipeline)
    assert made.name == text
    assert len(made.operations(0)) == 0
    with pytest.raises(ValueError, match=r"batches is -1"):
        made.operations(-1)


def test_each_constructor_is_among_them():
    assert {text.partition("(")[0] for text in ONE_OF_EACH} == {c.__name__ for c in CONSTRUCTORS}


@pytest.mark.parametrize("law", ["sequential", "tpu_embedding_pipelined"])
def test_names_of_schedule_py_mean_the_same(law):
    assert getattr(pipelines, law)().law == getattr(laws, law)()
    assert pipelines.stale(4).law == laws.stale(4)
    assert pipelines.semi_sync(9).law == laws.semi_sync(9)
    assert pipelines.sparsecore_loop(7).law == laws.sparsecore_loop(7)


@pytest.mark.parametrize(
    "text",
    ["", "fast()", "stale()", "stale(-1)", "stale(1, 2)", "stale(x)", "a.b()", "stale(1", "1"],
)
def test_what_is_no_schedule_is_refused(text):
    with pytest.raises(
        ValueError, match=r"schedule is .*; it must be a call of one of sequential, "
    ):
        pipeline_of(text)


def test_a_name_alone_will_do():
    assert pipeline_of(" sequential ").name == "sequential()"


class TestAsync:
    @given(NUMBERS, st.integers(0, 3), st.integers(0, 99))
    def test_a_worker_is_never_further_ahead_than_the_bound(self, workers, staleness, seed):
        timeline = timed(pipelines.bounded_async(workers, staleness), 12 * workers, seed)
        operations = timeline.operations
        for lookup in operations.of("lookup"):
            updates = operations.of("update")
            seen = updates[timeline.ended[updates] < timeline.began[lookup]]
            behind = {w: int((operations.worker[seen] == w).sum()) for w in range(workers)}
            own = int(operations.worker[lookup])
            step = int(operations.batch[lookup]) // workers
            assert behind[own] == step
            assert min(behind.values()) >= step - staleness

    def test_without_a_bound_it_is(self):
        pipeline = pipelines.full_async(2)
        operations = pipeline.operations(40)
        slow = np.where(operations.worker == 1, 10.0, 1.0)
        timeline = run(operations, slow * (operations.resource >= 0))
        lookups = operations.of("lookup")
        fast = timeline.ended[lookups[operations.worker[lookups] == 0]].max()
        done = operations.worker[timeline.ended < fast]
        assert (done == 0).sum() > 2 * (done == 1).sum()

    def test_a_hybrid_s_dense_steps_are_one_after_the_other(self):
        timeline = timed(pipelines.hybrid(3, 2), 30, 0)
        operations = timeline.operations
        reduce, dense = operations.of("all_reduce"), operations.of("dense")
        step = operations.batch // 3
        for i in reduce:
            assert (timeline.ended[dense[step[dense] == step[i]]] < timeline.began[i]).all()


class TestLookahead:
    def test_only_rows_in_conflict_are_on_the_critical_path(self):
        """The other part is read while the batches before are trained."""
        seconds = {"lookup_early": 3.0, "lookup_late": 1.0, "dense": 4.0, "update": 2.0}

        def of(pipeline):
            operations = pipeline.operations(60)
            names = [seconds.get(stage.name, 0.0) for stage in operations.stages]
            return run(operations, np.array(names)[operations.stage]).seconds_per_batch()

        assert of(pipelines.lookahead(2)) == 1 + 4 + 2
        seconds["lookup"] = 4.0
        assert of(pipelines.sequential()) == 4 + 4 + 2

    def test_its_early_part_misses_no_more_than_its_depth(self):
        timeline = timed(pipelines.lookahead(3), 30, 1)
        operations = timeline.operations
        early, updates = operations.of("lookup_early"), operations.of("update")
        assert (timeline.ended[updates[: 30 - 4]] < timeline.began[early[4:]]).all()
        late = operations.of("lookup_late")
        assert (timeline.ended[updates[:-1]] < timeline.began[late[1:]]).all()


def test_input_is_prepared_ahead_but_not_far():
    operations = pipelines.sequential().operations(30)
    timeline = run(operations, (operations.stage == 5) * 1.0)  # dense alone takes time
    prepared, lookups = operations.of("host_prep"), operations.of("lookup")
    assert (timeline.start[prepared[2:]] >= timeline.end[lookups[:-2]]).all()
    assert (timeline.start[prepared[1:]] <= timeline.start[lookups[:-1]]).all()
