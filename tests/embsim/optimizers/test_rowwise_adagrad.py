"""RowwiseAdagrad against FBGEMM's EXACT_ROWWISE_ADAGRAD, written out in float64."""

import numpy as np
import pytest

from embsim.optimizers import RowwiseAdagrad, one_row
from tests.embsim.optimizers.grid import GRADIENTS
from tests.embsim.optimizers.rounding import check_one_step


def model_of(rate, epsilon):
    def model(w, g, momentum1):
        momentum1 = momentum1 + np.sum(g * g) / len(g)
        multiplier = rate / (np.sqrt(momentum1) + epsilon)
        return w - multiplier * g, momentum1

    return model


def test_by_hand():
    optimizer = RowwiseAdagrad(1.0, epsilon=0.0)
    assert one_row(optimizer, w=[2.0, 0.0], g=[4.0, 4.0], accumulators=48.0) == ([1.5, -0.5], 64.0)
    one_hot = one_row(optimizer, w=[2.0, 0.0, 1.0, 1.0], g=[8.0, 0.0, 0.0, 0.0], accumulators=0.0)
    assert one_hot == ([0.0, 0.0, 1.0, 1.0], 16.0)


@pytest.mark.parametrize("dim", [1, 2, 3, 8, 33])
@pytest.mark.parametrize("epsilon", [1e-8, 0.1])
@pytest.mark.parametrize("accumulator", [0.0, 1e-6, 5.0])
def test_formula(dim, epsilon, accumulator):
    random = np.random.default_rng(dim)
    for scale in (1e-10, 1e-4, 1.0, 300.0):
        w = random.normal(size=dim).astype(np.float32)
        g = (scale * random.normal(size=dim)).astype(np.float32)
        optimizer = RowwiseAdagrad(0.1, epsilon=epsilon)
        check_one_step(optimizer, model_of(0.1, epsilon), w, g, np.array([accumulator]))


@pytest.mark.parametrize("gradient", [g for g in GRADIENTS if abs(g) <= 1e-7])
def test_epsilon_decides_at_tiny_gradients(gradient):
    optimizer = RowwiseAdagrad(0.1, epsilon=1e-8)
    w, g = np.zeros(2, np.float32), np.full(2, gradient, np.float32)
    check_one_step(optimizer, model_of(0.1, 1e-8), w, g, np.zeros(1))


def test_a_row_that_never_had_a_gradient_is_left_alone():
    assert one_row(RowwiseAdagrad(), w=[1.0, 2.0], g=[0.0, 0.0]) == ([1.0, 2.0], 0.0)


def test_the_mean_is_summed_in_position_order():
    g = [2.0**12, 1.0, 1.0, 0.0]  # 2^24 + 1 + 1 stays 2^24 in float32
    assert one_row(RowwiseAdagrad(), w=[0.0] * 4, g=g)[1] == 2.0**22
    assert one_row(RowwiseAdagrad(), w=[0.0] * 4, g=g[::-1])[1] == 2.0**22 + 0.5


def test_its_slot_is_one_number_a_row():
    (slot,) = RowwiseAdagrad(initial_accumulator_value=0.5).slots
    assert (slot.name, slot.initial, slot.rowwise) == ("accumulators", 0.5, True)


@pytest.mark.parametrize("argument", ["initial_accumulator_value", "epsilon"])
def test_arguments_out_of_range(argument):
    with pytest.raises(ValueError, match=f"RowwiseAdagrad: {argument} is -0.1; .* >= 0"):
        RowwiseAdagrad(**{argument: -0.1})
