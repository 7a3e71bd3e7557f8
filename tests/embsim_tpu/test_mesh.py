"""Arrays among devices; what processes tell each other is tested in test_processes.py."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from embsim_tpu._mesh import Shards
from tests.embsim_tpu.conftest import DEVICES, mesh_of


def grid():
    return Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("data", "model"))


@pytest.mark.parametrize("devices", DEVICES)
def test_a_mesh_is_a_row_of_devices(devices):
    shards = Shards(mesh_of(devices))
    assert shards.size == devices == len(shards.devices)
    assert shards.axes == (() if devices == 1 else ("x",))
    assert shards.platform == "cpu"
    array = np.arange(16.0).reshape(16, 1)
    put = shards.put(array)
    parts = sorted(put.addressable_shards, key=lambda part: shards.devices.index(part.device))
    assert len(parts) == devices
    found = np.concatenate([np.asarray(part.data) for part in parts])
    np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(shards.whole(put), array)
    whole = shards.put_replicated(array)
    assert all(np.array_equal(part.data, array) for part in whole.addressable_shards)
    assert len(whole.addressable_shards) == devices


def test_all_axes_of_a_mesh_are_one():
    shards = Shards(grid())
    assert (shards.size, shards.axes) == (8, ("data", "model"))
    put = shards.put(np.arange(8))
    for place, device in enumerate(shards.devices):
        (part,) = (each for each in put.addressable_shards if each.device == device)
        assert part.data.tolist() == [place]


def test_a_mesh_of_one_device_needs_no_collectives():
    shards = Shards(Mesh(np.array(jax.devices()[5:6]), ("x",)))
    assert (shards.size, shards.axes) == (1, ())
    assert shards.put(np.zeros(3)).devices() == {jax.devices()[5]}

    def function(x):
        return x

    assert shards.local(function) is function
    assert Shards().local(function) is function


@pytest.mark.parametrize("mesh", [None, "row", "grid"])
def test_local_sees_a_device_s_part_and_what_is_replicated_whole(mesh):
    shards = Shards({"row": mesh_of(8), "grid": grid()}.get(mesh))

    def function(split, whole):
        return {"sum": split["a"] + whole.sum(), "size": split["a"] * 0 + whole.size}

    made = jax.jit(shards.local(function, replicated=(1,)))
    split, whole = np.arange(8), np.array([1, 2, 3])
    found = made({"a": shards.put(split)}, shards.put_replicated(whole))
    assert found["sum"].tolist() == (split + 6).tolist()
    assert found["size"].tolist() == [3] * 8


def test_equal_meshes_are_equal_and_share_programs():
    assert Shards(mesh_of(8)) == Shards(mesh_of(8))
    assert hash(Shards(mesh_of(8))) == hash(Shards(mesh_of(8)))
    assert Shards(mesh_of(8)) != Shards(mesh_of(2))


def test_this_process_has_all_devices_of_its_own():
    shards = Shards(mesh_of(8))
    assert shards.processes == (0,)
    assert shards.own == list(range(8))
    np.testing.assert_array_equal(shards.whole(shards.put_own(np.arange(8))), np.arange(8))
