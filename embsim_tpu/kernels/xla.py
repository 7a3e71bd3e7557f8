"""The arithmetic of a step in plain XLA, for every platform: gathers, segment sums, scatters.

A segment sum adds in the order of its operands on CPU and TPU. On GPU it uses atomic additions, in
any order, unless XLA_FLAGS has --xla_gpu_deterministic_ops=true.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from embsim.config import QuantizationConfig
from embsim.lookup import quantization_constants

from ..ops import Ops
from ..plan import LookupPlan
from .base import Formula, Slots, Stored
from .bfloat16 import rounded, widened


@dataclass(frozen=True)
class Xla:
    """See base.Kernels. Rows lie as [rows, dim] arrays; of w in uint16 if it is `bfloat16`."""

    ops: Ops
    bfloat16: bool = False
    name: ClassVar[str] = "xla"

    def sizes(self, samples: int, positions: int) -> None:
        return None

    def length(self, shard_rows: int) -> int:
        return shard_rows

    def split(self, table: Any, slots: Slots, xp: Any) -> Stored:
        return rounded(table, xp) if self.bfloat16 else table, slots

    def join(self, weights: Any, slots: Slots, shard_rows: int, xp: Any) -> Stored:
        return widened(weights, xp), slots

    def read(self, weights: Any, rows: jax.Array) -> jax.Array:
        return widened(read(weights, rows))

    def sum_bags(
        self, weights: Any, plan: LookupPlan, quantization: QuantizationConfig | None
    ) -> jax.Array:
        positions = slice(plan.samples if plan.one_id_each else None)
        rows = self.read(weights, plan.slot[positions])
        if quantization is not None:
            rows = quantized(rows, quantization, self.ops)
        scaled = plan.gain[positions, None] * rows
        if plan.one_id_each:
            return scaled
        return jax.ops.segment_sum(scaled, plan.sample, plan.samples, indices_are_sorted=True)

    def sum_received(
        self, received: jax.Array, plan: LookupPlan, quantization: QuantizationConfig | None
    ) -> jax.Array:
        return self.sum_bags(received, plan, quantization)

    def sum_rows(self, gradients: jax.Array, plan: LookupPlan, rows: int) -> jax.Array:
        by_row = plan.by_row
        scaled = by_row.gain[:, None] * gradients.at[by_row.sample].get(mode="clip")
        return jax.ops.segment_sum(scaled, by_row.slot, rows, indices_are_sorted=True)

    def update_rows(
        self,
        weights: Any,
        slots: Slots,
        rows: jax.Array,
        gradients: jax.Array,
        formula: Formula,
        shard_rows: int,
    ) -> Stored:
        old = jax.tree.map(lambda array: read(array, rows, ascending=True), (weights, dict(slots)))
        new = formula.row(self.ops)(widened(old[0]), gradients, old[1])
        return jax.tree.map(
            lambda array, values: write(array, rows, values, ascending=True),
            (weights, dict(slots)),
            self._stored(new),
        )

    def update_all(
        self,
        weights: Any,
        slots: Slots,
        rows: jax.Array,
        gradients: jax.Array,
        formula: Formula,
        local_rows: jax.Array,
    ) -> Stored:
        whole = write(jnp.zeros(weights.shape, jnp.float32), rows, gradients, ascending=True)
        real = jnp.arange(len(weights))[:, None] < local_rows[0]
        new = formula.row(self.ops)(widened(weights), whole, slots)
        return jax.tree.map(
            lambda before, after: jnp.where(real, after, before),
            (weights, dict(slots)),
            self._stored(new),
        )

    def _stored(self, new: Stored) -> Stored:
        return (rounded(new[0]), new[1]) if self.bfloat16 else new

    def take(self, weights: Any, slots: Slots, rows: jax.Array, shard_rows: int) -> Any:
        return jax.tree.map(lambda array: read(array, rows), (weights, dict(slots)))

    def put(
        self, weights: Any, slots: Slots, rows: jax.Array, taken: Any, shard_rows: int
    ) -> Stored:
        return jax.tree.map(
            lambda array, old: write(array, rows, old), (weights, dict(slots)), taken
        )

    def bits(self, weights: Any, slots: Slots, rows: jax.Array, shard_rows: int) -> Stored:
        return jax.tree.map(lambda array: bits_of(array, rows), (weights, dict(slots)))


def bits_of(array: jax.Array, rows: jax.Array) -> jax.Array:
    """array[rows]; a float could be flushed on its way."""
    if array.dtype == jnp.uint16:
        return widened(array[rows])
    found = lax.bitcast_convert_type(array, jnp.int32)[rows]
    return lax.bitcast_convert_type(found, array.dtype)


def read(array: jax.Array, rows: jax.Array, *, ascending: bool = False) -> jax.Array:
    """[rows, dim] -> [len(rows), dim]; a row beyond the last is read as the last.

    `ascending`: that `rows` is, without duplicates.
    """

    def plain(array: jax.Array, rows: jax.Array) -> jax.Array:
        return array.at[rows].get(
            mode="clip", indices_are_sorted=ascending, unique_indices=ascending
        )

    if not _in_blocks(array, READ):
        return plain(array, rows)
    return lax.platform_dependent(array, rows, tpu=read_blocks, default=plain)


def write(
    array: jax.Array, rows: jax.Array, values: jax.Array, *, ascending: bool = False
) -> jax.Array:
    """`array` with `values` in `rows`; what lies beyond the last row is dropped.

    `ascending`: that `rows` is, without duplicates. Otherwise those have the same values.
    """

    def plain(array: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
        return array.at[rows].set(
            values, mode="drop", indices_are_sorted=ascending, unique_indices=ascending
        )

    def blocks(array: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
        return write_blocks(array, rows, values, unique=ascending)

    if not _in_blocks(array, WRITTEN):
        return plain(array, rows, values)
    return lax.platform_dependent(array, rows, values, tpu=blocks, default=plain)


BLOCK = 8  # a TPU holds an array whose rows are no multiple of 128 wide as blocks of 8 columns
READ, WRITTEN = 56, 64  # up to these its compiler reads and writes rows of that form as it stands


def _in_blocks(array: jax.Array, widest: int) -> bool:
    """Whether a TPU must be shown the blocks: to reach a row of a wider array its compiler copies
    the whole array row by row, where at least half of each padded row is in use."""
    dim = array.shape[1]
    return dim > widest and dim % BLOCK == 0 and dim % 128 != 0


def read_blocks(array: jax.Array, rows: jax.Array) -> jax.Array:
    """As read."""
    found = _blocks(array).at[_block_rows(array, jnp.minimum(rows, len(array) - 1))]
    return _joined(found.get(mode="promise_in_bounds"), len(rows))


def write_blocks(
    array: jax.Array, rows: jax.Array, values: jax.Array, *, unique: bool
) -> jax.Array:
    """As write."""
    blocks = _blocks(array)
    beyond = len(blocks) + jnp.arange(len(rows) * array.shape[1] // BLOCK, dtype=rows.dtype)
    inside = jnp.tile(rows < len(array), array.shape[1] // BLOCK)
    places = jnp.where(inside, _block_rows(array, rows), beyond)
    changed = blocks.at[places].set(_blocks(values), mode="drop", unique_indices=unique)
    return _joined(changed, len(array))


def _blocks(array: jax.Array) -> jax.Array:
    """[rows, dim] -> [dim / 8 * rows, 8]: columns 0 .. 7, below them 8 .. 15, ... On a TPU the same
    bytes."""
    rows, dim = array.shape
    blocks = array.reshape(rows, dim // BLOCK, BLOCK).swapaxes(0, 1)
    return blocks.reshape(-1, BLOCK)


def _joined(blocks: jax.Array, rows: int) -> jax.Array:
    """The inverse of _blocks."""
    return blocks.reshape(-1, rows, BLOCK).swapaxes(0, 1).reshape(rows, -1)


def _block_rows(array: jax.Array, rows: jax.Array) -> jax.Array:
    """Where each row stands in the first block, in the second, ..."""
    count, dim = array.shape
    assert (count + len(rows)) * dim // BLOCK < 2**31, "an index of a block does not fit in int32"
    return (count * jnp.arange(dim // BLOCK, dtype=rows.dtype)[:, None] + rows).reshape(-1)


def quantized(x: jax.Array, quantization: QuantizationConfig, ops: Ops) -> jax.Array:
    lower, upper, width = quantization_constants(quantization)
    x = jnp.minimum(jnp.maximum(x, lower), upper)
    return jnp.floor(ops.divide(x - lower, width) + jnp.float32(0.5)) * width + lower
