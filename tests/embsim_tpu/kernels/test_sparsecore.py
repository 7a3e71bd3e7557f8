"""The kernels for SparseCores: interpreted they equal NumPy to the bit; for TPUs they compile.

XLA fuses a * b + c on a CPU. Where both are compared in this process, products are exact; the rules
of optimizers run in processes whose XLA_FLAGS forbid it, and so do kernels with planted bugs, since
the interpreter of JAX 0.10 does not recover from an error.
"""

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec

from embsim.errors import BackendError
from embsim.optimizers import (
    FTRL,
    SGD,
    Adagrad,
    Adam,
    NumpyOps,
    RowwiseAdagrad,
    coefficients,
    row_update,
)
from embsim_tpu import aot
from embsim_tpu.kernels import sparsecore
from embsim_tpu.kernels.sparsecore import Blocks, Records
from tests.embsim_tpu.conftest import REAL, F, numbers

ROOT = Path(__file__).parents[3]
RACES = {"detect_races": True, "vector_clock_size": 64, "num_cores_or_threads": 2}
MODES = {
    "waits": pltpu.InterpretParams(),
    "eager": pltpu.InterpretParams(dma_execution_mode="eager"),
    "races": pltpu.InterpretParams(**RACES),
    "races, eager": pltpu.InterpretParams(dma_execution_mode="eager", **RACES),
}
ROUNDED_ONCE = "--xla_cpu_max_isa=AVX --xla_disable_hlo_passes=algsimp"
OPTIMIZERS = (SGD(0.1), Adagrad(0.1), Adam(0.1), FTRL(0.1))


def blocks_of(records):
    """Small ones, so that there are several of each."""
    return Blocks(positions=16, samples=8 * records.pack, rows=8)


def put(streams, records):
    """Streams of [rows, width] as records."""
    physical, _ = records.shape(len(streams[0]))
    whole = [np.zeros((physical * records.pack, records.width), F) for _ in streams]
    for stream, values in zip(whole, streams, strict=True):
        stream[: len(values)] = values
    return np.concatenate([stream.reshape(physical, records.lanes) for stream in whole], axis=1)


def assert_same_bits(found, wanted):
    np.testing.assert_array_equal(np.asarray(found).view(np.int32), wanted.view(np.int32))


# --- lookup -----------------------------------------------------------------------------------

POSITIONS, ROWS = 80, 40


@cache
def looked_up(records, mode):
    return jax.jit(
        lambda *arguments: sparsecore.lookup(
            *arguments, records, blocks=blocks_of(records), interpret=MODES[mode]
        )
    )


def samples_of(records):
    """Of which each worker has two blocks, and the last worker a part."""
    return 18 * records.pack


def left_to_right(table, ids, offsets, gains):
    out = np.zeros((len(offsets) - 1, table.shape[1]), F)
    for sample, (first, end) in enumerate(pairwise(offsets)):
        for position in range(first, end):
            out[sample] = out[sample] + gains[position] * table[ids[position]]
    return out


@st.composite
def lookups(draw, records):
    """Ids, bags of any lengths, and gains whose products are exact."""
    ids = draw(hnp.arrays(np.int32, POSITIONS, elements=st.integers(0, ROWS - 1)), label="ids")
    samples = samples_of(records)
    cuts = draw(hnp.arrays(np.int32, samples, elements=st.integers(0, POSITIONS)), label="cuts")
    offsets = np.sort(np.append(cuts, np.int32(draw(st.sampled_from((0, 1, 9))))))
    gains = draw(numbers(POSITIONS, (1.0, 0.0, -1.0, 0.5, 2.0)), label="gains")
    return draw(numbers((ROWS, records.width), REAL), label="table"), ids, offsets, gains


def assert_lookup(records, mode, given):
    table, *rest = given
    streams = [table] + [np.full_like(table, np.nan)] * (records.streams - 1)
    found = looked_up(records, mode)(put(streams, records), *rest)
    assert_same_bits(found, left_to_right(table, *rest))


