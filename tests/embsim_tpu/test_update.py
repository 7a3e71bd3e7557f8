"""The update of a table against the reference's, on one device and on meshes."""

from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embsim.update as reference
from embsim.conformance.rules import Counting, EveryOperation
from embsim.conformance.tolerance import Accuracy, bounded_update, check_within, exact, sum_of
from embsim.optimizers import (
    FTRL,
    SGD,
    Adagrad,
    AdagradMomentum,
    Adam,
    RowwiseAdagrad,
    Slot,
    coefficients,
    updates_every_row,
)
from embsim_tpu._mesh import Shards
from embsim_tpu.kernels import choose
from embsim_tpu.placement import Placement
from embsim_tpu.plan import device_plan, even_parts
from embsim_tpu.state import put_table
from embsim_tpu.update import update
from tests.embsim.programs import assert_same
from tests.embsim_tpu.conftest import (
    BUCKETS,
    EXACT,
    REAL,
    F,
    capacities,
    mesh_of,
    numbers,
    plan_of,
    steps,
)

XLA_ON_CPU = Accuracy(subnormals=False)
MODEST = (0.0, 1.0, -1.0, 0.5, 2.0, 0.1, -0.3, 3.0, 1 / 3, 1e-3, -7.0, 11.0)


@dataclass(frozen=True)
class UnsortedSlots:
    """A user's optimizer, exact; the order of its slots is not that of their names."""

    learning_rate: float = 0.5
    slots: tuple[Slot, ...] = (Slot("sums"), Slot("rows", rowwise=True), Slot("last"))

    def coefficients(self, learning_rate):
        return {"one": 1.0, "lr": learning_rate}

    def rule(self, ops):
        def rule(w, g, slots, c):
            sums, rows, last = slots
            return w - c.lr * last, (sums + g, rows + c.one, g)

        return rule


EXACT_RULES = (
    SGD(1.0),
    SGD(0.5, clipvalue=(-2.0, 1.0), clip_weight_min=-8.0, weight_decay_factor=0.5),
    UnsortedSlots(),
)
RULES = (
    Adagrad(0.1),
    RowwiseAdagrad(0.1, clipvalue=2.0),
    AdagradMomentum(0.1, momentum=0.9, exponent=3, beta2=0.8, epsilon=0.1),
    Adam(0.1, clip_weight_max=1.0),
    Adam(0.1, lazy_adam=False, sum_inside_sqrt=False, weight_decay_factor=0.1),
    FTRL(0.1, l1_regularization_strength=0.1, l2_regularization_strength=0.2, beta=0.5),
    EveryOperation(0.1),
)


def label(optimizer):
    lazy = getattr(optimizer, "lazy_adam", True)
    return type(optimizer).__name__ + ("" if lazy else ", not lazy")


@cache
def update_on(shards, optimizer):
    def function(table, slots, plan, gradients, numbers):
        kernels = choose("xla", "cpu")
        return update(
            table, slots, plan, gradients, optimizer, numbers, axes=shards.axes, kernels=kernels
        )

    return jax.jit(shards.local(function, replicated=(4,)))


def updated(shards, table, slots, plan, gradients, optimizer, numbers):
    """Logical table and slots after the update; the padding of the shards' arrays stays zero."""
    placement = Placement(len(table), shards.size)
    put = {name: put_table(slot, shards) for name, slot in slots.items()}
    made = device_plan(plan, even_parts(plan.samples, shards.size), capacities(), shards)
    given = np.zeros((shards.size * made.samples, table.shape[1]), F)
    given[: plan.samples] = gradients
    program = update_on(shards, optimizer)
    new, new_slots = program(put_table(table, shards), put, made, shards.put(given), numbers)
    padding = np.ones(shards.size * placement.local_rows, bool)
    padding[placement.physical_row(np.arange(len(table)))] = False
    for name, array in {"table": new, **new_slots}.items():
        assert not np.asarray(array)[padding].view(np.uint32).any(), f"{name}: padding was trained"
    names = [slot.name for slot in optimizer.slots]
    found = {name: placement.join(np.asarray(new_slots[name])) for name in names}
    return placement.join(np.asarray(new)), found


