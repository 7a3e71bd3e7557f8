"""Bounds hold for every order and for fused multiply-add, and a few ulps more are outside."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embsim.conformance import Difference
from embsim.conformance.checks._real_steps import GRADIENTS, WEIGHTS
from embsim.conformance.tolerance import (
    HALF_ULP,
    IEEE,
    SMALLEST,
    Accuracy,
    Rounded,
    RoundedOps,
    check_within,
    exact,
    rounded,
    sum_of,
)
from embsim.optimizers import NumpyOps as Numpy

F = np.float32
NUMBERS = st.sampled_from([F(x) for x in (*GRADIENTS, *WEIGHTS, 2.0**24, -7.5, 1e4)])
SEEDS = st.integers(0, 2**32 - 1)


# --- sums


def in_a_random_tree(products, random):
    """float32: terms are added two by two as they come; a term is a product, fused or not."""
    terms = list(products)
    while len(terms) > 1:
        random.shuffle(terms)
        x, y = terms.pop(), terms.pop()
        terms.append(added(x, y, fused=random.random() < 0.5))
    return alone(terms[0])


def alone(x):
    return F(x[0] * x[1]) if isinstance(x, tuple) else x


def added(x, y, fused):
    """x + y; one product at most keeps all its bits (in float64 it has them all)."""
    if fused and isinstance(x, tuple):
        return F(np.float64(x[0]) * np.float64(x[1]) + np.float64(alone(y)))
    return F(alone(x) + alone(y))


@settings(max_examples=300)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=9), SEEDS)
def test_a_sum_of_products_in_any_order_fused_or_not_is_within_gamma(products, seed):
    bounded = sum_of([exact(a) * exact(b) for a, b in products])
    random = np.random.default_rng(seed)
    with np.errstate(under="ignore"):
        for _ in range(5):
            check_within("sum", np.asarray(in_a_random_tree(products, random)), bounded)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=9))
def test_the_bound_of_a_sum_is_gamma(products):
    """Of n terms at most gamma(n + 1) * sum |terms|, the rounding of the products included."""
    n = (len(products) + 1) * HALF_ULP
    magnitude = sum(abs(float(a) * float(b)) for a, b in products)
    most = n / (1 - n) * magnitude * (1 + 2.0**-20) + len(products) * 2.0**-149
    assert sum_of([exact(a) * exact(b) for a, b in products]).error <= most


def test_one_term_is_no_sum():
    x = exact(F(0.1))
    assert sum_of([x]).error == 0


def test_a_few_ulps_beyond_a_sum_are_found():
    bounded = sum_of([exact(F(0.1)), exact(F(0.2)), exact(F(0.3))])
    found = F(0.1) + F(0.2) + F(0.3)
    check_within("sum", np.asarray(found), bounded)
    with pytest.raises(Difference, match="the computed bound is"):
        check_within("sum", np.asarray(found * F(1 + 5 * 2.0**-23)), bounded)


# --- single operations


@given(NUMBERS, st.sampled_from([0.0, 0.25]))
def test_what_rounds_nothing_adds_nothing(x, error):
    one, zero = exact(1.0), exact(0.0)
    number = Rounded(np.float64(x), np.float64(error))
    for same in (number + zero, zero + number, number - zero, number * one, -(number * -one)):
        assert (same.value, same.error) == (number.value, number.error)
    nothing = number * zero
    assert nothing.value == 0
    assert nothing.error == 0 or error
    assert RoundedOps.sqrt(zero).error == 0


def test_no_bound_where_float32_may_overflow():
    big = exact(F(1e30))
    assert (big * big).error == np.inf
    assert (big * exact(F(1e8))).error < np.inf
    assert sum_of([exact(F(3e38)), exact(F(3e38)), exact(F(-3e38))]).error == np.inf
    with np.errstate(all="ignore"):
        check_within("product", np.asarray(F(1e30) * F(1e30)), big * big)


def test_minimum_and_maximum_round_nothing():
    x, y = Rounded(np.float64(1.0), np.float64(0.1)), exact(F(2.0))
    assert RoundedOps.minimum(x, y).error == pytest.approx(0.1)
    assert RoundedOps.maximum(x, y) == y
    near = RoundedOps.minimum(Rounded(np.float64(1.95), np.float64(0.1)), y)
    assert near.error == pytest.approx(0.1)
    unbounded = RoundedOps.minimum(Rounded(np.float64(3.0), np.float64(np.inf)), y)
    assert unbounded.error == np.inf


def test_a_comparison_that_may_go_either_way_widens_what_it_selects():
    x, y = Rounded(np.float64(1.0), np.float64(0.1)), exact(F(1.05078125))
    chosen = RoundedOps.where(x > y, exact(F(5.0)), exact(F(7.0)))
    assert (chosen.value, chosen.error) == (7.0, 2.0)
    chosen = RoundedOps.where(exact(F(1.0)) > y, exact(F(5.0)), exact(F(7.0)))
    assert (chosen.value, chosen.error) == (7.0, 0.0)


@given(st.sampled_from([0.5, 1.0, 2.0]), st.floats(2.0**-60, 2.0**60, width=32))
def test_less_accurate_roots_and_quotients_have_their_ulps(ulps, x):
    ulp = float(np.spacing(F(np.sqrt(x))))
    error = RoundedOps.sqrt(exact(F(x), Accuracy(ulps))).error
    assert ulps * ulp <= error * 1.001 + 2.0**-100
    assert error <= 2.001 * ulps * ulp
    third = exact(F(x), Accuracy(ulps)) / exact(F(3.0))
    assert third.error == pytest.approx(2 * ulps * HALF_ULP * x / 3, rel=1e-5)


@np.errstate(all="ignore")
def test_there_is_no_root_of_a_negative_number_to_compare_with():
    root = RoundedOps.sqrt(exact(F([-1.0, 4.0])))
    check_within("root", F([np.nan, 2.0]), root)
    with pytest.raises(Difference):
        check_within("root", F([np.nan, np.nan]), root)


@given(st.floats(2.0**-40, 2.0**40, width=32), st.sampled_from([-1 / 3, 0.3, 2.0, -0.5]))
def test_a_power_may_be_four_ulp_away(x, exponent):
    e = F(exponent)
    bounded = RoundedOps.power(exact(F(x)), exact(e))
    value = Numpy.power(np.array([x], F), e)[0]
    check_within("power", np.asarray(value), bounded)
    for ulps in (-3, 3):
        check_within("power", np.asarray(F(value * (1 + ulps * 2.0**-23))), bounded)
    with pytest.raises(Difference):
        check_within("power", np.asarray(F(value * (1 + 12 * 2.0**-23))), bounded)


# --- machines without subnormals

WITHOUT = Accuracy(subnormals=False)
SMALL = [F(x) for x in (0.0, 1.0, -3.0, 2.0**-63, 3e-20, 7e-38, -1.25 * 2.0**-125, 2.0**-126)]
SMALL += [F(x) for x in (2.0**-125, 1e-39, -(2.0**-130), 2.0**-149)]
OPERATIONS = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "divide": lambda x, y: x / y,
    "minimum": lambda x, y: (
        RoundedOps.minimum(x, y) if isinstance(x, Rounded) else np.minimum(x, y)
    ),
    "sqrt": lambda x, y: RoundedOps.sqrt(x * x) if isinstance(x, Rounded) else np.sqrt(x * x),
}


def may_be_zero(x, random):
    """What a machine without subnormals may make of a number."""
    return F(0) if abs(x) < SMALLEST and random.random() < 0.5 else x


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(SMALL), min_size=2, max_size=5),
    st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=4, max_size=4),
    SEEDS,
)
@np.errstate(all="ignore")
def test_bounds_hold_for_any_choice_of_zeros(numbers, operations, seed):
    random = np.random.default_rng(seed)
    found, bounded = numbers[0], exact(numbers[0], WITHOUT)
    for number, name in zip(numbers[1:], operations, strict=False):
        operands = may_be_zero(found, random), may_be_zero(number, random)
        found = may_be_zero(OPERATIONS[name](*operands), random)
        bounded = OPERATIONS[name](bounded, exact(number, WITHOUT))
    check_within("number", np.asarray(found), bounded)


@settings(max_examples=300)
@given(st.lists(st.sampled_from(SMALL), min_size=1, max_size=5), SEEDS)
def test_so_do_those_of_sums(numbers, seed):
    random = np.random.default_rng(seed)
    found = F(0)
    for number in numbers:
        found = may_be_zero(F(found + may_be_zero(number, random)), random)
    check_within("sum", np.asarray(found), sum_of([exact(x, WITHOUT) for x in numbers]))


def test_normal_numbers_are_as_certain_as_on_any_machine():
    for x, y in ((1.0, 0.1), (-3.0, 2.0**-60), (1e30, 7.0)):
        for name in ("add", "multiply", "divide"):
            with_them, without = (
                OPERATIONS[name](exact(F(x), each), exact(F(y), each)).error
                for each in (IEEE, WITHOUT)
            )
            assert with_them == pytest.approx(without, rel=1e-12)
        terms = [exact(F(x), WITHOUT), exact(F(y), WITHOUT)]
        assert sum_of(terms).error <= 2.001 * HALF_ULP * (abs(x) + abs(y))
    zero = exact(0.0, WITHOUT)
    assert (
        exact(F(SMALLEST), WITHOUT).error == sum_of([zero, zero]).error == (zero * zero).error == 0
    )


@np.errstate(all="ignore")
def test_what_may_be_zero_is_no_denominator():
    one = exact(1.0)
    assert not np.isfinite((one / exact(F(2.0**-127), WITHOUT)).error)
    assert (one / exact(F(2.0**-120), WITHOUT)).error < 1e30


def test_the_worse_of_two_accuracies_counts():
    less = Accuracy(2.0, subnormals=False)
    assert Accuracy(2.0).and_of(WITHOUT) == WITHOUT.and_of(Accuracy(2.0)) == less
    for made in (exact(1.0) * exact(1.0, less), sum_of([exact(1.0, less), exact(1.0)])):
        assert made.accuracy == less


# --- messages


def test_what_is_outside_is_named_with_both_values_and_the_bound():
    bounded = rounded(np.array([1.0, 2.0]), np.zeros(2))
    with pytest.raises(Difference, match=r"w: at \[1\] found 3.0, the law says 2.0; they are 1"):
        check_within("w", F([1.0, 3.0]), bounded, table="t0", row=4)


@pytest.mark.parametrize("found", [np.zeros(2), np.zeros(3, F)])
def test_another_dtype_or_shape_is_named(found):
    with pytest.raises(Difference, match="it must be float32"):
        check_within("w", found, exact(F([0.0, 0.0])))


def test_nan_is_outside_every_bound():
    with pytest.raises(Difference, match="found nan"):
        check_within("w", F([np.nan]), exact(F([1.0])))
