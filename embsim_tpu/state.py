"""Tables and their slot variables at one version, on devices."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from embsim.state import State as HostState
from embsim.state import TableSpec

from ._mesh import Shards
from .kernels import Kernels
from .kernels.base import Stored, plain
from .placement import Placement


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class State:
    """All tables and slots at one version.

    A pytree. `weights` and `slots` by table name, as the table's kernels hold them: see
    kernels.base.Kernels.split. By XLA's these are [shards * shard_rows, dim], and by slot name
    the same: the shards' arrays one after the other, each on its device.
    """

    weights: Mapping[str, Any]
    slots: Mapping[str, Mapping[str, Any]]


KernelsOf = Mapping[str, Kernels]


def put_state(state: HostState, shards: Shards, kernels: KernelsOf) -> State:
    """To the devices. The host arrays are taken over: a CPU device may use their memory."""
    weights, slots = dict[str, Any](), dict[str, Mapping[str, Any]]()
    for name, array in state.weights.items():
        split = Placement(len(array), shards.size).split
        plain = split(array), {slot: split(each) for slot, each in state.slots[name].items()}
        stored = _by_shard(kernels[name], kernels[name].split, plain, shards.size)
        weights[name], slots[name] = jax.tree.map(shards.put, stored)
    return State(weights, slots)


def put_table(array: np.ndarray, shards: Shards) -> jax.Array:
    return shards.put(Placement(len(array), shards.size).split(array))


def _by_shard(
    kernels: Kernels, function: Callable[..., Stored], arrays: Stored, shards: int
) -> Stored:
    """kernels.split or join on the host arrays of all shards, one after the other."""
    if plain(kernels):
        return arrays  # as they are
    leaves, structure = jax.tree.flatten(arrays)
    parts = zip(*(np.split(leaf, shards) for leaf in leaves), strict=True)
    made = [function(*jax.tree.unflatten(structure, part), xp=np) for part in parts]
    return jax.tree.map(lambda *each: np.concatenate(each), *made)


def get_state(
    state: State,
    specs: Mapping[str, TableSpec],
    shards: Shards,
    kernels: KernelsOf,
    version: int = 0,
) -> HostState:
    """Logical rows only, as host arrays; views where there is one CPU device, by XLA's kernels."""
    weights, slots = dict[str, np.ndarray](), dict[str, dict[str, np.ndarray]]()
    for name, spec in specs.items():
        placement = Placement(spec.vocabulary_size, shards.size)
        held = jax.tree.map(shards.whole, (state.weights[name], dict(state.slots[name])))
        join = partial(kernels[name].join, shard_rows=placement.local_rows)
        table, found = _by_shard(kernels[name], join, held, shards.size)
        weights[name] = placement.join(table)
        slots[name] = {slot: placement.join(found[slot]) for slot in spec.slot_names}
    return HostState(specs, weights, slots, version)
