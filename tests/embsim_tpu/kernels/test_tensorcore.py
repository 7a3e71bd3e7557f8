"""TensorCore against Xla: the same numbers and the same bits, however the rows lie.

Here numbers are such that every operation is exact. The optimizers' own rules, on any numbers, run
in processes whose XLA_FLAGS forbid to fuse multiplications and additions.
"""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embsim import QuantizationConfig
from embsim.optimizers import (
    FTRL,
    SGD,
    Adagrad,
    AdagradMomentum,
    Adam,
    RowwiseAdagrad,
    coefficients,
    updates_every_row,
)
from embsim.optimizers.base import Slot
from embsim_tpu._mesh import Shards
from embsim_tpu.backend import BITWISE_FLAGS
from embsim_tpu.kernels import Formula, choose
from embsim_tpu.kernels.bfloat16 import rounded, widened
from embsim_tpu.kernels.launch import Launch, power
from embsim_tpu.kernels.records import Records
from embsim_tpu.kernels.tensorcore import TensorCore
from embsim_tpu.plan import device_plan, even_parts
from tests.embsim.programs import assert_same
from tests.embsim_tpu.conftest import EXACT, Bucket, F, bags_of, capacities, numbers, plan_of
from tests.nightly import nightly

ROOT = Path(__file__).parents[3]
ROWS, SAMPLES = 37, 17
# Several chunks and blocks of each kind, and remainders.
LAUNCH = Launch(interpret=True, lookup=16, update=8, samples=8, unroll=2, block=8)
XLA = choose("xla", "cpu")
HALF_XLA = choose("xla", "cpu", bfloat16=True)


@dataclass(frozen=True)
class Moved:
    """A user's rule, exact: two slots as wide as the table, and one number for each row."""

    learning_rate: float = 0.5
    slots: tuple = (Slot("sums"), Slot("rows", rowwise=True), Slot("last"))

    def coefficients(self, learning_rate):
        return {"one": 1.0, "lr": learning_rate}

    def rule(self, ops):
        def rule(w, g, slots, c):
            sums, rows, last = slots
            return w - c.lr * last, (sums + g, rows + c.one, g)

        return rule


def tensorcore(dim, optimizer=None, exact=False, launch=LAUNCH, half=False):
    return TensorCore.of(dim, optimizer, exact=exact, launch=launch, bfloat16=half)


def plans_of(kernels, plan):
    """The plan as these kernels and as XLA's have it."""
    given = plan, even_parts(plan.samples, 1), capacities(), Shards()
    return device_plan(*given, kernels.sizes), device_plan(*given)


def slots_of(optimizer, rows, dim, fill):
    slots = () if optimizer is None else optimizer.slots
    return {slot.name: fill((rows, 1 if slot.rowwise else dim)) for slot in slots}


def any_bits(seed):
    """Of not-a-numbers with their payload, subnormals, and zeros of either sign, too."""
    draw = np.random.default_rng(seed)

    def fill(shape):
        array = draw.integers(0, 2**32, shape, np.uint32).view(F)
        array[:2] = [[1e-45], [-0.0]]
        return array

    return fill


def held(half, table):
    """Numbers that the table can have."""
    return widened(rounded(table, np), np) if half else table


def assert_bits(what, found, wanted):
    for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        leaf, other = np.asarray(leaf), np.asarray(other)
        assert leaf.shape == other.shape, what
        where = np.flatnonzero((leaf.view(np.int32) != other.view(np.int32)).reshape(-1))
        assert not len(where), f"{what}: at {where[:9]}: {leaf.flat[where[:9]]}"


# --- lookup -------------------------------------------------------------------------------------

