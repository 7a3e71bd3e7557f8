"""The optimizer's rule on the rows of a plan: the only place where a table changes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from embsim.optimizers import Optimizer, row_update, updates_every_row

from .kernels import Kernels, choose
from .lookup import exchanged, row_gradients
from .plan import LookupPlan

XLA = choose("xla", "cpu")


def update(
    table: jax.Array,
    slots: Mapping[str, jax.Array],
    plan: LookupPlan,
    gradients: jax.Array,
    optimizer: Optimizer,
    coefficients: Mapping[str, Any],
    *,
    axes: tuple[str, ...] = (),
    kernels: Kernels = XLA,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """rule(w, G.T @ gradients, slots; coefficients) on each touched row; all other rows stay as
    they are.

    Per row: sum its contributions in order, clip the sum, decay w, apply the rule, clip w. A
    non-lazy optimizer updates every row, with gradient 0 where nothing was looked up.

    `slots` by name, [rows, dim] or [rows, 1]; `coefficients` as `optimizers.coefficients` made
    them, in that order.

    Returns the new table and slots. On a mesh each device sums the contributions of its samples,
    and the shard sums what the devices send, in their order.
    """
    sums, rows = row_gradients(gradients, plan, kernels=kernels), plan.asked.reshape(-1)
    if axes:
        asked = exchanged(plan.asked, axes)
        sent = exchanged(sums.reshape(*plan.asked.shape, -1), axes)
        rows, sums = _merged(asked.reshape(-1), sent.reshape(len(rows), -1), len(table))
    names = tuple(coefficients)
    c = kernels.ops.coefficients(names, jnp.stack([jnp.float32(coefficients[n]) for n in names]))
    rule = row_update(optimizer, kernels.ops)

    def row(w: Any, g: Any, values: Any) -> Any:
        return rule(w, g, values, c)

    order = [slot.name for slot in optimizer.slots]  # JAX sorts the keys of a dict
    old = tuple(slots[name] for name in order)
    if updates_every_row(optimizer):
        new, made = kernels.update_all(table, old, rows, sums, row, plan.local_rows)
    else:
        new, made = kernels.update_rows(table, old, rows, sums, row)
    return new, dict(zip(order, made, strict=True))


def _merged(rows: jax.Array, sums: jax.Array, beyond: int) -> tuple[jax.Array, jax.Array]:
    """Rows that several devices asked for once, ascending, with the sum of what they sent, in the
    devices' order; then padding rows, beyond the table."""
    count = len(rows)
    rows, order = lax.sort((rows, jnp.arange(count)), num_keys=1, is_stable=True)
    first = jnp.concatenate([jnp.ones(1, bool), rows[1:] != rows[:-1]])
    place = jnp.cumsum(first) - 1
    merged = jax.ops.segment_sum(sums[order], place, count, indices_are_sorted=True)
    padding = beyond + count + jnp.arange(count, dtype=rows.dtype)
    return padding.at[place].set(rows, indices_are_sorted=True), merged
