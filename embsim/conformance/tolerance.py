"""Bounds that are computed from the operands; none is chosen.

A `Rounded` stands for a float32 that rounded operations produced: the number that exact arithmetic
gives, in float64, and a bound on the distance between the two. Each operation propagates the bounds
of its operands and adds its own rounding. An optimizer's own rule runs on them, a user's too.

    sums     n terms in any order, with or without fused multiply-add: gamma(n) * sum |terms|
    rules    twice each rounding of the rule's own

What rounds nothing on any machine adds nothing: x + 0, x * 1 and every exact zero. Numbers that may
be too large for float32 have no bound: their error is infinite. On a machine without subnormals the
error of a number that may be one reaches to zero.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..optimizers import row_update
from .difference import Difference

HALF_ULP = 2.0**-24  # of the magnitude
UNDERFLOW = 2.0**-150  # half of the smallest subnormal
SMALLEST = 2.0**-126  # of the normal numbers
LARGEST = float(np.finfo(np.float32).max)
OURS = 1 + 2.0**-20  # the float64 roundings of values and bounds themselves
RULES = 2.0  # a rule's own roundings count so many times (semantics 8.5)


@dataclass(frozen=True)
class Accuracy:
    """Of a machine's operations. `ulps`: sqrt and `/`, 0.5 for IEEE. Without `subnormals` each may
    take a number below 2^-126 for zero, an operand or the result.
    """

    ulps: float = 0.5
    subnormals: bool = True

    @property
    def underflow(self) -> float:
        """How far a small result may be from the exact one."""
        return UNDERFLOW if self.subnormals else SMALLEST

    def and_of(self, other: "Accuracy") -> "Accuracy":
        """Of an operation on numbers of both: what is worse."""
        if self == other:
            return self
        return Accuracy(max(self.ulps, other.ulps), self.subnormals and other.subnormals)


IEEE = Accuracy()


@dataclass(frozen=True)
class Rounded:
    """float64 `value`, `error` >= 0, arrays or numbers; `accuracy` of the operations; `steps`: how
    many times each rounding counts.

    Comparisons are those of the values; a number that could be on either side widens what `where`
    selects (`RoundedOps.where`).
    """

    value: Any
    error: Any
    accuracy: Accuracy = IEEE
    steps: float = 1.0

    def __add__(self, other: "Rounded") -> "Rounded":
        made = self._made(other, self.value + other.value, self.error + other.error)
        return self._unless(made, self._is(0.0) | other._is(0.0), self.error + other.error)

    def __sub__(self, other: "Rounded") -> "Rounded":
        return self + -other

    def __neg__(self) -> "Rounded":
        return replace(self, value=-self.value)

    def __mul__(self, other: "Rounded") -> "Rounded":
        first_order = abs(self.value) * other.error + abs(other.value) * self.error
        error = first_order + self.error * other.error
        made = self._made(other, self.value * other.value, error)
        return self._unless(made, self._is(1.0) | other._is(1.0), error)

    def __truediv__(self, other: "Rounded") -> "Rounded":
        value = self.value / other.value
        smallest = abs(other.value) - other.error
        error = np.where(smallest > 0, self.error + abs(value) * other.error, np.inf)
        made = self._made(other, value, error / np.maximum(smallest, UNDERFLOW))
        return made.less_accurate()

    def __lt__(self, other: "Rounded") -> "Uncertain":
        return Uncertain(self.value < other.value, self._apart(other))

    def __gt__(self, other: "Rounded") -> "Uncertain":
        return Uncertain(self.value > other.value, self._apart(other))

    def __le__(self, other: "Rounded") -> "Uncertain":
        return Uncertain(self.value <= other.value, self._apart(other))

    def __ge__(self, other: "Rounded") -> "Uncertain":
        return Uncertain(self.value >= other.value, self._apart(other))

    def less_accurate(self) -> "Rounded":
        """After a root or a quotient: the rounding beyond half an ulp."""
        beyond = 2 * self.accuracy.ulps - 1
        more = self.steps * beyond * HALF_ULP * (abs(self.value) + self.error)
        return replace(self, error=self.error + more)

    def _made(self, other: "Rounded", value: Any, error: Any) -> "Rounded":
        return rounded(value, error, *_of_both(self, other))

    def _is(self, number: float) -> Any:
        """Where this is certainly `number`, or minus it."""
        return (self.error == 0) & (abs(self.value) == number)

    def _unless(self, made: "Rounded", nothing_rounds: Any, error: Any) -> "Rounded":
        if not np.any(nothing_rounds):
            return made
        return replace(made, error=np.where(nothing_rounds, error, made.error))

    def _apart(self, other: "Rounded") -> Any:
        error = self.error + other.error
        return (error == 0) | (abs(self.value - other.value) > error)


@dataclass(frozen=True)
class Uncertain:
    """A comparison, and where it is certain."""

    holds: Any
    certain: Any


class RoundedOps:
    """The operations that a rule may use, on Rounded rows."""

    @staticmethod
    def sqrt(x: Rounded) -> Rounded:
        """Of a number that is meant to be 0 or more; below it there is none to compare with."""
        root = _monotone(np.sqrt, x).less_accurate()
        return replace(root, value=np.where(x.value < 0, np.nan, root.value))

    @staticmethod
    def power(x: Rounded, exponent: Rounded) -> Rounded:
        """4 ulp (semantics 4.9)."""
        return powered(x, exponent, 4.0)

    @staticmethod
    def minimum(x: Rounded, y: Rounded) -> Rounded:
        return _selected(np.minimum, x, y)

    @staticmethod
    def maximum(x: Rounded, y: Rounded) -> Rounded:
        return _selected(np.maximum, x, y)

    @staticmethod
    def where(condition: Uncertain, x: Rounded, y: Rounded) -> Rounded:
        value = np.where(condition.holds, x.value, y.value)
        error = np.where(condition.holds, x.error, y.error)
        wide = abs(x.value - y.value) + x.error + y.error
        made = np.where(condition.certain, error, wide)
        return Rounded(value, made, *_of_both(x, y))

    @staticmethod
    def mean(x: Rounded) -> Rounded:
        total = sum_of(
            [replace(x, value=v, error=e) for v, e in zip(x.value, x.error, strict=True)]
        )
        mean = total / exact(float(len(x.value)), x.accuracy)
        return replace(mean, value=mean.value.reshape(1), error=mean.error.reshape(1))


def powered(x: Rounded, exponent: Rounded, ulps: float) -> Rounded:
    """x ** exponent, `ulps` away and rounded.

    x ** (e + d) = x ** e * exp(d * log(x)): the exponent's own error d counts too.
    """
    result = _monotone(lambda y: y**exponent.value, x)
    logs = [abs(np.log(x.value + sign * x.error)) for sign in (-1, 1)]
    drift = np.where(exponent.error == 0, 0.0, np.expm1(exponent.error * np.maximum(*logs)))
    magnitude = abs(result.value) + result.error
    more = result.steps * 2 * ulps * HALF_ULP * magnitude
    return replace(result, error=result.error + magnitude * drift + more)


def exact(x: Any, accuracy: Accuracy = IEEE) -> Rounded:
    """A number that float32 holds exactly."""
    assert np.array_equal(np.float32(x), x, equal_nan=True)
    value = np.asarray(x, np.float64)
    error = np.zeros(np.shape(x))
    if not accuracy.subnormals:
        error = np.where(abs(value) < SMALLEST, abs(value), error)
    return Rounded(value, error, accuracy)


def rounded(value: Any, error: Any, accuracy: Accuracy = IEEE, steps: float = 1.0) -> Rounded:
    """The result of one operation: the error of its operands, and its own rounding."""
    own = steps * (HALF_ULP * (abs(value) + error) + accuracy.underflow)
    error = np.where((value == 0) & (error == 0), 0.0, error + own)
    error = np.where(abs(value) + error > LARGEST, np.inf, error)
    return Rounded(np.asarray(value), error, accuracy, steps)


def sum_of(terms: Sequence[Rounded]) -> Rounded:
    """The sum of at least one term, each a product or not, in any order, fused or not: gamma(n)."""
    value = np.sum([term.value for term in terms], axis=0)
    magnitude = np.sum([abs(term.value) + term.error for term in terms], axis=0)
    error = np.sum([term.error for term in terms], axis=0)
    accuracy = reduce(Accuracy.and_of, (term.accuracy for term in terms))
    steps = max(term.steps for term in terms)
    if len(terms) > 1:
        n = len(terms) * HALF_ULP
        error = error + steps * (n / (1 - n)) * magnitude
    if not accuracy.subnormals:  # each sum may be one; with them sums do not underflow
        error = error + np.where(magnitude > 0, (len(terms) - 1) * SMALLEST, 0.0)
    error = np.where(magnitude + error > LARGEST, np.inf, error)
    return Rounded(value, error, accuracy, steps)


def bounded_update(
    optimizer: Any,
    w: Rounded,
    slots: Sequence[Rounded],
    gradients: Sequence[Rounded],
    coefficients: Mapping[str, np.float32],
) -> tuple[Rounded, tuple[Rounded, ...]]:
    """One row after the rule, once for each of `gradients` in turn: (w, slots).

    The rule's own roundings count twice, those of the gradients once.
    """
    numbers = {n: _of_a_rule(exact(value, w.accuracy)) for n, value in coefficients.items()}
    update = row_update(optimizer, RoundedOps)
    w, state = _of_a_rule(w), tuple(map(_of_a_rule, slots))
    for g in gradients:
        w, state = update(w, _of_a_rule(g), state, SimpleNamespace(**numbers))
    return w, state


def _of_a_rule(x: Rounded) -> Rounded:
    return replace(x, steps=RULES)


@np.errstate(all="ignore")
def check_within(what: str, found: Any, bounded: Rounded, **place: Any) -> None:
    """Raises Difference where `found` is farther from the value than the error.

    A number without a bound (a denominator that may be 0, an overflow) is not compared.
    """
    found = np.asarray(found)
    if found.dtype != np.float32 or found.shape != bounded.value.shape:
        raise Difference(
            f"{what} is {found.dtype} {found.shape}; it must be float32 {bounded.value.shape}",
            **place,
        )
    bound = np.asarray(bounded.error * OURS)
    distance = abs(found.astype(np.float64) - bounded.value)
    far = np.isfinite(bound) & np.isfinite(bounded.value) & ~(distance <= bound)
    if not far.any():
        return
    first = tuple(int(i) for i in np.argwhere(far)[0])
    raise Difference(
        f"{what}: at {list(first)} found {found[first]!s}, the law says "
        f"{np.float32(bounded.value[first])!s}; they are {distance[first]:.3g} apart, the computed "
        f"bound is {bound[first]:.3g} ({int(far.sum())} of {far.size} numbers are outside)",
        found=found[first],
        wanted=np.float32(bounded.value[first]),
        **place,
    )


def _monotone(function: Any, x: Rounded) -> Rounded:
    low, mid, high = (
        function(np.maximum(y, 0)) for y in (x.value - x.error, x.value, x.value + x.error)
    )
    error = np.maximum(abs(low - mid), abs(high - mid))
    return rounded(mid, np.where(x.error == 0, 0.0, error), x.accuracy, x.steps)


def _selected(function: Any, x: Rounded, y: Rounded) -> Rounded:
    """minimum or maximum, which round nothing: monotone in both operands."""
    value = function(x.value, y.value)
    low = function(x.value - x.error, y.value - y.error)
    high = function(x.value + x.error, y.value + y.error)
    error = np.maximum(value - low, high - value)
    error = np.where((x.error == 0) & (y.error == 0), 0.0, error)
    return Rounded(value, error, *_of_both(x, y))


def _of_both(x: Rounded, y: Rounded) -> tuple[Accuracy, float]:
    return x.accuracy.and_of(y.accuracy), max(x.steps, y.steps)
