"""The kernels as TPUs' own compiler has them, in whole programs of an Embedding with a large table.

    pairs       every two of (TPU, width, optimizer, devices, kernels) occur together in some case
    nightly     all combinations, with HYPOTHESIS_PROFILE=nightly

A program must change tables and slots in place, make no other array of a table's size, need memory
of the batch's size besides, never ask the host, and have the kernels in it.
"""

import re
from contextlib import nullcontext
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from itertools import combinations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec

from embsim import FeatureConfig, TableConfig
from embsim.errors import BackendError
from embsim.optimizers import (
    FTRL,
    SGD,
    Adagrad,
    AdagradMomentum,
    Adam,
    RowwiseAdagrad,
    updates_every_row,
)
from embsim_tpu import aot
from embsim_tpu.embedding import Embedding
from embsim_tpu.placement import Placement
from embsim_tpu.state import State
from tests.nightly import IS_NIGHTLY

pytestmark = pytest.mark.skipif(aot.missing() is not None, reason=str(aot.missing()))

OPTIMIZERS = {
    "SGD": SGD(0.1),
    "Adagrad": Adagrad(0.1),
    "AdagradMomentum": AdagradMomentum(0.1, 0.9),
    "Adam": Adam(0.1),
    "Adam on all rows": Adam(0.1, lazy_adam=False),
    "FTRL": FTRL(0.1),
    "RowwiseAdagrad": RowwiseAdagrad(0.1),
}
TARGETS = tuple(aot.TARGETS)
DIMS = (1, 8, 32, 100, 128, 200, 256, 384, 1024)
KERNELS = ("pallas", "pallas-exact", "sparsecore")
BYTES = 2**28  # of the table on each device: more than the on-chip memory of any TPU
SAMPLES = 64  # on each device
TIMES = {1: 4, 4: 6}  # by devices: temporaries are at most so many batches; four exchange them
WORDS = {"v5p": 104857, "v6e": 52428, "7x": 104857}  # that a worker of a SparseCore has for rows