def slots_of(optimizer, rows, dim, fill):
    return {s.name: fill((rows, 1 if s.rowwise else dim)) for s in optimizer.slots}


@pytest.mark.parametrize("optimizer", EXACT_RULES, ids=label)
@settings(max_examples=30)
@given(st.data())
def test_an_update_is_the_reference_s_where_sums_are_exact(shards, optimizer, data):
    step = data.draw(steps(EXACT, shards.size))
    bucket = step.bucket

    def fill(shape):
        return data.draw(numbers(shape, EXACT))

    slots, c = slots_of(optimizer, bucket.rows, bucket.dim, fill), coefficients(optimizer, 0.5)
    arguments = step.plan, step.gradients, optimizer, c
    found, found_slots = updated(shards, step.table, slots, *arguments)
    wanted, wanted_slots = step.table.copy(), {name: slot.copy() for name, slot in slots.items()}
    reference.update(wanted, wanted_slots, *arguments)
    assert_same("table", found, wanted)
    assert found_slots.keys() == wanted_slots.keys()
    for name, slot in found_slots.items():
        assert_same(name, slot, wanted_slots[name])


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("optimizer", RULES, ids=label)
@settings(max_examples=15)
@given(st.data())
def test_an_update_of_any_numbers_is_within_its_bound(devices, optimizer, data):
    shards, bucket = Shards(mesh_of(devices)), BUCKETS[1]
    step = data.draw(steps(REAL, devices, [bucket], table=MODEST))

    def fill(shape):
        return abs(data.draw(numbers(shape, MODEST))) + F(0.125)

    slots, c = slots_of(optimizer, bucket.rows, bucket.dim, fill), coefficients(optimizer, 0.1)
    found = updated(shards, step.table, slots, step.plan, step.gradients, optimizer, c)
    check_bounds(step, slots, optimizer, c, *found)


def check_bounds(step, slots, optimizer, c, table, found):
    parts = {row: [] for row in range(step.bucket.rows)} if updates_every_row(optimizer) else {}
    for sample, bag in enumerate(step.bags):
        for row, gain in bag:
            term = exact(F(gain), XLA_ON_CPU) * exact(step.gradients[sample], XLA_ON_CPU)
            parts.setdefault(row, []).append(term)
    none = exact(np.zeros(step.bucket.dim), XLA_ON_CPU)
    for row in range(step.bucket.rows):
        before = [step.table[row], *(slot[row] for slot in slots.values())]
        after = [table[row], *(slot[row] for slot in found.values())]
        if row not in parts:
            assert [a.tobytes() for a in after] == [b.tobytes() for b in before], f"row {row}"
            continue
        gradient = sum_of(parts[row]) if parts[row] else none
        w, *s = (exact(each, XLA_ON_CPU) for each in before)
        with np.errstate(all="ignore"):
            bound, slot_bounds = bounded_update(optimizer, w, s, [gradient], c)
        wanted = [bound, *slot_bounds]
        for name, array, limit in zip(["weights", *found], after, wanted, strict=True):
            check_within(f"{name} of row {row}", array, limit)


