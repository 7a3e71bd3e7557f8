"""The generated loop against the rule on NumPy rows; users' optimizers."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

import embsim
from embsim import Slot
from embsim._codegen import coefficient_names, update_kernel, update_source
from embsim.optimizers import (
    FTRL,
    SGD,
    Adagrad,
    AdagradMomentum,
    Adam,
    NumpyOps,
    RowwiseAdagrad,
    accumulates_gradients,
    coefficients,
    row_update,
    updates_every_row,
)
from tests.embsim.programs import F, assert_same

CLIPS = (None, 0.3, (None, 0.1), (-0.2, None), (-0.1, 0.2))
WEIGHT_CLIPS = ((None, None), (-0.5, None), (None, 0.25), (-0.5, 0.25))
DECAYS = ((None, None), (0.3, None), (0.3, True))
RULES = {
    "SGD": [SGD],
    "Adagrad": [Adagrad],
    "RowwiseAdagrad": [RowwiseAdagrad],
    "AdagradMomentum": [
        lambda n=n, e=e, b=b, **o: AdagradMomentum(0.1, 0.9, n, e, b, **o)
        for n, e, b in itertools.product([False, True], [2, 3], [1, 0.9])
    ],
    "Adam": [
        lambda inside=inside, lazy=lazy, **o: Adam(
            sum_inside_sqrt=inside, lazy_adam=lazy, epsilon=1e-3, **o
        )
        for inside, lazy in itertools.product([False, True], [False, True])
    ],
    "FTRL": [
        lambda p=p, m=m, **o: FTRL(0.1, p, 0.1, 0.2, 0.5, multiply_linear_by_learning_rate=m, **o)
        for p, m in itertools.product([-0.5, -0.3], [False, True])
    ],
}


def optimizers_of(name):
    options = itertools.product(RULES[name], CLIPS, WEIGHT_CLIPS, DECAYS, [True, False])
    for make, clip, (low, high), (decay, by_rate), accumulates in options:
        if accumulates or clip is None:
            try:
                yield make(
                    clipvalue=clip,
                    clip_weight_min=low,
                    clip_weight_max=high,
                    weight_decay_factor=decay,
                    multiply_weight_decay_factor_by_learning_rate=by_rate,
                    use_gradient_accumulation=accumulates,
                )
            except ValueError as error:
                assert "lazy_adam=False with use_gradient_accumulation=False" in str(error)


def uncompiled(optimizer):
    """The generated text as plain Python."""
    namespace = {}
    exec(update_source(optimizer).replace("@kernel\n", ""), namespace)
    return namespace["update"]


# Rows 0 and 2 are touched, row 0 by two contributions.
UNIQUE, STARTS = np.array([0, 2], np.int32), np.array([0, 2, 3])
SAMPLE, GAIN = np.array([0, 1, 1], np.int32), F([1.0, 0.3, -0.7])


def touched(optimizer, gradients):
    """(row, the gradients of its updates)"""
    terms = {0: [GAIN[0] * gradients[0], GAIN[1] * gradients[1]], 2: [GAIN[2] * gradients[1]]}
    if accumulates_gradients(optimizer):
        zeros = np.zeros(gradients.shape[1], F)
        terms = {row: [sum(parts, start=zeros)] for row, parts in terms.items()}
        if updates_every_row(optimizer):
            terms[1] = [zeros]
    return terms.items()


def check(optimizer, kernel, arrays, gradients, rate):
    """arrays: the table and the slots. The text gives what the rule gives on each row."""
    c = coefficients(optimizer, rate)
    want = [array.copy() for array in arrays]
    rule = row_update(optimizer, NumpyOps)
    for row, parts in touched(optimizer, gradients):
        for g in parts:
            w, *slots = (array[row].copy() for array in want)
            w, slots = rule(w, g, tuple(slots), SimpleNamespace(**c))
            for array, value in zip(want, (w, *slots), strict=True):
                array[row] = value
    table, *slots = (array.copy() for array in arrays)
    high = len(table) if updates_every_row(optimizer) else len(UNIQUE)
    numbers = np.array(list(c.values()), F)
    plan = (UNIQUE, STARTS, SAMPLE, GAIN)
    kernel(0, high, *plan, gradients, table, tuple(slots), numbers)
    for i, (got, expected) in enumerate(zip([table, *slots], want, strict=True)):
        assert_same(f"{optimizer}, array {i}", got, expected)


def arrays_of(optimizer, draw, dim):
    """Table and slots of 3 rows: ordinary numbers, and in row 2 those that are not."""
    widths = [dim, *(1 if slot.rowwise else dim for slot in optimizer.slots)]
    arrays = [draw.uniform(0.1, 2, (3, width)).astype(F) for width in widths]
    arrays[0] -= 1
    for array in arrays:
        array[2, 0] = draw.choice(F([np.nan, np.inf, 0, 1e-40, 3e38]))
    return arrays


@pytest.mark.parametrize("name", RULES)
@np.errstate(all="ignore")
def test_the_generated_text_is_the_rule_for_every_combination_of_options(name):
    draw = np.random.default_rng(0)
    seen = 0
    for optimizer in optimizers_of(name):
        gradients = draw.normal(size=(2, 2)).astype(F)
        gradients[1, 0] = draw.choice(F([np.nan, np.inf, -np.inf, 0, -0.0, 1e-45, 1e-30, 1e30]))
        check(optimizer, uncompiled(optimizer), arrays_of(optimizer, draw, 2), gradients, 0.1)
        seen += 1
    assert seen >= 5 * 4 * 3


def test_the_text_names_every_coefficient_in_its_order():
    for optimizer in (Adam(clipvalue=(0.0, 1.0), weight_decay_factor=0.1), FTRL(clip_weight_max=1)):
        names = tuple(coefficients(optimizer, 0.1))
        assert coefficient_names(optimizer) == names
        lines = update_source(optimizer).splitlines()
        start = lines.index(f"    c_{names[0]} = c[0]")
        assert list(names) == sorted(names)
        read = [f"    c_{name} = c[{i}]" for i, name in enumerate(names)]
        assert lines[start : start + len(names)] == read


# --- optimizers of users


@dataclass(frozen=True)
class Own:
    """`body(ops)` is the rule, `names` its slots, those that end in 1 rowwise."""

    body: Any
    names: tuple[str, ...] = ()
    learning_rate: Any = 0.5

    @property
    def slots(self):
        return tuple(Slot(name, 2.0, name.endswith("1")) for name in self.names)

    def coefficients(self, learning_rate):
        return {"lr": learning_rate, "mu": 0.9, "zero": 0.0, "third": 1 / 3}

    def rule(self, ops):
        return self.body(ops)


def momentum(ops):
    def rule(w, g, slots, c):
        (m,) = slots
        m = c.mu * m + g
        return w - c.lr * m, (m,)

    return rule


def sign_of_the_mean(ops):
    """Numbers of a row and numbers for the row, each depending on the other, and comparisons."""

    def rule(w, g, slots, c):
        m, n1 = slots
        centred = g - ops.mean(g)
        n1 = ops.maximum(n1, ops.mean(centred * centred) / (c.third + ops.sqrt(n1)))
        m = ops.where(centred <= m, -m, ops.minimum(m, n1))
        step = ops.where(n1 > c.mu, c.lr / ops.power(n1, c.third), c.lr)
        return ops.where(w >= c.zero, w - step * m, ops.where(m < w, c.zero * w, w)), (m, n1)

    return rule


def keeps_the_previous_row(ops):
    return lambda w, g, slots, c: (w - c.lr * g, (w,))


def goes_back_to_the_slot(ops):
    return lambda w, g, slots, c: (slots[0], (slots[0] - c.lr * g,))


def swaps_its_slots(ops):
    return lambda w, g, slots, c: (w - c.lr * g, (slots[1], slots[0]))


OWN = (
    Own(momentum, ("m",)),
    Own(sign_of_the_mean, ("m", "n1")),
    Own(keeps_the_previous_row, ("previous",)),
    Own(goes_back_to_the_slot, ("slow",)),
    Own(swaps_its_slots, ("a", "b")),
    Own(swaps_its_slots, ("a1", "b1")),
)


@pytest.mark.parametrize("compiled", [False, True], ids=["as Python", "compiled"])
@pytest.mark.parametrize("optimizer", OWN, ids=lambda own: f"{own.body.__name__} {own.names}")
@np.errstate(all="ignore")
def test_a_user_s_rule_is_what_it_is_on_numpy_rows(optimizer, compiled):
    kernel = update_kernel(optimizer) if compiled else uncompiled(optimizer)
    for seed in range(20):
        draw = np.random.default_rng(seed)
        arrays, gradients = arrays_of(optimizer, draw, 3), draw.normal(size=(2, 3)).astype(F)
        check(optimizer, kernel, arrays, gradients, 0.5)


class Down(NamedTuple):
    learning_rate: float

    slots = ()

    def coefficients(self, learning_rate):
        return {"lr": learning_rate}

    def rule(self, ops):
        return lambda w, g, slots, c: (w - c.lr * g, slots)


class Up(Down):
    def rule(self, ops):
        return lambda w, g, slots, c: (w + c.lr * g, slots)


class Unhashable(Up):
    __hash__ = None


def trained(optimizer, gradient=1.0):
    """Row 1 of a table of ones after one step with gradient 1; the embedding and its table."""
    table = embsim.TableConfig(3, 2, initializer=embsim.constant(1.0), optimizer=optimizer)
    with embsim.TPUStrategy(1).scope():
        embedding = embsim.TPUEmbedding(embsim.FeatureConfig(table))
    embedding.enqueue(np.array([1]))
    embedding.dequeue()
    embedding.apply_gradients(np.full((1, 2), gradient, F))
    return embedding.embedding_tables[table][1].tolist(), embedding, table


def test_optimizers_of_different_classes_have_kernels_of_their_own():
    """Named tuples of the same numbers are equal, whatever their class."""
    assert Down(0.5) == Up(0.5)
    assert trained(Down(0.5))[0] == [0.5, 0.5]
    assert trained(Up(0.5))[0] == [1.5, 1.5]
    assert trained(Unhashable(0.25))[0] == [1.25, 1.25]


def test_equal_optimizers_share_a_kernel_and_rates_do_not_matter():
    assert update_kernel(SGD(0.1)) is update_kernel(SGD(0.2))
    assert update_kernel(SGD(0.1)) is not update_kernel(SGD(0.1, clipvalue=1.0))


def test_a_user_s_optimizer_trains_an_embedding():
    _, embedding, table = trained(OWN[0])
    assert embedding.embedding_tables[table].tolist() == [[1, 1], [1 - 0.5 * F(2.8)] * 2, [1, 1]]
    assert embedding.slot_variables[table]["m"].tolist() == [[2, 2], [F(2.8)] * 2, [2, 2]]


def body(expression):
    """A rule without slots: w = expression(ops, w, g, c)."""
    return Own(lambda ops: lambda w, g, slots, c: (expression(ops, w, g, c), slots))


REFUSED = {  # test_trace.py has more
    "a literal": (body(lambda ops, w, g, c: w * 0.5), "0.5 is no float32 of this row"),
    "if": (body(lambda ops, w, g, c: w if g > c.zero else g), "has no branches: use ops.where"),
    "an unknown operation": (body(lambda ops, w, g, c: ops.exp(w)), "exp"),
    "too few slots": (
        Own(lambda ops: lambda w, g, slots, c: (w, ()), ("a",)),
        "Own: the rule returned 0 slots; it has 1",
    ),
    "a row in a rowwise slot": (
        Own(lambda ops: lambda w, g, slots, c: (w, (g,)), ("a1",)),
        "slot 'a1' is rowwise.*reduce it with ops.mean",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_rule_may_not_do_is_a_type_error_at_build(case):
    optimizer, message = REFUSED[case]
    table = embsim.TableConfig(3, 2, optimizer=optimizer)
    with embsim.TPUStrategy(1).scope():
        embedding = embsim.TPUEmbedding(embsim.FeatureConfig(table))
    for call in (lambda: embedding.build(2), lambda: embedding.enqueue(np.array([0, 1]))) * 2:
        with pytest.raises(TypeError, match=message):
            call()


def test_a_build_that_failed_has_built_nothing():
    optimizer, message = REFUSED["if"]
    table = embsim.TableConfig(3, 2, optimizer=optimizer)
    with embsim.TPUStrategy(1).scope():
        embedding = embsim.TPUEmbedding(embsim.FeatureConfig(table))
    with pytest.raises(TypeError, match=message):
        embedding.build(2)
    with pytest.raises(RuntimeError, match="dequeue: the embedding is not built"):
        embedding.dequeue()
    with pytest.raises(TypeError, match=message):
        embedding.enqueue(np.array([0, 1, 2]))  # the batch size is still open


def test_without_a_home_directory_kernels_are_compiled_anew(monkeypatch):
    """As for a user id without an entry in /etc/passwd, in a container."""

    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("EMBSIM_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    optimizer = Own(momentum, ("without_home",))
    arrays = arrays_of(optimizer, np.random.default_rng(0), 1)
    check(optimizer, update_kernel(optimizer), arrays, np.ones((2, 1), F), 0.5)
