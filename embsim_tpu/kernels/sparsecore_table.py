"""A table whose lookups and updates run on SparseCores."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from embsim.config import QuantizationConfig
from embsim.optimizers import Optimizer, coefficients

from ..ops import Ops
from ..plan import LookupPlan
from . import sparsecore, xla
from ._packed import Together, part_of
from .base import Formula, Slots, Stored
from .records import LANES, Records


@dataclass(frozen=True)
class SparseCore:
    """See base.Kernels. Records lie as [records, streams * lines * 128].

    A non-lazy optimizer's pass over all rows is XLA's, and so are lookups with quantization and the
    rows that other devices ask for; XLA takes gathers to SparseCores by itself.

    Args:
      dim: of the table.
      beside: names of its slots, in the order of the optimizer's.
      interpret: None compiles; pltpu.InterpretParams runs anywhere.

    Raises:
      BackendError: a rule with a mean, or a slot that is rowwise.
    """

    dim: int
    beside: tuple[str, ...] = ()
    interpret: Any = None
    name: ClassVar[str] = "sparsecore"

    @property
    def bfloat16(self) -> bool:
        return False

    @staticmethod
    def of(dim: int, optimizer: Optimizer | None, *, interpret: Any) -> "SparseCore":
        if optimizer is None:
            return SparseCore(dim, (), interpret)
        sparsecore.rule_of(optimizer, tuple(coefficients(optimizer, 1.0)))  # or it is refused
        return SparseCore(dim, tuple(slot.name for slot in optimizer.slots), interpret)

    @cached_property
    def records(self) -> Records:
        return Records(self.dim, 1 + len(self.beside), narrowest=16)

    @cached_property
    def alone(self) -> Records:
        """Of rows without slots."""
        return Records(self.dim, narrowest=16)

    def length(self, shard_rows: int) -> int:
        return self.records.count(shard_rows)

    def sizes(self, samples: int, positions: int) -> None:
        return None

    def split(self, table: Any, slots: Slots, xp: Any) -> Stored:
        whole = self.records.whole([table, *(slots[name] for name in self.beside)], xp)
        return whole.reshape(len(whole), -1), {}

    def join(self, weights: Any, slots: Slots, shard_rows: int, xp: Any) -> Stored:
        record = weights.reshape(len(weights), -1, LANES)
        table, *beside = self.records.parts(record, shard_rows, xp)
        return table, dict(zip(self.beside, beside, strict=True))

    def read(self, weights: jax.Array, rows: jax.Array) -> jax.Array:
        return self._read(weights, rows, self.records)

    def _read(self, weights: jax.Array, rows: jax.Array, records: Records) -> jax.Array:
        pack, lanes = jnp.int32(records.pack), records.lines * LANES
        found = weights.at[lax.div(rows, pack), :lanes].get(mode="clip")
        return part_of(found, lax.rem(rows, pack), records)

    def sum_bags(
        self, weights: jax.Array, plan: LookupPlan, quantization: QuantizationConfig | None
    ) -> jax.Array:
        return self._bags(weights, self.records, plan, quantization)

    def sum_received(
        self, received: jax.Array, plan: LookupPlan, quantization: QuantizationConfig | None
    ) -> jax.Array:
        return self._bags(self._alone(received), self.alone, plan, quantization)

    def _bags(
        self,
        weights: jax.Array,
        records: Records,
        plan: LookupPlan,
        quantization: QuantizationConfig | None,
    ) -> jax.Array:
        if plan.one_id_each:
            rows = self._read(weights, plan.slot[: plan.samples], records)
            if quantization is not None:
                rows = xla.quantized(rows, quantization, Ops(exact=False))
            return plan.gain[: plan.samples, None] * rows
        if quantization is not None:
            rows = self._read(weights, plan.slot, records)
            scaled = plan.gain[:, None] * xla.quantized(rows, quantization, Ops(exact=False))
            return jax.ops.segment_sum(scaled, plan.sample, plan.samples, indices_are_sorted=True)
        return self._sum(weights, records, plan.slot, plan.sample, plan.gain, plan.samples)

    def sum_rows(self, gradients: jax.Array, plan: LookupPlan, rows: int) -> jax.Array:
        by_row = plan.by_row
        given = self._alone(gradients)
        return self._sum(given, self.alone, by_row.sample, by_row.slot, by_row.gain, rows)

    def _sum(
        self,
        weights: jax.Array,
        records: Records,
        ids: jax.Array,
        into: jax.Array,
        gain: jax.Array,
        sums: int,
    ) -> jax.Array:
        """`into` is ascending; what is beyond the sums is padding."""
        offsets = jnp.searchsorted(into, jnp.arange(sums + 1, dtype=into.dtype))
        found = sparsecore.lookup(
            weights,
            ids,
            offsets.astype(jnp.int32),
            gain,
            sparsecore.Records(records.width, records.streams),
            interpret=self.interpret,
        )
        return found[:, : self.dim]

    def _alone(self, rows: jax.Array) -> jax.Array:
        record = self.alone.whole([rows], jnp)
        return record.reshape(len(record), -1)

    def update_rows(
        self,
        weights: jax.Array,
        slots: Slots,
        rows: jax.Array,
        gradients: jax.Array,
        formula: Formula,
        shard_rows: int,
    ) -> Stored:
        records = self.records
        together = Together.of(rows, jnp.sum(rows < shard_rows, dtype=jnp.int32), records)
        mask = together.mask()
        made = sparsecore.update(
            weights,
            together.records,
            together.spread(jnp.pad(gradients, ((0, 0), (0, records.width - self.dim)))),
            sparsecore.rule_of(formula.optimizer, formula.names),
            formula.values,
            sparsecore.Records(records.width, records.streams),
            mask=None if mask is None else mask.astype(jnp.int32),
            count=together.count,
            interpret=self.interpret,
        )
        return made, {}

    def update_all(
        self,
        weights: jax.Array,
        slots: Slots,
        rows: jax.Array,
        gradients: jax.Array,
        formula: Formula,
        local_rows: jax.Array,
    ) -> Stored:
        table, beside = self.join(weights, {}, len(weights) * self.records.pack, jnp)
        plain = xla.Xla(Ops(exact=False))
        rows = jnp.where(rows < local_rows[0], rows, len(table) + jnp.arange(len(rows)))
        made = plain.update_all(table, beside, rows, gradients, formula, local_rows)
        return self.split(*made, jnp)

    def take(self, weights: jax.Array, slots: Slots, rows: jax.Array, shard_rows: int) -> Any:
        return weights.at[self._place(rows, shard_rows)].get(mode="clip")

    def put(
        self, weights: jax.Array, slots: Slots, rows: jax.Array, taken: Any, shard_rows: int
    ) -> Stored:
        return weights.at[self._place(rows, shard_rows)].set(taken, mode="drop"), {}

    def _place(self, rows: jax.Array, shard_rows: int) -> jax.Array:
        """Records; those of padding rows lie beyond the table."""
        beyond = self.records.count(shard_rows) + jnp.arange(len(rows), dtype=rows.dtype)
        return jnp.where(rows < shard_rows, lax.div(rows, jnp.int32(self.records.pack)), beyond)

    def bits(self, weights: jax.Array, slots: Slots, rows: jax.Array, shard_rows: int) -> Stored:
        records, local = self.records, lax.rem(rows, jnp.int32(shard_rows))
        pack = jnp.int32(records.pack)
        shard = lax.div(rows, jnp.int32(shard_rows)) * records.count(shard_rows)
        found = xla.bits_of(weights, shard + lax.div(local, pack))
        streams = [
            part_of(part, lax.rem(local, pack), records)
            for part in jnp.split(found, records.streams, axis=1)
        ]
        return streams[0], dict(zip(self.beside, streams[1:], strict=True))
