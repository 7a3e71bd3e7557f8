"""What the compiled programs of training do with memory, on CPU and on TPUs that are not there.

A program updates tables and slots in place, makes no other array of a table's size, needs memory of
the batch's size besides, whatever the vocabulary is, and never asks the host.
"""

import subprocess
import sys
from dataclasses import dataclass
from functools import cache, cached_property

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr

from embsim import (
    FeatureConfig,
    TableConfig,
    sequential,
    sparsecore_loop,
    stale,
    tpu_embedding_pipelined,
)
from embsim.optimizers import (
    FTRL,
    SGD,
    Adagrad,
    AdagradMomentum,
    Adam,
    RowwiseAdagrad,
    coefficients,
)
from embsim_tpu import aot
from embsim_tpu._ticks import ticks
from embsim_tpu.backend import _lookup_program, _update_program
from embsim_tpu.embedding import Embedding
from embsim_tpu.kernels import xla
from embsim_tpu.pipeline import programs
from embsim_tpu.placement import Placement
from embsim_tpu.rule import Rule
from embsim_tpu.state import State

CPU = (("cpu", 1), ("cpu", 8))
TPU = (("v5e", 1), ("v5e", 4), ("v6e", 1), ("v6e", 4))
OTHERS = (("v5p", 1), ("7x", 4))
BYTES = 2**28  # of each table on each device: more than the on-chip memory of any TPU here
TIMES = 8  # temporaries are at most so many batches

OPTIMIZERS = (
    SGD(0.1),
    Adagrad(0.1),
    AdagradMomentum(0.1, 0.9),
    Adam(0.1),
    FTRL(0.1),
    RowwiseAdagrad(0.1),
)
# XLA copies a table of another width: to find a row of it a TPU's compiler first lays it out row by
# row. Multiples of 8 are free: a TPU holds columns in eights.
COPIED = (60, 100, 300)


def on(places):
    """With libtpu, or skipped."""
    why = aot.missing()
    skip = pytest.mark.skipif(why is not None, reason=str(why))
    return pytest.mark.parametrize(
        "place",
        [pytest.param(p, marks=() if p[0] == "cpu" else skip) for p in places],
        ids=lambda place: f"{place[0]} x{place[1]}",
    )


def mesh_of(place):
    name, devices = place
    if name == "cpu":
        return jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("x",))
    return aot.target(name, devices)


