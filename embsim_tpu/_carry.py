"""The carry of a run, leaf by leaf: what is stored of each, and where it is put again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ._mesh import Shards

_HOST = np.ndarray | np.generic | bool | int | float | complex


@dataclass(frozen=True, eq=False)
class Leaf:
    """A jax.Array, or a jax.ShapeDtypeStruct where only its kind matters."""

    path: str
    value: Any

    @property
    def dtype(self) -> str:
        return str(self.value.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def stored(self) -> Any:
        """A random key as its numbers."""
        return jax.random.key_data(self.value) if self._is_key else self.value

    def described(self, mesh: Mesh | None) -> dict[str, Any]:
        """JSON; with how it is split where that is over `mesh`."""
        sharding, spec = self.value.sharding, None
        if mesh is not None and isinstance(sharding, NamedSharding) and _same(sharding.mesh, mesh):
            spec = [list(axis) if isinstance(axis, tuple) else axis for axis in sharding.spec]
        return {
            "path": self.path,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "stored": [str(self.stored.dtype), list(self.stored.shape)],
            "weak": bool(jax.typeof(self.value).weak_type),
            "key": str(jax.random.key_impl(self.value)) if self._is_key else None,
            "split": spec,
        }

    @property
    def _is_key(self) -> bool:
        return jnp.issubdtype(self.value.dtype, jax.dtypes.prng_key)


def carry_leaves(carry: Any, call: str) -> list[Leaf]:
    """In the order of jax.tree.leaves; what JAX would make an array of is made one.

    Raises:
      TypeError: anything else.
    """
    leaves: list[Leaf] = []
    for path, value in jax.tree_util.tree_flatten_with_path(carry)[0]:
        name = jax.tree_util.keystr(path)
        if not isinstance(value, jax.Array | jax.ShapeDtypeStruct | _HOST):
            raise TypeError(
                f"{call}: the carry has a {type(value).__name__} at {name or 'its top'}; leaves "
                "must be arrays or numbers"
            )
        leaves.append(Leaf(name, jnp.asarray(value) if isinstance(value, _HOST) else value))
    return leaves


def placed(
    saved: Mapping[str, Any], leaf: Leaf, mesh: Mapping[str, int] | None, shards: Shards
) -> jax.ShapeDtypeStruct:
    """A saved leaf as it shall be read: split as it was if the mesh is the same, else as `leaf` is
    if that is on all of these devices, else whole on each."""
    sharding, now = shards.replicated, getattr(leaf.value, "sharding", None)
    if saved["split"] is not None and shards.mesh is not None and dict(shards.mesh.shape) == mesh:
        axes = [tuple(axis) if isinstance(axis, list) else axis for axis in saved["split"]]
        sharding = NamedSharding(shards.mesh, PartitionSpec(*axes))
    elif saved["key"] is None and now is not None and now.device_set == set(shards.devices):
        sharding = now
    dtype, shape = saved["stored"]
    return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype), sharding=sharding)


def restored(array: Any, saved: Mapping[str, Any]) -> Any:
    """A random key of its numbers, a weakly typed array of a plain one."""
    if saved["key"] is not None:
        return jax.random.wrap_key_data(array, impl=saved["key"])
    if saved["weak"]:
        zeros = jnp.full(array.shape, array.dtype.type(0).item())
        if zeros.dtype == array.dtype:
            return jax.device_put(zeros.at[...].set(array), array.sharding)
    return array


def _same(one: Any, other: Mesh) -> bool:
    """Whatever their axes are for."""
    if one == other:
        return True
    named = isinstance(one, Mesh) and one.axis_names == other.axis_names
    return named and one.devices.tolist() == other.devices.tolist()
