"""Schedules side by side: what overlap can give, and no more."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embsim.simulation import pipelines
from embsim.simulation.hardware import Pod, chip, chips
from embsim.simulation.simulate import simulate
from embsim.simulation.stages import Assumptions, Jitter
from embsim.simulation.timeline import run
from embsim.simulation.zoo import workload

ONLY_DENSE_AND_ROWS = ("lookup", "update", "dense")


def step_times(names, pod=None, name="dcnv2", **given):
    made = [pipelines.pipeline_of(text) for text in names]
    return simulate(workload(name), pod or Pod(chip("v5p"), 64), made, **given)


@settings(max_examples=25)
@given(st.sampled_from(chips()), st.sampled_from([1, 8, 64]), st.integers(0, 4))
def test_overlap_gives_no_more_than_the_busiest_resource_allows(name, count, depth):
    """(S + T) / max(S, T), of all that a step takes on each resource."""
    pod = Pod(chip(name), count)
    slow, fast = step_times(["sequential()", f"stale({depth})"], pod)
    busiest = max(fast.timeline.busy.values())
    whole = 200 * sum(slow.works[stage.work] for stage in slow.timeline.operations.stages)
    assert busiest * (1 - 1e-9) <= fast.timeline.seconds <= slow.timeline.seconds * (1 + 1e-9)
    assert slow.timeline.seconds <= whole * (1 + 1e-9)
    # A step in the steady state is taken from the middle of the run: within a batch's input.
    assert fast.step_seconds >= 0.99 * busiest / 200
    assert slow.step_seconds / fast.step_seconds <= 1.01 * whole / busiest


def test_with_a_thirtieth_exposed_the_gain_is_a_thirtieth():
    """NVIDIA's measurement: 3.3 % exposed gives at most 3.4 %."""
    pod, assumed = Pod(chip("h100"), 16), Assumptions()
    (result,) = step_times(["sequential()"], pod)
    exposed = sum(result.works[name] for name in ("lookup", "emb_a2a", "grad_a2a", "update"))
    assumed = Assumptions(overhead=exposed * (1 / 0.033 - 1) - result.works["dense"] + 1e-3)
    slow, fast = step_times(["sequential()", "stale(1)"], pod, assumed=assumed)
    assert 1.03 < slow.step_seconds / fast.step_seconds <= 1.0342


def test_beyond_the_useful_depth_nothing_is_gained():
    pod = Pod(chip("h100"), 8)
    (result,) = step_times(["stale(1)"], pod)
    k = result.useful_depth
    times = {
        r.pipeline.name: r.step_seconds
        for r in step_times([f"stale({d})" for d in range(k + 3)], pod)
    }
    assert times[f"stale({k})"] == pytest.approx(times[f"stale({k + 2})"], rel=0.02)
    assert times[f"stale({k})"] < 0.9 * times["stale(0)"]


def test_results_say_what_bounds_them_and_what_they_hold():
    first, second, window = step_times(
        ["sequential()", "tpu_embedding_pipelined()", "accumulate(4)"]
    )
    assert second.bound[0] == "dense" and second.bound[1] == pytest.approx(1, abs=0.02)
    assert first.samples_per_second == 65_536 / first.step_seconds
    one = first.traffic.asked_bytes + first.traffic.activation_bytes
    assert [r.buffer_bytes / one for r in (first, second, window)] == [1, 2, 4]
    assert (first.ages.mean, second.ages.quantile(0.5)) == (0, 1)


def test_times_that_vary_make_a_step_longer():
    calm, shaken = (
        step_times(["tpu_embedding_pipelined()"], jitter=jitter)[0]
        for jitter in (None, Jitter(0.4, seed=1))
    )
    assert shaken.step_seconds > 1.05 * calm.step_seconds


def test_conflicts_are_counted_for_the_depths_that_are_needed():
    (result,) = step_times(["lookahead(7)"])
    assert set(result.traffic.conflict) == {1, 7}


@settings(max_examples=30)
@given(st.floats(1e-3, 10), st.floats(1e-3, 10))
def test_two_resources_gain_no_more_than_their_sum_over_the_longer(tables, dense):
    """(S + T) / max(S, T) <= 2, and a schedule that is deep enough reaches it."""

    def whole(pipeline):
        operations = pipeline.operations(120)
        work = {"lookup": tables / 2, "update": tables / 2, "dense": dense}
        times = np.array([work.get(stage.name, 0.0) for stage in operations.stages])
        return run(operations, times[operations.stage]).seconds

    alone, most = whole(pipelines.sequential()), (tables + dense) / max(tables, dense)
    assert alone == pytest.approx(120 * (tables + dense))
    gains = [alone / whole(pipelines.stale(k)) for k in (1, 2, 8)]
    assert max(gains) <= most * (1 + 1e-9) and most <= 2
    assert gains[1] == pytest.approx(most, rel=0.03)
