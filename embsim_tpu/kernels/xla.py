"""The arithmetic of a step in plain XLA, for every platform: gathers, segment sums, scatters.

A segment sum adds in the order of its operands on CPU and TPU. On GPU it uses atomic additions, in
any order, unless XLA_FLAGS has --xla_gpu_deterministic_ops=true.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from embsim.config import QuantizationConfig
from embsim.lookup import quantization_constants

from ..ops import Ops
from ..plan import LookupPlan

Row = Callable[[Any, Any, Any], tuple[Any, Any]]


def sum_bags(
    source: jax.Array, plan: LookupPlan, quantization: QuantizationConfig | None, ops: Ops
) -> jax.Array:
    """[rows, dim] -> [samples, dim]: for each sample acc = 0, acc = acc + gain * source[slot]."""
    positions = slice(plan.samples if plan.one_id_each else None)
    rows = source.at[plan.slot[positions]].get(mode="clip")
    if quantization is not None:
        rows = _quantized(rows, quantization, ops)
    scaled = plan.gain[positions, None] * rows
    if plan.one_id_each:
        return scaled
    return jax.ops.segment_sum(scaled, plan.sample, plan.samples, indices_are_sorted=True)


def sum_rows(gradients: jax.Array, plan: LookupPlan, rows: int) -> jax.Array:
    """[samples, dim] -> [rows, dim]: the sum of each row's contributions, in their order."""
    by_row = plan.by_row
    scaled = by_row.gain[:, None] * gradients.at[by_row.sample].get(mode="clip")
    return jax.ops.segment_sum(scaled, by_row.slot, rows, indices_are_sorted=True)


def update_rows(
    table: jax.Array, slots: tuple[jax.Array, ...], rows: jax.Array, gradients: jax.Array, row: Row
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """row(w, g, slots) on the rows of the table that `rows` names, and no others.

    `rows` is ascending without duplicates; those beyond the table are padding.
    """

    def read(array: jax.Array) -> jax.Array:
        return array.at[rows].get(mode="clip", indices_are_sorted=True, unique_indices=True)

    def write(array: jax.Array, values: jax.Array) -> jax.Array:
        return array.at[rows].set(values, mode="drop", indices_are_sorted=True, unique_indices=True)

    new, new_slots = row(read(table), gradients, tuple(map(read, slots)))
    return write(table, new), tuple(map(write, slots, new_slots))


def update_all(
    table: jax.Array,
    slots: tuple[jax.Array, ...],
    rows: jax.Array,
    gradients: jax.Array,
    row: Row,
    local_rows: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """As update_rows, on every row of the table but padding, with gradient 0 where `rows` does not
    name it."""
    whole = (
        jnp.zeros_like(table)
        .at[rows]
        .set(gradients, mode="drop", indices_are_sorted=True, unique_indices=True)
    )
    real = jnp.arange(len(table))[:, None] < local_rows[0]
    new, new_slots = row(table, whole, slots)
    pairs = zip((new, *new_slots), (table, *slots), strict=True)
    kept, *kept_slots = (jnp.where(real, after, before) for after, before in pairs)
    return kept, tuple(kept_slots)


def _quantized(x: jax.Array, quantization: QuantizationConfig, ops: Ops) -> jax.Array:
    lower, upper, width = quantization_constants(quantization)
    x = jnp.minimum(jnp.maximum(x, lower), upper)
    return jnp.floor(ops.divide(x - lower, width) + jnp.float32(0.5)) * width + lower
