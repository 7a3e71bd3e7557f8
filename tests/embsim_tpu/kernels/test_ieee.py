"""Quotients and roots by approximate reciprocals, rounded as NumPy rounds them.

Each operation runs in NumPy, so that it rounds by itself; on numbers whose own division and root
are as wrong as those of a TPU, and whose subnormal results are 0, so that nothing can be right but
by the correction.
"""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from embsim_tpu.kernels import ieee
from embsim_tpu.kernels.ieee import Number
from tests.embsim_tpu.conftest import F

COUNT = 200_000
LEAST, LARGEST = -75, 100  # powers of two between which all is right
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
    """Divides as a TPU does: a / b is a times a reciprocal that is 2 ulp off. Flushes."""

    def __array_ufunc__(self, ufunc, method, *inputs, **others):
        given = [plain(x) if isinstance(x, Rough) else x for x in inputs]
        found = getattr(ufunc, method)(*given, **others)
        if found.dtype != F:
            return found
        return np.where(abs(found) < np.finfo(F).tiny, found * F(0), found).view(Rough)

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
        logical_or=np.logical_or,
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
    a, b = (of_magnitude(LEAST, 25, seed=seed + i) for i in (0, 1))
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


def quotients_beside_middles():
    """a / b = m / 2**25 + c / (b * 2**25) with odd m of 25 bits: nothing is closer than c = 1."""
    draw, found = np.random.default_rng(0), []
    for b in (2**23 + 1 + 2 * draw.integers(0, 2**22, 2000)).tolist():
        for c in (1, -1, 3, -3):
            m = -c * pow(b, -1, 2**25) % 2**25
            a = (m * b + c) >> 25
            if 2**23 <= a < 2**24 <= m:
                found.append((a, b))
    return np.array(found, F).T


def squares_beside_middles():
    """x = (m * m + c) / 2**bits with odd m of 25 bits: the roots of -c modulo 2**bits."""
    found = []
    for bits in (25, 26):
        for c in range(-2001, 2000, 8):
            root = next(r for r in (1, 3, 5, 7) if (r * r + c) % 16 == 0)
            for n in range(4, bits):  # one bit more each time, of roots modulo 2**n
                root += 2 ** (n - 1) if (root * root + c) % 2 ** (n + 1) else 0
            roots = {
                (sign * root + half) % 2**bits for sign in (1, -1) for half in (0, 2 ** (bits - 1))
            }
            for m in {r + k * 2**bits for r in roots for k in (0, 1)}:
                x = (m * m + c) >> bits
                if 2**24 <= m < 2**25 and 2**23 <= x < 2**24:
                    assert m * m + c == x << bits
                    found.append(x * 2 ** (bits % 2))
    return np.array(found, F)


# Results at which roundings are close: exact ones, and beside them.
NEAR = np.concatenate([off_by(np.arange(1, 4000, dtype=F), ulps) for ulps in OFF])


