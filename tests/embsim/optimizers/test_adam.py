"""Adam without bias correction: its formulas in float64; optax, if the rate corrects the bias."""

import math

import numpy as np
import optax
import pytest

from embsim.optimizers import Adam, one_row, updates_every_row
from tests.embsim.optimizers.grid import grid
from tests.embsim.optimizers.optax_oracle import check_trajectory
from tests.embsim.optimizers.rounding import check_one_step

F = np.float32
FIRST = np.array([[0.0, 0.0], [1.0, -1.0], [0.0, 0.0], [0.0, 0.0]])  # w, g, m, v of a fresh row


def model_of(rate, b1, b2, epsilon, inside):
    def model(w, g, m, v):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        root = np.sqrt(v + epsilon**2) if inside else np.sqrt(v) + epsilon
        return w - rate * m / root, m, v

    return model


def test_by_hand():
    adam = Adam(1.0, beta_1=0.5, beta_2=0.75, epsilon=2.0**-30)
    row = {"w": [1.0], "g": [4.0], "momenta": [4.0], "velocities": [16.0]}
    assert one_row(adam, **row) == ([0.0], [4.0], [16.0])
    far = Adam(1.0, beta_1=0.5, beta_2=0.75, epsilon=12.0, sum_inside_sqrt=False)
    assert one_row(far, **row) == ([0.75], [4.0], [16.0])
    near = Adam(1.0, beta_1=0.5, beta_2=0.75, epsilon=4.0)
    still = {"w": [1.0], "g": [0.0], "momenta": [16.0], "velocities": [64.0]}
    assert one_row(near, **still) == ([0.0], [8.0], [48.0])  # 8 / sqrt(48 + 16)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("b1, b2", [(0.9, 0.999), (0.0, 0.5), (0.5, 0.0)])
@pytest.mark.parametrize("epsilon", [1e-7, 1e-3, 1.0])
def test_formula(epsilon, b1, b2, inside):
    optimizer = Adam(0.1, b1, b2, epsilon, sum_inside_sqrt=inside)
    model = model_of(0.1, b1, b2, epsilon, inside)
    check_one_step(optimizer, model, *grid([-1.5, 0.0, 1e-3], [1e-12, 0.0, 0.1, 1e4]))


def test_the_textbook_s_adam_is_a_schedule_of_the_rate():
    eta, b1, b2 = 0.01, 0.9, 0.99

    def rate(step):
        t = step + 1
        return eta * math.sqrt(1 - b2**t) / (1 - b1**t)

    mine = Adam(rate, b1, b2, epsilon=1e-20, sum_inside_sqrt=False)
    check_trajectory(mine, optax.adam(eta, b1=b1, b2=b2, eps=0.0), steps=12)


def test_there_is_no_bias_correction():
    # the first step is 0.1 * 0.1 / sqrt(0.001) = 0.316 long, not 0.1
    def corrected(w, g, m, v):
        return w - 0.1 * g / np.sqrt(g**2 + 1e-14), 0.1 * g, 0.001 * g**2

    check_one_step(Adam(0.1), model_of(0.1, 0.9, 0.999, 1e-7, True), *FIRST)
    with pytest.raises(AssertionError, match="w: 2 of 2 outside their bound"):
        check_one_step(Adam(0.1), corrected, *FIRST)


def test_epsilon_decides_at_tiny_gradients():
    inside, outside = (model_of(1.0, 0.9, 0.999, 1e-7, where) for where in (True, False))
    w, g, m, v = FIRST
    tiny = w, 1e-6 * g, m, v  # v = 1e-15, epsilon^2 = 1e-14
    check_one_step(Adam(1.0), inside, *tiny)
    check_one_step(Adam(1.0, sum_inside_sqrt=False), outside, *tiny)
    with pytest.raises(AssertionError, match="w: 2 of 2 outside their bound"):
        check_one_step(Adam(1.0), outside, *tiny)
    with pytest.raises(AssertionError, match="w: 2 of 2 outside their bound"):
        check_one_step(Adam(1.0), model_of(1.0, 0.9, 0.999, 1e-8, True), *tiny)


def test_a_zero_gradient_decays_the_slots_and_moves_the_row():
    adam = Adam(1.0, beta_1=0.5, beta_2=0.25, epsilon=2.0**-30)
    row = {"w": [1.0], "g": [0.0], "momenta": [4.0], "velocities": [16.0]}
    assert one_row(adam, **row) == ([0.0], [2.0], [4.0])


def test_coefficients_are_computed_in_float64():
    c = Adam(beta_1=0.9, beta_2=0.999, epsilon=1e-7).coefficients(0.1)
    assert c["c1"] == 1 - 0.9 and c["c2"] == 1 - 0.999 and c["eps2"] == 1e-7 * 1e-7
    assert F(1 - 0.999) != F(1) - F(0.999)


def test_lazy_is_the_default():
    assert not updates_every_row(Adam())
    assert updates_every_row(Adam(lazy_adam=False))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"beta_1": 1.0}, "Adam: beta_1 is 1.0; it must be a number >= 0 and < 1"),
        ({"beta_1": -0.1}, "Adam: beta_1 is -0.1; it must be a number >= 0 and < 1"),
        ({"beta_2": 1.0}, "Adam: beta_2 is 1.0; it must be a number >= 0 and < 1"),
        ({"epsilon": 0.0}, "Adam: epsilon is 0.0; it must be a number > 0"),
        (
            {"lazy_adam": False, "use_gradient_accumulation": False},
            "set use_gradient_accumulation=True or lazy_adam=True",
        ),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        Adam(**arguments)
