"""What every kind of kernel offers: the arithmetic of one table's steps on one device, and how its
rows lie there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import jax

from embsim.config import QuantizationConfig
from embsim.optimizers import Optimizer, row_update

from ..ops import Ops
from ..plan import LookupPlan, Sizes

Slots = Mapping[str, Any]
Stored = tuple[Any, Slots]  # weights, a pytree of arrays, and slots by name


@dataclass(frozen=True)
class Formula:
    """The optimizer of one update, with its numbers: float32 [coefficients], an argument of the
    program."""

    optimizer: Optimizer
    names: tuple[str, ...]
    values: jax.Array

    def row(self, ops: Ops, values: Any = None) -> Callable[[Any, Any, Slots], Stored]:
        """(w, g, slots) -> (w, slots) on rows; `values`: those numbers, where they have moved."""
        c = ops.coefficients(self.names, self.values if values is None else values)
        rule = row_update(self.optimizer, ops)
        order = [slot.name for slot in self.optimizer.slots]  # JAX sorts the keys of a dict

        def row(w: Any, g: Any, slots: Slots) -> Stored:
            new, made = rule(w, g, tuple(slots[name] for name in order), c)
            return new, dict(zip(order, made, strict=True))

        return row


class Kernels(Protocol):
    """Of one table on one device. Equal ones compute the same, and share compiled programs.

    `weights` is the table as `split` made it, `slots` those of its slots that lie beside it; rows
    are local: row r of a shard that has shard_rows of them, padding included. Arrays of rows may
    name rows beyond, which are padding: read as any row, and never written.
    """

    name: ClassVar[str]

    @property
    def bfloat16(self) -> bool:
        """Whether weights are held so; all that comes and goes is float32."""
        ...

    def sizes(self, samples: int, positions: int) -> Sizes | None:
        """Of the chunks that plans must have; None: no chunks."""
        ...

    def length(self, shard_rows: int) -> int:
        """Of the first axis of a shard's arrays of weights."""
        ...

    def split(self, table: Any, slots: Slots, xp: Any) -> Stored:
        """A shard's [shard_rows, dim] arrays as they shall lie. `xp` is numpy or jax.numpy."""
        ...

    def join(self, weights: Any, slots: Slots, shard_rows: int, xp: Any) -> Stored:
        """The inverse of split."""
        ...

    def read(self, weights: Any, rows: jax.Array) -> jax.Array:
        """[len(rows), dim]."""
        ...

    def sum_bags(
        self, weights: Any, plan: LookupPlan, quantization: QuantizationConfig | None
    ) -> jax.Array:
        """-> [samples, dim]: for each sample acc = 0, acc = acc + gain * Q(w[slot])."""
        ...

    def sum_received(
        self, received: jax.Array, plan: LookupPlan, quantization: QuantizationConfig | None
    ) -> jax.Array:
        """As sum_bags, from `received`, rows [n, dim] of other devices."""
        ...

    def sum_rows(self, gradients: jax.Array, plan: LookupPlan, rows: int) -> jax.Array:
        """[samples, dim] -> [rows, dim]: the sum of each row's contributions, in their order."""
        ...

    def update_rows(
        self,
        weights: Any,
        slots: Slots,
        rows: jax.Array,
        gradients: jax.Array,
        formula: Formula,
        shard_rows: int,
    ) -> Stored:
        """The formula on the rows of the table that `rows` names, and no others.

        `rows` is ascending without duplicates; `gradients` [len(rows), dim].
        """
        ...

    def update_all(
        self,
        weights: Any,
        slots: Slots,
        rows: jax.Array,
        gradients: jax.Array,
        formula: Formula,
        local_rows: jax.Array,
    ) -> Stored:
        """As update_rows, on the first local_rows[0] rows of the table, with gradient 0 where
        `rows` does not name one."""
        ...

    def take(self, weights: Any, slots: Slots, rows: jax.Array, shard_rows: int) -> Any:
        """What `put` can put back, with whatever lies beside it."""
        ...

    def put(
        self, weights: Any, slots: Slots, rows: jax.Array, taken: Any, shard_rows: int
    ) -> Stored:
        """The inverse of take: the same bits."""
        ...

    def bits(self, weights: Any, slots: Slots, rows: jax.Array, shard_rows: int) -> Stored:
        """Of all shards' arrays, one after the other: [len(rows), dim] of w and each slot, by the
        position shard * shard_rows + row; no number is computed with."""
        ...


def plain(kernels: Kernels) -> bool:
    """Whether arrays lie as split is given them."""
    return kernels.name == "xla" and not kernels.bfloat16