class TestDivide:
    @pytest.mark.parametrize("ulps", OFF)
    def test_it_rounds_as_numpy_does(self, ulps):
        a, b = pairs(ulps + 2)
        assert wrong(divided(a, b, ulps), a / b) == 0

    @pytest.mark.parametrize("ulps", OFF)
    def test_it_rounds_as_numpy_does_beside_exact_quotients(self, ulps):
        b = of_magnitude(-3, 3, len(NEAR))
        for a in (NEAR, NEAR * b):
            assert wrong(divided(a, b, ulps), a / b) == 0

    @pytest.mark.parametrize("ulps", OFF)
    def test_it_rounds_as_numpy_does_beside_the_middle_of_two_numbers(self, ulps):
        a, b = quotients_beside_middles()
        assert len(a) > 2000
        for sign in (1, -1):
            assert wrong(divided(sign * a, b, ulps), sign * a / b) == 0

    @pytest.mark.parametrize("low, high", [(LEAST, LEAST + 5), (LARGEST - 5, LARGEST)])
    def test_also_of_the_least_and_the_largest_operands(self, low, high):
        a, b = of_magnitude(low, high), of_magnitude(low, high, seed=1)
        one = np.ones_like(b)
        for x, y in ((a, b), (one, b), (a, one)):
            assert wrong(divided(x, y), x / y) == 0

    def test_without_the_correction_it_would_not(self):
        a, b = pairs()
        uncorrected = plain(a.view(Rough) / b.view(Rough))
        assert wrong(uncorrected, a / b) > COUNT // 10
        assert wrong(divided(a, b, 2**14), a / b) > 10  # too far off to correct

    def test_without_the_neighbours_some_would_be_wrong(self, monkeypatch):
        monkeypatch.setattr(ieee, "_neighbour", lambda x, direction: x)
        a, b = quotients_beside_middles()
        assert wrong(divided(a, b), a / b) > 10

    @pytest.mark.parametrize("a", [0.0, -0.0, 1.0, -3.0, np.inf, -np.inf, np.nan])
    @pytest.mark.parametrize("b", [0.0, -0.0, 1.0, -3.0, np.inf, -np.inf, np.nan])
    def test_zero_the_infinities_and_not_a_number_are_what_they_are(self, a, b):
        a, b = np.array([a], F), np.array([b], F)
        with np.errstate(all="ignore"):
            wanted = a / b
        found = divided(a, b, 0)
        np.testing.assert_array_equal(found, wanted)
        assert np.isnan(wanted).all() or (np.signbit(found) == np.signbit(wanted)).all()

    def test_what_a_quotient_leaves_is_exact(self):
        a, b = pairs()
        nearest = a / b
        above = nearest > a.astype(np.float64) / b
        for q in (nearest, np.nextafter(nearest, np.where(above, F(-np.inf), F(np.inf)))):
            left = ieee._left(a, q, b, ieee._halves(b))
            assert (left == a - q.astype(np.float64) * b).all()
            assert np.count_nonzero(left) > COUNT // 2
        high, low = ieee._halves(a)
        assert (high + low == a).all()
        assert not (high.view(np.int32) & 0xFFF).any()

    def test_neighbours_are_one_ulp_away(self):
        x = of_magnitude(LEAST, LARGEST)
        x = np.concatenate([x, -x, F(2) ** np.arange(LEAST, LARGEST).astype(F)])
        for direction, to in ((-1.0, -np.inf), (0.0, np.inf), (1.0, np.inf)):
            found = ieee._neighbour(x, np.full_like(x, direction))
            assert (found == np.nextafter(x, F(to))).all()


class TestSqrt:
    @pytest.mark.parametrize("ulps", OFF)
    def test_it_rounds_as_numpy_does(self, ulps):
        x = of_magnitude(LEAST, LARGEST, seed=ulps + 2)
        assert wrong(rooted(x, ulps), np.sqrt(x)) == 0

    @pytest.mark.parametrize("ulps", OFF)
    def test_it_rounds_as_numpy_does_beside_the_middle_of_two_numbers(self, ulps):
        x = squares_beside_middles()
        assert len(x) > 500
        assert wrong(rooted(x, ulps), np.sqrt(x)) == 0

    @pytest.mark.parametrize("ulps", OFF)
    def test_it_rounds_as_numpy_does_beside_squares(self, ulps):
        for x in (off_by(np.arange(1, 4000, dtype=F) ** 2, ulps) for ulps in OFF):
            assert wrong(rooted(x, ulps), np.sqrt(x)) == 0

    def test_without_the_correction_it_would_not(self):
        x = of_magnitude(-100, 100)
        assert wrong(plain(rough_sqrt(x)), np.sqrt(x)) > COUNT // 10

    def test_without_the_neighbours_some_would_be_wrong(self, monkeypatch):
        monkeypatch.setattr(ieee, "_neighbour", lambda x, direction: x)
        x = squares_beside_middles()
        assert wrong(rooted(x), np.sqrt(x)) >= 5

    def test_zero_infinity_and_negative_numbers_are_what_they_are(self):
        x = np.array([0.0, np.inf, np.nan, -1.0, -np.inf], F)
        with np.errstate(all="ignore"):
            # The hardware's own root of these is right.
            ieee.jnp.sqrt = np.sqrt
            np.testing.assert_array_equal(rooted(x), np.sqrt(x))


class TestNumber:
    """Operators on arrays, numbers and other Numbers, in both orders."""

    def test_quotients_are_corrected_and_all_else_is_plain(self):
        a, b = (of_magnitude(-9, 9, 1000, seed).reshape(-1, 1) for seed in (0, 1))
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
