"""FTRL, in both forms and with any power, against its formulas in float64."""

import numpy as np
import pytest

from embsim.optimizers import FTRL, one_row
from tests.embsim.optimizers.grid import grid
from tests.embsim.optimizers.rounding import check_one_step


def model_of(rate, power, l1, l2, beta, multiply):
    def model(w, g, a, z):
        n = a + g**2
        delta = n**-power - a**-power
        if multiply:
            z = z + rate * g - delta * w
            numerator = np.clip(z, -rate * l1, rate * l1) - z
            return numerator / (n**-power + beta + 2 * rate * l2), n, z
        z = z + g - delta * w / rate
        numerator = np.clip(z, -l1, l1) - z
        return numerator / ((n**-power + beta) / rate + 2 * l2), n, z

    return model


def test_by_hand():
    row = {"w": [1.0], "g": [4.0], "accumulators": [9.0], "linears": [3.0]}
    # z = 3 + (4 - ((5 - 3) / 0.5) * 1) = 3;  w = -3 / (5 / 0.5)
    assert one_row(FTRL(0.5), **row)[1:] == ([25.0], [3.0])
    assert one_row(FTRL(0.5), **row)[0] == [np.float32(-3) / np.float32(10)]
    # l1 = 1, l2 = 2, beta = 1: w = (1 - 3) / ((5 + 1) / 0.5 + 4)
    regular = {"l1_regularization_strength": 1.0, "l2_regularization_strength": 2.0, "beta": 1.0}
    assert one_row(FTRL(0.5, **regular), **row) == ([-0.125], [25.0], [3.0])
    # z = 3 + (2 - 2 * 1) = 3;  w = (0.5 - 3) / ((5 + 1) + 2 * 0.5 * 2)
    multiplied = FTRL(0.5, **regular, multiply_linear_by_learning_rate=True)
    assert one_row(multiplied, **row) == ([-0.3125], [25.0], [3.0])
    # l1 larger than |z|: exactly zero
    assert one_row(FTRL(0.5, l1_regularization_strength=4.0), **row)[0] == [0.0]


@pytest.mark.parametrize("multiply", [False, True])
@pytest.mark.parametrize("power", [-0.5, -0.3, -1.0, 0.0])
@pytest.mark.parametrize("l1, l2, beta", [(0.0, 0.0, 0.0), (0.01, 0.1, 0.5), (2.0, 0.0, 1.0)])
def test_formula(l1, l2, beta, power, multiply):
    for rate in (0.05, 2.0):
        arguments = (rate, power, l1, l2, beta)
        optimizer = FTRL(*arguments, multiply_linear_by_learning_rate=multiply)
        rows = grid([1e-6, 0.1, 5.0, 1e4], [-1.5, 0.0, 1e-3])
        check_one_step(optimizer, model_of(*arguments, multiply), *rows)


def test_the_two_forms_agree_on_w_at_a_constant_rate():
    """The slot of one is lr times the slot of the other. Powers of two: equal to the bit."""
    arguments = {"l1_regularization_strength": 0.25, "l2_regularization_strength": 0.5}
    divided = FTRL(0.5, **arguments)
    multiplied = FTRL(0.5, **arguments, multiply_linear_by_learning_rate=True)
    w1, a1, z1 = one_row(divided, w=[0.3], g=[1.7], accumulators=[0.1], linears=[0.2])
    w2, a2, z2 = one_row(multiplied, w=[0.3], g=[1.7], accumulators=[0.1], linears=[0.1])
    assert (w1, a1, z1) == (w2, a2, [2 * z for z in z2])


def test_a_fresh_row_with_a_zero_gradient_becomes_zero():
    assert one_row(FTRL(0.1), w=[1.0, 2.0], g=[0.0, 0.0])[0] == [0.0, 0.0]


def test_a_rate_of_zero_is_refused_in_the_form_that_divides_by_it():
    with pytest.raises(ValueError, match=r"learning rate is 0, .* multiply_linear_by_learning"):
        FTRL(0.0).coefficients(0.0)
    multiplied = FTRL(0.0, multiply_linear_by_learning_rate=True)
    row = {"w": [1.0], "g": [4.0], "accumulators": [9.0], "linears": [-5.0]}
    # z = -5 + (0 - 2 * 1) = -7;  w = 7 / 5
    assert one_row(multiplied, **row) == ([np.float32(7) / np.float32(5)], [25.0], [-7.0])


def test_coefficients_are_products_in_float64():
    c = FTRL(0.1, l1_regularization_strength=0.3, l2_regularization_strength=0.7).coefficients(0.1)
    assert (c["l22"], c["l1r"], c["l22r"], c["q"]) == (2 * 0.7, 0.1 * 0.3, 2 * 0.1 * 0.7, 0.5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"initial_accumulator_value": 0.0}, "initial_accumulator_value is 0.0; .* > 0"),
        (
            {"initial_accumulator_value": 0.0, "allow_zero_accumulator": True},
            "initial_accumulator_value is 0.0; .* > 0",
        ),
        ({"learning_rate_power": 0.5}, "learning_rate_power is 0.5; it must be a number <= 0"),
        ({"l1_regularization_strength": -1.0}, "l1_regularization_strength is -1.0; .* >= 0"),
        ({"l2_regularization_strength": -1.0}, "l2_regularization_strength is -1.0; .* >= 0"),
        ({"beta": -1.0}, "beta is -1.0; it must be a number >= 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=f"FTRL: {message}"):
        FTRL(**arguments)
