"""The update of a table against the optimizer's own rule, applied row by row in NumPy."""

from dataclasses import fields
from types import SimpleNamespace

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embsim
from embsim import _threads
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
from embsim.plan import LookupPlan
from embsim.update import CHUNK, update, update_tasks, work
from tests.embsim.programs import F, assert_same

BY_RATE = {"multiply_weight_decay_factor_by_learning_rate": True}
EACH = {"use_gradient_accumulation": False}
# Every kind of loop, rule, operation and option is compiled at least once; test_codegen.py goes
# through all combinations, uncompiled.
COMPILED = (
    SGD(0.3, clipvalue=(-0.5, None), weight_decay_factor=0.3, clip_weight_max=1.0),
    SGD(0.3, **EACH, weight_decay_factor=0.3, **BY_RATE, clip_weight_min=-1.0),
    SGD(float("inf"), clipvalue=(None, 0.25)),
    Adagrad(0.3),
    Adagrad(0.3, **EACH),
    RowwiseAdagrad(0.3, clipvalue=2.0),
    RowwiseAdagrad(0.3, **EACH, clip_weight_min=-0.5, clip_weight_max=0.5),
    AdagradMomentum(0.3, momentum=0.9, use_nesterov=True),
    AdagradMomentum(0.3, momentum=0.9, exponent=3, beta2=0.8),
    Adam(0.3),
    Adam(0.3, **EACH, weight_decay_factor=0.1),
    Adam(0.3, lazy_adam=False, sum_inside_sqrt=False, clipvalue=1.0, clip_weight_max=1.0),
    FTRL(0.3, l1_regularization_strength=0.1, l2_regularization_strength=0.2, beta=0.5),
    FTRL(0.3, learning_rate_power=-0.3, **EACH),
    FTRL(0.3, multiply_linear_by_learning_rate=True, l1_regularization_strength=0.1),
)
NUMBERS = (
    st.floats(width=32)
    | st.floats(-3, 3, width=32)
    | st.sampled_from([0.0, -0.0, 1e-45, -1e-40, 1e-20, 3e38, np.nan, np.inf, -np.inf])
)


def label(optimizer):
    """The optimizer with the options that are set."""
    options = [f for f in fields(optimizer) if getattr(optimizer, f.name) != f.default]
    text = ", ".join(f"{f.name}={getattr(optimizer, f.name)}" for f in options)
    return f"{type(optimizer).__name__}({text})"


def row_by_row(table, slots, plan, gradients, optimizer, c):
    """Copies of the table and its slots after the update."""
    table, slots = table.copy(), {name: slot.copy() for name, slot in slots.items()}
    parts = {row: [] for row in range(len(table))} if updates_every_row(optimizer) else {}
    rule, dim = row_update(optimizer, NumpyOps), table.shape[1]
    with np.errstate(all="ignore"):
        for sample, row, gain in zip(plan.sample, plan.row, plan.gain, strict=True):
            parts.setdefault(int(row), []).append(gain * gradients[sample])
        for row, terms in parts.items():
            if accumulates_gradients(optimizer):
                terms = [sum(terms, start=np.zeros(dim, F))]
            for g in terms:
                old = tuple(slot[row] for slot in slots.values())
                table[row], new = rule(table[row], g, old, SimpleNamespace(**c))
                for slot, value in zip(slots.values(), new, strict=True):
                    slot[row] = value
    return table, slots


def check(table, slots, plan, gradients, optimizer, rate=0.3):
    c = coefficients(optimizer, rate)
    want, want_slots = row_by_row(table, slots, plan, gradients, optimizer, c)
    update(table, slots, plan, gradients, optimizer, c)
    assert_same("table", table, want)
    for name, slot in slots.items():
        assert_same(name, slot, want_slots[name])


def slots_of(optimizer, rows, dim, fill):
    return {s.name: fill((rows, 1 if s.rowwise else dim)) for s in optimizer.slots}


