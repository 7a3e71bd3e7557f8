"""Times by list scheduling: no resource twice, no wait broken, none idle without reason."""

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embsim.errors import DeadlockError
from embsim.simulation.operations import Builder, Resource, Stage
from embsim.simulation.pipelines import tpu_embedding_pipelined
from embsim.simulation.timeline import cycle_of, run

STAGES = (
    Stage("a", "x", reads=True),
    Stage("b", "y"),
    Stage("c", "x", writes=True),
    Stage("d", "y", shared=True),
)


@st.composite
def schedules(draw):
    """Any operations that wait for ones with smaller numbers, with times, some of them 0."""
    made, named = Builder(STAGES), []
    for worker in range(2):
        for stage in STAGES:
            named += made.add(stage.name, range(draw(st.integers(0, 4))), worker).tolist()
    order = np.array(draw(st.permutations(named)), int)
    for _ in range(draw(st.integers(0, 20)) if len(named) > 1 else 0):
        low, high = sorted(
            draw(st.lists(st.integers(0, len(named) - 1), min_size=2, max_size=2, unique=True))
        )
        made.wait(order[[high]], order[[low]])
    operations = made.build()
    times = st.sampled_from((0.0, 0.5, 1.0, 1.0, 2.25))
    return operations, [draw(times) for _ in range(len(operations))]


@given(schedules())
def test_waits_and_resources_are_respected_and_nothing_is_put_off(drawn):
    operations, seconds = drawn
    timeline = run(operations, seconds)
    assert (timeline.end == timeline.start + seconds).all()
    taken = operations.resource
    for i in range(len(operations)):
        waits = operations.waits_of(i)
        assert (timeline.ended[waits] < timeline.began[i]).all()
        others = np.flatnonzero(taken == taken[i])
        earlier = others[timeline.began[others] < timeline.began[i]]
        assert (timeline.ended[earlier] < timeline.began[i]).all()
        # It began when the last of what it waited for ended, or the one before it on its resource.
        reasons = [0.0, *timeline.end[waits], *timeline.end[earlier]]
        assert timeline.start[i] == max(reasons)


@given(schedules())
def test_of_what_could_begin_the_first_does(drawn):
    operations, seconds = drawn
    timeline = run(operations, seconds)
    for i in range(len(operations)):
        ready = max([-1, *timeline.ended[operations.waits_of(i)]])
        others = np.flatnonzero(operations.resource == operations.resource[i])
        between = others[
            (timeline.began[others] > ready) & (timeline.began[others] < timeline.began[i])
        ]
        # Those that could begin at one time begin in order; of equal ends all are taken first.
        later = between[timeline.start[between] > max([0.0, *timeline.end[operations.waits_of(i)]])]
        assert (later < i).all()


def test_a_pipeline_of_two_resources_by_hand():
    """lookup 3, dense 4, update 3: [update, lookup] is 6 beside dense 4."""
    made = Builder((Stage("l", "s", reads=True), Stage("d", "t"), Stage("u", "s", writes=True)))
    l, d, u = (made.add(name, range(50)) for name in "ldu")  # noqa: E741
    made.wait(d, l)
    made.wait(u, d)
    made.wait(l[2:], u[:-2])
    made.wait(u[:-1], l[1:])
    operations = made.build()
    timeline = run(operations, np.array([3.0, 4.0, 3.0])[operations.stage])
    assert [str(operations[i]) for i in timeline.events()[:5]] == [
        "l(0)",
        "l(1)",
        "u(0)",
        "l(2)",
        "u(1)",
    ]
    assert timeline.start[operations.of("d")][:3].tolist() == [3, 7, 13]
    assert timeline.seconds_per_batch() == 6
    assert timeline.busy == {Resource("s"): 300.0, Resource("t"): 200.0}
    # The first update waits one second for its gradients, and so does the last.
    assert timeline.seconds == timeline.end.max() == 300 + 1 + 1


def test_a_deadlock_is_the_cycle_of_waits():
    made = Builder(STAGES)
    a, b, c = (made.add(name, range(3)) for name in "abc")
    made.wait(b, a)
    made.wait(c[1:2], b[1:2])
    made.wait(a[1:2], c[1:2])
    operations = made.build()
    with pytest.raises(DeadlockError, match=r"wait for each other.*: (\w\(1\) -> ){3}\w\(1\);"):
        run(operations, 1.0)
    cycle = cycle_of(operations)
    assert cycle[0] == cycle[-1] and len(cycle) == 4
    for i, j in pairwise(cycle):
        assert j in operations.waits_of(i)


def test_an_operation_that_waits_for_itself_is_a_deadlock():
    made = Builder(STAGES)
    a = made.add("a", range(2))
    made.wait(a, a)
    with pytest.raises(DeadlockError, match=r"a\(0\) -> a\(0\)"):
        run(made.build(), 1.0)


@given(schedules())
def test_what_has_an_order_has_no_cycle(drawn):
    assert cycle_of(drawn[0]) == []


@pytest.mark.parametrize("seconds", [-1.0, np.nan, np.inf])
def test_times_must_be_times(seconds):
    operations = tpu_embedding_pipelined().operations(2)
    with pytest.raises(ValueError, match=r"host_prep\(0\) takes .* seconds; times must be finite"):
        run(operations, seconds)


def test_one_batch_has_no_distance_to_the_next():
    with pytest.raises(ValueError, match="seconds per batch of 1 batches; at least 2"):
        run(tpu_embedding_pipelined().operations(1), 1.0).seconds_per_batch()


def test_no_operation_takes_no_time():
    assert run(Builder(STAGES).build(), 1.0).seconds == 0


def test_a_hundred_thousand_steps_take_seconds():
    """Below 2 s where it was written; here with room for a busy machine."""
    run(tpu_embedding_pipelined().operations(2), 1.0)  # compiles
    began = time.perf_counter()
    operations = tpu_embedding_pipelined().operations(100_000)
    timeline = run(operations, np.array([1.0, 1, 1, 3, 1, 4, 1, 3])[operations.stage])
    assert time.perf_counter() - began < 8
    assert timeline.seconds_per_batch() == pytest.approx(6)
