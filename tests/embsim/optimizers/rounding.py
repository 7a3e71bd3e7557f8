"""One update of a row by an optimizer's own rule, and the bound of its float32 result.

The arithmetic is that of embsim.conformance.tolerance; here every rounding counts once, and a power
is rounded once. A test takes the bound from here and the value from a formula written elsewhere.
"""

from types import SimpleNamespace

import numpy as np

from embsim.conformance import tolerance
from embsim.conformance.tolerance import HALF_ULP as HALF_ULP
from embsim.conformance.tolerance import Rounded as Rounded
from embsim.conformance.tolerance import exact as exact
from embsim.conformance.tolerance import powered
from embsim.optimizers import NumpyOps, coefficients, learning_rate_at, row_update
from embsim.optimizers.base import clip_values


def coefficient(x):
    """A number computed in float64 and rounded to float32 once."""
    return Rounded(np.float64(x), abs(np.float64(np.float32(x)) - x))


class RoundedOps(tolerance.RoundedOps):
    """The operations that a rule may use, as embsim does them."""

    @staticmethod
    def power(x, exponent):
        return powered(x, exponent, ulps=0.0)


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