def plan_of(bags, rows):
    """bags of (row, gain)."""
    flat = [item for bag in bags for item in bag]
    row, gain = (np.array([item[i] for item in flat], d) for i, d in ((0, np.int32), (1, F)))
    return LookupPlan("t", rows, np.cumsum([0, *map(len, bags)]), row, gain)


@pytest.mark.parametrize("optimizer", COMPILED, ids=label)
@settings(max_examples=20)
@given(st.data())
def test_a_compiled_update_is_the_rule_on_each_touched_row(optimizer, data):
    rows, dim = data.draw(st.integers(1, 4), label="rows"), data.draw(st.sampled_from([1, 3, 8]))
    item = st.tuples(st.integers(0, rows - 1), st.sampled_from([1.0, 0.0, -1.0, 0.3, 2.0**24]))
    bags = data.draw(st.lists(st.lists(item, max_size=3), max_size=4), label="bags")

    def fill(shape):
        return data.draw(hnp.arrays(F, shape, elements=NUMBERS.map(F)))

    table, gradients = fill((rows, dim)), fill((len(bags), dim))
    slots = slots_of(optimizer, rows, dim, lambda shape: abs(fill(shape)))
    check(table, slots, plan_of(bags, rows), gradients, optimizer)


@pytest.mark.parametrize("optimizer", COMPILED, ids=label)
def test_rows_outside_the_plan_keep_their_bits(optimizer):
    """Even NaNs, with their payload. Non-lazy Adam: see the next tests."""
    if updates_every_row(optimizer):
        return
    draw = np.random.default_rng(0)
    plan = plan_of([[(2, 1.0), (7, 0.5)], [(2, 0.0)], [(9, 1.0)]], 10)
    table = draw.integers(0, 2**32, (10, 5), np.uint32).view(F)
    slots = slots_of(
        optimizer, 10, 5, lambda shape: draw.integers(0, 2**32, shape, np.uint32).view(F)
    )
    before = {name: array.copy() for name, array in {"table": table, **slots}.items()}
    gradients = draw.normal(size=(3, 5)).astype(F)
    update(table, slots, plan, gradients, optimizer, coefficients(optimizer, 0.3))
    untouched = [0, 1, 3, 4, 5, 6, 8]
    for name, array in {"table": table, **slots}.items():
        assert array[untouched].tobytes() == before[name][untouched].tobytes(), name


def test_non_lazy_adam_updates_every_row_also_for_an_empty_plan():
    optimizer = Adam(1.0, beta_1=0.5, beta_2=0.5, epsilon=2.0**-60, lazy_adam=False)
    table = np.zeros((3, 1), F)
    slots = {"momenta": F([[2], [4], [8]]), "velocities": F([[2], [2], [8]])}
    update(
        table, slots, plan_of([[]], 3), np.ones((1, 1), F), optimizer, coefficients(optimizer, 1)
    )
    assert slots["momenta"].tolist() == [[1], [2], [4]]
    assert slots["velocities"].tolist() == [[1], [1], [4]]
    assert table.tolist() == [[-1], [-2], [-2]]


@pytest.mark.parametrize("bags", [[], [[]], [[], []]], ids=str)
def test_an_empty_plan_changes_nothing(bags):
    table, slots = np.ones((3, 2), F), {"accumulators": np.ones((3, 2), F)}
    c = coefficients(Adagrad(), 0.3)
    update(table, slots, plan_of(bags, 3), np.ones((len(bags), 2), F), Adagrad(), c)
    assert table.tolist() == slots["accumulators"].tolist() == [[1, 1]] * 3


