"""Tables and their slot variables at one version, on devices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from embsim.state import State as HostState
from embsim.state import TableSpec

from ._mesh import Shards
from .placement import Placement


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class State:
    """All tables and slots at one version.

    A pytree. `weights` by table name, [shards * local_rows, dim]: the shards' arrays one after the
    other, each on its device; `slots` by table and slot name, as long.
    """

    weights: Mapping[str, Any]
    slots: Mapping[str, Mapping[str, Any]]


def put_state(state: HostState, shards: Shards) -> State:
    """To the devices. The host arrays are taken over: a CPU device may use their memory."""
    weights = {name: put_table(array, shards) for name, array in state.weights.items()}
    slots = {
        name: {slot: put_table(array, shards) for slot, array in each.items()}
        for name, each in state.slots.items()
    }
    return State(weights, slots)


def put_table(array: np.ndarray, shards: Shards) -> jax.Array:
    return shards.put(Placement(len(array), shards.size).split(array))


def get_state(
    state: State, specs: Mapping[str, TableSpec], shards: Shards, version: int = 0
) -> HostState:
    """Logical rows only, as host arrays; views where there is one CPU device."""

    def whole(name: str, array: jax.Array) -> np.ndarray:
        placement = Placement(specs[name].vocabulary_size, shards.size)
        return placement.join(shards.whole(array))

    weights = {name: whole(name, array) for name, array in state.weights.items()}
    slots = {
        name: {slot: whole(name, each[slot]) for slot in specs[name].slot_names}
        for name, each in state.slots.items()
    }
    return HostState(specs, weights, slots, version)
