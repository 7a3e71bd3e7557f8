"""What the report counts: lookups and updates of one table of a million rows on one device.

Names are what-dim-whose: `lookup-128-xla`; of a table in bfloat16 `half-lookup-128-pallas`. A bag
has 16 ids on average; a row is one id of a lookup, and one row that an update changes.

To add a kernel, append a Case to CASES; its `kernel` says how many rows a turn of each of its
innermost loops handles, in the order in which they stand in the code:

    _case("lookup", 128, "pallas", partial(lookup, "pallas"), kernel=Kernel("name", (32, 32), 256))

0 is a loop that does not turn in a full chunk.
"""

from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from embsim.optimizers import Adagrad

from .._chunks import Chunks, Sizes
from ..kernels import Formula, Kernels, choose
from ..placement import Placement
from ..plan import LookupPlan
from . import shapes_of
from .cost import Case, Kernel, Program

TABLE = Placement(1_000_000, 1).local_rows  # with the padding that every table has
BAG = 16  # ids in each, on average
ADAGRAD = Adagrad(0.1)
LIBRARY = "jax-tpu-embedding"

F, I = jnp.float32, jnp.int32  # noqa: E741
Shape = tuple[tuple[int, ...], Any]


def shapes(mesh: Mesh, *each: Shape) -> tuple[Any, ...]:
    """Arrays of these shapes and types, whole on each device of the mesh."""
    whole = NamedSharding(mesh, PartitionSpec())
    return tuple(jax.ShapeDtypeStruct(shape, dtype, sharding=whole) for shape, dtype in each)


# --- XLA


def take(dim: int, rows: int, mesh: Mesh) -> Program:
    """Rows of a table as they are."""

    def run(table: Any, ids: Any) -> Any:
        return jnp.take(table, ids, axis=0, mode="clip")

    return Program(run, shapes(mesh, ((TABLE, dim), F), ((rows,), I)))


