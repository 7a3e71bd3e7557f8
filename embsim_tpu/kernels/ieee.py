"""Square roots and quotients rounded as IEEE 754 has them, where the hardware's are approximate.

A TPU computes a / b as a times an approximate reciprocal, at most a few ulp off. What that leaves
of a is computed exactly, by products split in halves (T. J. Dekker, 1971), and divided in turn:
then the result is the nearest number or, beside the middle of two, the other one. What is left now
says which: the neighbour (S. M. Rump and others, 2009) is taken where more than half the way to it
is missing.

Multiplication and addition must round to nearest, each by itself: a compiler that fuses them, as
XLA on CPU does, spoils it. So do subnormal numbers that are flushed to 0: the errors of products
are 2**-46 times as large as these. It is right of operands from 2**-75 to 2**100 in magnitude and
results from 2**-100 to 2**100. Zero, the infinities and not-a-number are what they are by the
hardware.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax

SPLITTER = 4097.0  # 2**12 + 1: halves of 12 bits
TO_NEIGHBOUR = 2.0**-24 * (1 + 2.0**-23)  # x +- |x| times this rounds to x's neighbours


def divide(a: Any, b: Any, about: Callable[[Any], Any] | None = None) -> Any:
    """a / b. `about` gives an approximate 1 / b."""
    y, halves = 1.0 / b if about is None else about(b), _halves(b)
    first = a * y
    q = first + _left(a, first, b, halves) * y
    left = _left(a, q, b, halves)
    other = _neighbour(q, jnp.where(b < 0, -left, left))
    # No quotient is the middle of two numbers.
    nearest = jnp.where(2.0 * jnp.abs(left) > jnp.abs((other - q) * b), other, q)
    return jnp.where(_usual(q, first), nearest, a / b)


def sqrt(x: Any, about: Callable[[Any], Any] | None = None) -> Any:
    """The square root of x. `about` gives an approximate 1 / sqrt(x)."""
    y = lax.rsqrt(x) if about is None else about(x)
    first = x * y
    s = first + (0.5 * y) * _left(x, first, first, _halves(first))
    left = _left(x, s, s, _halves(s))
    other = _neighbour(s, left)
    # (s + h / 2)**2 is s * s + h * s, and more by less than what any two numbers leave.
    missing = jnp.abs(left) - jnp.abs((other - s) * s)
    below = jnp.logical_and(missing == 0, left < 0)
    nearest = jnp.where(jnp.logical_or(missing > 0, below), other, s)
    return jnp.where(_usual(s, first), nearest, jnp.sqrt(x))


def _usual(result: Any, first: Any) -> Any:
    """Neither zero, whose sign the correction loses, nor beyond the numbers."""
    return jnp.logical_and(first != 0, jnp.abs(result) < jnp.inf)


def _left(a: Any, q: Any, b: Any, halves_of_b: tuple[Any, Any]) -> Any:
    """a - q * b, exact where q is within one ulp of a / b."""
    product = q * b
    (q1, q2), (b1, b2) = _halves(q), halves_of_b
    error = ((q1 * b1 - product) + q1 * b2 + q2 * b1) + q2 * b2
    return (a - product) - error


def _halves(a: Any) -> tuple[Any, Any]:
    scaled = SPLITTER * a
    high = scaled - (scaled - a)
    return high, a - high


def _neighbour(x: Any, direction: Any) -> Any:
    """The number below x where direction < 0, the one above it elsewhere."""
    step = jnp.abs(x) * TO_NEIGHBOUR
    return x + jnp.where(direction < 0, -step, step)


@dataclass(frozen=True, eq=False)
class Number:
    """An array whose operators round so. Other operands are arrays, numbers, or Numbers."""

    value: Any

    def __neg__(self) -> "Number":
        return Number(-self.value)

    def __add__(self, other: Any) -> "Number":
        return Number(self.value + plain(other))

    def __radd__(self, other: Any) -> "Number":
        return Number(plain(other) + self.value)

    def __sub__(self, other: Any) -> "Number":
        return Number(self.value - plain(other))

    def __rsub__(self, other: Any) -> "Number":
        return Number(plain(other) - self.value)

    def __mul__(self, other: Any) -> "Number":
        return Number(self.value * plain(other))

    def __rmul__(self, other: Any) -> "Number":
        return Number(plain(other) * self.value)

    def __truediv__(self, other: Any) -> "Number":
        return Number(divide(*_both(self.value, plain(other))))

    def __rtruediv__(self, other: Any) -> "Number":
        return Number(divide(*_both(plain(other), self.value)))

    def __lt__(self, other: Any) -> Any:
        return self.value < plain(other)

    def __le__(self, other: Any) -> Any:
        return self.value <= plain(other)

    def __gt__(self, other: Any) -> Any:
        return self.value > plain(other)

    def __ge__(self, other: Any) -> Any:
        return self.value >= plain(other)


def plain(x: Any) -> Any:
    """Of a Number its array, of one of ops.Coefficient its number."""
    return x.value if hasattr(x, "value") else x


def _both(a: Any, b: Any) -> tuple[Any, Any]:
    shape = jnp.broadcast_shapes(jnp.shape(a), jnp.shape(b))
    return jnp.broadcast_to(a, shape), jnp.broadcast_to(b, shape)
