"""Which optimizers share compiled programs: those that compute the same."""

from dataclasses import dataclass
from typing import Any

import pytest

from embsim.conformance.rules import Counting
from embsim.optimizers import FTRL, SGD, Adagrad, AdagradMomentum, Adam, Slot, coefficients
from embsim_tpu.rule import Rule


def rule_of(optimizer):
    return Rule.of(optimizer, tuple(coefficients(optimizer, 1.0)))


@pytest.mark.parametrize(
    "one, other",
    [
        (SGD(0.1), SGD(0.5)),
        (SGD(0.1), SGD(lambda: 0.1)),
        (Adagrad(0.1), Adagrad(0.5, initial_accumulator_value=3.0)),
        (Adam(0.1), Adam(0.1, beta_1=0.5, epsilon=1.0)),
        (SGD(0.1, clipvalue=1.0), SGD(0.1, clipvalue=(-2.0, 3.0))),
        (FTRL(0.1), FTRL(0.1, l1_regularization_strength=0.5)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_numbers_are_no_part_of_a_rule(one, other):
    assert rule_of(one) == rule_of(other)
    assert hash(rule_of(one)) == hash(rule_of(other))


@pytest.mark.parametrize(
    "one, other",
    [
        (SGD(0.1), Adagrad(0.1)),
        (Adam(0.1), Adam(0.1, lazy_adam=False)),
        (Adam(0.1), Adam(0.1, sum_inside_sqrt=False)),
        (SGD(0.1), SGD(0.1, clipvalue=1.0)),
        (SGD(0.1, clipvalue=(-1.0, None)), SGD(0.1, clipvalue=(None, 1.0))),
        (SGD(0.1), SGD(0.1, clip_weight_min=0.0)),
        (SGD(0.1, clip_weight_max=0.0), SGD(0.1, clip_weight_min=0.0)),
        (SGD(0.1), SGD(0.1, weight_decay_factor=0.1)),
        (AdagradMomentum(0.1, momentum=0.5), AdagradMomentum(0.1, momentum=0.5, exponent=3)),
        (
            AdagradMomentum(0.1, momentum=0.5),
            AdagradMomentum(0.1, momentum=0.5, use_nesterov=True),
        ),
        (AdagradMomentum(0.1, momentum=0.5), AdagradMomentum(0.1, momentum=0.5, beta2=0.5)),
        (FTRL(0.1), FTRL(0.1, multiply_linear_by_learning_rate=True)),
        (FTRL(0.1), FTRL(0.1, learning_rate_power=-0.3)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_another_formula_is_another_rule(one, other):
    assert rule_of(one) != rule_of(other)


@dataclass(eq=False)
class OfAUser:
    """Not hashable by its numbers, and of a name that another class may have."""

    learning_rate: float = 1.0
    slots: tuple[Slot, ...] = ()
    result: Any = None
    __hash__ = None

    def coefficients(self, learning_rate):
        return {"lr": learning_rate}

    def rule(self, ops):
        return lambda w, g, slots, c: self.result(w, g, slots, c)


def test_an_optimizer_need_not_be_hashable():
    def down(w, g, slots, c):
        return w - c.lr * g, slots

    def up(w, g, slots, c):
        return w + c.lr * g, slots

    one, other, opposite = OfAUser(result=down), OfAUser(2.0, result=down), OfAUser(result=up)
    assert rule_of(one) == rule_of(other)
    assert rule_of(one) != rule_of(opposite)


@pytest.mark.parametrize(
    "result, message",
    [
        (lambda w, g, slots, c: (w - 2.0 * g, slots), "literal"),
        (lambda w, g, slots, c: (w if w else g, slots), "bool|branch|if"),
        (lambda w, g, slots, c: w, r"it must return \(w, slots\)"),
        (lambda w, g, slots, c: (w, (g,)), "slots"),
    ],
)
def test_a_rule_that_is_none_is_refused(result, message):
    with pytest.raises(TypeError, match=message):
        rule_of(OfAUser(result=result))


def test_what_a_rule_keeps():
    optimizer = Counting(0.5)
    rule = rule_of(optimizer)
    assert rule.coefficients == ("lr", "one")
    assert rule.optimizer is optimizer
