"""Quotients and roots by approximate reciprocals, rounded as NumPy rounds them.

Each operation runs in NumPy, so that it rounds by itself; on numbers whose own division and root
are as wrong as those of a TPU, so that nothing can be right but by the correction.

It leaves about 2**-43 of a result: one that lies so close to the middle of two numbers may become
the other one of these. Of random results that is less than one in a million.
"""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from embsim_tpu.kernels import ieee
from embsim_tpu.kernels.ieee import Number
from tests.embsim_tpu.conftest import F

COUNT = 200_000
RARE = 1  # of COUNT: this often the other one of two numbers at most
OFF = (-2, -1, 0, 1, 2)  # ulp


def plain(x):
    return np.asarray(x).view(np.ndarray)


def off_by(x, ulps):
    """Of positive and negative normal numbers; zero, infinity and not-a-number stay."""
    x = plain(x)
    moved = (x.view(np.int32) + np.int32(ulps)).view(F)
    return np.where(np.isfinite(x) & (x != 0), moved, x).astype(F)


def reciprocal(b, ulps):
    with np.errstate(all="ignore"):
        return off_by(F(1) / plain(b), ulps)


def reciprocal_root(x, ulps):
    with np.errstate(all="ignore"):
        return off_by((1 / np.sqrt(plain(x).astype(np.float64))).astype(F), ulps)


class Rough(np.ndarray):
    """Divides as a TPU does: a / b is a times a reciprocal that is 2 ulp off."""

    def __truediv__(self, b):
        with np.errstate(all="ignore"):
            return (plain(self) * reciprocal(b, 2)).view(Rough)

    def __rtruediv__(self, a):
        with np.errstate(all="ignore"):
            return (F(a) * reciprocal(self, 2)).view(Rough)


def rough_sqrt(x):
    with np.errstate(all="ignore"):
        return (plain(x) * reciprocal_root(x, 2)).astype(F).view(Rough)


@pytest.fixture(autouse=True)
def rough_hardware(monkeypatch):
    numpy = SimpleNamespace(
        where=np.where,
        abs=np.abs,
        logical_and=np.logical_and,
        inf=np.inf,
        sqrt=rough_sqrt,
        broadcast_shapes=np.broadcast_shapes,
        broadcast_to=np.broadcast_to,
        shape=np.shape,
    )
    monkeypatch.setattr(ieee, "jnp", numpy)
    monkeypatch.setattr(
        ieee, "lax", SimpleNamespace(rsqrt=lambda x: reciprocal_root(x, 2).view(Rough))
    )


def of_magnitude(low, high, count=COUNT, seed=0):
    """Of any significand, and exponents low .. high - 1."""
    draw = np.random.default_rng(seed)
    significand = draw.integers(0, 2**23, count, dtype=np.int32)
    exponent = draw.integers(127 + low, 127 + high, count, dtype=np.int32)
    return ((exponent << 23) | significand).view(F)


def pairs(seed=0):
    """Of either sign, and quotients within 2**-100 .. 2**100."""
    draw = np.random.default_rng(seed)
    a, b = of_magnitude(-50, 50, seed=seed), of_magnitude(-49, 50, seed=seed + 1)
    return a * draw.choice([F(-1), F(1)], COUNT), b * draw.choice([F(-1), F(1)], COUNT)


def divided(a, b, ulps=2):
    with np.errstate(all="ignore"):
        return plain(ieee.divide(a.view(Rough), b.view(Rough), lambda b: reciprocal(b, ulps)))


def rooted(x, ulps=2):
    with np.errstate(all="ignore"):
        return plain(ieee.sqrt(x.view(Rough), lambda x: reciprocal_root(x, ulps)))


def distance(found, wanted):
    """In ulp, of each: of numbers with the same sign."""
    assert found.dtype == wanted.dtype == F
    return abs(found.view(np.int32).astype(np.int64) - wanted.view(np.int32))


def wrong(found, wanted):
    return np.count_nonzero(distance(found, wanted))


def check_rounded(found, wanted, rare=RARE):
    assert distance(found, wanted).max() <= 1
    assert wrong(found, wanted) <= rare


# Results at which roundings are close: exact ones, and beside them.
NEAR = np.concatenate([off_by(np.arange(1, 4000, dtype=F), ulps) for ulps in OFF])