@pytest.mark.parametrize("optimizer", [EXACT_RULES[1], *RULES], ids=label)
@pytest.mark.parametrize("devices", [1, 8])
def test_rows_outside_the_plan_keep_their_bits(devices, optimizer):
    """Even NaNs, with their payload, subnormals and the sign of a zero; of a table that is larger
    than a plan's capacity."""
    if updates_every_row(optimizer):
        return
    draw = np.random.default_rng(0)
    plan = plan_of([[(2, 1.0), (7, 0.5)], [(2, 0.0)], [(9, 1.0)]], 4000)

    def fill(shape):
        array = draw.integers(0, 2**32, shape, np.uint32).view(F)
        array[:2] = [[1e-45], [-0.0]]
        return array

    table, slots = fill((4000, 2)), slots_of(optimizer, 4000, 2, fill)
    gradients, c = draw.normal(size=(3, 2)).astype(F), coefficients(optimizer, 0.3)
    found, found_slots = updated(
        Shards(mesh_of(devices)), table, slots, plan, gradients, optimizer, c
    )
    rest = np.setdiff1d(np.arange(4000), [2, 7, 9])
    assert found[rest].tobytes() == table[rest].tobytes()
    for name, slot in found_slots.items():
        assert slot[rest].tobytes() == slots[name][rest].tobytes(), name


def test_non_lazy_adam_updates_every_row_also_for_an_empty_plan(shards):
    optimizer = Adam(1.0, beta_1=0.5, beta_2=0.5, epsilon=2.0**-60, lazy_adam=False)
    slots = {"momenta": F([[2], [4], [8]]), "velocities": F([[2], [2], [8]])}
    arguments = np.zeros((3, 1), F), slots, plan_of([[]], 3), np.ones((1, 1), F), optimizer
    table, found = updated(shards, *arguments, coefficients(optimizer, 1))
    assert found["momenta"].tolist() == [[1], [2], [4]]
    assert found["velocities"].tolist() == [[1], [1], [4]]
    assert table.tolist() == [[-1], [-2], [-2]]


def test_rows_that_several_devices_touch_are_updated_once(shards):
    """Every sample has the same id: each device sums its own, and the shard the devices' sums."""
    bucket = BUCKETS[2]
    plan = plan_of([[(9, 1.0), (9, 0.5)]] * bucket.samples, bucket.rows)
    table, gradients = np.zeros((bucket.rows, 2), F), np.full((bucket.samples, 2), 2, F)
    optimizer = Counting(1.0)
    slots = {"updates": np.zeros((bucket.rows, 2), F), "rows": np.zeros((bucket.rows, 1), F)}
    table, slots = updated(
        shards, table, slots, plan, gradients, optimizer, coefficients(optimizer, 1.0)
    )
    assert table[9].tolist() == [-3.0 * bucket.samples] * 2
    assert slots["rows"][9].tolist() == [1]
    assert slots["updates"].sum() == 2


def test_the_coefficients_are_arguments():
    """Another rate runs the same program."""
    shards, optimizer, plan = Shards(), SGD(1.0), plan_of([[(0, 1.0)]], 1)
    table, gradients = F([[8]]), F([[1]])
    for rate in (1.0, 4.0):
        c = coefficients(optimizer, rate)
        found, _ = updated(shards, table, {}, plan, gradients, optimizer, c)
        assert found.tolist() == [[8 - rate]]
    assert update_on(shards, optimizer)._cache_size() <= 2 * len(BUCKETS)


def test_the_defaults_are_one_device_and_plain_xla():
    plan = plan_of([[(1, 2.0)]], 2)
    made = device_plan(plan, even_parts(1, 1), capacities(), Shards())
    table, slots = update(
        jnp.array([[1.0], [1.0]]), {}, made, jnp.array([[3.0]]), SGD(), {"lr": np.float32(0.5)}
    )
    assert table.tolist() == [[1], [-2]]
    assert slots == {}


def test_a_rule_may_return_what_one_number_of_its_row_gives():
    """The slot of width 1 stands beside a table of any width."""
    rule = RowwiseAdagrad(1.0, epsilon=0.0).rule(choose("xla", "cpu").ops)
    w, (a,) = rule(
        jnp.array([[2.0, 0.0]]),
        jnp.array([[4.0, 4.0]]),
        (jnp.array([[48.0]]),),
        SimpleNamespace(lr=1.0, eps=0.0),
    )
    assert (w.tolist(), a.tolist()) == ([[1.5, -0.5]], [[64]])
