"""Tables in bfloat16: a step is the reference's on float32, and then w is rounded.

The model is that sentence, with NumPy's own rounding. Numbers are such that all but the rounding is
exact; the optimizers' rules, on any numbers, run in a process whose XLA_FLAGS forbid to fuse
multiplications and additions.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import embsim
from embsim import FeatureConfig, TableConfig
from embsim.conformance import Values
from embsim.conformance.rules import Counting
from embsim.errors import BackendError
from embsim.lookup import lookup
from embsim.optimizers import (
    FTRL,
    SGD,
    Adagrad,
    AdagradMomentum,
    Adam,
    RowwiseAdagrad,
)
from embsim.state import initial_state
from embsim.update import update
from embsim_tpu import Embedding, Example, TrainState, aot, train
from embsim_tpu.backend import BITWISE_FLAGS
from embsim_tpu.checkpoint import Checkpoints, from_embsim, to_embsim
from embsim_tpu.kernels import choose
from embsim_tpu.kernels.bfloat16 import rounded, widened
from embsim_tpu.state import State
from tests.embsim.programs import assert_same
from tests.embsim_tpu.conftest import DEVICES, F, mesh_of
from tests.nightly import IS_NIGHTLY

ROOT = Path(__file__).parents[2]
HALF = {"t": "bfloat16"}
SAMPLES, ROWS = 8, 21
KERNELS = ("xla", "pallas")
PIPELINED = embsim.tpu_embedding_pipelined()


def nearest(x):
    """As another library rounds."""
    with np.errstate(invalid="ignore"):
        return np.asarray(x).astype(jnp.bfloat16).astype(F)


def any_floats():
    """Every bfloat16, those between which a float is, and what is nearest to their middle."""
    upper = np.arange(2**16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    return (upper[:, None] | lower).reshape(-1).view(F)


class TestRounding:
    def test_it_is_to_nearest_ties_to_even(self):
        x = any_floats()
        for found in (rounded(x, np), np.asarray(jax.jit(rounded)(x))):
            assert found.dtype == np.uint16
            assert widened(found, np).tobytes() == nearest(x).tobytes()

    def test_not_a_number_stays_one_and_no_other_number_becomes_one(self):
        x = any_floats()
        assert np.array_equal(np.isnan(widened(rounded(x, np), np)), np.isnan(x))

    def test_widening_is_exact(self):
        every = np.arange(2**16, dtype=np.uint16)
        wanted = (every.astype(np.uint32) << 16).tobytes()
        assert widened(every, np).tobytes() == wanted
        assert np.asarray(jax.jit(widened)(every)).tobytes() == wanted


def features(dim=3, optimizer=None, table=None, combiner="sum"):
    if table is None:  # most of them need rounding
        table = np.random.default_rng(dim).integers(-600, 600, (ROWS, dim)).astype(F)
    config = TableConfig(ROWS, dim, Values(table), optimizer or SGD(1.0), combiner, "t")
    return {"bags": FeatureConfig(config), "one": FeatureConfig(config)}


def batches(count, width=4, fill=None):
    for k in range(count):
        draw = np.random.default_rng(k)
        bags = [draw.integers(0, ROWS, n).tolist() for n in draw.integers(0, width, SAMPLES)]
        shift = np.zeros(1, F) if fill is None else fill(draw)
        ids = {"bags": bags, "one": draw.integers(0, ROWS, SAMPLES)}
        yield Example(ids, np.broadcast_to(shift, (SAMPLES, *shift.shape)))


def dense_step(carry, activations, inputs):
    """Gradients are small whole numbers that depend on the activations."""

    def slope(x):
        return jnp.clip(jnp.round(x), -3, 3) + inputs

    return carry, {name: slope(x) for name, x in activations.items()}, 0


def numpy_step(activations, inputs):
    return np.clip(np.round(activations), -3, 3) + inputs


def model(embedding, steps, schedule):
    """Weights and slots after these steps: the reference's functions, and rounding."""
    (spec,) = embedding.tables.specs
    host = initial_state(embedding.tables.specs, embedding.tables.configs, 0)
    table, slots = nearest(host.weights["t"]), host.slots["t"]
    versions = [table]
    for k, example in enumerate(steps):
        plans, _ = embedding.host_plans(example.features)
        read = versions[schedule.version_read(k, 0)]
        activations = lookup(read, plans["t"])
        gradients = numpy_step(activations, np.concatenate([example.inputs] * 2))
        before, table = table, table.copy()
        c = embedding.coefficients(k)["t"]
        update(table, slots, plans["t"], gradients, spec.optimizer, c)
        with np.errstate(invalid="ignore"):
            table = np.where(_touched(plans["t"], spec), nearest(table), before)
        versions.append(table)
    return table, slots


