"""The largest stable rate: bisection, what counts as stable, and the law."""

import dataclasses

import numpy as np
import pytest

from experiments import stability
from experiments.stability import Params, Record


def test_bisection_ends_within_its_halvings():
    asked = []

    def is_stable(rate):
        asked.append(rate)
        return rate < 5.0

    low, high = stability.bisected(is_stable, (-6.0, 10.0), 7)
    assert len(asked) == 7 and low < 5.0 <= high
    assert high / low == pytest.approx(2 ** (16 / 2**7))
    never = stability.bisected(lambda rate: False, (-6.0, 10.0), 7)
    assert np.isnan(never[0]) and never[1] < 2**-5.8


def test_only_the_last_quarter_counts_and_only_if_all_is_finite():
    labels = np.tile([1.0, 0.0, 0.0, 0.0], (40, 1)).astype(np.float32)
    good = np.where(labels > 0, 1.0, -3.0).astype(np.float32)
    scores = np.concatenate([-20 * good[:30], good[30:]])
    assert stability.beats_a_constant(labels, scores)
    assert not stability.beats_a_constant(labels, -scores)
    level = np.full_like(good, np.log(0.25 / 0.75))
    assert stability.beats_a_constant(labels, level + 0.01 * good)
    assert not stability.beats_a_constant(labels, level - 0.01 * good)
    scores[0, 0] = np.inf
    assert not stability.beats_a_constant(labels, scores)


def test_gradient_descent_on_a_quadratic_obeys_the_law():
    """What the study holds training to: w <- w - rate * w_of_k_steps_ago."""

    def is_stable(rate, k):
        w = [1.0] * (k + 1)
        for _ in range(6000):
            w.append(w[-1] - rate * w[-1 - k])
        return max(map(abs, w[-500:])) <= max(map(abs, w[1000:1500]))

    for k in (0, 1, 4, 16):
        low, high = stability.bisected(lambda rate, k=k: is_stable(rate, k), (-6.0, 2.0), 12)
        assert low <= 2 * stability.law(k) * 1.003 and high >= 2 * stability.law(k) * 0.997


def test_a_rate_that_is_too_high_is_found_in_training():
    params = Params(seeds=(0,), staleness=(0, 4), samples=12_000, halvings=4)
    fresh, stale = stability.run(params)
    assert fresh.stable > stale.stable and fresh.unstable == 2 * fresh.stable
    (alone,) = stability.run(dataclasses.replace(params, staleness=(4,)))
    assert (alone.stable, alone.unstable) == (stale.stable, stale.unstable)


def made_up(power, seeds=5, shake=0.0):
    return [
        Record(
            seed,
            k,
            *(30 * (2 * k + 1.0) ** (power + shake * seed) * f for f in (0.97, 1.03)),
            7,
            1.0,
        )
        for seed in range(seeds)
        for k in (0, 1, 2, 4, 8, 16, 32)
    ]


@pytest.mark.parametrize(
    ("power", "said"),
    [
        (-0.9, "slope: holds; within x2 of the law: holds"),
        (-0.6, "slope: does not hold; within x2 of the law: does not hold: off by 3.4"),
        (-1.1, "slope: does not hold; within x2 of the law: does not hold: off by 2.4"),
    ],
)
def test_the_verdict_is_of_the_slope_and_of_the_law(power, said):
    assert stability.verdict(made_up(power)) == said


def test_seeds_that_differ_leave_the_slope_undecided_and_four_claim_nothing():
    assert stability.verdict(made_up(-0.75, shake=0.03)).startswith("slope: undecided")
    assert stability.verdict(made_up(-0.9, seeds=4)) == "no claim: 4 of 5 seeds"


def test_the_report_and_the_figure_have_every_staleness():
    text = stability.report(made_up(-0.9))
    assert "-0.90 ± 0.00" in text and "5 seeds" in text
    (axes,) = stability.figure(made_up(-0.9)).axes
    assert len(axes.lines) == 5 + 1