@dataclass(frozen=True)
class Case:
    target: str
    dim: int
    optimizer: str
    devices: int
    kernels: str

    def __str__(self):
        return f"{self.kernels} {self.target} x{self.devices} dim {self.dim} {self.optimizer}"

    @cached_property
    def mesh(self):
        return aot.target(self.target, self.devices)

    @cached_property
    def embedding(self):
        return self._on(self.mesh)

    def _on(self, mesh):
        rows = BYTES // (4 * self.dim) * self.devices
        table = TableConfig(rows, self.dim, optimizer=OPTIMIZERS[self.optimizer], name="t")
        features = {name: FeatureConfig(table) for name in "ab"}
        return Embedding(features, mesh=mesh, kernels=self.kernels)

    @cached_property
    def plan(self):
        """As CPU devices have it."""
        draw, samples = np.random.default_rng(0), SAMPLES * self.devices
        cpu = jax.sharding.Mesh(np.array(jax.devices()[: self.devices]), ("x",))
        ids = {"a": draw.integers(0, 1000, (samples, 3)), "b": draw.integers(0, 1000, samples)}
        made = self._on(cpu).plan({name: array.tolist() for name, array in ids.items()})
        return aot.shapes_of(made, self.embedding.shards.split)

    @cached_property
    def state(self):
        embedding, optimizer = self.embedding, OPTIMIZERS[self.optimizer]
        rows = Placement(embedding.specs["t"].vocabulary_size, self.devices).local_rows
        table = jax.ShapeDtypeStruct((rows, self.dim), jnp.float32)
        slots = {
            slot.name: jax.ShapeDtypeStruct((rows, 1 if slot.rowwise else self.dim), jnp.float32)
            for slot in optimizer.slots
        }
        made = jax.eval_shape(lambda *a: embedding.kernels["t"].split(*a, jnp), table, slots)

        def on_all(shard):
            shape = self.devices * shard.shape[0], *shard.shape[1:]
            return jax.ShapeDtypeStruct(shape, shard.dtype, sharding=embedding.shards.split)

        weights, beside = jax.tree.map(on_all, made)
        return State({"t": weights}, {"t": beside})

    @property
    def has_kernels(self):
        """Whether there are such: SparseCores of some TPUs, which sum no row and hold few rows."""
        if self.kernels != "sparsecore":
            return True
        streams = 1 + len(OPTIMIZERS[self.optimizer].slots)
        needed = 8 * self.lanes * (3 * streams + 4)
        return self.optimizer != "RowwiseAdagrad" and needed <= WORDS.get(self.target, 0)

    @property
    def lanes(self):
        """That a row takes of a TPU's memory."""
        return -(-self.dim // 128) * 128

    @property
    def every_row(self):
        return updates_every_row(OPTIMIZERS[self.optimizer])

    @property
    def held(self):
        """Bytes of tables and slots on each device."""
        return sum(4 * leaf.size for leaf in jax.tree.leaves(self.state)) // self.devices

    @property
    def batch(self):
        """Bytes of the rows and slots of a batch on each device, and of their gradients."""
        plan, arrays = self.plan.tables["t"], 2 + len(OPTIMIZERS[self.optimizer].slots)
        return 4 * (plan.slot.size + plan.asked.size) * self.lanes * arrays // self.devices

    @property
    def gradients(self):
        """Bytes of the gradients of all rows, as they lie."""
        weights = sum(4 * leaf.size for leaf in jax.tree.leaves(self.state.weights["t"]))
        return weights // self.devices // (1 + len(OPTIMIZERS[self.optimizer].slots))

    @property
    def programs(self):
        """Names of the kernels in a lookup and in an update."""
        update = "embsim_update_every" if self.every_row else "embsim_update"
        read = {"embsim_lookup"} | ({"embsim_gather"} if self.devices > 1 else set())
        return read, {"embsim_lookup", update}

    def compiled(self, **options):
        """Reports of a lookup and of an update."""
        embedding, split = self.embedding, self.embedding.shards.split
        shape = (SAMPLES * self.devices, self.dim)
        gradients = {n: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split) for n in "ab"}
        rates = aot.shapes_of(embedding.coefficients(0), embedding.shards.replicated)
        known = self.kernels == "sparsecore"  # these ask which TPU it is
        given = {"large": BYTES // 8, "donate": 0} | options
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh) if known else nullcontext():
            functions, read = embedding.functions, given | {"donate": ()}
            yield aot.compile_for(functions.lookup, self.state, self.plan, **read)
            arguments = self.state, self.plan, gradients, rates
            yield aot.compile_for(functions.update, *arguments, **given)


# --- programs -----------------------------------------------------------------------------------


def pairwise(cases):
    """A part of the cases in which every pair of values occurs: each time the first of those that
    have the most new ones."""
    pairs = {case: frozenset(combinations(enumerate(astuple(case)), 2)) for case in cases}
    missing = frozenset().union(*pairs.values())
    while missing:
        best = max(cases, key=lambda case: len(pairs[case] & missing))
        yield best
        missing -= pairs[best]


ALL = [
    case
    for values in product(TARGETS, DIMS, OPTIMIZERS, (1, 4), KERNELS)
    if (case := Case(*values)).has_kernels and not (case.every_row and case.kernels == "sparsecore")
]
CASES = ALL if IS_NIGHTLY else list(pairwise(ALL))


def kernels_in(report):
    """Names of the Pallas kernels as far as the first dot, one for each call."""
    return re.findall(
        r'%([\w-]+)[\w.-]* = .*custom-call\(.*custom_call_target="tpu_custom_call"', report.text
    )