@pytest.mark.parametrize(
    "dim, slots, mode",
    [
        (16, 0, "races, eager"),
        (40, 1, "races"),
        (128, 2, "waits"),
        (200, 0, "eager"),
    ],
)
def test_a_lookup_adds_from_left_to_right(dim, slots, mode, capfd):
    records = Records.of(dim, slots)

    @settings(max_examples=2 if "races" in mode else 4)
    @given(lookups(records))
    def check(given):
        assert_lookup(records, mode, given)

    check()
    assert "RACE" not in capfd.readouterr().out


@pytest.mark.parametrize("mode", ["eager", "races, eager"])
def test_a_bag_may_be_longer_than_a_window_and_a_worker_without_ids(mode, capfd):
    draw, records = np.random.default_rng(0), Records.of(16, 0)
    table, gains = draw.standard_normal((ROWS, 16)).astype(F), np.ones(POSITIONS, F)
    ids = draw.integers(0, ROWS, POSITIONS, np.int32)
    for sample in (0, samples_of(records) - 1):
        offsets = np.where(np.arange(samples_of(records) + 1) <= sample, 3, 78).astype(np.int32)
        assert_lookup(records, mode, (table, ids, offsets, gains))
    assert "RACE" not in capfd.readouterr().out


@pytest.mark.parametrize("positions, samples", [(0, 3), (5, 0), (1, 1)])
def test_there_may_be_few_ids_or_samples(positions, samples):
    table = np.arange(ROWS * 32, dtype=F).reshape(ROWS, 32)
    offsets = np.full(samples + 1, positions, np.int32)
    offsets[0] = 0
    given = table, np.zeros(positions, np.int32), offsets, np.ones(positions, F)
    assert_lookup(Records.of(32, 0), "waits", given)


# --- update -----------------------------------------------------------------------------------

PHYSICAL, UPDATES = 60, 51


def halved(w, g, slots, c):
    """Exact products: c is a power of two."""
    return w - c[0] * g, tuple(slot + c[1] for slot in slots)


@cache
def updated(records, mode, masked, rule=halved):
    def run(array, rows, gradients, c, mask, count):
        return sparsecore.update(
            array,
            rows,
            gradients,
            rule,
            c,
            records,
            mask=mask if masked else None,
            count=count,
            blocks=blocks_of(records),
            interpret=MODES[mode],
        )

    return jax.jit(run)


def updated_by_hand(array, rows, gradients, row, mask, count, records):
    out = array.copy()
    for i, physical in enumerate(rows[:count]):
        if physical < len(array):
            w, *slots = array[physical].reshape(records.streams, -1)
            new, new_slots = row(w, gradients[i], tuple(slots))
            made = np.stack([new, *new_slots])
            before = array[physical].reshape(made.shape)
            out[physical] = np.where(mask[i] != 0, made, before).reshape(-1)
    return out


def drawn_update(records, seed, real=UPDATES):
    """`real` rows, then some beyond the array."""
    draw = np.random.default_rng(seed)
    array = np.abs(draw.standard_normal((PHYSICAL, records.streams * records.lanes))).astype(F)
    rows = PHYSICAL + np.arange(UPDATES, dtype=np.int32)
    rows[:real] = np.sort(draw.choice(PHYSICAL, real, replace=False))
    gradients = draw.standard_normal((UPDATES, records.lanes)).astype(F)
    mask = draw.integers(0, 2, gradients.shape).astype(np.int32)
    return array, rows, gradients, mask


@pytest.mark.parametrize(
    "dim, slots, mode, masked",
    [
        (32, 1, "races", True),
        (128, 0, "races, eager", False),
        (200, 2, "eager", False),
    ],
)
def test_an_update_changes_its_rows_and_no_others(dim, slots, mode, masked, capfd):
    records, c = Records.of(dim, slots), np.array([0.5, 1.0], F)

    @settings(max_examples=2 if "races" in mode else 4)
    @given(st.integers(0, 99), st.integers(0, UPDATES), st.integers(0, UPDATES))
    def check(seed, real, count):
        array, rows, gradients, mask = drawn_update(records, seed, real)
        mask = mask if masked else np.ones_like(mask)
        found = updated(records, mode, masked)(array, rows, gradients, c, mask, np.int32(count))
        wanted = updated_by_hand(
            array, rows, gradients, lambda *row: halved(*row, c), mask, count, records
        )
        assert_same_bits(found, wanted)

    check()
    assert "RACE" not in capfd.readouterr().out