QUANTIZED = QuantizationConfig(9, -4.0, 4.0)
# Widths and slots: a record's first lines are an array of their own, a part of one, or two arrays.
LOOKUPS = [
    (1, SGD(0.1), None),
    (3, Adam(0.1), QUANTIZED),
    (32, Adagrad(0.1), None),
    (100, FTRL(0.1), None),
    (128, Adagrad(0.1), QUANTIZED),
    (256, SGD(0.1), None),
    (384, SGD(0.1), None),
    (384, Adagrad(0.1), None),
]
HALF_LOOKUPS = [
    (1, SGD(0.1), None),
    (3, Adam(0.1), QUANTIZED),
    (32, Adagrad(0.1), None),
    (100, FTRL(0.1), None),
    (128, Adagrad(0.1), QUANTIZED),
    (128, SGD(0.1), None),
    (200, SGD(0.1), QUANTIZED),
    (256, Adagrad(0.1), None),
    (384, Adagrad(0.1), None),
    (384, SGD(0.1), None),
]
EITHER = [(*each, False) for each in LOOKUPS] + [(*each, True) for each in HALF_LOOKUPS]


def label(value):
    if isinstance(value, bool):
        return "bfloat16" if value else "float32"
    if isinstance(value, QuantizationConfig | None):
        return "quantized" if value else "plain"
    return type(value).__name__ if hasattr(value, "slots") else f"dim {value}"


@cache
def looked_up(kernels, quantization):
    return jax.jit(lambda weights, plan: kernels.sum_bags(weights, plan, quantization))


@pytest.mark.parametrize("dim, optimizer, quantization, half", EITHER, ids=label)
@settings(max_examples=12)
@given(st.data())
def test_a_lookup_is_xla_s(dim, optimizer, quantization, half, data):
    """Of ragged bags, empty and long ones, one id in each, and none."""
    bucket, kernels = Bucket(ROWS, dim, SAMPLES), tensorcore(dim, optimizer, half=half)
    plan, plain = plans_of(kernels, plan_of(data.draw(bags_of(bucket, EXACT)), ROWS))
    table = data.draw(numbers((ROWS, dim), EXACT))
    slots = slots_of(optimizer, ROWS, dim, lambda shape: np.full(shape, 7, F))
    weights, _ = kernels.split(table, slots, np)
    found = looked_up(kernels, quantization)(weights, plan)
    wanted = looked_up(XLA, quantization)(table, plain)
    assert_same("activations", np.asarray(found), np.asarray(wanted))


@pytest.mark.parametrize("dim", [3, 128, 384])
@settings(max_examples=8)
@given(st.data())
def test_the_gradients_of_rows_are_xla_s(dim, data):
    bucket, kernels = Bucket(ROWS, dim, SAMPLES), tensorcore(dim, Adagrad(0.1))
    plan, plain = plans_of(kernels, plan_of(data.draw(bags_of(bucket, EXACT)), ROWS))
    gradients = data.draw(numbers((SAMPLES, dim), EXACT))
    found, wanted = (
        np.asarray(summed(each, plan.asked.size)(gradients, its))
        for each, its in ((kernels, plan), (XLA, plain))
    )
    unique = np.count_nonzero(np.asarray(plain.asked) < ROWS)
    assert found.shape == wanted.shape
    assert_same("row gradients", found[:unique], wanted[:unique])


@cache
def summed(kernels, rows):
    return jax.jit(lambda gradients, plan: kernels.sum_rows(gradients, plan, rows))


def test_contributions_are_added_in_their_order():
    """2^24 + 1 + 1 is 2^24, 1 + 1 + 2^24 is not, in floats; across chunks, too."""
    kernels = tensorcore(1, SGD(0.1))
    table = np.ones((ROWS, 1), F)
    table[0] = 2.0**24
    weights, _ = kernels.split(table, {}, np)
    for bag in ([0, *[1] * 31], [*[1] * 31, 0], [*[1] * 15, 0, *[1] * 16]):
        bags = [[(row, 1.0) for row in bag]] + [[]] * (SAMPLES - 1)
        wanted = F(0)
        for row in bag:
            wanted = wanted + table[row, 0]
        plan, _ = plans_of(kernels, plan_of(bags, ROWS))
        assert looked_up(kernels, None)(weights, plan)[0].tolist() == [wanted]


