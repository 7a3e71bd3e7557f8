"""The bounds of rounding.py hold for random expressions, and are not vacuous."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.embsim.optimizers.rounding import (
    HALF_ULP,
    RoundedOps,
    check_within,
    coefficient,
    exact,
)

F = np.float32
FLOATS = st.floats(2.0**-60, 2.0**60, width=32)


@given(FLOATS, FLOATS, FLOATS)
def test_a_bound_holds(x, y, z):
    """(x * y + z) / sqrt(x + z), minus y or not; the bound is small where nothing cancels."""
    ours = (F(x) * F(y) + F(z)) / np.sqrt(F(x) + F(z))
    a, b, c = map(exact, (x, y, z))
    bounded = (a * b + c) / RoundedOps.sqrt(a + c)
    check_within("quotient", np.array([ours]), np.array([bounded.value]), bounded.error)
    assert bounded.error <= 6 * HALF_ULP * bounded.value  # five roundings
    difference = bounded - b
    got = np.array([ours - F(y)])
    check_within("difference", got, np.array([difference.value]), difference.error)


@given(st.floats(-10, 10))
def test_a_coefficient_is_as_far_as_its_rounding(x):
    assert coefficient(x).error == abs(float(F(x)) - x)


def test_a_number_outside_its_bound_is_named():
    with pytest.raises(AssertionError, match="w: 1 of 2 outside their bound; the worst, at 1"):
        check_within("w", np.array([1, 2], F), np.array([1.0, 2.1]), np.array(2.0**-20))
    with pytest.raises(AssertionError, match="w: no bound"):
        check_within("w", np.array([1], F), np.array([1.0]), np.array(np.inf))


def test_a_power_knows_that_its_exponent_was_rounded():
    x, e = exact(2.0**99), coefficient(-1 / 3)
    got = F((2.0**99) ** np.float64(F(-1 / 3)))
    bounded = RoundedOps.power(x, e)
    check_within("power", np.array([got]), np.array([2.0**-33]), bounded.error)
