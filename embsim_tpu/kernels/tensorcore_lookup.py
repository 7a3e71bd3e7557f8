"""Lookup on a TPU's TensorCore: rows copied one by one, summed in the order of their positions.

Positions come in chunks, a chunk's all of one block of samples: block b is the samples b * size ..,
and its sums stay on the chip until its last chunk is done.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .._chunks import Sizes
from ._chunked import (
    ANYWHERE,
    UNCHECKED,
    each,
    in_chunks,
    lines_shape,
    padded,
    scalars,
    start_each,
    wait_all,
)
from ._packed import row_of, shift_of
from .records import LANES, Pieces, Records

Quantize = Callable[[Any], Any] | None


@dataclass(frozen=True)
class Source:
    """Where a record's lines of weights lie: one or more arrays, one copy from each.

    Args:
      tables: [rows, n, 128].
      runs: of each, (first line of the copy, its lines).
      factor: by which a record's number is multiplied to give its row there.
    """

    tables: Pieces
    runs: tuple[tuple[int, int], ...]
    factor: int

    @staticmethod
    def of(pieces: Pieces, records: Records) -> "Source":
        """Of the weights in records."""
        lines, (first, *_) = records.weights, records.pieces
        if first % lines == 0 and (lines % 8 == 0 or first <= 8):
            # The same bytes as rows of w's length: a copy need not be cut out of a record.
            return Source((pieces[0].reshape(-1, lines, LANES),), ((0, lines),), first // lines)
        runs = records.runs(lines)
        return Source(pieces[: len(runs)], tuple((at, n) for _, at, n in runs), 1)

    @property
    def dtype(self) -> Any:
        return self.tables[0].dtype

    def copies(self, tables: Any, row: Any, buffer: Any, place: Any, semaphore: Any) -> list[Any]:
        """Of one row from the references `tables` to its place in a buffer."""
        if len(tables) == 1 and tables[0].shape[1] == self.runs[0][1]:
            to = buffer.at[pl.ds(place, 1)] if len(buffer.shape) == 2 else buffer.at[place]
            return [pltpu.make_async_copy(tables[0].at[row], to, semaphore)]
        return [
            pltpu.make_async_copy(
                table.at[row, pl.ds(0, n)], buffer.at[place, pl.ds(at, n)], semaphore
            )
            for table, (at, n) in zip(tables, self.runs, strict=True)
        ]


def lookup(
    source: Source,
    records: Records,
    ids: jax.Array,
    sample: jax.Array,
    gain: jax.Array,
    counts: jax.Array,
    block: jax.Array,
    *,
    num_blocks: int,
    sizes: Sizes,
    unroll: int = 32,
    quantize: Quantize = None,
    interpret: Any = False,
) -> jax.Array:
    """acc = 0; acc = acc + gain * w[id] in order, for each sample -> [blocks * size, width].

    Args:
      ids, sample, gain: [chunks * chunk], int32, int32 (counted within the block) and float32.
      counts: int32 [chunks]: positions that a chunk has; what follows them is never looked at.
      block: int32 [chunks], ascending; every block has at least one chunk.

    Ids must lie in the table: nothing checks them here.
    """
    shift = () if records.pack == 1 else (shift_of(ids, records),)
    rows = lax.div(ids, jnp.int32(records.pack)) * source.factor
    numbers = [in_chunks(array, sizes.chunk) for array in (rows, sample, gain, *shift)]
    lines = records.lines if records.pack > 1 or not records.half else 2 * records.weights
    out = lines_shape(num_blocks * sizes.samples, lines)
    buffers = pltpu.VMEM((2, *lines_shape(sizes.chunk, records.weights)), source.dtype)
    found = pl.pallas_call(
        partial(_lookup, source=source, unroll=unroll, quantize=quantize, records=records),
        out_shape=jax.ShapeDtypeStruct(out, jnp.float32),
        grid_spec=_grid(len(counts), len(numbers), len(source.tables), sizes, out[1:], buffers),
        compiler_params=UNCHECKED,
        interpret=interpret,
        name="embsim_lookup",
    )(jnp.pad(counts, (0, 1)), block, *numbers, *source.tables)
    return found.reshape(len(found), -1)[:, : records.width]


def _grid(
    chunks: int, numbers: int, tables: int, sizes: Sizes, row: tuple[int, ...], buffers: Any
) -> Any:
    """`numbers`: the rows that are to come, and what goes with those that came before."""

    def sums(c: Any, _: Any, block: Any) -> tuple[Any, ...]:
        return block[jnp.maximum(c - 1, 0)], *(0,) * len(row)

    before = scalars(sizes.chunk, lambda c: jnp.maximum(c - 1, 0))
    return pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(chunks + 1,),
        in_specs=[
            scalars(sizes.chunk, lambda c: jnp.minimum(c, chunks - 1)),
            *[before] * (numbers - 1),
            *[ANYWHERE] * tables,
        ],
        out_specs=pl.BlockSpec((sizes.samples, *row), sums),
        scratch_shapes=[buffers, pltpu.SemaphoreType.DMA((2,))],
    )


def _lookup(
    counts: Any,
    block: Any,
    rows: Any,
    sample: Any,
    gain: Any,
    *rest: Any,
    source: Source,
    unroll: int,
    quantize: Quantize,
    records: Records,
) -> None:
    """Step c starts the copies of chunk c and sums chunk c - 1."""
    packed = records.pack > 1
    shift = rest[0] if packed else None
    *tables, out, buffers, semaphores = rest[1:] if packed else rest
    c = pl.program_id(0)

    @pl.when(counts[c] > 0)
    def _() -> None:
        slot = lax.rem(c, 2)
        buffer, semaphore = buffers.at[slot], semaphores.at[slot]
        start_each(
            counts[c],
            unroll,
            lambda i: source.copies(tables, rows[0, 0, i], buffer, i, semaphore),
        )

    @pl.when(c > 0)
    def _() -> None:
        last, slot = c - 1, lax.rem(c - 1, 2)
        new = jnp.logical_or(c == 1, block[last] != block[jnp.maximum(c - 2, 0)])

        @pl.when(new)
        def _() -> None:
            out[...] = jnp.zeros_like(out)

        buffer = buffers.at[slot]
        wait_all(counts[last], [buffer], semaphores.at[slot])

        def row(i: Any) -> list[Any]:
            held = buffer[pl.ds(i, 1) if len(buffer.shape) == 2 else i]
            parts = row_of(held, None if shift is None else shift[0, 0, i], records)
            return parts if quantize is None else [quantize(part) for part in parts]

        _sum(counts[last], sample, gain, row, out, unroll, 1 if packed else 1 + records.half)


def _sum(
    count: Any, sample: Any, gain: Any, row: Callable[[Any], Any], out: Any, unroll: int, parts: int
) -> None:
    """A sum stays in registers and is stored after every addition, and loaded once a chunk."""

    def places(s: Any) -> list[Any]:
        if parts == 1:
            return [pl.ds(s, 1) if len(out.shape) == 2 else s]
        lines = out.shape[1] // parts
        return [(s, pl.ds(part * lines, lines)) for part in range(parts)]

    def add(i: Any, carry: Any) -> Any:
        before, sums = carry
        s, made = sample[0, 0, i], []
        for acc, part, place in zip(sums, row(i), places(s), strict=True):
            acc = jnp.where(s == before, acc, jnp.zeros_like(acc)) + gain[0, 0, i] * part
            out[place] = acc
            made.append(acc)
        return s, made

    @pl.when(count > 0)
    def _() -> None:
        first = sample[0, 0, 0]
        each(count, unroll, add, (first, [out[place] for place in places(first)]))


def gather(
    source: Source,
    records: Records,
    ids: jax.Array,
    *,
    chunk: int,
    unroll: int = 32,
    interpret: Any = False,
) -> jax.Array:
    """Whole lines of weights of each id's record: [ids, weights * 128], as they are held.

    Ids must lie in the table: nothing checks them here.
    """
    rows = padded(lax.div(ids, jnp.int32(records.pack)) * source.factor, chunk)
    chunks, shape = len(rows) // chunk, lines_shape(len(rows), records.weights)
    found = pl.pallas_call(
        partial(_gather, source=source, chunks=chunks, unroll=unroll),
        out_shape=jax.ShapeDtypeStruct(shape, source.dtype),
        grid=(chunks + 1,),
        in_specs=[
            scalars(chunk, lambda c: jnp.minimum(c, chunks - 1)),
            *[ANYWHERE] * len(source.tables),
        ],
        out_specs=ANYWHERE,
        scratch_shapes=[
            pltpu.VMEM((2, chunk, *shape[1:]), source.dtype),
            pltpu.SemaphoreType.DMA((2,)),
            pltpu.SemaphoreType.DMA((2,)),
        ],
        compiler_params=UNCHECKED,
        interpret=interpret,
        name="embsim_gather",
    )(in_chunks(rows, chunk), *source.tables)
    return found.reshape(len(found), -1)[: len(ids)]


def _gather(rows: Any, *rest: Any, source: Source, chunks: int, unroll: int) -> None:
    """Step c starts the copies of chunk c and sends chunk c - 1 on to where it belongs."""
    *tables, out, buffers, arrived, sent = rest
    chunk, c = buffers.shape[1], pl.program_id(0)

    def onward(c: Any, slot: Any) -> Any:
        place = pl.ds(pl.multiple_of(c * chunk, chunk), chunk)
        return pltpu.make_async_copy(buffers.at[slot], out.at[place], sent.at[slot])

    @pl.when(c < chunks)
    def _() -> None:
        slot = lax.rem(c, 2)

        @pl.when(c >= 2)
        def _() -> None:
            onward(c - 2, slot).wait()

        buffer, semaphore = buffers.at[slot], arrived.at[slot]
        start_each(
            jnp.int32(chunk),
            unroll,
            lambda i: source.copies(tables, rows[0, 0, i], buffer, i, semaphore),
        )

    @pl.when(c > 0)
    def _() -> None:
        slot = lax.rem(c - 1, 2)
        wait_all(jnp.int32(chunk), [buffers.at[slot]], arrived.at[slot])
        onward(c - 1, slot).start()

    @pl.when(c == chunks)
    def _() -> None:
        for last in range(max(0, chunks - 2), chunks):
            onward(last, last % 2).wait()