@pytest.mark.parametrize("half", [False, True], ids=label)
@pytest.mark.parametrize("dim, optimizer", [(3, Adam(0.1)), (384, Adagrad(0.1))], ids=label)
def test_rows_are_read_whatever_they_are(dim, optimizer, half):
    """Rows beyond the table are read as any."""
    kernels, fill = tensorcore(dim, optimizer, half=half), any_bits(dim)
    table, slots = held(half, fill((ROWS, dim))), slots_of(optimizer, ROWS, dim, fill)
    weights, _ = kernels.split(table, slots, np)
    rows = np.array([5, 0, 36, 36, 4000, 1, 2**30, 12, 35], np.int32)
    found = np.asarray(jax.jit(kernels.read)(weights, rows))
    inside = rows < ROWS
    assert_bits("rows", found[inside], table[rows[inside]])
    assert found.shape == (len(rows), dim)


def test_a_plan_of_other_kernels_is_refused():
    kernels = tensorcore(32, SGD(0.1))
    weights, _ = kernels.split(np.zeros((ROWS, 32), F), {}, np)
    _, plain = plans_of(kernels, plan_of([[(0, 1.0), (1, 1.0)]] + [[]] * 16, ROWS))
    with pytest.raises(AssertionError, match="a plan that was made for other kernels"):
        kernels.sum_bags(weights, plain, None)


# --- update -------------------------------------------------------------------------------------

UPDATED = 24  # rows that an update names, padding included
UPDATES = [
    (1, SGD(0.5)),
    (3, Moved()),
    (32, Moved()),
    (100, SGD(0.5)),
    (128, Moved()),
    (384, Moved()),
]
HALF_UPDATES = (1, 3, 32, 100, 128, 200, 256, 384)
EITHER_UPDATES = [(*each, False) for each in UPDATES] + [
    (dim, SGD(0.5) if dim in (1, 100, 256) else Moved(), True) for dim in HALF_UPDATES
]


@cache
def updated(kernels, optimizer):
    names = tuple(coefficients(optimizer, 0.5))

    @jax.jit
    def run(weights, slots, rows, gradients, values, local_rows):
        formula = Formula(optimizer, names, values)
        if updates_every_row(optimizer):
            return kernels.update_all(weights, slots, rows, gradients, formula, local_rows)
        return kernels.update_rows(weights, slots, rows, gradients, formula, ROWS)

    return run


def update_by(kernels, optimizer, table, slots, *given):
    """Weights as they lie, and all joined."""
    values = np.array(list(coefficients(optimizer, 0.5).values()), F)
    rows, gradients, local_rows = given
    stored = kernels.split(table, slots, np)
    weights, beside = updated(kernels, optimizer)(
        *stored, rows, gradients, values, np.array([local_rows], np.int32)
    )
    weights, beside = jax.tree.map(np.asarray, (weights, beside))
    return weights, kernels.join(weights, beside, ROWS, np)


def padded(rows):
    """As a plan has them: ascending, then beyond the table."""
    out = ROWS + np.arange(UPDATED, dtype=np.int32)
    out[: len(rows)] = sorted(rows)
    return out


CHOSEN = st.sets(st.integers(0, ROWS - 1), max_size=UPDATED) | st.just({0, ROWS - 1})


@pytest.mark.parametrize("dim, optimizer, half", EITHER_UPDATES, ids=label)
@settings(max_examples=10)
@given(CHOSEN, st.integers(0, 99))
def test_an_update_changes_the_rows_that_are_named_and_no_other_bit(
    dim, optimizer, half, chosen, seed
):
    """Also not of rows in the same records, nor of padding."""
    kernels, fill = tensorcore(dim, optimizer, half=half), any_bits(seed)
    table, slots = held(half, fill((ROWS, dim))), slots_of(optimizer, ROWS, dim, fill)
    draw, most = np.random.default_rng(seed), 999 if half else 9  # of those some are rounded
    for array in (table, *slots.values()):
        array[sorted(chosen)] = draw.integers(-most, most, (len(chosen), array.shape[1]))
    gradients = draw.integers(-9, 9, (UPDATED, dim)).astype(F)
    given = padded(chosen), gradients, ROWS
    weights, (found, found_slots) = update_by(kernels, optimizer, table, slots, *given)
    plain = HALF_XLA if half else XLA
    _, (wanted, wanted_slots) = update_by(plain, optimizer, table, slots, *given)
    rest = np.setdiff1d(np.arange(ROWS), sorted(chosen))
    assert_bits("the table", found, wanted)
    assert_bits("rows that were not named", found[rest], table[rest])
    for name, array in slots.items():
        assert_bits(name, found_slots[name], wanted_slots[name])
        assert_bits(name, found_slots[name][rest], array[rest])
    # Of w and slots no rule but the sum changes a 0 whose gradient is 0.
    padding, _ = kernels.split(wanted, wanted_slots, np)
    assert_bits("padding", weights, padding)