def check(case, lookup, update):
    """The law of the module's docstring."""
    most = TIMES[case.devices] * case.batch
    for report in (lookup, update):
        assert (report.prefetches, report.outside) == ((), ())
    assert lookup.copies == () and lookup.temp_bytes <= most
    assert update.alias_bytes >= case.held >= BYTES
    every = case.gradients if case.every_row else 0
    assert [line for line in update.copies if not (every and " broadcast(" in line)] == []
    assert len(update.copies) == (1 if every else 0)
    assert update.temp_bytes <= most + every
    assert most < BYTES // 4, "the bound says nothing"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_programs_change_a_table_in_place_by_the_kernels(case):
    """Adam on all rows makes one array of the table's size, its gradients."""
    lookup, update = case.compiled()
    check(case, lookup, update)
    if case.kernels == "sparsecore":
        assert len(kernels_in(lookup)) == 1 and len(kernels_in(update)) == 2
    else:
        assert (set(kernels_in(lookup)), set(kernels_in(update))) == case.programs


def test_every_pair_of_values_occurs():
    pairs = {pair for case in CASES for pair in combinations(enumerate(astuple(case)), 2)}
    assert pairs == {pair for case in ALL for pair in combinations(enumerate(astuple(case)), 2)}
    assert IS_NIGHTLY or len(CASES) < 90


@pytest.mark.parametrize("target", WORDS)
def test_adam_on_all_rows_beside_sparsecores_copies_the_table(target):
    """XLA computes it on arrays of another form; when this fails that has become better."""
    case = Case(target, 128, "Adam on all rows", 1, "sparsecore")
    _, update = case.compiled()
    assert update.alias_bytes >= case.held and update.copies
    assert case.held < update.temp_bytes < 4 * case.held


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("target", [name for name in TARGETS if name not in WORDS])
def test_a_tpu_without_sparsecores_is_refused(target):
    with pytest.raises(BackendError, match="this TPU has no SparseCores; use the kernels 'xla'"):
        list(Case(target, 128, "Adagrad", 1, "sparsecore").compiled())


@pytest.mark.parametrize("target", WORDS)
@pytest.mark.parametrize("devices", [1, 4])
def test_a_rule_that_sums_over_a_row_is_refused_on_sparsecores(target, devices):
    with pytest.raises(BackendError, match=r"RowwiseAdagrad: SparseCores have no sum .*'xla'"):
        list(Case(target, 32, "RowwiseAdagrad", devices, "sparsecore").compiled())


TOO_WIDE = [
    case
    for target, optimizer in product(WORDS, OPTIMIZERS)
    if optimizer != "RowwiseAdagrad"
    and not (case := Case(target, 1024, optimizer, 1, "sparsecore")).has_kernels
]


@pytest.mark.parametrize("case", TOO_WIDE, ids=str)
def test_records_that_do_not_fit_are_refused_on_sparsecores(case):
    streams = 1 + len(OPTIMIZERS[case.optimizer].slots)
    what = rf"8 records of {streams} x 1024 numbers .* a worker has {WORDS[case.target]}; .*'xla'"
    with pytest.raises(BackendError, match=what):
        list(case.compiled())


# --- controls: what the tests above must be able to find ----------------------------------------

ONE = Case("v5e", 128, "Adagrad", 1, "pallas")


def test_an_update_without_donation_is_found():
    lookup, update = ONE.compiled(donate=())
    assert update.alias_bytes == 0 and update.copies
    with pytest.raises(AssertionError):
        check(ONE, lookup, update)


def test_xla_s_own_programs_are_not_taken_for_kernels():
    assert [kernels_in(report) for report in replace(ONE, kernels="xla").compiled()] == [[], []]


def test_a_kernel_that_changes_a_copy_is_found(monkeypatch):
    plain = pl.pallas_call

    def call(*given, input_output_aliases=None, **options):
        return plain(*given, **options)

    monkeypatch.setattr(pl, "pallas_call", call)
    case = replace(ONE, dim=512)  # of which no other test has traced the programs
    lookup, update = case.compiled()
    assert any("custom-call" in line for line in update.copies)
    with pytest.raises(AssertionError):
        check(case, lookup, update)


