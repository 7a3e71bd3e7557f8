"""The optimizer's rule on a TPU's TensorCore, in place: a record comes, is changed, and goes back.

A record holds a row's weights and its slots, so one copy each way moves them all. Step c of the
grid starts the reads of chunk c, and changes and sends back chunk c - 1; a third buffer is then
still being written from.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ._chunked import ANYWHERE, UNCHECKED, in_chunks, padded, scalars, start_each, wait_all
from .records import LANES, Pieces
from .tensorcore_rule import Task, change, row_numbers

BUFFERS = 3


def update(
    pieces: Pieces,
    rows: jax.Array,
    count: jax.Array,
    gradients: jax.Array,
    rowwise: Sequence[jax.Array],
    mask: jax.Array | None,
    coefficients: jax.Array,
    task: Task,
    *,
    interpret: Any = False,
) -> tuple[Pieces, tuple[jax.Array, ...]]:
    """row(w, g, slots, coefficients) on the first `count` of the records `rows`; no others change.

    Args:
      pieces: what `records.split` made; taken over.
      rows: int32 [n], distinct records.
      count: int32 []. The records beyond it are never looked at.
      gradients: [n, all_lines * 128].
      rowwise: values of rowwise slots, [n, groups * 128] each, the same in all lanes of a row.
      mask: [n, all_lines * 128], not 0 where a number may change; None: everywhere.
      coefficients: [c].

    Returns pieces, and the new values of `rowwise`.

    Records must lie in the table: nothing checks them here.
    """
    given = [gradients, *(() if mask is None else (mask,)), *rowwise]
    streamed = [padded(array, task.chunk) for array in given]
    numbers = in_chunks(padded(rows, task.chunk), task.chunk)
    made = pl.pallas_call(
        partial(_update, task=task),
        out_shape=[
            *(jax.ShapeDtypeStruct(each.shape, each.dtype) for each in pieces),
            *(jax.ShapeDtypeStruct((numbers.size, each.shape[1]), jnp.float32) for each in rowwise),
        ],
        grid_spec=_grid(task, len(numbers), streamed, pieces[0].dtype),
        input_output_aliases={4 + len(streamed) + i: i for i in range(len(pieces))},
        compiler_params=UNCHECKED,
        interpret=interpret,
        name="embsim_update",
    )(count.reshape(1), numbers, numbers, coefficients, *streamed, *pieces)
    return tuple(made[: len(pieces)]), tuple(made[len(pieces) :])


def _grid(task: Task, chunks: int, streamed: Sequence[jax.Array], dtype: Any) -> Any:
    def before(c: Any, _: Any) -> tuple[Any, int]:
        return jnp.maximum(c - 1, 0), 0

    chunk, lines, rowwise = task.chunk, task.records.pieces, task.records.groups * LANES
    return pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(chunks + 1,),
        in_specs=[
            scalars(chunk, lambda c: jnp.minimum(c, chunks - 1)),
            scalars(chunk, lambda c: jnp.maximum(c - 1, 0)),
            pl.BlockSpec(memory_space=pltpu.SMEM),
            *(pl.BlockSpec((chunk, array.shape[1]), before) for array in streamed),
            *[ANYWHERE] * len(lines),
        ],
        out_specs=[
            *[ANYWHERE] * len(lines),
            *(pl.BlockSpec((chunk, rowwise), before) for _ in range(task.rowwise)),
        ],
        scratch_shapes=[
            *(pltpu.VMEM((BUFFERS, chunk, n, LANES), dtype) for n in lines),
            pltpu.SemaphoreType.DMA((BUFFERS,)),
            pltpu.SemaphoreType.DMA((BUFFERS,)),
        ],
    )


def _update(
    count: Any, arriving: Any, leaving: Any, coefficients: Any, *references: Any, task: Task
) -> None:
    streamed, pieces, results, buffers, (arrived, written) = task.parts(references)
    c, chunks = pl.program_id(0), pl.num_programs(0) - 1

    def rows_of(c: Any) -> Any:
        return jnp.clip(count[0] - c * task.chunk, 0, task.chunk)

    def at(c: Any) -> tuple[list[Any], Any]:
        slot = lax.rem(c, BUFFERS)
        return [buffer.at[slot] for buffer in buffers], slot

    def wait(c: Any, semaphores: Any) -> None:
        held, slot = at(c)
        wait_all(rows_of(c), held, semaphores.at[slot])

    @pl.when(c < chunks)
    def _() -> None:
        @pl.when(c >= BUFFERS)
        def _() -> None:
            wait(c - BUFFERS, written)

        _start(rows_of(c), task.unroll, pieces, arriving, *at(c), arrived, to_table=False)

    @pl.when(c > 0)
    def _() -> None:
        wait(c - 1, arrived)
        held, slot = at(c - 1)

        def some(i: Any, carry: Any) -> Any:
            place = pl.ds(pl.multiple_of(i * task.block, task.block), task.block)
            streams = streamed[0], *streamed[1 + task.masked :]
            lines = range(task.records.all_lines if task.masked else 0)
            keep = [streamed[1][place, pl.ds(LANES * i, LANES)] == 0 for i in lines]
            change(place, held, streams, results, coefficients, keep, task)
            return carry

        lax.fori_loop(0, pl.cdiv(rows_of(c - 1), task.block), some, 0)
        _start(rows_of(c - 1), task.unroll, pieces, leaving, held, slot, written, to_table=True)

    @pl.when(c == chunks)
    def _() -> None:
        for k in range(1, BUFFERS + 1):

            @pl.when(c >= k)
            def _(k: int = k) -> None:
                wait(c - k, written)


def _start(
    count: Any,
    unroll: int,
    pieces: Sequence[Any],
    rows: Any,
    held: Sequence[Any],
    slot: Any,
    semaphores: Any,
    *,
    to_table: bool,
) -> None:
    """Start a chunk's copies between the table and the buffers `held`."""

    def copies(i: Any) -> list[Any]:
        pairs = [
            (piece.at[rows[0, 0, i]], buffer.at[i])
            for piece, buffer in zip(pieces, held, strict=True)
        ]
        ends = [(there, here) if to_table else (here, there) for here, there in pairs]
        return [pltpu.make_async_copy(*each, semaphores.at[slot]) for each in ends]

    start_each(count, unroll, copies)