@dataclass(frozen=True)
class Model:
    """Tables of some width, each with BYTES on each device, and one batch for them."""

    place: tuple
    dims: tuple = (1, 64)  # the first table has one id in each sample, the others three
    optimizers: tuple = (SGD(0.1), Adagrad(0.1))
    bytes: int = BYTES
    samples: int = 32

    @cached_property
    def embedding(self):
        return self._embedding(mesh_of(self.place))

    def _embedding(self, mesh):
        def table(i, dim):
            rows = self.bytes // (4 * dim) * mesh.size
            return TableConfig(rows, dim, optimizer=self.optimizers[i], name=f"t{i}")

        features = {f"f{i}": FeatureConfig(table(i, dim)) for i, dim in enumerate(self.dims)}
        return Embedding(features, mesh=mesh)

    @cached_property
    def plan(self):
        """As a mesh of CPU devices of the same size has it."""
        devices = self.place[1]
        random = np.random.default_rng(0)
        ids = {
            f"f{i}": random.integers(0, 1000, (self.samples * devices, 3 if i else 1)).tolist()
            for i in range(len(self.dims))
        }
        made = self._embedding(mesh_of(("cpu", devices))).plan(ids)
        assert made.tables["t0"].one_id_each and not made.tables["t1"].one_id_each
        return aot.shapes_of(made, self.embedding.shards.split)

    @property
    def state(self):
        weights, slots = {}, {}
        for name, spec in self.embedding.specs.items():
            rows = self.place[1] * Placement(spec.vocabulary_size, self.place[1]).local_rows
            weights[name] = self.split((rows, spec.dim))
            slots[name] = {
                each.name: self.split((rows, 1 if each.rowwise else spec.dim))
                for each in spec.optimizer.slots
            }
        return State(weights, slots)

    @property
    def activations(self):
        samples = self.samples * self.place[1]
        return {f"f{i}": self.split((samples, dim)) for i, dim in enumerate(self.dims)}

    @property
    def carry(self):
        return {f"f{i}": self.whole((dim,)) for i, dim in enumerate(self.dims)}

    @property
    def inputs(self):
        return self.split((self.samples * self.place[1],))

    @property
    def coefficients(self):
        return jax.tree.map(lambda _: self.whole(()), self.embedding.coefficients(0))

    def split(self, shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=self.embedding.shards.split)

    def whole(self, shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=self.embedding.shards.replicated)

    @property
    def held(self):
        """Bytes of tables and slots on each device."""
        return sum(4 * np.prod(leaf.shape) for leaf in jax.tree.leaves(self.state)) // self.place[1]

    @property
    def batch(self):
        """Bytes of the rows of one batch on each device, as a TPU pads them."""
        tables = self.plan.tables.items()
        dims = {name: -(-spec.dim // 128) * 128 for name, spec in self.embedding.specs.items()}
        sizes = {name: plan.asked.size + plan.slot.size for name, plan in tables}
        arrays = {name: 1 + len(s.optimizer.slots) for name, s in self.embedding.specs.items()}
        return sum(4 * sizes[n] * dims[n] * arrays[n] for n in sizes) // self.place[1]

    def tick(self, tick):
        """The arguments of `programs(...).tick` for one."""
        whole = tick.lookup is not None and tick.lookup == tick.dense
        own = tick.update is not None and tick.update == tick.dense
        dense = tick.dense is not None
        due = (self.plan, None if own else self.activations, self.coefficients)
        arguments = (
            self.state,
            self.carry if dense else None,
            self.activations if dense and not whole else None,
            self.inputs if dense else None,
            None if tick.lookup is None else self.plan,
            None if tick.update is None else due,
        )
        return arguments, {"dense": dense, "own": own}

    def compiled(self, function, *arguments, **given):
        return aot.compile_for(function, *arguments, large=self.bytes // 8, **given)

    def check(self, report, held=None):
        """The law of the module's docstring."""
        assert report.copies == ()
        assert report.prefetches == ()
        assert report.outside == ()
        assert report.alias_bytes >= (self.held if held is None else held)
        assert report.temp_bytes <= TIMES * self.batch
        assert TIMES * self.batch < self.bytes // 16, "the bound says nothing"


@cache
def model(place, **kinds):
    return Model(place, **kinds)


def dense_step(carry, activations, inputs):
    def loss(carry, activations):
        parts = [(activations[name] * carry[name]).sum(-1) for name in carry]
        return jnp.mean((sum(parts) - inputs) ** 2)

    value, (slope, gradients) = jax.value_and_grad(loss, (0, 1))(carry, activations)
    return jax.tree.map(lambda x, g: x - 0.1 * g, carry, slope), gradients, value


def tick_of(given):
    return programs(given.embedding.functions, dense_step).tick


SCHEDULES = (sequential(), tpu_embedding_pipelined(), sparsecore_loop(3), stale(2), stale(3))
KINDS = {tick.kind: tick for schedule in SCHEDULES for tick in ticks(schedule, 9)}
STEADY = "lookup, dense, own update"
NOT_THERE = [kind for kind in KINDS if kind != STEADY]


def test_the_ticks_of_these_schedules_are_all_that_there_are():
    assert sorted(KINDS) == [
        "dense",
        "lookup",
        "lookup, dense",
        "lookup, dense, own update",
        "lookup, dense, update",
        "lookup, its dense, own update",
        "update",
    ]


@on((*CPU, *TPU))
@pytest.mark.parametrize("kind", KINDS)
def test_a_tick_changes_tables_in_place(place, kind):
    given = model(place)
    arguments, static = given.tick(KINDS[kind])
    given.check(given.compiled(tick_of(given), *arguments, **static))


@on(OTHERS)
def test_the_steady_tick_changes_tables_in_place_on_other_tpus(place):
    given = model(place)
    arguments, static = given.tick(KINDS[STEADY])
    given.check(given.compiled(tick_of(given), *arguments, **static))


@on((("cpu", 1), ("v5e", 1), ("v6e", 4)))
def test_temporaries_do_not_grow_with_the_vocabulary(place):
    temp = []
    for size in (BYTES, 2 * BYTES):
        given = Model(place, bytes=size)
        arguments, static = given.tick(KINDS[STEADY])
        report = given.compiled(tick_of(given), *arguments, **static)
        temp.append(report.temp_bytes)
    assert temp[1] <= temp[0] + given.batch


def backend_programs(given, optimizer, dim):
    """Lookup and update of one table by JaxBackend."""
    shards, kernels = given.embedding.shards, given.embedding.kernels["t1"]
    rule = Rule.of(optimizer, tuple(coefficients(optimizer, 1.0)))
    plan, table = given.plan.tables["t1"], given.state.weights["t1"]
    slots = given.state.slots["t1"]
    gradients = given.split((given.samples * given.place[1], dim))
    arguments = (table, slots, plan, gradients, given.whole((len(rule.coefficients),)))
    yield given.compiled(_lookup_program(shards, kernels, None), table, plan), 0
    held = sum(4 * leaf.size for leaf in jax.tree.leaves((table, slots))) // given.place[1]
    yield given.compiled(_update_program(shards, kernels, rule), *arguments), held


@on((("cpu", 8), ("v5e", 1), ("v6e", 4), ("7x", 1), ("v5p", 1)))
@pytest.mark.parametrize("dim", [1, 16, 64, 96, 128, 192])
def test_the_backend_changes_a_table_of_any_width_in_place(place, dim):
    given = model(place, dims=(1, dim), optimizers=(SGD(0.1), Adagrad(0.1)))
    for report, held in backend_programs(given, Adagrad(0.1), dim):
        given.check(report, held)


@on((("cpu", 1), ("v5e", 1), ("v6e", 4)))
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda each: type(each).__name__)
def test_every_optimizer_changes_tables_in_place(place, optimizer):
    given = model(place, optimizers=(SGD(0.1), optimizer))
    for report, held in backend_programs(given, optimizer, 64):
        given.check(report, held)


@on((("cpu", 1), ("v5e", 1)))
def test_adam_on_all_rows_may_need_as_much_again_as_it_holds(place):
    """Every row changes: the gradients of all rows are an array, and on CPU old slots are kept."""
    adam = Adam(0.1, lazy_adam=False)
    given = model(place, optimizers=(SGD(0.1), adam))
    _, (report, held) = backend_programs(given, adam, 64)
    assert report.alias_bytes >= held and report.outside == ()
    assert given.bytes < report.temp_bytes <= held


@on((("v5e", 1), ("v6e", 1), ("v5p", 1), ("7x", 1)))
@pytest.mark.parametrize("dim", COPIED)
def test_a_tpu_copies_a_table_whose_width_is_no_multiple_of_8(place, dim):
    """The limit; when this fails XLA has become better."""
    given = model(place, dims=(1, dim))
    for report, _ in backend_programs(given, Adagrad(0.1), dim):
        assert report.copies and report.temp_bytes > given.bytes


# Controls: what the tests above must be able to find.


@on((("cpu", 1), ("v5e", 1)))
def test_a_step_without_donation_is_found(place):
    given = model(place)
    arguments, static = given.tick(KINDS[STEADY])
    step = jax.jit(tick_of(given).__wrapped__, static_argnames=("dense", "own"))
    report = given.compiled(step, *arguments, **static)
    assert report.alias_bytes == 0 and report.copies
    with pytest.raises(AssertionError):
        given.check(report)


@on((("cpu", 1), ("v5e", 1)))
def test_a_pass_over_a_table_is_found(place):
    given = model(place)
    inner = tick_of(given).__wrapped__

    def step(state, *others):
        passed = {name: table + others[2][0] for name, table in state.weights.items()}
        return inner(State(passed, state.slots), *others, dense=True, own=True)

    arguments, _ = given.tick(KINDS[STEADY])
    report = given.compiled(step, *arguments, donate=(0, 1))
    assert report.copies


@on((("cpu", 1), ("cpu", 8)))
def test_an_update_in_no_order_with_a_lookup_copies_the_tables_on_cpu(place):
    given = model(place)
    functions = given.embedding.functions

    def step(ordered, state, plan, gradients, rates):
        found = functions.lookup(state, plan)
        after = found if ordered else None
        return functions.update(state, plan, gradients, rates, after=after), found

    arguments = given.state, given.plan, given.activations, given.coefficients
    for ordered in (True, False):
        report = given.compiled(lambda *a, o=ordered: step(o, *a), *arguments, donate=0)
        assert (report.copies == ()) == ordered
        assert (report.temp_bytes < given.bytes // 16) == ordered


@on((("v5e", 1), ("7x", 1)))
def test_plain_reads_of_rows_copy_a_table_of_width_64_on_a_tpu(place):
    given = model(place)
    table, rows = given.state.weights["t1"], given.plan.tables["t1"].slot
    plain = given.compiled(lambda table, rows: table.at[rows].get(mode="clip"), table, rows)
    assert plain.copies and plain.temp_bytes > given.bytes
    report = given.compiled(xla.read, table, rows)
    assert not report.copies


@pytest.mark.parametrize("dim", [64, 96, 192])
def test_rows_in_blocks_are_those_rows(dim):
    random = np.random.default_rng(0)
    table = random.normal(size=(40, dim)).astype(np.float32)
    table[3, :3] = -0.0, np.nan, np.inf
    rows = np.array([0, 3, 5, 39, 40, 52], np.int32)
    values = random.normal(size=(len(rows), dim)).astype(np.float32)
    read = np.asarray(xla.read_blocks(jnp.array(table), jnp.array(rows)))
    assert read.tobytes() == table[np.minimum(rows, 39)].tobytes()
    expected = table.copy()
    expected[rows[:4]] = values[:4]
    for unique in (True, False):
        given = jnp.array(table), jnp.array(rows), jnp.array(values)
        written = np.asarray(xla.write_blocks(*given, unique=unique))
        assert written.tobytes() == expected.tobytes()


# What depends on what.


def needed(function, arguments, names, **static):
    """By name of an output: the names of the arguments that any part of it depends on."""
    traced = jax.jit(function, static_argnames=tuple(static)).trace(*arguments, **static)
    inputs = [
        name
        for name, tree in zip(names, arguments, strict=True)
        for _ in range(len(jax.tree.leaves(tree)))
    ]
    outputs = ("tables", "carry", "found", "gradients", "metrics")
    flat = [
        n for n, tree in zip(outputs, traced.out_info, strict=True) for _ in jax.tree.leaves(tree)
    ]
    jaxpr = traced.jaxpr.jaxpr
    assert len(jaxpr.invars) == len(inputs) and len(jaxpr.outvars) == len(flat)
    found = {}
    for name in dict.fromkeys(flat):
        _, used = dce_jaxpr(jaxpr, [each == name for each in flat])
        found[name] = {each for each, is_used in zip(inputs, used, strict=True) if is_used}
    return found


NAMES = ("tables", "carry", "activations", "inputs", "plan", "due")


@on(CPU)
@pytest.mark.parametrize("kind", [STEADY, "lookup, dense, update", "lookup, dense"])
def test_the_lookup_and_the_dense_step_of_a_tick_need_nothing_of_each_other(place, kind):
    given = model(place)
    arguments, static = given.tick(KINDS[kind])
    depends = needed(tick_of(given).__wrapped__, arguments, NAMES, **static)
    assert depends["found"] == {"tables", "plan"}
    assert depends["carry"] == depends["metrics"] == {"carry", "activations", "inputs"}
    if "update" in kind:
        assert {"tables", "plan", "due"} <= depends["tables"]


@on(CPU)
def test_a_lookup_that_waits_is_found(place):
    given = model(place)
    functions = given.embedding.functions

    def step(tables, carry, activations, inputs, plan, due):
        carry, gradients, metrics = dense_step(carry, activations, inputs)
        tables = functions.update(tables, due[0], gradients, due[2])
        return tables, carry, functions.lookup(tables, plan), None, metrics

    arguments, _ = given.tick(KINDS[STEADY])
    assert needed(step, arguments, NAMES)["found"] == set(NAMES)
    arguments, static = given.tick(KINDS["lookup, its dense, own update"])
    whole = needed(tick_of(given).__wrapped__, arguments, NAMES, **static)
    assert {"tables", "plan"} <= whole["carry"]


# And in truth.

RUN = """
import re, sys
from dataclasses import replace
import jax, numpy as np
from embsim import FeatureConfig, TableConfig, tpu_embedding_pipelined
from embsim.optimizers import Adagrad
from embsim_tpu import Embedding
from embsim_tpu.pipeline import Pipeline, TrainState

def dense(carry, activations, inputs):
    return carry, activations, activations.sum()

def kib(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

config = TableConfig(1_000_000, 64, optimizer=Adagrad(0.1))
embedding = Embedding(FeatureConfig(config))
pipeline = Pipeline(embedding, dense, TrainState(embedding.init(), 0.0), tpu_embedding_pipelined())
random = np.random.default_rng(0)
batches = [pipeline.planned((random.integers(0, 1_000_000, (64, 8)).tolist(),)) for _ in range(9)]
for i in range(8):
    if i == 3:  # all is compiled
        jax.block_until_ready(pipeline.state.tables)
        open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here on
        before = kib("VmRSS")
        if sys.argv[1] == "copying":  # only from here: nothing that it leaves may count before
            tick = jax.jit(pipeline._programs.tick.__wrapped__, static_argnames=("dense", "own"))
            pipeline._programs = replace(pipeline._programs, tick=tick)
    pipeline.step(batches[i], batches[i + 1])
jax.block_until_ready(pipeline.state.tables)
assert "lookup, dense, own update" in pipeline.kinds
print((kib("VmHWM") - before) * 1024, sum(array.nbytes for array in jax.live_arrays()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", ["in place", "copying"])
def test_five_training_steps_need_no_memory_of_a_tables_size(how):
    done = subprocess.run(
        [sys.executable, "-c", RUN, how], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    grown, live = map(int, done.stdout.split())
    table = 4 * 64 * 1_000_000
    assert (grown < table // 8) == (how == "in place")
    assert live < 2.1 * table  # table and slots, with padding rows
