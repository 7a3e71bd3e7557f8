"""The operations of a rule inside an interpreted kernel, on rows as records have them."""

import math
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import pallas as pl

from embsim_tpu.kernels.ieee import Number, plain
from embsim_tpu.kernels.kernel_ops import IeeeOps, KernelOps
from embsim_tpu.kernels.records import LANES, Records
from embsim_tpu.ops import Coefficient
from tests.embsim_tpu.conftest import F

N = 8


def inside(function, *arrays):
    """function(*arrays) in a kernel: float32 arrays of one shape or several."""

    def kernel(*references):
        *given, out = references
        out[...] = jnp.broadcast_to(plain(function(*(each[...] for each in given))), out.shape)

    shape = jax.ShapeDtypeStruct(arrays[0].shape, jnp.float32)
    return pl.pallas_call(kernel, out_shape=shape, interpret=True)(*arrays)


@cache
def mean_of(dim, exact):
    ops = (IeeeOps if exact else KernelOps)(records=Records(dim))
    return jax.jit(lambda x: inside(lambda x: ops.mean(x), x))


@pytest.mark.parametrize("exact", [False, True], ids=["as the hardware", "as IEEE 754"])
@pytest.mark.parametrize("dim", [1, 3, 32, 64, 100, 128, 300])
@settings(max_examples=5)
@given(st.integers(0, 999))
def test_the_mean_of_a_row_is_in_all_its_lanes(dim, exact, seed):
    """Whatever is in its padding and in rows beside it; sums of small integers are exact."""
    records, draw = Records(dim), np.random.default_rng(seed)
    shape = (N, records.pack, records.width)
    rows = draw.integers(-50, 50, shape).astype(F)
    rows[:, :, dim:] = np.nan
    found = np.asarray(mean_of(dim, exact)(rows.reshape(N, -1))).reshape(shape)
    wanted = rows[:, :, :dim].sum(axis=2, keepdims=True) / F(dim)
    assert (found == wanted).all() if math.log2(dim).is_integer() else close(found, wanted)


def close(found, wanted):
    """XLA on CPU may divide by a constant by its reciprocal."""
    return (abs(found - wanted) <= np.spacing(abs(wanted))).all()


@pytest.mark.parametrize("dim", [3, 32])
def test_a_row_s_infinity_is_not_its_neighbour_s(dim):
    records = Records(dim)
    rows = np.ones((N, records.pack, records.width), F)
    rows[2, 1, 0], rows[5, 0, dim - 1] = np.inf, np.nan
    found = np.asarray(mean_of(dim, False)(rows.reshape(N, -1))).reshape(rows.shape)
    wanted = np.ones_like(found)
    wanted[2, 1], wanted[5, 0] = np.inf, np.nan
    np.testing.assert_array_equal(found, wanted)


def arrays(count):
    draw = np.random.default_rng(0)
    found = [draw.uniform(0.5, 4, (N, LANES)).astype(F) for _ in range(count)]
    found[0][0, :4] = 1, 4, 2.25, 0.25
    return found


# Of x and y arrays and of c, a coefficient; results that do not depend on how a machine divides.
OPERATIONS = {
    "sqrt": (lambda o, x, y, c: o.sqrt(x), lambda x, y, c: np.sqrt(x)),
    "minimum": (lambda o, x, y, c: o.minimum(x, y), lambda x, y, c: np.minimum(x, y)),
    "maximum of c": (lambda o, x, y, c: o.maximum(x, c), lambda x, y, c: np.maximum(x, c)),
    "where": (lambda o, x, y, c: o.where(x > y, x, y), lambda x, y, c: np.where(x > y, x, y)),
    "where of c": (lambda o, x, y, c: o.where(x > c, y, c), lambda x, y, c: np.where(x > c, y, c)),
    "power": (lambda o, x, y, c: o.power(x, c), lambda x, y, c: x**c),
    "quotient": (lambda o, x, y, c: x / y, lambda x, y, c: x / y),
    "divided by c": (lambda o, x, y, c: x / c, lambda x, y, c: x / c),
    "c divided": (lambda o, x, y, c: c / x, lambda x, y, c: c / x),
    "divide": (lambda o, x, y, c: o.divide(x, y), lambda x, y, c: x / y),
    "all": (
        lambda o, x, y, c: (c - x) * (-y) + c * x - x / (c * c) + (c + y),
        lambda x, y, c: (c - x) * (-y) + c * x - x / (c * c) + (c + y),
    ),
}
C = F(0.5)


@pytest.mark.parametrize("exact", [False, True], ids=["as the hardware", "as IEEE 754"])
def test_every_operation_on_rows_numbers_and_coefficients(exact):
    """In one kernel, each into an array of its own."""
    ops = (IeeeOps if exact else KernelOps)()
    x, y = arrays(2)

    def kernel(x, y, c, *outs):
        named = ops.coefficients(("half",), c)
        assert isinstance(named.half, Coefficient)
        for (function, _), out in zip(OPERATIONS.values(), outs, strict=True):
            given = [Number(each[...]) if exact else each[...] for each in (x, y)]
            made = function(ops, *given, named.half)
            assert isinstance(made, Number) == exact
            out[...] = plain(made)

    shapes = [jax.ShapeDtypeStruct(x.shape, jnp.float32)] * len(OPERATIONS)
    found = pl.pallas_call(kernel, out_shape=shapes, interpret=True)(x, y, np.array([C]))
    for (name, (_, wanted)), out in zip(OPERATIONS.items(), found, strict=True):
        out, wanted = np.asarray(out), wanted(x, y, C)
        bound = 2 * np.spacing(abs(wanted)) if name != "all" else F(2e-6)
        assert (abs(out - wanted) <= bound).all(), name
        if name in ("minimum", "maximum of c", "where", "where of c", "divided by c"):
            assert out.tobytes() == wanted.astype(F).tobytes(), name


@pytest.mark.parametrize("ops", [KernelOps(), IeeeOps()], ids=["KernelOps", "IeeeOps"])
def test_a_rule_s_row_is_given_and_gives_arrays(ops):
    """Numbers, whose divisions are exact, are the rule's business alone."""
    seen = []

    def row(w, g, slots):
        seen.extend([w, g, *slots.values()])
        return w - g / slots["a"], {"a": slots["a"] + g, "b": slots["b"]}

    w, slots = ops.applied(row, jnp.float32(3), jnp.float32(4), {"a": F(2), "b": F(7)})
    assert w == 1 and slots == {"a": 6, "b": 7}
    assert [isinstance(each, Number) for each in seen] == [isinstance(ops, IeeeOps)] * 4
    assert not any(isinstance(each, Number) for each in (w, *slots.values()))


def test_kernels_have_no_barriers():
    """For which Mosaic has no form."""
    ops = KernelOps()
    c = Coefficient(ops, jnp.float32(2))
    function = lambda x: ops.divide(ops.sqrt(x), ops.mean(x)) / c  # noqa: E731
    assert "barrier" not in str(jax.make_jaxpr(function)(jnp.ones((8, LANES))))
    assert SimpleNamespace(ops=ops).ops.exact is False