@pytest.mark.parametrize("dim", [3, 128, 200])
def test_the_other_half_of_a_word_keeps_any_bits(dim):
    """Of not-a-numbers with their payload, which rounding would change."""
    optimizer = Moved()
    kernels, draw = tensorcore(dim, optimizer, half=True), np.random.default_rng(dim)
    slots = slots_of(optimizer, ROWS, dim, lambda shape: np.zeros(shape, F))
    stored = kernels.split(np.zeros((ROWS, dim), F), slots, np)
    pieces, beside = jax.tree.map(
        lambda array: draw.integers(0, 2**32, array.shape, np.uint32).view(array.dtype), stored
    )
    chosen, gradients = [0, 3, 5, 20], np.ones((UPDATED, dim), F)
    values = np.array(list(coefficients(optimizer, 0.5).values()), F)
    run, local_rows = updated(kernels, optimizer), np.array([ROWS], np.int32)
    before = kernels.join(pieces, beside, ROWS, np)
    found = run(pieces, beside, padded(chosen), gradients, values, local_rows)
    after = kernels.join(*jax.tree.map(np.asarray, found), ROWS, np)
    rest = np.setdiff1d(np.arange(ROWS), chosen)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        assert_bits("rows that were not named", a[rest], b[rest])
        assert a[chosen].tobytes() != b[chosen].tobytes()


@pytest.mark.parametrize("local_rows", [0, 1, 30, ROWS])
@pytest.mark.parametrize(
    "dim, half", [(3, False), (128, False), (3, True), (128, True), (384, True)], ids=label
)
def test_an_update_of_every_row_leaves_padding_as_it_is(dim, half, local_rows):
    """And gives a gradient of 0 to what is not named."""
    optimizer, plain = replace(Moved(), learning_rate=0.25), HALF_XLA if half else XLA
    kernels, fill = tensorcore(dim, optimizer, half=half), any_bits(0)
    draw = np.random.default_rng(local_rows)
    table, slots = held(half, fill((ROWS, dim))), slots_of(optimizer, ROWS, dim, fill)
    for array in (table, *slots.values()):
        array[:local_rows] = draw.integers(-9, 9, (local_rows, array.shape[1]))
    rows = padded({row for row in (0, 1, 7, 29) if row < local_rows})
    gradients = draw.integers(-9, 9, (UPDATED, dim)).astype(F)
    values = np.array(list(coefficients(optimizer, 0.25).values()), F)

    @jax.jit
    def run(kernels_stored, plain_stored):
        formula = Formula(optimizer, ("one", "lr"), values)
        given = rows, gradients, formula, jnp.array([local_rows])
        return kernels.update_all(*kernels_stored, *given), plain.update_all(*plain_stored, *given)

    stored = kernels.split(table, slots, np)
    found, wanted = jax.tree.map(np.asarray, run(stored, plain.split(table, slots, np)))
    wanted = plain.join(*wanted, ROWS, np)
    assert_bits("all", kernels.join(*found, ROWS, np), wanted)
    assert_bits("padding", wanted[0][local_rows:], table[local_rows:])
    assert_bits("padding of records", found[0], kernels.split(*wanted, np)[0])


# --- rows as they are ---------------------------------------------------------------------------