def _touched(plan, spec):
    touched = np.full(ROWS, embsim.optimizers.updates_every_row(spec.optimizer))
    touched[plan.unique] = True
    return touched[:, None]


def trained(embedding, steps, schedule):
    state = TrainState(embedding.init(), ())
    made = train(embedding, dense_step, steps, state, schedule=schedule)
    host = embedding.get(made.tables)
    return host.weights["t"], host.slots["t"]


@pytest.mark.parametrize(
    "kernels, devices, schedule",
    [
        *(("xla", n, s) for n in DEVICES for s in (embsim.sequential(), PIPELINED)),
        ("xla", 2, embsim.stale(3)),
        *(("pallas", n, embsim.sequential()) for n in (1, 2)),
    ],
    ids=lambda x: getattr(x, "staleness", x),
)
def test_steps_are_the_reference_s_with_w_rounded(kernels, devices, schedule):
    for dim, optimizer in ((3, SGD(1.0)), (2, Counting(1.0)))[kernels == "pallas" :]:
        config = features(dim, optimizer)
        embedding = Embedding(config, mesh=mesh_of(devices), kernels=kernels, table_dtypes=HALF)
        steps = list(batches(7))
        found, slots = trained(embedding, steps, schedule)
        wanted, wanted_slots = model(embedding, steps, schedule)
        assert_same("table", found, wanted)
        for name, array in wanted_slots.items():
            assert_same(name, slots[name], array)
        plain, _ = trained(Embedding(config, mesh=mesh_of(devices)), steps, schedule)
        assert not np.array_equal(plain, found), "nothing was rounded"


RULES = (
    SGD(0.1),
    Adagrad(0.1),
    AdagradMomentum(0.1, 0.9, use_nesterov=True),
    Adam(0.1),
    Adam(0.1, lazy_adam=False),
    FTRL(0.1, l1_regularization_strength=0.1),
    RowwiseAdagrad(0.1),
    Adagrad(0.1, clipvalue=0.5, weight_decay_factor=0.1, clip_weight_max=0.7),
)


def rules():
    """Any numbers but for RowwiseAdagrad, whose sum of squares is exact."""
    for optimizer in RULES:
        draw = np.random.default_rng(0)
        table = draw.normal(size=(ROWS, 5)).astype(F)
        fill = None if isinstance(optimizer, RowwiseAdagrad) else _shifts
        embedding = Embedding(features(5, optimizer, table), kernels="xla", table_dtypes=HALF)
        steps = list(batches(4, 2, fill))
        found, slots = trained(embedding, steps, PIPELINED)
        wanted, wanted_slots = model(embedding, steps, PIPELINED)
        assert_same(f"{optimizer}: table", found, wanted)
        for name, array in wanted_slots.items():
            assert_same(f"{optimizer}: {name}", slots[name], array)
        print("equal", optimizer)


def _shifts(draw):
    return draw.normal(size=5).astype(F)


def test_the_rules_of_optimizers_are_the_reference_s_with_w_rounded():
    program = "from tests.embsim_tpu import test_bfloat16 as t; t.rules()"
    process = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": " ".join(BITWISE_FLAGS)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.count("equal") == len(RULES)


@pytest.mark.parametrize("kernels", KERNELS)
def test_an_update_of_less_than_half_a_step_is_lost(kernels):
    """Between 0.5 and 1 bfloat16 has steps of 2**-8; from 1 on of 2**-7."""
    for start, change, wanted in (
        (1.0, 2.0**-10, 1.0),
        (1.0, 2.0**-9, 1.0),  # the middle: to even
        (1.0, 2.0**-9 + 2.0**-16, 1.0 - 100 * 2.0**-8),
        (1.0, -(2.0**-8), 1.0),
    ):
        config = features(1, SGD(change), np.full((ROWS, 1), start, F))
        embedding = Embedding(config, kernels=kernels, table_dtypes=HALF)
        step = jax.jit(embedding.update, donate_argnums=0)
        state, ones = embedding.init(), np.ones((SAMPLES, 1), F)
        plan = embedding.plan({"bags": [[]] * SAMPLES, "one": np.arange(SAMPLES)})
        for k in range(100):
            given = {"bags": None, "one": ones}
            state = step(state, plan, given, embedding.coefficients(k))
        assert embedding.get(state).weights["t"][:SAMPLES].tolist() == [[wanted]] * SAMPLES