# --- bad kernels, which the compiler rejects ----------------------------------------------------

SMEM = pl.BlockSpec(memory_space=pltpu.SMEM)
F32 = jnp.float32


def row_copied(shape, dtype, cut, into):
    """One row by its number into on-chip memory."""

    def kernel(number, table, out, buffer, semaphore):
        for act in ("start", "wait"):
            getattr(pltpu.make_async_copy(cut(table, number[0]), buffer, semaphore), act)()
        out[...] = jnp.zeros_like(out)

    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    scratch = [pltpu.VMEM(into, dtype), pltpu.SemaphoreType.DMA(())]
    return shape, dtype, kernel, {"in_specs": [SMEM, anywhere], "scratch_shapes": scratch}


def in_blocks(block):
    def kernel(_, table, out):
        out[...] = jnp.broadcast_to(table[0, 0], out.shape)

    spec = pl.BlockSpec(block, lambda i: (i, 0))
    return (4096, 1024), F32, kernel, {"in_specs": [SMEM, spec], "grid": (4,)}


def whole(shape, kernel, *scratch):
    options = {"in_specs": [SMEM, pl.BlockSpec(shape)], "scratch_shapes": scratch}
    return shape, F32, kernel, options


def with_buffer(rows):
    def kernel(number, table, out, buffer):
        buffer[0] = table[...]
        out[...] = buffer[number[0]]

    return whole((8, 128), kernel, pltpu.VMEM((rows, 8, 128), F32))


def sliced(first):
    def kernel(number, table, out):
        out[...] = table[:, pl.ds(first(number[0]), 128)]

    return whole((8, 1024), kernel)


SANE = {
    "a row": row_copied((2**16, 1, 128), F32, lambda table, i: table.at[i], (1, 128)),
    "blocks": in_blocks((8, 1024)),
    "a buffer": with_buffer(2**8),
    "a slice": sliced(lambda i: pl.multiple_of(i * 128, 128)),
}
REJECTED = {
    "a row of 16 bits": (
        row_copied((2**16, 128), jnp.bfloat16, lambda t, i: t.at[pl.ds(i, 1)], (1, 128)),
        "must be aligned to tiles",
    ),
    "a row of 256 bytes": (
        row_copied((2**16,), F32, lambda table, i: table.at[pl.ds(0, 64)], (64,)),
        "divisible by",
    ),
    "blocks of another tiling": (in_blocks((7, 100)), "divisible by 8 and 128"),
    "more than the chip's memory": (with_buffer(2**16), "RESOURCE_EXHAUSTED.*vmem"),
    "a slice that begins anywhere": (
        sliced(lambda i: i),
        "cannot statically prove that index in dimension 1 is a multiple of 128",
    ),
}


def compiled(target, shape, dtype, kernel, options):
    mesh = aot.target(target)

    def run(number, table):
        out = jax.ShapeDtypeStruct((8, 128), F32)
        return pl.pallas_call(kernel, out_shape=out, **options)(number, table)

    one = NamedSharding(mesh, PartitionSpec())
    number = jax.ShapeDtypeStruct((1,), jnp.int32, sharding=one)
    table = jax.ShapeDtypeStruct(shape, dtype, sharding=one)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return aot.compile_for(run, number, table, large=2**30)


@pytest.mark.parametrize("target", ["v5e", "7x"])
@pytest.mark.parametrize("kernel", SANE)
def test_small_kernels_compile(kernel, target):
    assert len(kernels_in(compiled(target, *SANE[kernel]))) == 1


@pytest.mark.parametrize("target", ["v5e", "7x"])
@pytest.mark.parametrize("kernel", REJECTED)
def test_a_bad_kernel_is_rejected(kernel, target):
    given, why = REJECTED[kernel]
    with pytest.raises(Exception, match=rf"(?s){why}"):
        compiled(target, *given)