def test_a_touched_row_with_gradient_zero():
    """SGD and Adagrad leave it, AdagradMomentum and Adam move it, FTRL sets a fresh one to 0."""

    def after(optimizer, gain, **slots):
        table = F([[1.0]])
        slots = {name: F([[value]]) for name, value in slots.items()}
        c = coefficients(optimizer, 0.5)
        update(table, slots, plan_of([[(0, gain)]], 1), np.zeros((1, 1), F), optimizer, c)
        return table.item(), [slot.item() for slot in slots.values()]

    for gain in (1.0, 0.0):
        assert after(SGD(0.5), gain) == (1, [])
        assert after(Adagrad(0.5), gain, accumulators=4) == (1, [4])
        momentum = AdagradMomentum(0.5, momentum=0.5, use_nesterov=True)
        assert after(momentum, gain, accumulators=4, momenta=2) == (0.75, [4, 1])
        adam = Adam(0.5, beta_1=0.5, beta_2=0.5, epsilon=2.0**-60)
        assert after(adam, gain, momenta=4, velocities=2) == (0, [2, 1])
        assert after(FTRL(0.5), gain, accumulators=4, linears=0) == (0, [4, 0])
        decay = SGD(0.5, clipvalue=(-1.0, None), weight_decay_factor=0.25, clip_weight_max=0.5)
        assert after(decay, gain) == (0.5, [])


def test_duplicates_are_summed_before_the_rule_unless_accumulation_is_off():
    plan = plan_of([[(0, 1.0), (0, 1.0)], [(0, 2.0)]], 1)
    gradients = F([[1], [-2]])
    for options, expected in (({}, 2 + 4), (EACH, 2 + 1 + 1 + 16)):
        optimizer = Adagrad(0.0, **options)
        table, slots = np.ones((1, 1), F), {"accumulators": np.full((1, 1), 2, F)}
        update(table, slots, plan, gradients, optimizer, coefficients(optimizer, 0.0))
        assert slots["accumulators"] == [[expected]]


def test_the_gradients_are_not_written_to():
    gradients = np.ones((2, 2), F)
    gradients.flags.writeable = False
    optimizer = SGD(1.0, clipvalue=(None, 0.5))
    table = np.zeros((2, 2), F)
    plan = plan_of([[(0, 1.0)], [(1, 1.0), (0, 1.0)]], 2)
    update(table, {}, plan, gradients, optimizer, coefficients(optimizer, 1.0))
    assert table.tolist() == [[-0.5, -0.5]] * 2


@pytest.fixture
def restored_threads():
    before = embsim.num_threads()
    yield
    embsim.set_num_threads(before)


THREADED = (COMPILED[4], COMPILED[5], COMPILED[11])


@pytest.mark.parametrize("optimizer", THREADED, ids=label)
@pytest.mark.parametrize("rows, dim", [(5000, 65), (3, CHUNK + 5)], ids=str)
@pytest.mark.usefixtures("restored_threads")
def test_threads_change_no_bit(optimizer, rows, dim):
    draw = np.random.default_rng(0)
    samples, c = rows, coefficients(optimizer, 0.3)
    row = draw.integers(0, rows, 2 * samples).astype(np.int32)
    splits = np.arange(0, 2 * samples + 1, 2)
    plan = LookupPlan("t", rows, splits, row, draw.normal(size=len(row)).astype(F))
    gradients = draw.normal(size=(samples, dim)).astype(F)
    initial = draw.normal(size=(rows, dim)).astype(F)
    filled = slots_of(optimizer, rows, dim, lambda shape: draw.uniform(1, 2, shape).astype(F))
    tasks = update_tasks(initial, list(filled.values()), plan, gradients, optimizer, c)
    assert len(tasks) >= 2
    assert work(initial, plan, optimizer) > _threads.WORTH_THREADS
    seen = set()
    for count in (1, 2, 3):
        embsim.set_num_threads(count)
        table, slots = initial.copy(), {name: slot.copy() for name, slot in filled.items()}
        update(table, slots, plan, gradients, optimizer, c)
        seen.add((table.tobytes(), *(slot.tobytes() for slot in slots.values())))
    assert len(seen) == 1
    check(initial, filled, plan, gradients, optimizer)
