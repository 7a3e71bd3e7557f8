"""Laws of popularity against the sums over all rows, published figures, and what is drawn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embsim.simulation.popularity import (
    HEAD,
    Popularity,
    counted,
    mixture,
    uniform,
    zeta,
    zipf,
)

ALPHAS = st.floats(0, 2) | st.just(1.0)
LAWS = st.one_of(
    st.builds(zipf, st.integers(1, 10**6), ALPHAS),
    st.builds(zeta, st.integers(1, 10**5), st.floats(1.01, 2)),
    st.integers(1, 10**9).map(uniform),
)


def row_by_row(rows, alpha):
    weight = np.arange(1, rows + 1, dtype=float) ** -alpha
    return Popularity(np.ones(rows), weight / weight.sum())


@given(LAWS)
def test_probabilities_are_those_of_all_rows(law):
    assert law.count @ law.probability == pytest.approx(1)
    assert (law.probability > 0).all() and (np.diff(law.probability) <= 1e-15).all()


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 1.05, 1.5])
@pytest.mark.parametrize("rows", [10, HEAD, HEAD + 1, 300_000])
def test_classes_stand_for_single_rows(rows, alpha):
    """Within five millionths."""
    law, exact = zipf(rows, alpha), row_by_row(rows, alpha)
    assert law.rows == pytest.approx(rows)
    for ids in (1, 100, 10_000, 1_000_000):
        assert law.unique(ids) == pytest.approx(exact.unique(ids), rel=5e-6)
        for steps in (1, 4):
            assert law.conflict(ids, steps) == pytest.approx(exact.conflict(ids, steps), rel=5e-6)
            assert law.conflict_of_rows(ids, steps) == pytest.approx(
                exact.conflict_of_rows(ids, steps), rel=5e-6
            )


def test_published_figures_are_met():
    """FBGEMM's and NVIDIA's benchmarks: distinct rows of a lookup, and stale lookups."""
    for alpha, unique, stale in (
        (1.05, 0.714, 0.344),
        (1.09, 0.554, 0.505),
        (1.15, 0.381, 0.674),
        (1.5, 0.065, 0.957),
    ):
        law = zeta(100_000, alpha)
        assert law.unique(10_240) / 10_240 == pytest.approx(unique, abs=6e-4)
        assert law.conflict(10_240, 1) == pytest.approx(stale, abs=6e-4)
    law = zipf(25_000_000, 1.05)
    assert law.unique(2**20) / 2**20 == pytest.approx(0.280, abs=6e-4)
    assert law.conflict(2**20, 1) == pytest.approx(0.767, abs=6e-4)


def test_numpy_s_zipf_modulo_rows_is_zeta():
    ids = (np.random.default_rng(0).zipf(1.2, 10**6) - 1) % 1000
    times = np.sort(np.bincount(ids, minlength=1000))[::-1] / 10**6
    law = zeta(1000, 1.2)
    assert np.abs(times - np.sort(law.probability)[::-1]).max() < 2e-3


@given(LAWS, st.integers(1, 10**6), st.integers(1, 9))
def test_shares_are_shares_and_grow(law, ids, steps):
    assert 0 < law.unique(ids) <= min(ids, law.rows) * (1 + 1e-9)
    assert 0 <= law.conflict(ids, steps) <= law.conflict(ids, steps + 1) <= 1 + 1e-9
    assert law.conflict_of_rows(ids, steps) <= law.conflict(ids, steps) + 1e-9
    assert law.missed(ids, steps) == pytest.approx(steps * law.conflict(ids, 1))


def test_what_is_missed_beyond_a_cache():
    law = uniform(1000)
    assert law.cold(50, cached=0.2) == pytest.approx(0.8 * law.unique(50))
    assert law.cold(50, cached=1.0) == 0
    popular = zipf(1000, 1.5)
    assert popular.cold(50, 0.2) < 0.5 * popular.unique(50)
    assert popular.cold(50, 0.0) == pytest.approx(popular.unique(50))


@pytest.mark.parametrize("law", [zipf(50, 1.2), zipf(200_000, 1.05), uniform(300)])
def test_what_is_drawn_follows_the_law(law):
    ids = law.draw(np.random.default_rng(0), 400_000)
    assert ids.dtype == np.int64 and 0 <= ids.min() <= ids.max() < law.rows
    assert len(np.unique(ids)) == pytest.approx(law.unique(400_000), rel=0.01)
    if law.count[0] == 1:
        times = np.bincount(ids)[law.head[:5]] / 400_000
        assert times == pytest.approx(law.probability[:5], rel=0.05)


def test_the_popular_rows_lie_anywhere_and_always_there():
    law = zipf(10_000, 1.2)
    first, second = (law.draw(np.random.default_rng(seed), 50_000) for seed in (0, 1))
    hottest = [np.argmax(np.bincount(ids)) for ids in (first, second)]
    assert hottest == [law.head[0]] * 2
    assert len(set(law.head.tolist())) == HEAD
    # Every row can be drawn: ranks change places.
    assert len(np.unique(zipf(5000, 0.1).draw(np.random.default_rng(0), 500_000))) == 5000


@pytest.mark.parametrize("rows", [1, 5000, 200_000])
def test_every_rank_has_a_row_of_its_own(rows):
    law = zipf(rows, 1.2)
    assert np.array_equal(np.sort(law._row(np.arange(rows))), np.arange(rows))


def test_measured_ids_are_a_law():
    law = counted(np.array([5, 5, 5, 1, 2, 2]), rows=10)
    assert law.count.tolist() == [1, 1, 1, 7]
    assert law.probability.tolist() == [3 / 6, 2 / 6, 1 / 6, 0]
    assert law.rows == 10


def test_a_mixture_has_the_rows_of_its_parts():
    law = mixture([(1, uniform(4)), (3, zipf(3, 1.0))])
    assert law.rows == 7
    assert law.count[:1] @ law.probability[:1] == pytest.approx(0.25)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: zipf(0, 1.0), "zipf: rows is 0"),
        (lambda: zipf(9, -1.0), "zipf: alpha is -1.0; it must be a number >= 0"),
        (lambda: zipf(9, float("nan")), "zipf: alpha is nan"),
        (lambda: zeta(9, 1.0), "zeta: alpha is 1.0; it must be a number > 1"),
        (lambda: uniform(0), "uniform: rows is 0"),
    ],
)
def test_what_is_no_law_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
