"""Rows that share a record: brought together for an update, taken apart after a read."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu

from .bfloat16 import HALF, UPPER, as_type
from .records import LANES, Records


@dataclass(frozen=True, eq=False)
class Together:
    """Rows of one record together: two copies of it must not be on their way at once.

    Args:
      records: int32 [n]: each record once; the first `count` are real.
      place, part: of each row, its record's place in `records`, or beyond for padding, and its own
        within that record.
    """

    records: jax.Array
    count: jax.Array
    place: jax.Array
    part: jax.Array
    layout: Records

    @staticmethod
    def of(rows: jax.Array, count: jax.Array, layout: Records) -> "Together":
        n, pack = len(rows), jnp.int32(layout.pack)
        if layout.pack == 1:
            return Together(rows, count, jnp.arange(n), jnp.zeros_like(rows), layout)
        record = lax.div(rows, pack)
        real = jnp.arange(n) < count
        new = jnp.concatenate([jnp.ones(1, bool), record[1:] != record[:-1]]) & real
        place = jnp.where(real, jnp.cumsum(new) - 1, n + jnp.arange(n))
        records = jnp.zeros_like(rows).at[place].max(record, mode="drop", indices_are_sorted=True)
        return Together(records, jnp.sum(new, dtype=jnp.int32), place, lax.rem(rows, pack), layout)

    def spread(self, values: jax.Array) -> jax.Array:
        """[n, width] of rows -> [n, lines * 128] of records, 0 where no row is."""
        if self.layout.pack == 1:
            return values
        n, width = values.shape
        found = jnp.zeros((n, self.layout.pack, width), values.dtype)
        put = found.at[self.place, self.part].set(
            values, mode="drop", indices_are_sorted=True, unique_indices=True
        )
        return put.reshape(n, -1)

    def gathered(self, values: jax.Array) -> jax.Array:
        """The inverse of spread."""
        if self.layout.pack == 1:
            return values
        found = values.reshape(len(values), self.layout.pack, -1)
        return found.at[self.place, self.part].get(mode="clip")

    def mask(self) -> jax.Array | None:
        """Where rows are; None: everywhere."""
        if self.layout.pack == 1:
            return None
        return self.spread(jnp.ones((len(self.place), self.layout.width), jnp.float32))


def wide(values: jax.Array, records: Records) -> jax.Array:
    """A rowwise slot [n, 1] in all lanes of each row: [n, 128], or [n, width] of packed rows."""
    return jnp.broadcast_to(values, (len(values), min(records.width, LANES)))


def part_of(found: jax.Array, part: jax.Array, records: Records) -> jax.Array:
    """[n, lines * 128] -> [n, dim]: of packed rows the one that is asked for."""
    half = records.pack // 2
    while half:
        upper = (lax.div(part, jnp.int32(half)) % 2 == 1)[:, None]
        middle = half * records.width
        found = jnp.where(upper, found[:, middle:], found[:, :middle])
        half //= 2
    return found[:, : records.dim]


def shift_of(ids: jax.Array, records: Records) -> jax.Array:
    """Where a packed row lies, for row_of: by how many lanes it must be rolled to begin at the
    first; of bfloat16 plus 128 times the bits by which its half of each word must be shifted."""
    part = lax.bitwise_and(ids, jnp.int32(records.pack - 1))
    lanes = lax.bitwise_and(-part * records.width, jnp.int32(LANES - 1))
    if not records.half:
        return lanes
    return lanes + jnp.where(part < records.pack // 2, LANES * HALF, 0)


def row_of(held: Any, shift: Any, records: Records) -> list[Any]:
    """In a kernel, the row as float32 out of its record's lines of weights; of bfloat16 that are
    not packed its first lines, and the others."""
    if not records.half:
        return [held if shift is None else pltpu.roll(held, shift, 1)]
    if shift is None:
        return [as_type(held << HALF, jnp.float32), as_type(held & UPPER, jnp.float32)]
    if records.width < LANES:
        held = pltpu.roll(held, shift & (LANES - 1), 1)
    bits = lax.shift_left(held, jnp.broadcast_to(lax.shift_right_logical(shift, 7), held.shape))
    return [as_type(bits & UPPER, jnp.float32)]
