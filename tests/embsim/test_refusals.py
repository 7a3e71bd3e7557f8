"""What users of their own optimizers, slots and gradients can get wrong, and what they are told."""

import numpy as np
import pytest

import embsim
from embsim import FeatureConfig, Slot, TableConfig, TPUEmbedding


class Own:
    """SGD, of which a test changes one thing."""

    learning_rate = 0.5
    slots: tuple[Slot, ...] = ()

    def coefficients(self, learning_rate):
        return {"lr": learning_rate}

    def rule(self, ops):
        return lambda w, g, slots, c: (w - c.lr * g, slots)


def build(optimizer) -> TPUEmbedding:
    with embsim.TPUStrategy(1).scope():
        embedding = TPUEmbedding(FeatureConfig(TableConfig(4, 2, name="t")), optimizer)
    embedding.build(1)
    return embedding


def test_two_slots_of_one_name() -> None:
    class Twice(Own):
        slots = (Slot("a"), Slot("a"))

    with pytest.raises(ValueError, match=r"table 't': Twice has the slots \['a', 'a'\]"):
        build(Twice())


def test_a_rule_that_returns_no_pair() -> None:
    class Lone(Own):
        def rule(self, ops):
            return lambda w, g, slots, c: w - c.lr * g

    with pytest.raises(TypeError, match=r"Lone: the rule returned .*; it must return \(w, slots\)"):
        build(Lone())


@pytest.mark.parametrize("value", [None, "0.1", 1j, np.ones(2)])
def test_a_coefficient_that_is_no_number(value) -> None:
    class Odd(Own):
        def coefficients(self, learning_rate):
            return {"lr": value}

    with pytest.raises(TypeError, match=r"Odd: coefficient 'lr' is .*; it must be a number"):
        build(Odd())


def test_complex_slots() -> None:
    def creation(table, names, initializers):
        return {"accumulators": np.ones(table.shape, complex)}

    with pytest.raises(ValueError, match=r"'accumulators' has dtype complex128"):
        build(embsim.Adagrad(slot_variable_creation_fn=creation))


def test_masked_gradients() -> None:
    embedding = build(Own())
    embedding.enqueue(np.array([1]))
    embedding.dequeue()
    masked = np.ma.masked_array(np.float32([[9, 9]]), mask=[[True, False]])
    with pytest.raises(ValueError, match="has masked numbers; fill them first"):
        embedding.apply_gradients(masked)
    embedding.apply_gradients(masked.filled(0))
