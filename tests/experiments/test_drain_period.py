"""Loops drained every W steps: what the study trains, and what it says of made-up records."""

import dataclasses

import pytest

from experiments import drain_period
from experiments.drain_period import NEVER, Params, Record

SMALL = Params(seeds=(0,), periods=(1, 2, 4, NEVER), samples=1300)


@pytest.fixture(scope="module")
def records():
    return drain_period.run(SMALL)


def test_a_loop_of_two_is_stale_in_every_other_step(records):
    """20 batches; the first lookup of a loop misses nothing, nor does the very first of all."""
    by = {r.period: r for r in records}
    assert by[1].missed == 0 and [r.steps for r in records] == [20] * 4
    assert 0 < by[2].missed < by[4].missed < by[NEVER].missed
    assert by[2].missed == pytest.approx(by[NEVER].missed * 10 / 19, rel=0.25)
    assert by[1].step_ms > by[2].step_ms > by[4].step_ms > by[NEVER].step_ms
    assert len({r.auc for r in records}) == 4


def test_the_points_of_the_sweep_run_alone_as_they_do_together(records):
    (alone,) = drain_period.run(dataclasses.replace(SMALL, periods=(4,)))
    assert dataclasses.replace(alone, seconds=records[2].seconds) == records[2]


def made_up(off_bp=0.0, off_time=0.0, seeds=5):
    """On the line but for period 4: 200 bp and half of the time without drains."""
    made = []
    for seed in range(seeds):
        for period in (1, 2, 4, NEVER):
            share = 1 - 1 / period if period else 1.0
            bp, saved = 200 * share, 0.5 * share
            if period == 4:
                bp, saved = bp + off_bp, saved + off_time
            auc = 0.78 + seed / 1000 - 1e-4 * bp
            made.append(Record(seed, period, 10, auc, share, 4 * (1 - saved), 1.0))
    return made


@pytest.mark.parametrize(
    ("off_bp", "off_time", "said"),
    [
        (0.0, 0.0, "quality: holds; speed: holds"),
        (25.0, 0.0, "quality: does not hold; speed: holds"),
        (-25.0, 0.06, "quality: does not hold; speed: does not hold"),
        (float("nan"), 0.04, "quality: diverged; speed: holds"),
    ],
)
def test_the_line_is_between_drains_always_and_never(off_bp, off_time, said):
    assert drain_period.verdict(made_up(off_bp, off_time)) == said


def test_four_seeds_claim_nothing():
    assert drain_period.verdict(made_up(seeds=4)) == "no claim: 4 of 5 seeds"


def test_the_report_and_the_figure_have_every_period():
    text = drain_period.report(made_up(off_bp=25.0))
    assert "-100.0 ± 0.0" in text and "-25.0" in text and "37.5%" in text
    (axes,) = drain_period.figure(made_up()).axes
    assert [t.get_text() for t in axes.texts] == ["1", "2", "4", "never"]
    together = [dataclasses.replace(r, step_ms=2.0 if r.period != 1 else 4.0) for r in made_up()]
    (axes,) = drain_period.figure(together).axes
    assert [t.get_text() for t in axes.texts] == ["1", "2, 4, never"]


def test_traces_are_of_the_periods_that_fit():
    made = drain_period.traces(Params())
    assert set(made) == {"period-1", "period-2", "period-4", "period-16", "period-never"}
    assert made["period-1"].seconds > made["period-16"].seconds
