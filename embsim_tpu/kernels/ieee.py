"""Square roots and quotients rounded as IEEE 754 has them, where the hardware's are approximate.

A TPU computes a / b as a times an approximate reciprocal, at most a few ulp off. What that leaves
of a is computed exactly, by products split in halves (T. J. Dekker, 1971), and divided in turn.
Multiplication and addition must round to nearest, each by itself: a compiler that fuses them, as
XLA on CPU does, spoils it.

Correct where no part leaves the range of normal numbers: of operands and results from 2**-100 to
2**100 in magnitude. Zero, the infinities and not-a-number are what they are by the hardware.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax

SPLITTER = 4097.0  # 2**12 + 1: halves of 12 bits


def divide(a: Any, b: Any, about: Callable[[Any], Any] | None = None) -> Any:
    """a / b. `about` gives an approximate 1 / b."""
    y = 1.0 / b if about is None else about(b)
    q = a * y
    product, error = _product(q, b)
    corrected = q + ((a - product) - error) * y
    return jnp.where(_usual(corrected, q), corrected, a / b)


def sqrt(x: Any, about: Callable[[Any], Any] | None = None) -> Any:
    """The square root of x. `about` gives an approximate 1 / sqrt(x)."""
    y = lax.rsqrt(x) if about is None else about(x)
    s = x * y
    product, error = _product(s, s)
    corrected = s + (0.5 * y) * ((x - product) - error)
    return jnp.where(_usual(corrected, s), corrected, jnp.sqrt(x))


def _usual(corrected: Any, first: Any) -> Any:
    """Neither zero, whose sign the correction loses, nor beyond the numbers."""
    return jnp.logical_and(first != 0, jnp.abs(corrected) < jnp.inf)


def _product(a: Any, b: Any) -> tuple[Any, Any]:
    """a * b rounded, and what that leaves."""
    product = a * b
    (a1, a2), (b1, b2) = _halves(a), _halves(b)
    return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


def _halves(a: Any) -> tuple[Any, Any]:
    scaled = SPLITTER * a
    high = scaled - (scaled - a)
    return high, a - high


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
