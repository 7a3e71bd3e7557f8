"""Paired differences against numbers worked by hand and by scipy."""

import numpy as np
import pytest
from scipy import stats

from experiments import statistics
from experiments.statistics import PairedDifference, at_least, paired_difference


def test_mean_and_sd_are_those_of_the_differences() -> None:
    d = paired_difference([3.0, 5.0, 10.0], [1.0, 1.0, 4.0])
    assert d.differences == (2.0, 4.0, 6.0)
    assert (d.mean, d.sd) == (4.0, 2.0)


def test_the_detection_limit_is_the_effect_found_in_four_of_five_repetitions() -> None:
    """Simulated: a true difference of the limit's size is significant about 80 % of the time."""
    n, sd, repetitions = 10, 1.0, 20_000
    limit = statistics.detection_limit(sd, n)
    rng = np.random.default_rng(0)
    samples = rng.normal(limit, sd, (repetitions, n))
    power = (stats.ttest_1samp(samples, 0.0, axis=1).pvalue < 0.05).mean()
    standard_error = np.sqrt(0.8 * 0.2 / repetitions)
    # t_0.975 + t_0.80 with central quantiles is the usual approximation; it is off by under 2 %.
    assert abs(power - 0.8) < 0.02 + 4 * standard_error


def test_the_floor_is_the_least_that_is_ever_claimed() -> None:
    d = paired_difference([1.0] * 5, [0.0] * 5, floor=5.0)
    assert (d.sd, d.limit, d.verdict) == (0.0, 5.0, "no detectable change")
    assert paired_difference([6.0] * 5, [0.0] * 5, floor=5.0).verdict == "gain"
    assert paired_difference([-6.0] * 5, [0.0] * 5, floor=5.0).verdict == "loss"


@pytest.mark.parametrize("n", [1, 2, 4])
def test_fewer_than_five_pairs_support_no_claim(n: int) -> None:
    d = paired_difference([-100.0] * n, [0.0] * n)
    assert d.verdict == f"no claim: {n} of 5 seeds"
    assert at_least(2, d, d) == d.verdict


def test_a_diverged_run_is_named() -> None:
    assert paired_difference([np.nan, 1, 1, 1, 1], [0.0] * 5).verdict == "diverged"


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        ((-10.0, -11.0, -9.0, -10.0, -10.0), "holds"),
        ((-60.0, -61.0, -59.0, -60.0, -60.0), "does not hold"),
        ((-40.0, -60.0, -45.0, -55.0, -50.0), "undecided"),
        ((1.0, -1.0, 0.0, 2.0, -2.0), "holds"),
    ],
)
def test_at_least_compares_pair_by_pair(other: tuple[float, ...], verdict: str) -> None:
    loss = PairedDifference((-100.0, -101.0, -99.0, -100.5, -99.5))
    assert at_least(2, loss, PairedDifference(other)) == verdict
