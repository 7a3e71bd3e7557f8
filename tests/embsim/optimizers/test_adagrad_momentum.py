"""AdagradMomentum against its formulas in float64, and optax's scale_by_rss followed by trace."""

import numpy as np
import optax
import pytest

from embsim.optimizers import AdagradMomentum, one_row
from tests.embsim.optimizers.grid import grid
from tests.embsim.optimizers.optax_oracle import check_trajectory
from tests.embsim.optimizers.rounding import check_one_step

F = np.float32


def model_of(rate, momentum, nesterov, exponent, beta2, epsilon):
    def model(w, g, a, m):
        a = a + g**2 if beta2 == 1 else beta2 * a + (1 - beta2) * g**2
        h = g * (a + epsilon) ** (-1 / exponent)
        m = momentum * m + h
        return w - rate * (momentum * m + h if nesterov else m), a, m

    return model


def test_by_hand():
    optimizer = AdagradMomentum(1.0, momentum=0.5, epsilon=2.0**-40)
    row = {"w": [1.0], "g": [2.0], "accumulators": [60.0], "momenta": [1.0]}
    assert one_row(optimizer, **row) == ([0.25], [64.0], [0.75])
    nesterov = AdagradMomentum(1.0, momentum=0.5, use_nesterov=True, epsilon=2.0**-40)
    assert one_row(nesterov, **row) == ([1 - (0.375 + 0.25)], [64.0], [0.75])
    decaying = AdagradMomentum(1.0, momentum=0.5, beta2=0.75, epsilon=18.0)
    assert one_row(decaying, **row) == ([1 - (0.5 + 2 / 8)], [46.0], [0.75])
    cubic = AdagradMomentum(1.0, exponent=3, epsilon=4.0)  # (60 + 4) ** (-1 / 3): e is not exact
    assert one_row(cubic, w=[1.0], g=[1.0], accumulators=[59.0])[0] == [0.75]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("exponent", [2, 3, 1, 0.5])
@pytest.mark.parametrize("beta2", [1, 0.9, 0.0])
def test_formula(exponent, beta2, nesterov):
    for rate, momentum, epsilon in ((0.1, 0.9, 0.1), (1.0, 0.0, 1e-10)):
        if beta2 == 0.0 and exponent < 1 and epsilon < 0.1:
            continue  # g * epsilon ** -2 leaves float32
        optimizer = AdagradMomentum(rate, momentum, nesterov, exponent, beta2, epsilon)
        model = model_of(rate, momentum, nesterov, exponent, beta2, epsilon)
        check_one_step(optimizer, model, *grid([1e-5, 0.1, 5.0, 1e4], [-1.5, 0.0, 1e-3]))


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum, epsilon", [(0.9, 1e-10), (0.0, 1e-3), (0.5, 2.0)])
def test_equals_optax(momentum, epsilon, nesterov):
    rss = optax.scale_by_rss(initial_accumulator_value=0.0, eps=epsilon)
    trace = optax.trace(decay=momentum, nesterov=nesterov)
    theirs = optax.chain(rss, trace, optax.scale(-0.3))
    mine = AdagradMomentum(0.3, momentum=momentum, use_nesterov=nesterov, epsilon=epsilon)
    check_trajectory(mine, theirs)


def test_epsilon_stands_inside_the_root_and_decides_at_tiny_gradients():
    optimizer = AdagradMomentum(1.0, epsilon=1e-10)
    row = np.zeros(1), np.full(1, 1e-6), np.zeros(1), np.zeros(1)  # 1e-6 / sqrt(1e-12 + 1e-10)
    check_one_step(optimizer, model_of(1.0, 0.0, False, 2, 1, 1e-10), *row)

    def outside(w, g, a, m):
        a = a + g**2
        h = g / (np.sqrt(a) + 1e-10)
        return w - h, a, h

    with pytest.raises(AssertionError, match="w: 1 of 1 outside their bound"):
        check_one_step(optimizer, outside, *row)


def test_a_zero_gradient_decays_the_slots_and_moves_the_row():
    optimizer = AdagradMomentum(1.0, momentum=0.5, beta2=0.5)
    row = {"w": [1.0], "g": [0.0], "accumulators": [4.0], "momenta": [1.0]}
    assert one_row(optimizer, **row) == ([0.5], [2.0], [0.5])


def test_c2_is_computed_in_float64():
    assert AdagradMomentum(beta2=0.9).coefficients(0.1)["c2"] == 1 - 0.9
    assert F(1 - 0.9) != F(1) - F(0.9)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"epsilon": 0.0}, "AdagradMomentum: epsilon is 0.0; it must be a number > 0"),
        ({"epsilon": -1e-3}, "AdagradMomentum: epsilon is -0.001; it must be a number > 0"),
        ({"exponent": 0}, "AdagradMomentum: exponent is 0; it must be a number > 0"),
        ({"exponent": -2}, "AdagradMomentum: exponent is -2; it must be a number > 0"),
        ({"beta2": 1.5}, "AdagradMomentum: beta2 is 1.5; it must be a number from 0 to 1"),
        ({"momentum": -0.1}, "AdagradMomentum: momentum is -0.1; it must be a number >= 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdagradMomentum(**arguments)
