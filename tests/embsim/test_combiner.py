"""Gains against the definition's, bag by bag: bits, zero denominators, long bags."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embsim import definition
from embsim.combiner import MOST_ONES, gains
from tests.embsim.programs import F, assert_same

COMBINERS = ["sum", "mean", "sqrtn"]
NUMBERS = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-30, 1e-45, 3e38, 2.0**24])


def splits_of(bags):
    return np.cumsum([0, *map(len, bags)])


def of_the_definition(bags, combiner):
    with np.errstate(all="ignore"):
        flat = [gain for bag in bags for gain in definition.gains([F(w) for w in bag], combiner)]
    return np.array(flat, F)


@given(st.data())
def test_gains_of_weighted_bags_are_the_definition_s(data):
    combiner = data.draw(st.sampled_from(COMBINERS), label="combiner")
    bags = data.draw(st.lists(st.lists(NUMBERS, max_size=6), max_size=6), label="bags")
    weights = np.array([w for bag in bags for w in bag], F)
    before = weights.copy()
    got = gains(weights, splits_of(bags), combiner)
    assert_same(f"{combiner} of {bags}", got, of_the_definition(bags, combiner))
    assert weights.tobytes() == before.tobytes()


@given(st.data())
def test_no_weights_are_weights_of_one(data):
    combiner = data.draw(st.sampled_from(COMBINERS), label="combiner")
    lengths = data.draw(st.lists(st.integers(0, 40), max_size=5), label="lengths")
    bags = [[1.0] * length for length in lengths]
    got = gains(None, splits_of(bags), combiner)
    assert_same(f"{combiner} of {lengths}", got, of_the_definition(bags, combiner))
    assert_same("ones", got, gains(np.ones(sum(lengths), F), splits_of(bags), combiner))


@pytest.mark.parametrize(
    "combiner, bag, expected",
    [
        ("mean", [1.0, -1.0], [0, 0]),
        ("mean", [0.0, 0.0], [0, 0]),
        ("mean", [-0.0], [0]),
        ("sqrtn", [0.0], [0]),
        ("sqrtn", [1e-30, 1e-30], [0, 0]),  # the squares are 0 in float32
        ("sqrtn", [1e30, 1.0], [0, 0]),  # the sum of squares is infinite
        ("mean", [2.0, -1.0], [2, -1]),
        ("sqrtn", [-3.0, 4.0], [F(-3) / F(5), F(4) / F(5)]),
        ("sum", [-3.0, 0.0, 2.5], [-3, 0, 2.5]),
        ("mean", [2.0**24, 1.0, 1.0], [1, 2.0**-24, 2.0**-24]),  # 2^24 + 1 is 2^24
        ("mean", [1.0, 1.0, 2.0**24], [F(1) / F(2**24 + 2)] * 2 + [F(2**24) / F(2**24 + 2)]),
    ],
)
def test_by_hand(combiner, bag, expected):
    got = gains(np.array(bag, F), np.array([0, len(bag)]), combiner)
    assert got.tolist() == expected


@pytest.mark.parametrize("weight", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("combiner", ["mean", "sqrtn"])
def test_a_weight_that_is_not_finite_stays_in_its_bag(combiner, weight):
    got = gains(np.array([1, weight, 4], F), np.array([0, 2, 3]), combiner)
    assert np.isnan(got[1])
    assert got[2] == 1


@pytest.mark.parametrize("combiner", COMBINERS)
def test_an_empty_bag_and_an_empty_batch_have_no_gains(combiner):
    for splits in ([0, 0, 0], [0]):
        for weights in (None, np.zeros(0, F)):
            got = gains(weights, np.array(splits), combiner)
            assert got.shape == (0,)
            assert got.dtype == np.float32


def test_without_a_combiner_every_gain_is_one():
    assert_same("ones", gains(None, np.array([0, 1, 1, 3]), None), np.ones(3, F))


def test_a_sum_of_ones_in_float32_ends_at_2_to_the_24():
    assert F(MOST_ONES - 1) + F(1) == MOST_ONES
    assert F(MOST_ONES) + F(1) == MOST_ONES
    length = MOST_ONES + 3
    for combiner, denominator in (("mean", F(2**24)), ("sqrtn", F(2**12))):
        got = gains(None, np.array([0, length]), combiner)
        assert got.shape == (length,)
        assert got[0] == got[-1] == F(1) / denominator
