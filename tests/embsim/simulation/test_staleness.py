"""Ages of lookups: what the law says where there is one, and counted where the clock decides."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embsim.simulation import pipelines
from embsim.simulation.staleness import ages
from embsim.simulation.timeline import run
from tests.embsim.simulation.test_pipelines import LAWS, PIPELINES, timed


@given(LAWS, st.integers(0, 20), st.integers(0, 99))
def test_by_a_law_the_age_is_what_the_law_leaves_out(law, batches, seed):
    timeline = timed(pipelines.of_schedule(law, "drawn"), batches, seed)
    assert ages(timeline).age.tolist() == [t - law.version_read(t) for t in range(batches)]


@given(PIPELINES, st.integers(0, 20), st.integers(0, 99))
def test_of_any_schedule_it_is_counted_in_the_order_of_events(pipeline, batches, seed):
    timeline = timed(pipeline, batches, seed)
    operations, done, wanted = timeline.operations, [], {}
    for i in timeline.events():
        if operations.writes[i]:
            done.append(int(operations.batch[i]))
        elif operations[i].stage.share != "quiet":
            batch = int(operations.batch[i])
            before = {int(b) for b in operations.batch[operations.writes] if b < batch}
            wanted[int(i)] = len(before - set(done))
    found = ages(timeline)
    assert dict(zip(found.lookup.tolist(), found.age.tolist(), strict=True)) == wanted


def test_a_summary_of_ages():
    found = ages(run(pipelines.stale(2).operations(10), 1.0))
    assert found.histogram == {0: 1, 1: 1, 2: 8}
    assert (found.mean, found.quantile(0.0), found.quantile(0.5), found.quantile(1.0)) == (
        1.7,
        0,
        2,
        2,
    )


def test_look_ahead_misses_nothing():
    """What it reads early nobody changes."""
    found = ages(timed(pipelines.lookahead(3), 20, 0))
    assert found.histogram == {0: 20}


def test_of_nothing_there_is_no_age():
    found = ages(run(pipelines.sequential().operations(0), 1.0))
    assert (found.mean, found.quantile(0.99), found.histogram) == (0.0, 0, {})


def test_slow_workers_are_old():
    operations = pipelines.full_async(2).operations(60)
    slow = np.where(operations.worker == 1, 5.0, 1.0)
    found = ages(run(operations, slow))
    worker = operations.worker[found.lookup]
    assert found.age[worker == 0].mean() > 2 * found.age[worker == 1].mean()