def update_every(
    pieces: Pieces,
    gradients: jax.Array,
    rowwise: Sequence[jax.Array],
    rows: jax.Array,
    coefficients: jax.Array,
    task: Task,
    *,
    interpret: Any = False,
) -> tuple[Pieces, tuple[jax.Array, ...]]:
    """As update, on every record in the order of the table: its first `rows` rows, int32 [1]."""
    streamed, n = [gradients, *rowwise], len(pieces)

    def kernel(rows: Any, coefficients: Any, *references: Any) -> None:
        ends = np.cumsum([len(streamed), n, n]).tolist()
        given, old, new, results = (
            references[lo:hi] for lo, hi in zip([0, *ends], [*ends, len(references)], strict=True)
        )
        for before, after in zip(old, new, strict=True):
            after[...] = before[...]
        keep = [numbers >= rows[0] for numbers in row_numbers(task)]
        change(pl.ds(0, task.chunk), new, given, results, coefficients, keep, task)

    def part(array: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec((task.chunk, *array.shape[1:]), lambda i: (i, *(0,) * (array.ndim - 1)))

    scalar = pl.BlockSpec(memory_space=pltpu.SMEM)
    made = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (*pieces, *rowwise)],
        grid=(pl.cdiv(len(gradients), task.chunk),),
        in_specs=[scalar, scalar, *map(part, (*streamed, *pieces))],
        out_specs=list(map(part, (*pieces, *rowwise))),
        input_output_aliases={2 + len(streamed) + i: i for i in range(n)},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
        name="embsim_update_every",
    )(rows, coefficients, *streamed, *pieces)
    return tuple(made[:n]), tuple(made[n:])
