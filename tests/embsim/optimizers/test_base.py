"""What the optimizers share: options, coefficients, rates, and the order around the rule."""

import functools
import random
from types import SimpleNamespace

import jaxtyping
import numpy as np
import pytest

from embsim import definition
from embsim.optimizers import (
    FTRL,
    SGD,
    Adagrad,
    AdagradMomentum,
    Adam,
    NumpyOps,
    Optimizer,
    RowwiseAdagrad,
    Slot,
    accumulates_gradients,
    coefficients,
    learning_rate_at,
    one_row,
    row_update,
    updates_every_row,
)
from embsim.optimizers.base import clip_values

F = np.float32
ALL = (SGD, Adagrad, RowwiseAdagrad, AdagradMomentum, Adam, FTRL)
OPTIONS = (
    {},
    {"clipvalue": 0.3},
    {"clipvalue": (None, 0.1)},
    {"clipvalue": (-0.2, None)},
    {"clip_weight_min": -0.5, "clip_weight_max": 0.25},
    {"weight_decay_factor": 0.3},
    {"weight_decay_factor": 0.3, "multiply_weight_decay_factor_by_learning_rate": True},
    {"weight_decay_factor": 0.01, "clip_weight_max": 0.5, "clipvalue": (0.1, 0.2)},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ALL)
def test_the_order_around_the_rule_is_the_definition_s(kind, options):
    optimizer = kind(0.1, **options)
    draw = np.random.default_rng(0)
    w, g = (draw.normal(size=64).astype(F) for _ in range(2))
    g[:3] = np.nan, np.inf, -np.inf
    slots = [abs(draw.normal(size=1 if slot.rowwise else 64)).astype(F) for slot in optimizer.slots]
    c = SimpleNamespace(**coefficients(optimizer, 0.1))
    law = definition.coefficients(optimizer, 0.1)
    with np.errstate(all="ignore"):
        mine, mine_slots = row_update(optimizer, NumpyOps)(w, g, tuple(slots), c)
        true, true_slots = definition.updated(optimizer, w, tuple(slots), [g], law)
    for x, y in zip((mine, *mine_slots), (true, *true_slots), strict=True):
        assert x.dtype == np.float32
        assert np.array_equal(x, y, equal_nan=True)


@pytest.mark.parametrize("kind", ALL)
def test_an_optimizer_is_a_value(kind):
    assert kind(0.3) == kind(0.3) != kind(0.5)
    assert hash(kind(0.3)) == hash(kind(0.3))
    assert isinstance(kind(), Optimizer)
    assert accumulates_gradients(kind()) and not updates_every_row(kind())
    assert not accumulates_gradients(kind(use_gradient_accumulation=False))


def test_default_rates_are_tensorflow_s():
    rates = [kind().learning_rate for kind in (SGD, Adagrad, AdagradMomentum, Adam, FTRL)]
    assert rates == [0.01, 0.001, 0.001, 0.001, 0.001]


def test_slots_are_named_as_in_tensorflow():
    names = {kind.__name__: [slot.name for slot in kind().slots] for kind in ALL}
    assert names == {
        "SGD": [],
        "Adagrad": ["accumulators"],
        "RowwiseAdagrad": ["accumulators"],
        "AdagradMomentum": ["accumulators", "momenta"],
        "Adam": ["momenta", "velocities"],
        "FTRL": ["accumulators", "linears"],
    }
    assert [slot.initial for kind in ALL for slot in kind().slots] == [0.1, 0, 0, 0, 0, 0, 0.1, 0]


class TestCoefficients:
    def test_each_is_rounded_once(self):
        options = {"weight_decay_factor": 0.3, "clipvalue": (-0.1, 0.7), "clip_weight_max": 1 / 3}
        c = coefficients(Adam(**options), 0.1)
        expected = {
            "lr": 0.1,
            "b1": 0.9,
            "c1": 1 - 0.9,
            "b2": 0.999,
            "c2": 1 - 0.999,
            "eps": 1e-7,
            "eps2": 1e-7 * 1e-7,
            "keep": 1 - 0.3,
            "clip_gradient_min": -0.1,
            "clip_gradient_max": 0.7,
            "clip_weight_max": 1 / 3,
        }
        assert c == {name: F(x) for name, x in expected.items()}
        assert {type(x) for x in c.values()} == {np.float32}

    def test_keep_with_the_rate(self):
        options = {"multiply_weight_decay_factor_by_learning_rate": True}
        assert coefficients(SGD(weight_decay_factor=0.3, **options), 0.1)["keep"] == F(
            1 - 0.3 * 0.1
        )

    def test_without_decay_there_is_no_keep(self):
        options = {"multiply_weight_decay_factor_by_learning_rate": True}
        for factor in (None, 0.0):
            assert "keep" not in coefficients(SGD(weight_decay_factor=factor, **options), 0.1)

    def test_a_rate_beyond_float32_is_infinite_without_a_warning(self):
        assert coefficients(SGD(), 1e300)["lr"] == np.inf


