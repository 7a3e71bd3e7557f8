"""activations = G.W, and its adjoint row_gradients = G^T.gradients, on one device's part of a step.

On a mesh these run inside shard_map: what a device asks for travels to the shards by all_to_all,
and what they answer back.
"""

from typing import Any

import jax
from jax import lax

from embsim.config import QuantizationConfig

from .kernels import Kernels, choose
from .plan import LookupPlan

XLA = choose("xla", "cpu")


def lookup(
    table: Any,
    plan: LookupPlan,
    quantization: QuantizationConfig | None = None,
    *,
    axes: tuple[str, ...] = (),
    kernels: Kernels = XLA,
) -> jax.Array:
    """G @ Q(table): for each sample, acc = 0; acc = acc + gain_j * row_j in position order.

    An empty bag gives zeros.

    Q is the identity, or the simulated quantization of each looked-up row.
    """
    if not axes:
        return kernels.sum_bags(table, plan, quantization)
    asked = exchanged(plan.asked, axes)
    wanted = kernels.read(table, asked.reshape(-1)).reshape(*asked.shape, -1)
    received = exchanged(wanted, axes)
    return kernels.sum_received(received.reshape(-1, received.shape[-1]), plan, quantization)


def row_gradients(gradients: jax.Array, plan: LookupPlan, *, kernels: Kernels = XLA) -> jax.Array:
    """G.T @ gradients, restricted to the plan's unique rows.

    Duplicate ids are summed here, before the optimizer: rules are not linear in the gradient. A row
    that was looked up with gain 0 is present, with gradient 0.
    """
    return kernels.sum_rows(gradients, plan, plan.asked.size)


def shard_rows(plan: LookupPlan, axes: tuple[str, ...]) -> jax.Array:
    """The local rows that this shard is asked for, by all devices; padding lies beyond it."""
    return (exchanged(plan.asked, axes) if axes else plan.asked).reshape(-1)


def exchanged(parts: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """parts[q] goes to device q; what comes from device p is [p]."""
    return lax.all_to_all(parts, axes, split_axis=0, concat_axis=0, tiled=True)
