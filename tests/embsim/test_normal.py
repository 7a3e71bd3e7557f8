from fractions import Fraction
from math import log as reference_log
from statistics import NormalDist

import numpy as np

from embsim._normal import CENTRAL, centred_quantile, log


def centred(count: int, seed: int) -> np.ndarray:
    """Multiples of 2**-53 in (-0.5 + 1e-9, 0.5 - 1e-9), so that 0.5 + q is exact."""
    draws = np.random.default_rng(seed).integers(-(2**52), 2**52, count)
    q = draws * 2.0**-53
    return q[np.abs(q) < 0.5 - 1e-9]


def test_quantile_equals_the_standard_library():
    q = np.concatenate([centred(50_000, 0), [0.0, CENTRAL, -CENTRAL, 0.4772498680518208, 0.25]])
    found = q.copy()
    centred_quantile(found)
    required = np.array([NormalDist().inv_cdf(float(Fraction(1, 2) + Fraction(x))) for x in q])
    error = np.abs(found - required)
    assert (error <= 1e-15 * np.abs(required)).all(), (error / np.abs(required)).max()


def test_quantile_is_odd():
    q = centred(10_000, 1)
    plus, minus = q.copy(), -q
    centred_quantile(plus)
    centred_quantile(minus)
    np.testing.assert_array_equal(plus, -minus)


def test_log_is_within_four_units_in_the_last_place():
    rng = np.random.default_rng(2)
    x = np.concatenate(
        [rng.random(20_000), 10.0 ** rng.uniform(-300, 300, 20_000), [1.0, 2.0, 0.5]]
    )
    required = np.array([reference_log(value) for value in x])
    assert (np.abs(log(x) - required) <= 4 * np.spacing(np.abs(required))).all()


def test_each_element_alone_has_the_same_bits():
    q = centred(1000, 3)
    together = q.copy()
    centred_quantile(together)
    for value, required in zip(q, together, strict=True):
        alone = np.array([value])
        centred_quantile(alone)
        assert alone[0] == required
