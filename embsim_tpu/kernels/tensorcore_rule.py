"""The optimizer's rule on records that are on the chip: lines become rows, and rows lines again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from .bfloat16 import HALF, UPPER, as_type, nearest, words
from .records import LANES, Records

# (w, g, slots, coefficients) -> (w, slots): rows [n, width], rowwise slots [n, 1] or [n, width]
Row = Callable[[Any, Any, Sequence[Any], Any], tuple[Any, Sequence[Any]]]


@dataclass(frozen=True)
class Task:
    """What an update is made of, apart from its arrays.

    Args:
      row: gets slots in the order (the records', then rowwise ones) and coefficients by index.
      rowwise: how many rowwise slots there are.
      chunk: rows of a chunk.
      unroll: rows in one turn of an inner loop, a power of two.
      block: rows that are computed at a time, a multiple of 8 that divides `chunk`.
    """

    records: Records
    row: Row
    rowwise: int
    masked: bool
    chunk: int
    unroll: int = 32
    block: int = 32

    @property
    def streamed(self) -> int:
        """Arrays that come and go in the order of the rows: gradients, mask, rowwise slots."""
        return 1 + self.masked + self.rowwise

    def parts(self, references: Sequence[Any]) -> tuple[Sequence[Any], ...]:
        """Of the kernel's: streamed, pieces, rowwise results, buffers, semaphores."""
        n = len(self.records.pieces)
        ends = np.cumsum([self.streamed, n, n, self.rowwise, n]).tolist()
        given, _, pieces, results, buffers, semaphores = (
            references[lo:hi] for lo, hi in zip([0, *ends], [*ends, len(references)], strict=True)
        )
        return given, pieces, results, buffers, semaphores


def change(
    place: Any,
    held: Sequence[Any],
    streamed: Sequence[Any],
    results: Sequence[Any],
    coefficients: Any,
    keep: Sequence[Any],
    task: Task,
) -> None:
    """The rule on the records `place` of a chunk; `streamed` are gradients and rowwise slots. What
    is in `keep`, of each line of a stream, stays; [] keeps nothing."""
    records = task.records
    lines, wide = records.lines, records.width < LANES
    old = [_stream(i, place, held, records) for i in range(records.streams)]
    made: list[list[Any]] = [[] for _ in old]
    for group in range(records.groups):
        mine = slice(group * lines, (group + 1) * lines)
        w, *beside = [_joined([_number(line) for line in stream[mine]]) for stream in old]
        gradient = streamed[0][place, pl.ds(group * lines * LANES, lines * LANES)]
        lanes = pl.ds(group * LANES, LANES if wide else 1)
        others = [each[place, lanes] for each in streamed[1:]]
        new, slots = task.row(w, gradient, [*beside, *others], coefficients)
        beside, rowwise = slots[: records.streams - 1], slots[records.streams - 1 :]
        for stream, values in zip(made, [new, *beside], strict=True):
            stream += [values[:, j * LANES : (j + 1) * LANES] for j in range(lines)]
        for output, values in zip(results, rowwise, strict=True):
            all_lanes = jnp.broadcast_to(values, (len(gradient), LANES))
            output[place, pl.ds(group * LANES, LANES)] = all_lanes
    for i, (before, after) in enumerate(zip(old, made, strict=True)):
        bits = [_bits(i, values, records) for values in after]
        if keep:
            bits = [jnp.where(*each) for each in zip(keep, before, bits, strict=True)]
        _put(i, place, held, bits, records)


def _stream(i: int, place: Any, held: Sequence[Any], records: Records) -> list[Any]:
    """The lines of a stream, as they are held; of bfloat16 in int32, alone."""
    found = [held[piece][place, line, :] for piece, line in _places(i, records)]
    if i or not records.half:
        return found
    return [*(line << HALF for line in found), *(line & UPPER for line in found)][
        : records.all_lines
    ]


def _put(i: int, place: Any, held: Sequence[Any], lines: list[Any], records: Records) -> None:
    """The inverse of _stream."""
    if not i and records.half:
        n = records.weights
        high = [*lines[n:], *[jnp.zeros_like(lines[0])] * (2 * n - len(lines))]
        lines = [words(low, upper) for low, upper in zip(lines[:n], high, strict=True)]
    for (piece, line), values in zip(_places(i, records), lines, strict=True):
        held[piece][place, line, :] = values


def _places(i: int, records: Records) -> list[tuple[int, int]]:
    """(piece, its line) of each line of a stream."""
    first = records.weights + (i - 1) * records.all_lines if i else 0
    count = records.all_lines if i else records.weights
    return [records.place(line) for line in range(first, first + count)]


def _number(line: Any) -> Any:
    return line if line.dtype == jnp.float32 else as_type(line, jnp.float32)


def _bits(i: int, values: Any, records: Records) -> Any:
    """As _stream has them."""
    if not records.half:
        return values
    return as_type(values, jnp.int32) if i else nearest(values)


def _joined(lines: Sequence[Any]) -> Any:
    return lines[0] if len(lines) == 1 else jnp.concatenate(lines, axis=1)


def row_numbers(task: Task) -> list[Any]:
    """Of every number of a chunk, the row of the table that it is of; by lines of a stream."""
    shape, records = (task.chunk, LANES), task.records
    record = lax.broadcasted_iota(jnp.int32, shape, 0) + pl.program_id(0) * task.chunk
    if records.pack == 1:
        return [record] * records.all_lines
    bits = jnp.int32(min(records.width, LANES).bit_length() - 1)
    part = lax.shift_right_logical(lax.broadcasted_iota(jnp.int32, shape, 1), bits)
    each = records.pack // records.groups
    return [record * records.pack + part + group * each for group in range(records.groups)]
