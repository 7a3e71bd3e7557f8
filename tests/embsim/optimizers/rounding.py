"""float32 arithmetic that carries its own error bound: computed, not chosen.

A `Rounded` stands for a float32 that a sequence of rounded operations produced: the value that
exact arithmetic gives, and a bound on the distance between the two. Each operation propagates the
bounds of its operands and adds its own rounding, half an ulp. `bounded_update` runs the optimizer's
own rule on them. A test takes the bound from there and the value from a formula written elsewhere.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from embsim.optimizers import NumpyOps, coefficients, learning_rate_at, row_update
from embsim.optimizers.base import clip_values

HALF_ULP = 2.0**-24  # of the magnitude
UNDERFLOW = 2.0**-150  # half of the smallest subnormal


@dataclass
class Rounded:
    value: np.ndarray
    error: np.ndarray

    def __add__(self, other):
        return _round(self.value + other.value, self.error + other.error)

    def __sub__(self, other):
        return self + -other

    def __neg__(self):
        return Rounded(-self.value, self.error)

    def __mul__(self, other):
        first_order = abs(self.value) * other.error + abs(other.value) * self.error
        return _round(self.value * other.value, first_order + self.error * other.error)

    def __truediv__(self, other):
        value = self.value / other.value
        smallest = abs(other.value) - other.error
        error = np.where(smallest > 0, self.error + abs(value) * other.error, np.inf)
        return _round(value, error / np.maximum(smallest, UNDERFLOW))


def exact(x):
    """A number that float32 holds exactly."""
    assert np.array_equal(np.float32(x), x)
    return Rounded(np.asarray(x, np.float64), np.zeros(np.shape(x)))


def coefficient(x):
    """A number computed in float64 and rounded to float32 once."""
    return Rounded(np.float64(x), abs(np.float64(np.float32(x)) - x))


class RoundedOps:
    """The operations that a rule may use."""

    @staticmethod
    def sqrt(x):
        return _monotone(np.sqrt, x)

    @staticmethod
    def power(x, exponent):
        """The exponent's own rounding d counts too: x ** (e + d) = x ** e * exp(d * log(x))."""
        result = _monotone(lambda y: y**exponent.value, x)
        logs = [abs(np.log(x.value + sign * x.error)) for sign in (-1, 1)]
        drift = np.expm1(exponent.error * np.maximum(*logs))
        return Rounded(result.value, result.error + (abs(result.value) + result.error) * drift)

    @staticmethod
    def minimum(x, y):
        return Rounded(np.minimum(x.value, y.value), np.maximum(x.error, y.error))

    @staticmethod
    def maximum(x, y):
        return Rounded(np.maximum(x.value, y.value), np.maximum(x.error, y.error))

    @staticmethod
    def mean(x):
        total = exact(0.0)
        for value, error in zip(x.value, x.error, strict=True):
            total = total + Rounded(value, error)
        total = total / exact(float(len(x.value)))
        return Rounded(total.value.reshape(1), total.error.reshape(1))


def bounded_update(optimizer, w, g, slots, step=0):
    """The update of one row of Rounded numbers, by the optimizer's own rule."""
    rate = learning_rate_at(optimizer.learning_rate, step)
    numbers = {name: coefficient(x) for name, x in optimizer.coefficients(rate).items()}
    low, high = clip_values(optimizer)
    for name, limit in (("clip_gradient_min", low), ("clip_gradient_max", high)):
        if limit is not None:
            numbers[name] = coefficient(limit)
    return row_update(optimizer, RoundedOps)(w, g, slots, SimpleNamespace(**numbers))


def float32_update(optimizer, w, g, slots, step=0):
    """The same update in float32, as every engine does it."""
    c = SimpleNamespace(**coefficients(optimizer, learning_rate_at(optimizer.learning_rate, step)))
    with np.errstate(under="ignore"):
        return row_update(optimizer, NumpyOps)(w, g, slots, c)


def check_one_step(optimizer, model, w, g, *slots):
    """Every number after one step is within its computed bound of `model`, which works in float64.

    model(w, g, *slots) -> (w, *slots), written from the formulas of tf.tpu.experimental.embedding.
    """
    w, g, *slots = (np.asarray(x, np.float32) for x in (w, g, *slots))
    new, new_slots = float32_update(optimizer, w, g, tuple(slots))
    bound, slot_bounds = bounded_update(optimizer, exact(w), exact(g), tuple(map(exact, slots)))
    expected = model(*(np.asarray(x, np.float64) for x in (w, g, *slots)))
    check_within("w", new, expected[0], bound.error)
    names = [slot.name for slot in optimizer.slots]
    for name, got, want, b in zip(names, new_slots, expected[1:], slot_bounds, strict=True):
        check_within(name, got, want, b.error)


def check_within(what, got, want, bound):
    """got: float32; want: float64, whose own roundings are 2^-29 of float32's, whence the 2^-20."""
    assert got.dtype == np.float32
    bound = np.broadcast_to(bound * (1 + 2.0**-20), got.shape)
    assert np.isfinite(bound).all(), f"{what}: no bound"
    distance = abs(got - want)
    far = distance > bound
    worst = int(np.argmax(distance - bound))
    assert not far.any(), (
        f"{what}: {far.sum()} of {far.size} outside their bound; the worst, at {worst}: "
        f"{got.flat[worst]!r}, formula {want.flat[worst]!r}, bound {bound.flat[worst]!r}"
    )


def _round(value, error):
    return Rounded(value, error + HALF_ULP * (abs(value) + error) + UNDERFLOW)


def _monotone(function, x):
    low, mid, high = (
        function(np.maximum(y, 0)) for y in (x.value - x.error, x.value, x.value + x.error)
    )
    return _round(mid, np.maximum(abs(low - mid), abs(high - mid)))
