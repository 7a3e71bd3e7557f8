"""The study of schedules under a clock, on few flights."""

import dataclasses

import numpy as np
import pytest

from experiments import quality_in_time, study
from experiments.quality_in_time import Params, Record

SMALL = Params(seeds=(0,), schedules=("sequential()", "lookahead(1)", "stale(4)"), samples=1300)


@pytest.fixture(scope="module")
def records():
    return quality_in_time.run(SMALL)


def test_look_ahead_is_exact_and_faster_and_staleness_is_neither(records):
    exact, ahead, stale = records
    assert ahead.auc == exact.auc and ahead.curve == exact.curve
    assert ahead.step_ms < exact.step_ms and ahead.simulated[-1] < exact.simulated[-1]
    assert stale.auc != exact.auc and stale.step_ms < ahead.step_ms
    assert (exact.mean_missed, ahead.mean_missed) == (0, 0) and stale.mean_missed > 0
    assert 0 < stale.stale_mass < 1 and 0 < stale.stale_reads < 1


def test_a_curve_goes_through_the_pass(records):
    for record in records:
        assert record.steps == 20 and len(record.curve) == len(record.simulated) == 20
        assert list(record.simulated) == sorted(record.simulated)


def test_the_points_of_the_sweep_run_alone_as_they_do_together(records):
    (alone,) = quality_in_time.run(dataclasses.replace(SMALL, schedules=("stale(4)",)))
    assert alone == records[2]
    assert [s.schedules for s in study.single_runs(SMALL)] == [(s,) for s in SMALL.schedules]


def made_up(schedule, seed, auc, step, curve):
    times = tuple(step * t for t in range(1, len(curve) + 1))
    return Record(seed, schedule, 10, step, auc, 0.0, 0.0, 0.0, times, curve, 1.0)


def test_the_report_pairs_by_seed_and_measures_time_to_quality():
    """Half the time a step; 20 bp less; the goal, 0.6, is met at a third point for a second."""
    made = []
    for seed in range(5):
        made.append(made_up("sequential()", seed, 0.7 + seed / 100, 2.0, (0.5, 0.6, 0.7)))
        made.append(made_up("stale(1)", seed, 0.698 + seed / 100, 1.0, (0.5, 0.55, 0.65)))
    text = quality_in_time.report(made)
    stale = next(line for line in text.splitlines() if "stale(1)" in line)
    assert "-20.0 ± 0.0" in stale and "loss" in stale
    assert stale.split()[-1] == "0.75" and " 2.00 " in stale


def test_the_figure_has_every_schedule(records):
    canvas = quality_in_time.figure(records)
    left, right = canvas.axes
    assert [line.get_label() for line in left.lines] == list(SMALL.schedules)
    assert len(right.containers) == 3
    np.testing.assert_allclose(left.lines[0].get_ydata(), records[0].curve)
