"""The operations of a rule against NumPy's, as compiled programs do them on this CPU."""

import operator
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embsim.optimizers import NumpyOps
from embsim_tpu.ops import Coefficient, Ops
from tests.embsim.programs import assert_same
from tests.embsim_tpu.conftest import F, numbers

SHAPE = (64, 3)
NORMAL = [*np.exp(np.linspace(-60, 60, 40)).astype(F).tolist(), 0.0, 1.0, np.inf, np.nan]
ANY = [*NORMAL, *(-x for x in NORMAL)]
EXACT = Ops(exact=True)


def rows(regime):
    return numbers(SHAPE, tuple(regime))


@jax.jit
def root_and_quotients(x, y, c):
    """As rules use them: XLA sees the whole, and may rewrite it."""
    numbers = EXACT.coefficients(("lr", "eps"), c)
    return (
        EXACT.sqrt(x),
        (numbers.lr * y) / EXACT.sqrt(x),
        y / (EXACT.sqrt(x) + numbers.eps),
        x / numbers.lr,
        numbers.lr / x,
        EXACT.divide(y, numbers.eps.value),
    )


@settings(max_examples=50)
@given(rows(NORMAL), rows(ANY), st.sampled_from([0.1, 3.0, 1e-3]), st.sampled_from([1e-8, 0.7]))
def test_roots_and_quotients_are_ieee(x, y, lr, eps):
    found = root_and_quotients(x, y, np.array([lr, eps], F))
    lr, eps = F(lr), F(eps)
    with np.errstate(all="ignore"):
        root = np.sqrt(x)
        wanted = root, (lr * y) / root, y / (root + eps), x / lr, lr / x, y / eps
    names = ("sqrt", "lr * y / sqrt", "y / (sqrt + eps)", "x / lr", "lr / x", "divide")
    for name, a, b in zip(names, found, wanted, strict=True):
        small = (abs(b) < np.finfo(F).tiny) & (b != 0)  # without subnormals it is zero
        a = np.asarray(a)
        assert not a[small].any(), name
        assert_same(name, np.where(small, b, a), b)


def test_without_the_barriers_this_cpu_rounds_otherwise():
    """So the test above can fail."""
    draw = np.random.default_rng(0)
    x, y = draw.uniform(1, 2, (2, 1000)).astype(F)
    plain = jax.jit(lambda x, y: y / Ops(exact=False).sqrt(x))(x, y)
    kept = jax.jit(lambda x, y: y / EXACT.sqrt(x))(x, y)
    assert_same("kept", np.asarray(kept), y / np.sqrt(x))
    assert (np.asarray(plain) != y / np.sqrt(x)).any()


@pytest.mark.parametrize("name", ["minimum", "maximum"])
@settings(max_examples=30)
@given(x=rows(ANY), y=rows(ANY))
def test_limits_propagate_not_a_number(name, x, y):
    wanted = getattr(NumpyOps, name)(x, y)
    assert_same(name, np.asarray(getattr(EXACT, name)(jnp.array(x), jnp.array(y))), wanted)
    c = Coefficient(EXACT, jnp.float32(0.5))
    limit = np.full(SHAPE, 0.5, F)
    wanted = getattr(NumpyOps, name)(x, limit)
    assert_same(name, np.asarray(getattr(EXACT, name)(jnp.array(x), c)), wanted)
    assert_same(name, np.asarray(getattr(EXACT, name)(c, jnp.array(x))), wanted)


@settings(max_examples=30)
@given(rows(NORMAL), st.sampled_from([-0.5, -1 / 3, 0.7, 2.0, 0.0]))
def test_power_is_at_most_4_ulp_away(x, exponent):
    found = np.asarray(jax.jit(EXACT.power)(x, F(exponent)))
    with np.errstate(all="ignore"):
        wanted = NumpyOps.power(x, F(exponent))
        exact = np.float64(x) ** np.float64(F(exponent))
    normal = np.isfinite(wanted) & (abs(wanted) >= np.finfo(F).tiny)
    distance = abs(found - exact)[normal]
    assert (distance <= 4.5 * np.spacing(abs(wanted[normal]))).all()
    assert np.array_equal(np.isnan(found), np.isnan(wanted))
    assert np.array_equal(np.isinf(found), np.isinf(wanted))


@settings(max_examples=30)
@given(numbers((8, 5), (0.0, 1.0, -2.0, 3.0, np.nan, np.inf)))
def test_the_mean_of_a_row_is_one_number(x):
    found = np.asarray(jax.jit(EXACT.mean)(x))
    assert found.shape == (8, 1)
    wanted = np.array([NumpyOps.mean(row) for row in x])
    assert_same("mean", found, wanted)


def test_where_chooses_number_by_number():
    x = jnp.array([[1.0, -1.0]])
    c = Coefficient(EXACT, jnp.float32(0.5))
    assert EXACT.where(x > c, x, c).tolist() == [[1, 0.5]]
    assert EXACT.where(c >= x, c, -c).tolist() == [[-0.5, 0.5]]


COMPARISONS = (operator.lt, operator.le, operator.gt, operator.ge)
ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.truediv)


@pytest.mark.parametrize("operation", [*ARITHMETIC, *COMPARISONS], ids=lambda each: each.__name__)
def test_a_coefficient_is_a_number_on_either_side(operation):
    x = F([[3.0, 0.5, -8.0]])
    c = Coefficient(EXACT, jnp.float32(0.5))
    assert_equal(operation(c, jnp.array(x)), operation(F(0.5), x))
    assert_equal(operation(jnp.array(x), c), operation(x, F(0.5)))
    other = Coefficient(EXACT, jnp.float32(4.0))
    found = operation(c, other)
    value = found.value if isinstance(found, Coefficient) else found
    if operation in ARITHMETIC:
        assert isinstance(found, Coefficient)
        assert value.dtype == np.float32
    assert np.asarray(value.value if isinstance(value, Coefficient) else value) == operation(
        F(0.5), F(4.0)
    )


def assert_equal(found, wanted):
    assert np.asarray(found).tolist() == np.asarray(wanted).tolist()


def test_coefficients_are_float32_and_named():
    made = EXACT.coefficients(("a", "b"), jnp.array([0.1, 2.0]))
    assert isinstance(made, SimpleNamespace)
    assert (float(made.a.value), float((-made.b).value)) == (float(F(0.1)), -2.0)
