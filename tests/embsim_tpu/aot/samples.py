"""Small Pallas kernels to be counted, in a process that imports this file."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from embsim_tpu.aot.cases import shapes
from embsim_tpu.aot.cost import Case, Kernel, Program

TABLE, CHUNK = 100_000, 256
UNCHECKED = pltpu.CompilerParams(disable_bounds_checks=True, disable_semaphore_checks=True)


def doubled(rows, mesh, *, unroll, copies=1):
    """2 * table[ids]; each row is copied `copies` times."""

    def step(ids, table, out, buffers, semaphore):
        def start(turn, _):
            for u in range(unroll):
                i = turn * unroll + u
                for buffer in range(copies):
                    to = buffers.at[buffer, pl.ds(i, 1)]
                    pltpu.make_async_copy(table.at[ids[0, 0, i]], to, semaphore).start()
            return 0

        def double(turn, _):
            for u in range(unroll):
                at = pl.ds(turn * unroll + u, 1)
                out[at, :] = 2 * buffers[0, at, :]
            return 0

        lax.fori_loop(0, CHUNK // unroll, start, 0)
        pltpu.make_async_copy(buffers, buffers, semaphore).wait()
        lax.fori_loop(0, CHUNK // unroll, double, 0)

    def run(table, ids):
        return pl.pallas_call(
            step,
            out_shape=jax.ShapeDtypeStruct((rows, 128), jnp.float32),
            grid=(rows // CHUNK,),
            in_specs=[
                pl.BlockSpec((1, 1, CHUNK), lambda c: (c, 0, 0), memory_space=pltpu.SMEM),
                pl.BlockSpec(memory_space=pl.ANY),
            ],
            out_specs=pl.BlockSpec((CHUNK, 128), lambda c: (c, 0)),
            scratch_shapes=[
                pltpu.VMEM((copies, CHUNK, 128), jnp.float32),
                pltpu.SemaphoreType.DMA,
            ],
            compiler_params=UNCHECKED,
            name="doubled",
        )(ids.reshape(-1, 1, CHUNK), table)

    given = ((TABLE, 1, 128), jnp.float32), ((rows,), jnp.int32)
    return Program(run, shapes(mesh, *given))


def case(name, unroll, copies=1, declared=True):
    def build(number, mesh):
        return doubled(number, mesh, unroll=unroll, copies=copies)

    kernel = Kernel("doubled", (unroll, unroll), CHUNK) if declared else None
    return Case(name, "pallas", build, 4 * 128 * TABLE, rows=2**14, kernel=kernel)


CASES = [
    case("by 8", 8),
    case("by 16", 16),
    case("two copies", 8, copies=2),
    case("by turns", 8, declared=False),
]