class TestLearningRate:
    def test_a_number(self):
        assert learning_rate_at(0.25, 7) == 0.25
        assert learning_rate_at(1, 7) == 1.0

    def test_a_callable_without_arguments(self):
        assert learning_rate_at(lambda: 0.5, 7) == 0.5
        assert learning_rate_at(lambda step=3: step, 7) == 3.0  # can be called without
        assert learning_rate_at(lambda *steps: len(steps), 7) == 0.0
        assert learning_rate_at(functools.partial(lambda step: step * 2, 4), 7) == 8.0

    def test_a_callable_of_the_step(self):
        assert learning_rate_at(lambda step: 10 - step, 7) == 3.0

        class Schedule:
            def __call__(self, step):
                return np.float32(step)

        assert learning_rate_at(Schedule(), 7) == 7.0

    def test_a_c_function_without_a_signature_is_called_without_arguments(self):
        assert 0 <= learning_rate_at(random.random, 7) < 1

    def test_an_array_of_one_number_is_a_number(self):
        assert learning_rate_at(lambda: np.array(0.5), 0) == 0.5

    def test_anything_else_is_a_type_error(self):
        message = "learning rate of training step 7: .* returned 'fast'; it must return a number"
        with pytest.raises((TypeError), match=message):
            learning_rate_at(lambda: "fast", 7)
        with pytest.raises(TypeError, match="returned None; it must return a number"):
            learning_rate_at(lambda: None, 7)

    def test_a_type_error_inside_the_callable_stays_itself(self):
        def broken():
            raise TypeError("mine")

        with pytest.raises(TypeError, match=r"^mine$"):
            learning_rate_at(broken, 0)


@pytest.fixture
def as_users_run_it():
    """Without the check of embsim's annotations, which would come before its own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("as_users_run_it")
class TestClipvalue:
    def test_forms(self):
        assert clip_values(SGD()) == (None, None)
        assert clip_values(SGD(clipvalue=2.0)) == (-2.0, 2.0)
        assert clip_values(SGD(clipvalue=(-1.0, None))) == (-1.0, None)
        assert clip_values(SGD(clipvalue=(None, None))) == (None, None)

    @pytest.mark.parametrize("kind", ALL)
    @pytest.mark.parametrize("clip", [1.0, (-1.0, 1.0), (None, None)])
    def test_needs_accumulation(self, kind, clip):
        message = "clipvalue is .* with use_gradient_accumulation=False; clipping needs the accum"
        with pytest.raises(ValueError, match=f"{kind.__name__}: {message}"):
            kind(clipvalue=clip, use_gradient_accumulation=False)

    @pytest.mark.parametrize("kind", ALL)
    def test_must_be_a_number_or_a_pair(self, kind):
        with pytest.raises(TypeError, match=r"clipvalue is \[-1, 1\]; it must be a number"):
            kind(clipvalue=[-1, 1])
        with pytest.raises(ValueError, match="clipvalue has 3 entries; it must be a number or"):
            kind(clipvalue=(1, 2, 3))
        with pytest.raises(TypeError, match="an entry of clipvalue is '1'; it must be a number"):
            kind(clipvalue=("1", None))

    @pytest.mark.parametrize("kind", ALL)
    def test_must_be_in_order(self, kind):
        message = "clipvalue allow values from {} to {}; the lower limit must not be above"
        with pytest.raises(ValueError, match=message.format("1.0", "-1.0")):
            kind(clipvalue=(1.0, -1.0))
        with pytest.raises(ValueError, match=message.format("2.0", "-2.0")):
            kind(clipvalue=-2.0)  # TensorFlow takes it, and every gradient becomes -2


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("kind", ALL)
class TestOptions:
    def test_learning_rate(self, kind):
        with pytest.raises(TypeError, match="learning_rate is 'fast'; it must be a number, or a c"):
            kind("fast")
        with pytest.raises(ValueError, match="learning_rate is NaN; it must be a number"):
            kind(float("nan"))

    def test_weight_limits(self, kind):
        message = "clip_weight_min and clip_weight_max allow values from 2.0 to 1.0"
        with pytest.raises(ValueError, match=message):
            kind(clip_weight_min=2.0, clip_weight_max=1.0)
        with pytest.raises(TypeError, match="clip_weight_min is '2'; it must be a number or None"):
            kind(clip_weight_min="2")

    def test_weight_decay(self, kind):
        with pytest.raises(TypeError, match=r"weight_decay_factor is '0\.1'; it must be a number"):
            kind(weight_decay_factor="0.1")

    def test_flags(self, kind):
        with pytest.raises(ValueError, match="use_gradient_accumulation is 1; it must be True or"):
            kind(use_gradient_accumulation=1)

    def test_slot_variable_creation_fn(self, kind):
        if kind is not SGD:
            message = "slot_variable_creation_fn is 3; it must be a callable or None"
            with pytest.raises(ValueError, match=message):
                kind(slot_variable_creation_fn=3)


class TestNumpyOps:
    def test_minimum_and_maximum_propagate_nan(self):
        x = np.array([np.nan, 1.0], F)
        assert np.isnan(NumpyOps.minimum(x, F(0))[0]) and np.isnan(NumpyOps.maximum(F(0), x)[0])

    def test_power_is_the_float32_exponent_used_in_float64_and_rounded_once(self):
        x = np.array([3.0, 1e-30, 0.0, 2.0], F)
        e = F(1 / 3)
        assert NumpyOps.power(x, e).tolist() == [F(float(item) ** float(e)) for item in x]
        assert NumpyOps.power(x, e).dtype == np.float32

    def test_mean_is_summed_in_position_order_and_divided_once(self):
        x = np.array([2.0**24, 1.0, 1.0], F)
        assert NumpyOps.mean(x).tolist() == [F(2.0**24) / F(3)]
        assert NumpyOps.mean(x[::-1]).tolist() == [F(2.0**24 + 2) / F(3)]


def test_one_row_takes_initial_slots_by_default_and_the_first_step_s_rate():
    assert one_row(FTRL(lambda step: 2.0**step), w=[1.0], g=[0.0]) == ([0.0], [F(0.1)], [0.0])


def test_a_slot_of_a_user_starts_where_it_says():
    assert Slot("count", 3.0, rowwise=True) == Slot(name="count", initial=3.0, rowwise=True)
    assert Slot("x") == Slot("x", 0.0, False)