@pytest.mark.parametrize("kernels, devices", [("xla", 1), ("xla", 8), ("pallas", 1), ("pallas", 2)])
def test_rows_that_are_not_touched_keep_their_bits(kernels, devices):
    """Of not-a-numbers with their payload, subnormals and minus zeros, too."""
    embedding = Embedding(features(), mesh=mesh_of(devices), kernels=kernels, table_dtypes=HALF)
    host = embedding.get(embedding.init())
    bits = np.random.default_rng(1).integers(0, 2**16, (ROWS, 3), np.uint16)
    bits[0] = [1, 0x8000, 0x8001]
    bits[bits & 0x7FFF > 0x7F80] = 0x7FC0
    array = widened(bits, np)
    state = embedding.put(embsim.state.State(host.specs, {"t": array.copy()}, {"t": {}}))
    assert embedding.get(state).weights["t"].tobytes() == array.tobytes()
    plan = embedding.plan({"bags": [[5]] * SAMPLES, "one": [7] * SAMPLES})
    state = embedding.update(state, plan, {"bags": None, "one": None}, embedding.coefficients(0))
    found, rest = embedding.get(state).weights["t"], np.setdiff1d(np.arange(ROWS), [5, 7])
    assert found[rest].tobytes() == array[rest].tobytes()


def test_half_the_memory_is_taken():
    def bytes_of(**given):
        embedding = Embedding(features(64), **given)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(embedding.init().weights))

    for kernels in KERNELS:
        assert 2 * bytes_of(kernels=kernels, table_dtypes=HALF) == bytes_of(kernels=kernels)


class TestWhatComesAndGoes:
    def embedding(self, devices=1, kernels="xla", **given):
        config = features(4, Adagrad(1.0))
        return Embedding(config, mesh=mesh_of(devices), kernels=kernels, **given)

    def run(self, embedding, drain=False):
        state = TrainState(embedding.init(), ())
        steps = list(batches(3))
        return train(embedding, dense_step, steps, state, schedule=PIPELINED, drain=drain)

    def test_tables_are_float32_with_the_numbers_of_bfloat16(self):
        embedding = self.embedding(table_dtypes=HALF)
        array = embedding.get(embedding.init()).weights["t"]
        assert array.dtype == F
        assert array.tobytes() == nearest(array).tobytes()

    @pytest.mark.parametrize("kernels", KERNELS)
    def test_a_checkpoint_goes_on_bit_for_bit(self, tmp_path, kernels):
        embedding = self.embedding(table_dtypes=HALF, kernels=kernels)
        state, more = self.run(embedding), list(batches(5))[3:]
        with Checkpoints(tmp_path, embedding) as checkpoints:
            checkpoints.save(state)
            wanted = train(embedding, dense_step, more, state, schedule=PIPELINED)
            again, _ = checkpoints.restore(())
            found = train(embedding, dense_step, more, again, schedule=PIPELINED)
        wanted, found = (embedding.get(each.tables) for each in (wanted, found))
        assert found.weights["t"].tobytes() == wanted.weights["t"].tobytes()
        assert found.slots["t"]["accumulators"].tobytes() == (
            wanted.slots["t"]["accumulators"].tobytes()
        )

    @pytest.mark.parametrize("devices", [1, 2])
    def test_a_float32_checkpoint_is_rounded_and_the_other_way_nothing_changes(
        self, tmp_path, devices
    ):
        plain, half = self.embedding(), self.embedding(devices, table_dtypes=HALF)
        with Checkpoints(tmp_path / "float32", plain) as checkpoints:
            state = self.run(plain, drain=True)
            kept = plain.get(state.tables).weights["t"].copy()
            checkpoints.save(state)
        assert kept.tobytes() != nearest(kept).tobytes()
        with Checkpoints(tmp_path / "float32", half) as checkpoints:
            state, _ = checkpoints.restore(())
        assert half.get(state.tables).weights["t"].tobytes() == nearest(kept).tobytes()
        with Checkpoints(tmp_path / "bfloat16", half) as checkpoints:
            checkpoints.save(state)
        with Checkpoints(tmp_path / "bfloat16", plain) as checkpoints:
            state, _ = checkpoints.restore(())
        assert plain.get(state.tables).weights["t"].tobytes() == nearest(kept).tobytes()

    def test_embsim_s_checkpoints_hold_the_rounded_numbers_pending_ones_too(self, tmp_path):
        embedding = self.embedding(table_dtypes=HALF)
        state = self.run(embedding)
        assert state.pending
        to_embsim(tmp_path, embedding, state)
        again = from_embsim(tmp_path, embedding)
        found = train(embedding, dense_step, [], again, schedule=PIPELINED)
        wanted = train(embedding, dense_step, [], state, schedule=PIPELINED)
        found, wanted = (embedding.get(each.tables).weights["t"] for each in (found, wanted))
        assert found.tobytes() == wanted.tobytes()

    def test_the_rows_of_embsim_s_patches_are_rounded(self, tmp_path):
        """A reader without optimizer takes them as they are."""
        embedding = self.embedding(table_dtypes=HALF)
        state = self.run(embedding)
        to_embsim(tmp_path, embedding, state)
        reader = embsim.TPUEmbedding(FeatureConfig(TableConfig(ROWS, 4, name="t")), None)
        reader.restore(tmp_path)
        (found,) = reader.embedding_tables.values()
        drained = train(embedding, dense_step, [], state, schedule=PIPELINED)
        wanted = embedding.get(drained.tables).weights["t"]
        assert found.tobytes() == wanted.tobytes()


