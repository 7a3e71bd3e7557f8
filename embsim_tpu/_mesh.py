"""Devices in a row: tables, plans and samples are split among them by their first axis."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding


@dataclass(frozen=True)
class Shards:
    """A mesh as one row of devices, all of its axes taken together; None is the default device.

    `size` devices; `axes` are the names that collectives take, empty for one device.
    """

    mesh: Mesh | None = None

    @property
    def size(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    @property
    def axes(self) -> tuple[str, ...]:
        return () if self.mesh is None or self.size == 1 else self.mesh.axis_names

    @property
    def devices(self) -> list[Any]:
        return jax.local_devices()[:1] if self.mesh is None else list(self.mesh.devices.flat)

    @property
    def platform(self) -> str:
        return self.devices[0].platform

    @property
    def split(self) -> Any:
        """The sharding of an array whose first axis is split among the devices."""
        return self._named(PartitionSpec(self.mesh.axis_names)) if self.mesh else self._single

    @property
    def replicated(self) -> Any:
        return self._named(PartitionSpec()) if self.mesh else self._single

    def local(self, function: Callable[..., Any], replicated: tuple[int, ...] = ()) -> Any:
        """`function` on each device's part of its arguments, which are pytrees of arrays.

        Arguments at the positions `replicated` are given whole to every device.
        """
        if not self.axes:
            return function
        split = PartitionSpec(self.axes)

        def mapped(*arguments: Any) -> Any:
            specs = tuple(
                PartitionSpec() if i in replicated else split for i in range(len(arguments))
            )
            return jax.shard_map(
                function, mesh=self.mesh, in_specs=specs, out_specs=split, check_vma=False
            )(*arguments)

        return mapped

    def put(self, array: np.ndarray) -> jax.Array:
        """On the devices, split by the first axis: of several processes each puts its own part.

        The caller must not change `array` afterwards: a CPU device may use its memory.
        """
        if self.mesh is None or jax.process_count() == 1:
            return jax.device_put(array, self.split)
        return jax.make_array_from_callback(array.shape, self.split, lambda index: array[index])

    def put_replicated(self, array: np.ndarray) -> jax.Array:
        if self.mesh is None or jax.process_count() == 1:
            return jax.device_put(array, self.replicated)
        return jax.make_array_from_callback(
            array.shape, self.replicated, lambda index: array[index]
        )

    def whole(self, array: jax.Array) -> np.ndarray:
        """On the host: a view where there is one CPU device; from all processes, where several."""
        if not array.is_fully_addressable:
            from jax.experimental.multihost_utils import process_allgather

            return np.asarray(process_allgather(array, tiled=True))
        return np.asarray(array)

    @property
    def _single(self) -> SingleDeviceSharding:
        return SingleDeviceSharding(self.devices[0])

    def _named(self, spec: PartitionSpec) -> NamedSharding:
        assert self.mesh is not None
        return NamedSharding(self.mesh, spec)
