"""SGD: w - lr * g. Outside oracle: optax.sgd in float64."""

import numpy as np
import optax

from embsim.optimizers import SGD, one_row
from tests.embsim.optimizers.grid import grid
from tests.embsim.optimizers.optax_oracle import check_trajectory
from tests.embsim.optimizers.rounding import check_one_step


def test_by_hand():
    assert one_row(SGD(0.5), w=[1.0, 2.0], g=[2.0, -4.0]) == ([0.0, 4.0],)
    assert one_row(SGD(0.1), w=[0.0], g=[1.0]) == ([-np.float32(0.1)],)


def test_formula():
    for rate in (0.0, 1e-7, 0.1, 3.0):
        check_one_step(SGD(rate), lambda w, g, rate=rate: (w - rate * g,), *grid())


def test_equals_optax():
    check_trajectory(SGD(0.3), optax.sgd(0.3))


def test_has_no_slots_and_a_zero_gradient_leaves_the_row():
    assert SGD().slots == ()
    assert one_row(SGD(0.3), w=[0.7, -0.1], g=[0.0, -0.0])[0] == [np.float32(0.7), np.float32(-0.1)]