def test_rows_that_share_a_physical_row_are_updated_together():
    """Rows 1, 2 and 5 of a table of 32 columns: the first two are one record."""
    records = Records.of(32, 1)
    weights, slot = np.ones((8, 32), F), np.full((8, 32), 2, F)
    gradients, mask = (np.zeros((UPDATES, 4, 32), d) for d in (F, np.int32))
    for row, place in ((1, (0, 1)), (2, (0, 2)), (5, (1, 1))):
        gradients[place], mask[place] = row, 1
    rows = np.array([0, 1, *range(2, UPDATES)], np.int32)
    found = updated(records, "waits", True)(
        put([weights, slot], records),
        rows,
        gradients.reshape(UPDATES, -1),
        np.array([0.5, 1.0], F),
        mask.reshape(UPDATES, -1),
        np.int32(UPDATES),
    )
    for row in (1, 2, 5):
        weights[row], slot[row] = 1 - 0.5 * row, 3
    assert_same_bits(found, put([weights, slot], records))


def test_no_rows_are_no_update():
    records = Records.of(128, 0)
    array = jnp.ones((3, 128))
    none = jnp.zeros(0, jnp.int32), jnp.zeros((0, 128)), halved, jnp.zeros(2)
    assert sparsecore.update(array, *none, records, interpret=MODES["waits"]) is array


# --- in processes of their own ----------------------------------------------------------------


def rules():
    """Each optimizer's update, and the square root, equal NumPy's."""
    for number, optimizer in enumerate(OPTIMIZERS):
        c = coefficients(optimizer, 0.1)
        records = Records.of(32, len(optimizer.slots))
        array, rows, gradients, mask = drawn_update(records, number)
        row = row_update(optimizer, NumpyOps)
        wanted = updated_by_hand(
            *(array, rows, gradients),
            lambda *parts, row=row, c=c: row(*parts, SimpleNamespace(**c)),
            *(mask, UPDATES, records),
        )
        rule = sparsecore.rule_of(optimizer, tuple(c))
        values = np.array(list(c.values()), F)
        for mode in ("waits", "races, eager") if optimizer == Adagrad(0.1) else ("eager",):
            made = updated(records, mode, True, rule)
            found = made(array, rows, gradients, values, mask, np.int32(UPDATES))
            assert_same_bits(found, wanted)
    bits = np.random.default_rng(0).integers(2**23, 2**31 - 2**23, 10**6, dtype=np.int32)
    x = np.append(bits.view(F), np.array([0.0, -0.0, 1.0, 4.0, np.inf], F))
    assert_same_bits(jax.jit(sparsecore.sqrt)(x), np.sqrt(x))
    assert np.isnan(jax.jit(sparsecore.sqrt)(np.array([-1.0, -np.inf, np.nan], F))).all()


def planted():
    """Updates with bugs; for each, whether the values are right, and races as they are printed."""
    plain, records, c = sparsecore.machine, Records.of(128, 1), np.array([0.5, 1.0], F)

    def without_wait(make):
        return lambda *given: SimpleNamespace(start=make(*given).start, wait=lambda: None)

    for bug, mode in BUGS:

        def machine(*given, bug=bug):
            on = plain(*given)
            if bug == "the gathered rows are not waited for":
                return replace(on, gather=without_wait(on.gather))
            if bug == "a buffer is reused while it is written back":
                return replace(on, scatter=without_wait(on.scatter))
            return on

        sparsecore.machine = machine
        array, rows, gradients, mask = drawn_update(records, 0)
        if bug == "two workers write the same row":
            rows[8] = rows[0]  # of the second window, and so of the second worker
        wanted = updated_by_hand(
            *(array, rows, gradients),
            lambda *row: halved(*row, c),
            *(np.ones_like(mask), UPDATES, records),
        )
        print(f"--- {bug}, {mode}", flush=True)
        try:
            updated.cache_clear()
            made = updated(records, mode, False)(array, rows, gradients, c, mask, np.int32(UPDATES))
            print("right" if np.array_equal(np.asarray(made), wanted) else "wrong", flush=True)
        except Exception as error:
            print(error, flush=True)
            pltpu.reset_tpu_interpret_mode_state()


