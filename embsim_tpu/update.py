"""The optimizer's rule on the rows of a plan: the only place where a table changes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from embsim.optimizers import Optimizer, updates_every_row

from .kernels import Formula, Kernels, choose
from .lookup import exchanged, row_gradients
from .plan import LookupPlan

XLA = choose("xla", "cpu")


def update(
    table: Any,
    slots: Mapping[str, Any],
    plan: LookupPlan,
    gradients: jax.Array,
    optimizer: Optimizer,
    coefficients: Mapping[str, Any],
    *,
    axes: tuple[str, ...] = (),
    kernels: Kernels = XLA,
) -> tuple[Any, Mapping[str, Any]]:
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
        rows, sums = _merged(asked.reshape(-1), sent.reshape(len(rows), -1), plan.shard_rows)
    names = tuple(coefficients)
    values = jnp.stack([jnp.float32(coefficients[name]) for name in names])
    formula = Formula(optimizer, names, values)
    if updates_every_row(optimizer):
        return kernels.update_all(table, slots, rows, sums, formula, plan.local_rows)
    return kernels.update_rows(table, slots, rows, sums, formula, plan.shard_rows)


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