@pytest.mark.parametrize("half", [False, True], ids=label)
@pytest.mark.parametrize(
    "dim, optimizer", [(3, Moved()), (32, Adam(0.1)), (384, Moved())], ids=label
)
class TestBits:
    def stored(self, dim, optimizer, half, rows=ROWS):
        kernels, fill = tensorcore(dim, optimizer, half=half), any_bits(1)
        table, slots = held(half, fill((rows, dim))), slots_of(optimizer, rows, dim, fill)
        return kernels, table, slots, kernels.split(table, slots, np)

    def test_split_is_undone_by_join(self, dim, optimizer, half):
        kernels, table, slots, (weights, beside) = self.stored(dim, optimizer, half)
        assert beside.keys() == {slot.name for slot in optimizer.slots if slot.rowwise}
        assert {len(piece) for piece in weights} == {kernels.length(ROWS)}
        joined, found = kernels.join(weights, beside, ROWS, np)
        assert_bits("table", joined, table)
        assert found.keys() == slots.keys()
        for name, array in slots.items():
            assert_bits(name, found[name], array)

    def test_what_is_taken_is_put_back(self, dim, optimizer, half):
        kernels, table, slots, stored = self.stored(dim, optimizer, half)
        rows = padded({0, 1, 5, 6, ROWS - 1})

        @jax.jit
        def back(weights, slots, others):
            taken = kernels.take(weights, slots, rows, ROWS)
            return kernels.put(*others, rows, taken, ROWS)

        others = jax.tree.map(np.zeros_like, stored)
        found = jax.tree.map(np.asarray, back(*stored, others))
        joined, found_slots = kernels.join(*found, ROWS, np)
        # With the rows beside them in their records, and no others.
        pack = kernels.records.pack
        records = {row // pack for row in rows if row < ROWS}
        for row in range(ROWS):
            wanted = table[row] if row // pack in records else np.zeros(dim, F)
            assert_bits(f"row {row}", joined[row], wanted)
        for name, array in slots.items():
            named = sorted({row for row in rows.tolist() if row < ROWS})
            assert_bits(name, found_slots[name][named], array[named])
        for piece, whole in zip(found[0], stored[0], strict=True):
            assert_bits("records", piece[sorted(records)], whole[sorted(records)])

    def test_rows_are_read_to_the_bit_from_all_shards(self, dim, optimizer, half):
        kernels, table, slots, first = self.stored(dim, optimizer, half)
        second = jax.tree.map(lambda array: array[::-1].copy(), (table, slots))
        shards = jax.tree.map(lambda *a: np.concatenate(a), first, kernels.split(*second, np))
        rows = np.array([0, 3, ROWS - 1, ROWS, ROWS + 4, 2 * ROWS - 1], np.int32)
        found, found_slots = jax.jit(lambda *a: kernels.bits(*a, ROWS))(*shards, rows)
        assert_bits("table", found, np.concatenate([table, second[0]])[rows])
        assert found_slots.keys() == slots.keys()
        for name, array in slots.items():
            whole = np.concatenate([array, second[1][name]])
            assert_bits(name, found_slots[name], whole[rows])


# --- sizes --------------------------------------------------------------------------------------


def test_wide_slots_lie_in_the_records():
    kernels = TensorCore.of(64, Moved(), exact=False, launch=LAUNCH)
    assert kernels.beside == ("sums", "last")
    assert (kernels.records, kernels.alone) == (Records(64, 3), Records(64))
    assert TensorCore.of(64, None, exact=False, launch=LAUNCH).records == Records(64)


@given(st.integers(0, 2**20))
def test_the_next_power_of_two(number):
    assert power(number) >= max(number, 1) and (number < 2 or power(number) < 2 * number)
    assert power(number).bit_count() == 1


@given(st.integers(1, 2000), st.integers(0, 2**17), st.integers(0, 2**20))
def test_chunks_and_blocks_fit_into_the_chip_s_memory(dim, samples, positions):
    kernels = TensorCore.of(dim, None, exact=False, launch=Launch())
    sizes, lanes = kernels.sizes(samples, positions), kernels.alone.lines * 128
    assert sizes.chunk >= 8 and sizes.chunk.bit_count() == 1
    assert sizes.samples >= 8 and sizes.samples.bit_count() == 1
    if dim <= 1024:
        assert 4 * lanes * (2 * sizes.chunk + 2 * sizes.samples) <= 2**22
    # Of chunks that are filled in part there are few.
    assert sizes.chunks(samples, positions) <= max(
        4, 2 * positions // sizes.chunk + samples // 8 + 2
    )


@pytest.mark.parametrize("lines, rows", [(1, 256), (2, 128), (3, 64), (4, 64), (24, 8), (1000, 8)])
def test_of_longer_rows_a_chunk_has_fewer(lines, rows):
    assert Launch().rows(256, lines) == rows


# --- in processes of their own ------------------------------------------------------------------

# Every optimizer packed, of one line and of several, by both kinds of operations.
RULES = (
    [
        (1, SGD(0.1), False),
        (384, SGD(0.5, clipvalue=(-2.0, 1.0), clip_weight_min=-1.0, weight_decay_factor=0.5), True),
        (3, Adagrad(0.1), False),
        (256, Adagrad(0.1, clip_weight_max=1.0), True),
        (32, Adam(0.1), True),
        (100, Adam(0.1, sum_inside_sqrt=False), False),
        (32, RowwiseAdagrad(0.1), False),
    ],
    [
        (100, AdagradMomentum(0.1, 0.9), False),
        (3, AdagradMomentum(0.1, 0.9, use_nesterov=True), True),
        (128, FTRL(0.1, l1_regularization_strength=0.1), False),
        (32, FTRL(0.1, l2_regularization_strength=0.2, beta=0.5), True),
        (384, RowwiseAdagrad(0.1), True),
        (32, Adam(0.1, lazy_adam=False), False),
        (256, Adam(0.1, lazy_adam=False), True),
    ],
)
PLAIN = replace(LAUNCH, unroll=1)


def rules(part, half):
    """Each optimizer's update equals XLA's to the bit, on any numbers."""
    for number, (dim, optimizer, exact) in enumerate(RULES[part]):
        draw, plain = np.random.default_rng(number), HALF_XLA if half else XLA
        kernels = tensorcore(dim, optimizer, exact, PLAIN, half)
        table = held(half, draw.normal(size=(ROWS, dim)).astype(F))

        def fill(shape, draw=draw):
            return draw.uniform(0.1, 2, shape).astype(F)

        slots = slots_of(optimizer, ROWS, dim, fill)
        chosen = set(draw.choice(ROWS, 15, replace=False).tolist())
        gradients = draw.normal(size=(UPDATED, dim)).astype(F)
        if isinstance(optimizer, RowwiseAdagrad):
            gradients = np.round(4 * gradients)  # the sum of its squares is exact
        given = padded(chosen), gradients, ROWS
        _, found = update_by(kernels, optimizer, table, slots, *given)
        _, wanted = update_by(plain, optimizer, table, slots, *given)
        for name, (a, b) in {
            "the table": (found[0], wanted[0]),
            **{name: (found[1][name], wanted[1][name]) for name in slots},
        }.items():
            assert_bits(f"{optimizer}, dim {dim}, exact={exact}: {name}", a, b)
        changed = (wanted[0] != table).any(axis=1)
        assert changed[sorted(chosen)].all()
        assert changed.all() == updates_every_row(optimizer)
        print("equal", optimizer)


@pytest.mark.parametrize("half", [False, pytest.param(True, marks=nightly)], ids=label)
@pytest.mark.parametrize("part", range(len(RULES)))
def test_the_rules_of_optimizers_equal_xla_s(part, half):
    program = f"from tests.embsim_tpu.kernels import test_tensorcore as t; t.rules({part}, {half})"
    flags = " ".join((*BITWISE_FLAGS, "--xla_backend_optimization_level=0"))
    process = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.count("equal") == len(RULES[part])
