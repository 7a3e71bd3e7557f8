"""Formulas on float32 arrays with computed error bounds, also where numbers leave float32.

A `Ranged` stands for the float32 numbers that rounded operations produced: what exact arithmetic
gives, in float64, and a bound on the distance between the two. What is beyond float32's largest
number is infinite, as in the machine, and the formula goes on with infinities and NaN. A formula is
a rule of embsim/optimizers, or of a library in formulas.py, written for these `Ops`.

embsim.conformance.tolerance has such arithmetic too; there a number that may overflow has no bound.
This one stands alone, so that an outside oracle is judged by nothing of embsim but its rules.
"""

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np

HALF_ULP = 2.0**-24  # of the magnitude
UNDERFLOW = 2.0**-150  # half of the smallest subnormal
SMALLEST_NORMAL = 2.0**-126
LARGEST = float(np.finfo(np.float32).max) * (1 + HALF_ULP / 2)  # rounds to infinity from here on
MODEL = 2.0**-20  # of a bound: the float64 in which values and bounds are computed
_flushing = ContextVar("flushing", default=False)


@dataclass
class Ranged:
    value: np.ndarray
    error: np.ndarray

    def __add__(self, other):
        return _rounded(self.value + other.value, self.error + other.error)

    def __sub__(self, other):
        return self + -other

    def __neg__(self):
        return Ranged(-self.value, self.error)

    def __mul__(self, other):
        first_order = abs(self.value) * other.error + abs(other.value) * self.error
        return _rounded(self.value * other.value, first_order + self.error * other.error)

    def __truediv__(self, other):
        value = self.value / other.value
        smallest = abs(other.value) - other.error
        error = (self.error + abs(value) * other.error) / np.maximum(smallest, UNDERFLOW)
        return _rounded(value, np.where(smallest > 0, error, np.inf))

    def __getitem__(self, place):
        return Ranged(self.value[place], self.error[place])


@contextmanager
def subnormals_are_zero(really=True):
    """Inside, a result below the smallest normal number is 0, as processors can be told to do."""
    token = _flushing.set(really)
    try:
        yield
    finally:
        _flushing.reset(token)


def exact(x):
    """float32 numbers, as they are."""
    x = np.asarray(x, np.float32).astype(np.float64)
    return _in_range(x, np.zeros(x.shape))


def parameter(x):
    """A number computed in float64 and rounded to float32 once."""
    return Ranged(np.float64(x), abs(np.float64(np.float32(x)) - x))


def zeros(shape):
    return Ranged(np.zeros(shape), np.zeros(shape))


class Ops:
    """What a rule may use; `power` is 4 ulp wide, as docs/semantics.md, 4.9, lets it be."""

    @staticmethod
    def sqrt(x):
        return _monotone(np.sqrt, x)

    @staticmethod
    def power(x, exponent):
        """x ** (e + d) = x ** e * exp(d * log(x)): the exponent's own rounding d counts too."""
        result = _monotone(lambda y: y**exponent.value, x)
        logs = [abs(np.log(x.value + sign * x.error)) for sign in (-1, 1)]
        size = abs(result.value) + result.error
        drift = np.expm1(exponent.error * np.maximum(*logs))
        return _in_range(result.value, result.error + size * (drift + 8 * HALF_ULP))

    @staticmethod
    def minimum(x, y):
        return _in_range(np.minimum(x.value, y.value), np.maximum(x.error, y.error))

    @staticmethod
    def maximum(x, y):
        return _in_range(np.maximum(x.value, y.value), np.maximum(x.error, y.error))

    @staticmethod
    def mean(x):
        """Of each row, summed in any order."""
        columns = [x[..., d] for d in range(x.value.shape[-1])]
        result = total(columns) / exact(len(columns))
        return Ranged(result.value[..., None], result.error[..., None])


def total(terms, counts=None):
    """The sum of terms in any order; `counts` says how many of them an element really has.

    One addition rounds its result; n of them, in any order, at most sum |terms| each.
    """
    value, error = sum(t.value for t in terms), sum(t.error for t in terms)
    n = np.maximum((len(terms) if counts is None else counts) - 1, 0)
    size = np.where(n == 1, abs(value), sum(abs(t.value) for t in terms)) + error
    return _in_range(value, error + size * n * HALF_ULP / (1 - n * HALF_ULP))


def ratio(got, want, bound):
    """|got - want| / bound by element: at most 1 is agreement.

    Where `want` is not finite `got` must be the same. Where it is, but its bound is not, nothing
    can be said: NaN.
    """
    got = np.asarray(got, np.float64)
    want, bound = np.broadcast_to(want, got.shape), np.broadcast_to(bound, got.shape)
    with np.errstate(all="ignore"):
        distance = np.where(got == want, 0.0, abs(got - want))
        result = np.where(distance == 0, 0.0, distance / (bound * (1 + MODEL)))
    result = np.where(np.isfinite(got), result, np.inf)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    result = np.where(np.isfinite(want), result, np.where(same, 0.0, np.inf))
    return np.where(np.isfinite(want) & ~np.isfinite(bound), np.nan, result)


def _rounded(value, error):
    """The result of one operation: its operands' errors, and its own rounding."""
    return _in_range(value, error + HALF_ULP * (abs(value) + error) + UNDERFLOW)


def _monotone(function, x):
    low, mid, high = (
        function(np.maximum(y, 0)) for y in (x.value - x.error, x.value, x.value + x.error)
    )
    return _rounded(mid, np.maximum(abs(low - mid), abs(high - mid)))


def _in_range(value, error):
    value = np.where(abs(value) > LARGEST, np.copysign(np.inf, value), value)
    finite = np.isfinite(value)
    error = np.where(finite & (abs(value) + error > LARGEST), np.inf, error)
    error = np.where(finite, error, 0.0)
    if _flushing.get():
        zero = abs(value) + error < SMALLEST_NORMAL
        either = ~zero & (abs(value) - error < SMALLEST_NORMAL)
        error = np.where(zero, 0.0, np.where(either, error + SMALLEST_NORMAL, error))
        value = np.where(zero, 0.0, value)
    return Ranged(value, error)