# Interpreted, a kernel copies its tables; XLA's programs for a TPU take long to compile.
PLACES = [
    (kernels, place, dim)
    for dim in (32, 64, 128, 256)
    for kernels in KERNELS
    for place in ("cpu", "v5e", "v6e", "7x")
    if (kernels == "xla" or place != "cpu")
    and (IS_NIGHTLY or kernels != "xla" or place == "cpu" or (place, dim) == ("v6e", 32))
]


@pytest.mark.parametrize("kernels, place, dim", PLACES)
def test_programs_change_tables_in_place_and_copy_none(kernels, place, dim):
    """Where a table is half as large."""
    if place != "cpu" and aot.missing() is not None:
        pytest.skip(str(aot.missing()))
    here = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))
    mesh = here if place == "cpu" else aot.target(place)
    rows = 2**26 // dim
    config = {"f": FeatureConfig(TableConfig(rows, dim, optimizer=Adagrad(0.1), name="t"))}
    ids = {"f": [[1, 2, 3]] * 64}
    made, plain = (
        Embedding(config, mesh=mesh, kernels=kernels, table_dtypes=given) for given in (HALF, None)
    )
    on_cpu = Embedding(config, mesh=here, kernels=kernels, table_dtypes=HALF)
    split, replicated = made.shards.split, made.shards.replicated
    state = aot.shapes_of(stored(made, rows, dim), split)
    activations = aot.shapes_of({"f": np.zeros((64, dim), F)}, split)
    numbers = aot.shapes_of(made.coefficients(0), replicated)
    plan = aot.shapes_of(on_cpu.plan(ids), split)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    before = sum(leaf.size * 4 for leaf in jax.tree.leaves(stored(plain, rows, dim)))
    assert 4 * held == 3 * before == 3 * 2 * 4 * rows * dim  # of w and a slot
    large = rows * dim // 8

    def step(state, plan, numbers):
        found = made.functions.lookup(state, plan)
        return made.functions.update(state, plan, found, numbers, after=found)

    given = state, plan, activations, numbers
    looked_up = aot.compile_for(made.functions.lookup, state, plan, large=large)
    updated = aot.compile_for(made.functions.update, *given, large=large, donate=0)
    whole = aot.compile_for(step, state, plan, numbers, large=large, donate=0)
    for report in (looked_up, updated, whole):
        assert report.copies == report.prefetches == ()
        assert report.temp_bytes < large
    assert min(updated.alias_bytes, whole.alias_bytes) >= held


def stored(embedding, rows, dim):
    array = jax.ShapeDtypeStruct((rows, dim), F)
    kernels = embedding.kernels["t"]
    made = jax.eval_shape(lambda w, a: kernels.split(w, {"accumulators": a}, jnp), array, array)
    return State({"t": made[0]}, {"t": made[1]})


class TestRefusals:
    def test_an_unknown_table(self):
        with pytest.raises(
            ValueError, match=r"table_dtypes names the tables \['u'\]; there are \['t'\]"
        ):
            Embedding(features(), table_dtypes={"u": "bfloat16"})

    @pytest.mark.parametrize("dtype", ["float16", "half", None, 16, np.float64, "bf16"])
    def test_another_dtype(self, dtype):
        with pytest.raises(
            ValueError, match=r"table 't' has .*; it must be 'float32' or 'bfloat16'"
        ):
            Embedding(features(), table_dtypes={"t": dtype})

    @pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16, np.dtype(jnp.bfloat16)])
    def test_any_name_of_it_will_do(self, dtype):
        assert Embedding(features(), table_dtypes={"t": dtype}).kernels["t"].bfloat16
        assert not Embedding(features(), table_dtypes={"t": np.float32}).kernels["t"].bfloat16

    def test_sparsecores_hold_no_bfloat16(self):
        with pytest.raises(BackendError, match="'sparsecore', which hold no bfloat16 tables: "):
            Embedding(features(), kernels="sparsecore", table_dtypes=HALF)

    @pytest.mark.parametrize("given", [{}, {"table_dtypes": HALF}])
    def test_the_state_of_another_embedding(self, given):
        embedding = Embedding(features(), **given)
        other = Embedding(features(), table_dtypes={} if given else HALF)
        plan = embedding.plan(next(batches(1)).features)
        with pytest.raises(ValueError, match=r"table 't' of the state is held as .* one Embedding"):
            embedding.lookup(other.init(), plan)


def test_auto_does_not_change():
    assert choose("auto", "tpu", 128, kind="TPU v6 lite", bfloat16=True).name == "xla"
