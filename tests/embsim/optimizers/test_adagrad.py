"""Adagrad: a + g^2, then w - lr * g / sqrt(a). Outside oracle: optax.scale_by_rss, epsilon 0."""

import numpy as np
import optax
import pytest

from embsim.optimizers import Adagrad, one_row
from tests.embsim.optimizers.grid import grid
from tests.embsim.optimizers.optax_oracle import check_trajectory
from tests.embsim.optimizers.rounding import check_one_step


def test_by_hand():
    adagrad = Adagrad(1.0)
    assert one_row(adagrad, w=[1.0], g=[4.0], accumulators=[48.0]) == ([0.5], [64.0])
    assert one_row(adagrad, w=[1.0, 1.0], g=[3.0, 0.0], accumulators=[7.0, 4.0]) == (
        [0.25, 1.0],
        [16.0, 4.0],
    )


@pytest.mark.parametrize("rate", [0.0, 1e-3, 1.7])
def test_formula(rate):
    def model(w, g, a):
        a = a + g**2
        return w - rate * g / np.sqrt(a), a

    check_one_step(Adagrad(rate), model, *grid([1e-12, 0.1, 5.0, 1e4]))


@pytest.mark.parametrize("initial", [0.1, 1e-6, 7.0])
def test_equals_optax(initial):
    initial32 = float(np.float32(initial))
    rss = optax.scale_by_rss(initial_accumulator_value=initial32, eps=0.0)
    check_trajectory(Adagrad(0.3, initial), optax.chain(rss, optax.scale(-0.3)))


def test_there_is_no_epsilon():
    def with_epsilon(w, g, a):
        a = a + g**2
        return w - g / np.sqrt(a + 1e-14), a

    row = np.zeros(1), np.full(1, 1e-6), np.full(1, 1e-12)
    with pytest.raises(AssertionError, match="w: 1 of 1 outside their bound"):
        check_one_step(Adagrad(1.0), with_epsilon, *row)


def test_a_zero_gradient_changes_nothing():
    assert one_row(Adagrad(0.3), w=[0.5], g=[0.0]) == ([0.5], [np.float32(0.1)])


@pytest.mark.parametrize("initial", [0.0, -0.1])
def test_the_initial_accumulator_must_be_positive(initial):
    message = f"Adagrad: initial_accumulator_value is {initial}; it must be a number > 0"
    with pytest.raises(ValueError, match=message):
        Adagrad(initial_accumulator_value=initial)