class TestDivide:
    @pytest.mark.parametrize("ulps", OFF)
    def test_it_rounds_as_numpy_does(self, ulps):
        a, b = pairs(ulps + 2)
        check_rounded(divided(a, b, ulps), a / b, rare=RARE if ulps else 0)

    @pytest.mark.parametrize("ulps", OFF)
    def test_it_rounds_as_numpy_does_beside_exact_quotients(self, ulps):
        b = of_magnitude(-3, 3, len(NEAR))
        for a in (NEAR, NEAR * b):
            check_rounded(divided(a, b, ulps), a / b, rare=0)

    @pytest.mark.parametrize("low, high", [(-100, -95), (95, 100)])
    def test_also_of_the_least_and_the_largest_operands(self, low, high):
        a, b = of_magnitude(low, high), of_magnitude(low, high, seed=1)
        one = np.ones_like(b)
        check_rounded(divided(a, b), a / b)
        check_rounded(divided(one, b), one / b)

    def test_beside_the_middle_of_two_numbers_it_may_be_the_other_one(self):
        """The limit; when this fails the correction has become better."""
        a, b = np.array([1.5007623434066772], F), np.array([1.0465929508209229], F)
        assert distance(divided(a, b, -2), a / b).tolist() == [1]

    def test_without_the_correction_it_would_not(self):
        a, b = pairs()
        uncorrected = plain(a.view(Rough) / b.view(Rough))
        assert wrong(uncorrected, a / b) > COUNT // 10
        assert wrong(divided(a, b, 1000), a / b) > 10 * RARE  # too far off to correct

    @pytest.mark.parametrize("a", [0.0, -0.0, 1.0, -3.0, np.inf, -np.inf, np.nan])
    @pytest.mark.parametrize("b", [0.0, -0.0, 1.0, -3.0, np.inf, -np.inf, np.nan])
    def test_zero_the_infinities_and_not_a_number_are_what_they_are(self, a, b):
        a, b = np.array([a], F), np.array([b], F)
        with np.errstate(all="ignore"):
            wanted = a / b
        found = divided(a, b, 0)
        np.testing.assert_array_equal(found, wanted)
        assert np.isnan(wanted).all() or (np.signbit(found) == np.signbit(wanted)).all()

    def test_the_sum_of_the_products_halves_is_the_product(self):
        a, b = pairs()
        product, error = ieee._product(a, b)
        exact = a.astype(np.float64) * b
        assert (product.astype(np.float64) + error == exact).all()
        assert np.count_nonzero(error) > COUNT // 2
        high, low = ieee._halves(a)
        assert (high + low == a).all()
        assert not (high.view(np.int32) & 0xFFF).any()


class TestSqrt:
    @pytest.mark.parametrize("ulps", OFF)
    def test_it_rounds_as_numpy_does(self, ulps):
        x = of_magnitude(-100, 100, seed=ulps + 2)
        check_rounded(rooted(x, ulps), np.sqrt(x), rare=RARE if ulps else 0)

    @pytest.mark.parametrize("x", [2.657684087753296, 2.9304075241088867, 1.9692776203155518])
    def test_beside_the_middle_of_two_numbers_it_may_be_the_other_one(self, x):
        """The limit; when this fails the correction has become better."""
        x = np.array([x], F)
        assert distance(rooted(x, -2), np.sqrt(x)).tolist() == [1]

    @pytest.mark.parametrize("ulps", OFF)
    def test_it_rounds_as_numpy_does_beside_squares(self, ulps):
        for x in (off_by(np.arange(1, 4000, dtype=F) ** 2, ulps) for ulps in OFF):
            check_rounded(rooted(x, ulps), np.sqrt(x), rare=0)

    def test_without_the_correction_it_would_not(self):
        x = of_magnitude(-100, 100)
        assert wrong(plain(rough_sqrt(x)), np.sqrt(x)) > COUNT // 10

    def test_zero_infinity_and_negative_numbers_are_what_they_are(self):
        x = np.array([0.0, np.inf, np.nan, -1.0, -np.inf], F)
        with np.errstate(all="ignore"):
            # The hardware's own root of these is right.
            ieee.jnp.sqrt = np.sqrt
            np.testing.assert_array_equal(rooted(x), np.sqrt(x))


class TestNumber:
    """Operators on arrays, numbers and other Numbers, in both orders."""

    def test_quotients_are_corrected_and_all_else_is_plain(self):
        a, b = (each[:1000].reshape(-1, 1) for each in pairs())
        c = of_magnitude(-2, 2, 1)[0]
        x, y = Number(a.view(Rough)), Number(b.view(Rough))
        with np.errstate(all="ignore"):
            cases = [
                (x + y, a + b),
                (x + c, a + c),
                (c + x, c + a),
                (x - y, a - b),
                (x - c, a - c),
                (c - x, c - a),
                (x * y, a * b),
                (c * x, c * a),
                (-x, -a),
                (x / y, a / b),
                (x / Number(np.full((1, 1), c)), a / c),
                (Number(np.full((1, 1), c).view(Rough)) / y, c / b),
                (x / (y * c), a / (b * c)),
            ]
        for i, (found, wanted) in enumerate(cases):
            assert isinstance(found, Number), i
            assert wrong(plain(found.value), wanted) == 0, i

    def test_a_coefficient_divides(self):
        """One of ops.Coefficient is what has a value."""
        a, c = of_magnitude(-2, 2, 1000), SimpleNamespace(value=np.array(3.7, F))
        assert wrong(plain((Number(a.view(Rough)) / c).value), a / F(3.7)) == 0
        assert wrong(plain(Number(a.view(Rough)).__rtruediv__(c).value), F(3.7) / a) == 0

    def test_comparisons_are_of_the_arrays(self):
        x, y = Number(np.array([1, 2, 3], F)), np.array([2, 2, 2], F)
        for other in (y, Number(y), 2.0):
            assert (x < other).tolist() == [True, False, False]
            assert (x <= other).tolist() == [True, True, False]
            assert (x > other).tolist() == [False, False, True]
            assert (x >= other).tolist() == [False, True, True]

    def test_plain_is_the_array(self):
        array = jnp.ones(3)
        assert ieee.plain(Number(array)) is array
        assert ieee.plain(array) is array
