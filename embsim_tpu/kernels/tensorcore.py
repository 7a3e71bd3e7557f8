"""Pallas kernels of a TPU's TensorCore, for tables of any width.

What is O(batch) beside them is plain XLA: where rows of one record meet, and rowwise slots.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from embsim.config import QuantizationConfig
from embsim.optimizers import Optimizer

from .._chunks import Chunks, Sizes
from ..plan import LookupPlan
from . import xla
from ._packed import Together, part_of, wide
from .base import Formula, Slots, Stored
from .bfloat16 import parted
from .kernel_ops import IeeeOps, KernelOps
from .launch import USUAL, Launch, power
from .records import LANES, Pieces, Records
from .tensorcore_lookup import Source, gather, lookup
from .tensorcore_rule import Task
from .tensorcore_update import update, update_every


@dataclass(frozen=True)
class TensorCore:
    """See base.Kernels. Rows lie in records; rowwise slots as [rows, 1] arrays.

    Args:
      dim: of the table.
      beside: names of the slots in the records, in the order of the optimizer's.
      exact: roots and quotients are rounded as IEEE 754 has it; a TPU's own are not.
      bfloat16: the weights are held so.
    """

    dim: int
    beside: tuple[str, ...] = ()
    exact: bool = False
    launch: Launch = USUAL
    bfloat16: bool = False
    name: ClassVar[str] = "pallas"

    @staticmethod
    def of(
        dim: int,
        optimizer: Optimizer | None,
        *,
        exact: bool,
        launch: Launch,
        bfloat16: bool = False,
    ) -> "TensorCore":
        slots = () if optimizer is None else optimizer.slots
        beside = tuple(slot.name for slot in slots if not slot.rowwise)
        return TensorCore(dim, beside, exact, launch, bfloat16)

    @cached_property
    def records(self) -> Records:
        return Records(self.dim, 1 + len(self.beside), half=self.bfloat16)

    @cached_property
    def alone(self) -> Records:
        """Of rows without slots: activations, gradients."""
        return Records(self.dim)

    @cached_property
    def ops(self) -> KernelOps:
        return (IeeeOps if self.exact else KernelOps)(records=self.alone)

    def sizes(self, samples: int, positions: int) -> Sizes:
        """Blocks of a few chunks each: one of these may be filled only in part."""
        chunk = self.launch.rows(min(self.launch.lookup, power(positions)), self.alone.lines)
        most = max(8, self.launch.samples // power(self.alone.lines))
        enough = 4 * chunk * max(samples, 1) // max(positions, 1)
        return Sizes(max(8, min(most, power(samples), power(enough))), chunk)

    def length(self, shard_rows: int) -> int:
        return self.records.count(shard_rows)

    def split(self, table: Any, slots: Slots, xp: Any) -> Stored:
        pieces = self.records.split([table, *(slots[name] for name in self.beside)], xp)
        return pieces, {name: a for name, a in slots.items() if name not in self.beside}

    def join(self, weights: Pieces, slots: Slots, shard_rows: int, xp: Any) -> Stored:
        table, *beside = self.records.join(weights, shard_rows, xp)
        return table, {**dict(zip(self.beside, beside, strict=True)), **slots}

    def read(self, weights: Pieces, rows: jax.Array) -> jax.Array:
        return self._read(weights, self.records, rows)

    def _read(self, weights: Pieces, records: Records, rows: jax.Array) -> jax.Array:
        source = Source.of(weights, records)
        inside = jnp.minimum(rows, len(weights[0]) * records.pack - 1)
        found = gather(
            source,
            records,
            inside,
            chunk=self.launch.rows(self.launch.lookup, records.lines),
            unroll=self.launch.unroll,
            interpret=self.launch.interpret,
        )
        lines = parted(found, jnp) if records.half else found
        return part_of(lines, lax.rem(inside, jnp.int32(records.pack)), records)

    def sum_bags(
        self, weights: Pieces, plan: LookupPlan, quantization: QuantizationConfig | None
    ) -> jax.Array:
        return self._bags(weights, self.records, plan, quantization)

    def sum_received(
        self, received: jax.Array, plan: LookupPlan, quantization: QuantizationConfig | None
    ) -> jax.Array:
        return self._bags(self.alone.split([received], jnp), self.alone, plan, quantization)

    def _bags(
        self,
        pieces: Pieces,
        records: Records,
        plan: LookupPlan,
        quantization: QuantizationConfig | None,
    ) -> jax.Array:
        def quantize(x: jax.Array) -> jax.Array:
            if quantization is None:
                return x
            return xla.quantized(x, quantization, KernelOps(records=self.alone))

        if plan.one_id_each:
            rows = self._read(pieces, records, plan.slot[: plan.samples])
            return plan.gain[: plan.samples, None] * quantize(rows)
        found = self._sum(
            pieces,
            records,
            (plan.slot, plan.sample, plan.gain),
            plan.chunks,
            None if quantization is None else quantize,
        )
        return found[: plan.samples]

    def sum_rows(self, gradients: jax.Array, plan: LookupPlan, rows: int) -> jax.Array:
        by_row, pieces = plan.by_row, self.alone.split([gradients], jnp)
        numbers = by_row.sample, by_row.slot, by_row.gain
        return self._sum(pieces, self.alone, numbers, by_row.chunks)[:rows]

    def _sum(
        self,
        pieces: Pieces,
        records: Records,
        numbers: tuple[jax.Array, jax.Array, jax.Array],
        chunks: Chunks | None,
        quantize: Callable[[Any], Any] | None = None,
    ) -> jax.Array:
        assert chunks is not None, "a plan that was made for other kernels"
        return lookup(
            Source.of(pieces, records),
            records,
            *numbers,
            chunks.counts,
            chunks.block,
            num_blocks=chunks.blocks,
            sizes=chunks.sizes,
            unroll=min(self.launch.unroll, chunks.sizes.chunk),
            quantize=quantize,
            interpret=self.launch.interpret,
        )[:, : self.dim]

    def update_rows(
        self,
        weights: Pieces,
        slots: Slots,
        rows: jax.Array,
        gradients: jax.Array,
        formula: Formula,
        shard_rows: int,
    ) -> Stored:
        records, count = self.records, jnp.sum(rows < shard_rows, dtype=jnp.int32)
        together = Together.of(rows, count, records)
        widened = jnp.pad(gradients, ((0, 0), (0, records.width - self.dim)))
        old = {name: xla.read(array, rows, ascending=True) for name, array in slots.items()}
        lines, size = sum(records.pieces), self.launch
        chunk = min(size.rows(size.update, power(lines) // 2), max(8, power(len(rows))))
        task = self._task(formula, slots, chunk, masked=records.pack > 1)
        pieces, made = update(
            weights,
            together.records,
            together.count,
            together.spread(widened),
            [together.spread(wide(array, records)) for array in old.values()],
            together.mask(),
            formula.values,
            task,
            interpret=size.interpret,
        )
        written = {
            name: xla.write(slots[name], rows, together.gathered(values)[:, :1], ascending=True)
            for name, values in zip(slots, made, strict=True)
        }
        return pieces, written

    def update_all(
        self,
        weights: Pieces,
        slots: Slots,
        rows: jax.Array,
        gradients: jax.Array,
        formula: Formula,
        local_rows: jax.Array,
    ) -> Stored:
        records, count = self.records, len(weights[0])
        every, lanes = count * records.pack, records.all_lines * LANES
        together = Together.of(rows, jnp.sum(rows < local_rows[0], dtype=jnp.int32), records)
        spread = together.spread(jnp.pad(gradients, ((0, 0), (0, records.width - self.dim))))
        beyond = count + jnp.arange(len(rows))
        place = jnp.where(jnp.arange(len(rows)) < together.count, together.records, beyond)
        whole = jnp.zeros((count, lanes), jnp.float32)
        whole = whole.at[place].set(spread, mode="drop", unique_indices=True)
        given = [
            wide(jnp.pad(a, ((0, every - len(a)), (0, 0))), records).reshape(count, -1)
            for a in slots.values()
        ]
        chunk = self.launch.rows(self.launch.lookup, sum(records.pieces))
        pieces, made = update_every(
            weights,
            whole,
            given,
            local_rows,
            formula.values,
            self._task(formula, slots, min(chunk, -(-count // 8) * 8), masked=False),
            interpret=self.launch.interpret,
        )
        written: dict[str, Any] = {}
        for (name, old), values in zip(slots.items(), made, strict=True):
            new = values.reshape(every, -1)[: len(old), :1]
            written[name] = jnp.where(jnp.arange(len(old))[:, None] < local_rows[0], new, old)
        return pieces, written

    def _task(self, formula: Formula, slots: Slots, chunk: int, *, masked: bool) -> Task:
        names, size = (*self.beside, *slots), self.launch

        def row(w: Any, g: Any, values: Sequence[Any], numbers: Any) -> tuple[Any, Sequence[Any]]:
            c = [numbers[i] for i in range(len(formula.names))]
            given = dict(zip(names, values, strict=True))
            new, made = self.ops.applied(formula.row(self.ops, c), w, g, given)
            return new, [made[name] for name in names]

        unroll, block = min(size.unroll, chunk), min(size.block, chunk)
        return Task(self.records, row, len(slots), masked, chunk, unroll, block)

    def take(self, weights: Pieces, slots: Slots, rows: jax.Array, shard_rows: int) -> Any:
        place = self._place(rows, shard_rows)
        pieces = tuple(piece.at[place].get(mode="clip") for piece in weights)
        return pieces, {name: xla.read(array, rows) for name, array in slots.items()}

    def put(
        self, weights: Pieces, slots: Slots, rows: jax.Array, taken: Any, shard_rows: int
    ) -> Stored:
        place, (pieces, others) = self._place(rows, shard_rows), taken
        put = tuple(
            piece.at[place].set(old, mode="drop")
            for piece, old in zip(weights, pieces, strict=True)
        )
        return put, {name: xla.write(a, rows, others[name]) for name, a in slots.items()}

    def _place(self, rows: jax.Array, shard_rows: int) -> jax.Array:
        """Records; those of padding rows lie beyond the table."""
        beyond = self.records.count(shard_rows) + jnp.arange(len(rows), dtype=rows.dtype)
        return jnp.where(rows < shard_rows, lax.div(rows, jnp.int32(self.records.pack)), beyond)

    def bits(self, weights: Pieces, slots: Slots, rows: jax.Array, shard_rows: int) -> Stored:
        records, local = self.records, lax.rem(rows, jnp.int32(shard_rows))
        pack = jnp.int32(records.pack)
        shard = lax.div(rows, jnp.int32(shard_rows)) * records.count(shard_rows)
        found = [xla.bits_of(piece, shard + lax.div(local, pack)) for piece in weights]
        lines = records.taken_apart(jnp.concatenate(found, axis=1), jnp)
        part = lax.rem(local, pack)
        streams = [part_of(each.reshape(len(rows), -1), part, records) for each in lines]
        others = {name: xla.bits_of(array, rows) for name, array in slots.items()}
        return streams[0], {**dict(zip(self.beside, streams[1:], strict=True)), **others}
