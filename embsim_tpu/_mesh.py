"""Devices in a row, of one process or several.

Tables, plans and samples are split among devices by their first axis.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from embsim.errors import BatchError

T = TypeVar("T")
R = TypeVar("R")
WAIT_MS = 1000  # after which a process that waits for another looks whether it still has to


@dataclass(frozen=True)
class Shards:
    """A mesh as one row of devices, all of its axes taken together; None is the default device.

    `size` devices; `axes` are the names that collectives take, empty for one device.
    """

    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        """Results take no axis of the mesh into their types, whatever its axes were for."""
        if self.mesh is None:
            return
        if not isinstance(self.mesh, Mesh):
            raise TypeError(
                f"mesh is {self.mesh!r}; it must be a jax.sharding.Mesh, or None for one device: "
                'jax.make_mesh((jax.device_count(),), ("shards",))'
            )
        kinds = (AxisType.Auto,) * len(self.mesh.axis_names)
        mesh = Mesh(self.mesh.devices, self.mesh.axis_names, axis_types=kinds)
        object.__setattr__(self, "mesh", mesh)

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
    def kind(self) -> str:
        """As JAX names the devices: "TPU v6 lite", "cpu"."""
        return self.devices[0].device_kind

    @cached_property
    def processes(self) -> tuple[int, ...]:
        """Those that the devices belong to, ascending."""
        return tuple(sorted({device.process_index for device in self.devices}))

    @cached_property
    def own(self) -> list[int]:
        """The places in the row of the devices of this process."""
        here = jax.process_index()
        return [p for p, device in enumerate(self.devices) if device.process_index == here]

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
        """On the devices, split by the first axis: of several processes, which all have the whole
        array, each puts the part of its own devices.

        The caller must not change `array` afterwards: a CPU device may use its memory.
        """
        if len(self.processes) == 1:
            return jax.device_put(array, self.split)
        return jax.make_array_from_callback(array.shape, self.split, lambda index: array[index])

    def put_own(self, array: np.ndarray) -> jax.Array:
        """As put, of an array of which each process has the part of its own devices only, in their
        order in the mesh.

        Raises:
          BatchError: an array that cannot be split evenly.
        """
        own = len(self.own)
        if not array.ndim or len(array) % own:
            raise BatchError(
                f"an array of shape {array.shape} for this process's {own} devices; its first "
                "axis, the samples, must be a multiple of them"
            )
        if len(self.processes) == 1:
            return self.put(array)
        return jax.make_array_from_process_local_data(self.split, array)

    @staticmethod
    def each(array: jax.Array) -> str:
        """What one device has of it, in words."""
        return f"{array.dtype}{list(array.sharding.shard_shape(array.shape))}"

    def put_replicated(self, array: np.ndarray) -> jax.Array:
        if len(self.processes) == 1:
            return jax.device_put(array, self.replicated)
        return jax.make_array_from_callback(
            array.shape, self.replicated, lambda index: array[index]
        )

    def whole(self, array: jax.Array) -> np.ndarray:
        """On the host: a view where there is one CPU device.

        Of several processes all must call it, and each gets the whole array, by way of a copy of it
        on every device.
        """
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