def take_and_sum(dim: int, rows: int, mesh: Mesh) -> Program:
    """The lookup that everybody writes: no gains, samples ascending."""

    def run(table: Any, ids: Any, sample: Any) -> Any:
        found = jnp.take(table, ids, axis=0, mode="clip")
        return jax.ops.segment_sum(found, sample, rows // BAG, indices_are_sorted=True)

    return Program(run, shapes(mesh, ((TABLE, dim), F), ((rows,), I), ((rows,), I)))


# --- kernels by their names, as `choose` has them


def lookup(kernels: str, dim: int, rows: int, mesh: Mesh, half: bool = False) -> Program:
    """Kernels.sum_bags."""
    chosen = choose(kernels, "tpu", dim, ADAGRAD, bfloat16=half)
    samples, unused = rows // BAG, cast(Any, None)
    sizes = chosen.sizes(samples, rows)
    weights, _ = _stored(chosen, dim, mesh)

    def run(weights: Any, slot: Any, sample: Any, gain: Any, *chunked: Any) -> Any:
        chunks = None if sizes is None else _chunks(sizes, samples, *chunked)
        plan = LookupPlan(
            None, slot, sample, gain, unused, None, samples, False, TABLE, chunks=chunks
        )
        return chosen.sum_bags(weights, plan, None)

    number = 0 if sizes is None else sizes.chunks(samples, rows)
    positions = rows if sizes is None else number * sizes.chunk
    numbers = ((positions,), I), ((positions,), I), ((positions,), F)
    chunked = () if sizes is None else (((number,), I), ((number,), I))
    return Program(run, (weights, *shapes(mesh, *numbers, *chunked)))


def _chunks(sizes: Sizes, samples: int, counts: Any, block: Any) -> Chunks:
    return Chunks(counts, block, sizes, sizes.blocks(samples))


def gather(kernels: str, dim: int, rows: int, mesh: Mesh) -> Program:
    """Kernels.read."""
    chosen = choose(kernels, "tpu", dim, ADAGRAD)
    weights, _ = _stored(chosen, dim, mesh)
    return Program(chosen.read, (weights, *shapes(mesh, ((rows,), I))))


def adagrad(kernels: str, dim: int, rows: int, mesh: Mesh, half: bool = False) -> Program:
    """Kernels.update_rows."""
    chosen = choose(kernels, "tpu", dim, ADAGRAD, bfloat16=half)
    names = tuple(ADAGRAD.coefficients(0.1))

    def run(weights: Any, slots: Any, at: Any, gradients: Any, numbers: Any) -> Any:
        formula = Formula(ADAGRAD, names, numbers)
        return chosen.update_rows(weights, slots, at, gradients, formula, TABLE)

    given = shapes(mesh, ((rows,), I), ((rows, dim), F), ((len(names),), F))
    return Program(run, (*_stored(chosen, dim, mesh), *given), donate=(0, 1))


def _stored(kernels: Kernels, dim: int, mesh: Mesh) -> Any:
    """Weights and slots as they lie for these kernels."""
    table = jax.ShapeDtypeStruct((TABLE, dim), F)

    def split(table: Any, *slots: Any) -> Any:
        names = [slot.name for slot in ADAGRAD.slots]
        return kernels.split(table, dict(zip(names, slots, strict=True)), jnp)

    made = jax.eval_shape(split, table, *(table for _ in ADAGRAD.slots))
    return shapes_of(made, NamedSharding(mesh, PartitionSpec()))


# --- jax-tpu-embedding, Google's operations for SparseCores

SPARSECORES = {"TPU v5": 4, "TPU v6 lite": 2, "TPU7x": 2}  # of a device, by its kind
IDS_MAX = 256  # of one partition, also distinct ones


def library_lookup(dim: int, rows: int, mesh: Mesh) -> Program:
    """Its forward pass, from ids that are sorted into partitions already."""
    operation: Any = _library("sparse_dense_matmul_csr").tpu_sparse_dense_matmul_csr_primitive

    def run(table: Any, starts: Any, ids: Any, sample: Any, gain: Any, batches: Any) -> Any:
        return operation.bind(
            *(starts, ids, sample, gain, batches[0], table),
            device_batch_size=rows // BAG,
            quantization_config=None,
            **_settings(),
        )

    given = (_table(dim, mesh), *shapes(mesh, *_partitions(mesh)))
    return Program(jax.jit(_mapped(run, mesh, 1)), given)


def library_adagrad(dim: int, rows: int, mesh: Mesh) -> Program:
    """Its backward pass: the rows' gradients are summed in it, too."""
    name = "sparse_dense_matmul_grad_with_adagrad"
    operation: Any = getattr(_library(name), f"tpu_{name}_primitive")

    def run(table: Any, accumulator: Any, gradients: Any, rate: Any, *plan: Any) -> Any:
        *partitions, batches = plan
        return tuple(
            operation.bind(
                *(*partitions, batches[0], table, accumulator, gradients, rate[0]),
                computation_name="adagrad",
                **_settings(),
            )
        )

    table = _table(dim, mesh)
    given = shapes(mesh, ((rows // BAG, dim), F), ((1,), F), *_partitions(mesh))
    kept: Any = (table.format, table.format)
    jitted = jax.jit(_mapped(run, mesh, 2), donate_argnums=(0, 1), out_shardings=kept)
    return Program(jitted, (table, table, *given))


def _library(name: str) -> Any:
    return import_module(f"jax_tpu_embedding.sparsecore.lib.core.primitives.{name}")


def _settings() -> dict[str, Any]:
    return {
        "max_ids_per_partition": IDS_MAX,
        "max_unique_ids_per_partition": IDS_MAX,
        "sharding_strategy": 1,
        "enable_minibatching": False,
    }


def _table(dim: int, mesh: Mesh) -> Any:
    """As the library keeps one: rows are dense. In XLA's layout it would be copied."""
    utils = import_module("jax_tpu_embedding.sparsecore.utils.utils")
    form = utils.embedding_table_format_with_sharding(NamedSharding(mesh, PartitionSpec("x")))
    return jax.ShapeDtypeStruct((TABLE, dim), F, sharding=form)


def _partitions(mesh: Mesh) -> tuple[Shape, ...]:
    """Starts of rows, ids, samples, gains: ids in one partition for each pair of SparseCores; and
    the number of minibatches."""
    kind = mesh.devices.flat[0].device_kind
    if kind not in SPARSECORES:
        raise ValueError(f"{kind} has no SparseCores that {LIBRARY} can use")
    cores = SPARSECORES[kind]
    ids = ((IDS_MAX * cores * cores,), I)
    return ((max(8, cores) * cores,), I), ids, ids, (ids[0], F), ((1,), I)


def _mapped(function: Any, mesh: Mesh, results: int) -> Any:
    """For a mesh, which the operations want to be under; of one device."""
    split = PartitionSpec("x")
    out = split if results == 1 else (split,) * results
    return jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=out, check_vma=False)


def _case(
    what: str, dim: int, kind: str, build: Any, reads: int = 1, kernel: Kernel | None = None
) -> Case:
    """`build` is given dim, rows and mesh."""
    needs = "jax_tpu_embedding" if kind == LIBRARY else None
    name, large = f"{what}-{dim}-{kind}", (2 if what.startswith("half") else 4) * dim * TABLE
    return Case(name, kind, partial(build, dim), large, reads, kernel=kernel, needs=needs)


LOOKUP = Kernel("embsim_lookup", (32, 0, 0, 32, 0), 256)
GATHER = Kernel("embsim_gather", (32,), 256)
UPDATE = Kernel("embsim_update", (0, 32, 0, 0, 64, 32, 0, 0, 0, 0), 128)
DIMS = (32, 128, 256)
HALF_LOOKUP, HALF_ADAGRAD = (partial(each, "pallas", half=True) for each in (lookup, adagrad))
PALLAS = [
    *(
        _case("lookup", dim, "pallas", partial(lookup, "pallas"), kernel=kernel)
        for dim, kernel in ((32, LOOKUP), (128, LOOKUP), (256, replace(LOOKUP, chunk=128)))
    ),
    _case("gather", 128, "pallas", partial(gather, "pallas"), kernel=GATHER),
    *(
        _case("adagrad", dim, "pallas", partial(adagrad, "pallas"), kernel=kernel)
        for dim, kernel in ((32, UPDATE), (128, UPDATE), (256, replace(UPDATE, chunk=64)))
    ),
    _case("adagrad", 128, "pallas-exact", partial(adagrad, "pallas-exact"), kernel=UPDATE),
    _case("half-lookup", 128, "pallas", HALF_LOOKUP, kernel=LOOKUP),
    _case("half-lookup", 256, "pallas", HALF_LOOKUP, kernel=replace(LOOKUP, chunk=128)),
    _case("half-adagrad", 128, "pallas", HALF_ADAGRAD, kernel=replace(UPDATE, chunk=64)),
    _case("half-adagrad", 256, "pallas", HALF_ADAGRAD, kernel=replace(UPDATE, chunk=64)),
]
CASES = [
    _case("take", 128, "xla", take),
    _case("take-and-sum", 128, "xla", take_and_sum),
    *(_case("lookup", dim, "xla", partial(lookup, "xla")) for dim in DIMS),
    *(_case("lookup", dim, LIBRARY, library_lookup) for dim in DIMS),
    *(_case("adagrad", dim, "xla", partial(adagrad, "xla"), reads=2) for dim in DIMS),
    *(_case("adagrad", dim, LIBRARY, library_adagrad, reads=2) for dim in DIMS),
    *PALLAS,
]