RACE = "RACE DETECTED"
BUGS = {
    ("none", "races, eager"): "right",
    ("the gathered rows are not waited for", "waits"): "wrong",
    ("the gathered rows are not waited for", "races, eager"): RACE,
    ("a buffer is reused while it is written back", "races, eager"): RACE,
    ("two workers write the same row", "races, eager"): RACE,
}


def said_by(call):
    program = f"from tests.embsim_tpu.kernels import test_sparsecore as t; t.{call}()"
    process = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ROUNDED_ONCE},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_the_rules_of_optimizers_equal_numpy():
    assert RACE not in said_by("rules")


def test_planted_bugs_are_found():
    parts = said_by("planted").split("--- ")[1:]
    for ((bug, mode), expected), part in zip(BUGS.items(), parts, strict=True):
        assert part.startswith(f"{bug}, {mode}")
        assert expected in part, part
        assert (RACE in part) == (expected == RACE), part


# --- what is refused --------------------------------------------------------------------------


def test_a_rule_that_sums_over_a_row_is_refused():
    with pytest.raises(BackendError, match=r"RowwiseAdagrad: SparseCores have no sum.*'xla'"):
        sparsecore.rule_of(RowwiseAdagrad(), ("lr", "eps"))


def test_a_rule_with_powers_is_refused():
    optimizer = FTRL(0.1, learning_rate_power=-0.3)
    rule = sparsecore.rule_of(optimizer, tuple(coefficients(optimizer, 0.1)))
    vector = jnp.ones(16)
    with pytest.raises(BackendError, match=r"FTRL: SparseCores have no ops\.power; .*'xla'"):
        rule(vector, vector, (vector, vector), (vector,) * 9)


def test_records_that_do_not_fit_are_refused():
    what = r"8 records of 3 x 4096 numbers need 425984 words, a worker has 65536; .*'xla'"
    with pytest.raises(BackendError, match=what):
        Blocks.of(Records.of(4096, 2), 2**16)


# --- compiled for TPUs ------------------------------------------------------------------------

needs_libtpu = pytest.mark.skipif(aot.missing() is not None, reason=str(aot.missing()))
VOCABULARY = 2**20


def compiled(target, dim, optimizer=None):
    """The report of a lookup, or of an update by that optimizer, and the bytes of the table."""
    mesh = aot.target(target)
    records = Records.of(dim, 1 if optimizer is None else len(optimizer.slots))
    shape = records.shape(VOCABULARY)
    size = shape[0] * shape[1] * 4

    def of(shape, dtype=jnp.float32):
        sharding = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def look_up(*arguments):
        return sparsecore.lookup(*arguments, records)

    def update(array, rows, gradients, c, mask, count):
        rule = sparsecore.rule_of(optimizer, tuple(coefficients(optimizer, 0.1)))
        given = array, rows, gradients, rule, c, records
        return sparsecore.update(*given, mask=mask, count=count)

    ids = of((8192,), jnp.int32)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        if optimizer is None:
            given = of(shape), ids, of((1025,), jnp.int32), of(ids.shape)
            return aot.compile_for(look_up, *given, large=size // 2), size
        by_row = (1024, records.lanes)
        c = of((len(coefficients(optimizer, 0.1)),))
        given = of(by_row), c, of(by_row, jnp.int32), of((), jnp.int32)
        rows = of(by_row[:1], jnp.int32)
        return aot.compile_for(update, of(shape), rows, *given, large=size // 2, donate=0), size


@needs_libtpu
@pytest.mark.parametrize("optimizer", [None, Adagrad(), Adam()], ids=["lookup", "Adagrad", "Adam"])
@pytest.mark.parametrize("dim", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("target", ["v5p", "v6e", "7x"])
def test_it_compiles_without_a_copy_of_the_table(target, dim, optimizer):
    report, size = compiled(target, dim, optimizer)
    assert (report.copies, report.prefetches, report.outside) == ((), (), ())
    assert report.alias_bytes == (0 if optimizer is None else size)
    assert report.temp_bytes < 2**22 < size


@needs_libtpu
def test_a_tpu_without_sparsecores_is_refused():
    with pytest.raises(BackendError, match="this TPU has no SparseCores; use the kernels 'xla'"):
        compiled("v5e", 128)
