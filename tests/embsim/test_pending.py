"""Tables as if drained, against tables on which the same updates were really applied."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embsim import ReferenceBackend, State
from embsim.optimizers import Adagrad, Adam, RowwiseAdagrad, coefficients, updates_every_row
from embsim.pending import (
    Patch,
    PendingUpdate,
    compact_state,
    drained_lookup,
    drained_rows,
    drained_state,
    overlay,
)
from embsim.plan import LookupPlan
from embsim.state import Rows, TableSpec
from tests.embsim.programs import F, assert_same

ROWS, DIM = 5, 2
# Kernels of test_update.py: nothing new is compiled.
OPTIMIZERS = [
    Adagrad(0.3),
    RowwiseAdagrad(0.3, clipvalue=2.0),
    Adam(0.3, lazy_adam=False, sum_inside_sqrt=False, clipvalue=1.0, clip_weight_max=1.0),
]
BACKEND = ReferenceBackend()


def plan_of(table, bags):
    """bags of rows; gains are 1."""
    row = np.array([r for bag in bags for r in bag], np.int32)
    return LookupPlan(table, ROWS, np.cumsum([0, *map(len, bags)]), row, np.ones(len(row), F))


def state_of(optimizers, rng):
    specs = {f"t{i}": TableSpec(f"t{i}", ROWS, DIM, o) for i, o in enumerate(optimizers)}
    weights = {name: rng.normal(size=(ROWS, DIM)).astype(F) for name in specs}
    slots = {
        name: {
            slot: rng.uniform(0.1, 1, spec.slot_shape(slot, ROWS)).astype(F)
            for slot in spec.slot_names
        }
        for name, spec in specs.items()
    }
    return State(specs, weights, slots)


def bytes_of(state):
    arrays = [*state.weights.values(), *(a for each in state.slots.values() for a in each.values())]
    return [array.tobytes() for array in arrays]


def real(state, updates):
    """The state after the updates, on copies."""
    weights = {name: array.copy() for name, array in state.weights.items()}
    slots = {n: {slot: a.copy() for slot, a in each.items()} for n, each in state.slots.items()}
    copy = State(state.specs, weights, slots)
    for update in updates:
        copy = BACKEND.update(copy, update.plans, update.gradients, update.coefficients)
    return copy


def world_of(data):
    """(state, pending updates): some tables, some rows, often none."""
    draw = data.draw
    optimizers = draw(st.lists(st.sampled_from(OPTIMIZERS), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 99), label="seed"))
    state, updates = state_of(optimizers, rng), []
    bags = st.lists(st.lists(st.integers(0, ROWS - 1), max_size=3), min_size=2, max_size=2)
    for step in range(draw(st.integers(0, 3), label="pending")):
        plans = {name: plan_of(name, draw(bags, label=f"bags of {name}")) for name in state.specs}
        updates.append(
            PendingUpdate(
                step,
                plans,
                plans,
                {name: rng.normal(size=(2, DIM)).astype(F) for name in plans},
                {
                    name: coefficients(spec.optimizer, 0.3 / (step + 1))
                    for name, spec in state.specs.items()
                },
            )
        )
    return state, updates


@settings(max_examples=50)
@given(st.data())
def test_drained_rows_are_the_rows_that_the_updates_will_leave(data):
    state, updates = world_of(data)
    before = bytes_of(state)
    patches = drained_rows(BACKEND, state, state.specs, updates)
    after = real(state, updates)
    assert bytes_of(state) == before
    for name, spec in state.specs.items():
        touched = {row for update in updates for row in update.plans[name].row.tolist()}
        if updates_every_row(spec.optimizer) and updates:
            touched = set(range(ROWS))
        assert (name in patches) == bool(touched)
        if not touched:
            continue
        patch = patches[name]
        assert patch.rows.tolist() == sorted(touched)
        assert_same(name, patch.values.weights, after.weights[name][patch.rows])
        for slot, values in patch.values.slots.items():
            assert_same(f"{slot} of {name}", values, after.slots[name][slot][patch.rows])


@settings(max_examples=50)
@given(st.data())
def test_a_drained_state_and_a_drained_lookup_see_the_updates_and_change_nothing(data):
    state, updates = world_of(data)
    before = bytes_of(state)
    patches = drained_rows(BACKEND, state, state.specs, updates)
    after = real(state, updates)
    drained = drained_state(state, patches, version=7)
    assert drained.version == 7
    for name in state.specs:
        assert_same(name, drained.weights[name], after.weights[name])
        assert np.shares_memory(drained.weights[name], state.weights[name]) == (name not in patches)
        for slot, array in drained.slots[name].items():
            assert_same(f"{slot} of {name}", array, after.slots[name][slot])
            assert not array.flags.writeable
        assert not drained.weights[name].flags.writeable
    bags = st.lists(st.lists(st.integers(0, ROWS - 1), max_size=3), min_size=1, max_size=3)
    plans = {name: plan_of(name, data.draw(bags, label=f"looked up in {name}")) for name in patches}
    found = drained_lookup(BACKEND, state, state.specs, plans, patches)
    want = BACKEND.lookup(after, plans)
    assert list(found) == list(plans)
    for name, activations in found.items():
        assert_same(name, activations, want[name])
    assert bytes_of(state) == before


def test_nothing_pending_patches_nothing():
    state = state_of(OPTIMIZERS[:1], np.random.default_rng(0))
    assert drained_rows(BACKEND, state, state.specs, []) == {}


def test_updates_that_touch_no_row_patch_nothing():
    state = state_of(OPTIMIZERS[:1], np.random.default_rng(0))
    plans = {"t0": plan_of("t0", [[], []])}
    numbers = {"t0": coefficients(OPTIMIZERS[0], 0.3)}
    update = PendingUpdate(0, plans, plans, {"t0": np.ones((2, DIM), F)}, numbers)
    assert drained_rows(BACKEND, state, state.specs, [update]) == {}


def test_a_compact_state_holds_the_wanted_rows_alone():
    state = state_of(OPTIMIZERS[:2], np.random.default_rng(0))
    wanted = {"t0": np.array([1, 4], np.int32), "t1": np.zeros(0, np.int32)}
    small = compact_state(BACKEND, state, state.specs, wanted)
    assert list(small.specs) == ["t0"]
    assert small.specs["t0"].vocabulary_size == 2
    assert small.weights["t0"].tolist() == state.weights["t0"][[1, 4]].tolist()
    assert not np.shares_memory(small.weights["t0"], state.weights["t0"])


@given(st.data())
def test_an_overlay_writes_the_rows_that_both_have(data):
    sets = st.sets(st.integers(0, 9), min_size=1)
    rows, patched = (
        np.array(sorted(data.draw(sets, label=w)), np.int32) for w in ("rows", "patch")
    )
    weights = rows[:, None].astype(F)
    values = Rows(patched[:, None].astype(F) + 100, {})
    overlay(weights, rows, Patch(patched, values))
    assert weights[:, 0].tolist() == [row + 100 if row in patched else row for row in rows]


def test_the_work_is_on_the_rows_of_the_pending_plans():
    """A look while updates are pending must not go through a large table."""
    state, seen = state_of(OPTIMIZERS[:1], np.random.default_rng(0)), []

    def put_state(small):
        seen.append({name: array.shape for name, array in small.weights.items()})
        return small

    backend = SimpleNamespace(
        put_state=put_state,
        **{name: getattr(BACKEND, name) for name in ("get_state", "read_rows", "put_plan")},
        lookup=BACKEND.lookup,
        update=BACKEND.update,
    )
    plans = {"t0": plan_of("t0", [[3], [3, 3]])}
    numbers = {"t0": coefficients(OPTIMIZERS[0], 0.3)}
    update = PendingUpdate(0, plans, plans, {"t0": np.ones((2, DIM), F)}, numbers)
    patches = drained_rows(backend, state, state.specs, [update])
    drained_lookup(backend, state, state.specs, {"t0": plan_of("t0", [[0, 3], []])}, patches)
    assert seen == [{"t0": (1, DIM)}, {"t0": (2, DIM)}]


@pytest.mark.parametrize("bags", [[[]], [[], []]], ids=str)
def test_a_drained_lookup_without_rows_is_zeros(bags):
    state = state_of(OPTIMIZERS[:1], np.random.default_rng(0))
    found = drained_lookup(BACKEND, state, state.specs, {"t0": plan_of("t0", bags)}, {})
    assert_same("zeros", found["t0"], np.zeros((len(bags), DIM), F))
