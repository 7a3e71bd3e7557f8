"""Reuse: expected against drawn and against sums by hand; the fit against what is published."""

from math import exp, lgamma, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embsim.simulation.popularity import uniform, zipf
from embsim.simulation.reuse import EDGES, fit, histogram, nonnegative, reuse

NAMES = ("meta_2021", "meta_2022")
UP_TO_1024 = slice(0, 11)
# Cumulative shares of lookups with a reuse of at most 1024, printed beside the histograms.
PUBLISHED_1024 = {"meta_2021": 0.787, "meta_2022": 0.704}


def modelled(name):
    """(shares of distinct rows, shares of ids, distinct rows of an id)."""
    wanted = histogram(name)
    ids = wanted.ids / wanted.tables
    found = [(n, *reuse(zipf(rows, alpha), ids)) for n, rows, alpha in fit(wanted)]
    rows, again = sum(n * a for n, a, _ in found), sum(n * b for n, _, b in found)
    return rows / rows.sum(), again / again.sum(), rows.sum() / again.sum()


@pytest.mark.parametrize("mean", [0.01, 0.7, 3.0, 40.0, 1000.0, 2100.0])
def test_bins_are_sums_of_poisson_s_law(mean):
    """Term by term. Between tabulated means, h = 0.0107 apart in their logarithms, lines are drawn:
    off by h^2 / 8 of the curvature, which is at most 0.242 k at an edge k <= 2 * mean."""
    rows, ids = reuse(uniform(100), 100 * mean)
    wanted = np.zeros((2, len(EDGES)))
    for times in range(1, 4000):
        at = np.searchsorted(EDGES, times) - 1
        chance = exp(times * log(mean) - mean - lgamma(times + 1))
        wanted[:, at] += chance, times * chance
    bound = 2 * 0.0108**2 / 8 * max(1.0, 0.242 * 2 * mean)
    assert rows / 100 == pytest.approx(wanted[0], abs=bound)
    assert ids / 100 / mean == pytest.approx(wanted[1] / mean, abs=bound)


@settings(max_examples=50)
@given(st.integers(1, 10**7), st.floats(0, 2), st.integers(1, 10**6))
def test_all_ids_and_all_rows_are_in_some_bin(rows, alpha, ids):
    law = zipf(rows, alpha)
    found, again = reuse(law, ids)
    assert (found >= 0).all() and (again >= 0).all()
    assert again.sum() == pytest.approx(ids, rel=1e-4)
    # Poisson's chance of none, exp(-n p), is at least the binomial's, (1 - p) ** n.
    poisson = -law.count @ np.expm1(-ids * law.probability)
    assert found.sum() == pytest.approx(poisson, rel=1e-4) and poisson <= law.unique(ids) + 1e-6


def test_expected_is_nearly_what_is_drawn():
    law, ids = zipf(50_000, 1.0), 400_000
    times = np.bincount(law.draw(np.random.default_rng(0), ids))
    at = np.searchsorted(EDGES, times[times > 0]) - 1
    rows, again = reuse(law, ids)
    counted = np.bincount(at, minlength=len(EDGES))
    looked_up = np.bincount(at, times[times > 0], minlength=len(EDGES))
    # Five standard deviations, of a bin's rows at most its root.
    assert (np.abs(counted - rows) <= 5 * np.sqrt(rows) + 1).all()
    assert np.abs(looked_up - again).sum() / ids < 0.02


@pytest.mark.parametrize("name", NAMES)
def test_the_published_histogram_is_met(name):
    """Every bin to the three decimals published, but for rounding to whole tables."""
    wanted, (rows, ids, ratio) = histogram(name), modelled(name)
    assert np.abs(rows - wanted.rows_share).max() < 0.003
    assert np.abs(ids - wanted.ids_share).max() < 0.003
    assert ids[UP_TO_1024].sum() == pytest.approx(PUBLISHED_1024[name], abs=0.005)
    assert ratio == pytest.approx(wanted.unique / wanted.ids, rel=0.01)


def test_one_zipf_law_does_not_meet_it():
    """Fitted to distinct rows and those looked up once it has 0.69 of ids up to 1024."""
    wanted = histogram("meta_2021")
    ids = wanted.ids / wanted.tables
    errors = {}
    for alpha in np.arange(0.9, 1.1, 0.02).tolist():
        for rows in (150_000, 200_000, 230_000, 260_000, 300_000):
            found, again = reuse(zipf(rows, alpha), ids)
            unique, once = found.sum() / ids, found[0] / found.sum()
            error = abs(unique - 0.1448) + abs(once - 0.473)
            errors[error] = again[UP_TO_1024].sum() / ids
    assert errors[min(errors)] == pytest.approx(0.69, abs=0.02)


@given(st.integers(0, 2**32 - 1))
def test_least_squares_meet_their_conditions(seed):
    """Karush, Kuhn and Tucker's: no slope where x > 0, none that would lower the error at 0."""
    generator = np.random.default_rng(seed)
    matrix, wanted = generator.normal(size=(12, 8)), generator.normal(size=12)
    x = nonnegative(matrix, wanted)
    slope = matrix.T @ (wanted - matrix @ x)
    assert (x >= 0).all() and (slope <= 1e-9).all()
    assert np.abs(slope[x > 0]).max(initial=0) < 1e-9


def test_other_names_are_refused():
    with pytest.raises(ValueError, match=r"histogram is 'mine'; it must be one of meta_2021"):
        histogram("mine")
