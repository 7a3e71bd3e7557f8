"""Arrays among devices; what processes tell each other is tested in test_processes.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import embsim
from embsim import SGD, FeatureConfig, TableConfig
from embsim.conformance import Values
from embsim_tpu import Embedding, JaxBackend, TrainState, train
from embsim_tpu._mesh import Shards
from tests.embsim_tpu.conftest import DEVICES, F, mesh_of


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


@pytest.mark.parametrize("devices", [1, 4])
def test_axes_of_any_type_may_be_given(devices):
    """jax.make_mesh makes Explicit ones, which go into the types of results; ours do not."""
    table = TableConfig(
        100, 2, Values(np.arange(200, dtype=F).reshape(100, 2)), SGD(1.0), "sum", "t"
    )
    mesh = jax.make_mesh((devices,), ("shards",), devices=jax.devices()[:devices])
    embedding = Embedding(FeatureConfig(table), mesh=mesh)

    def dense_step(carry, activations, labels):
        def loss(w, a):
            return ((a @ w - labels) ** 2).mean()

        slope, gradients = jax.grad(loss, argnums=(0, 1))(carry, activations)
        return carry - 0.1 * slope, gradients, activations.sum()

    sums = []
    example = ([[1], [2], [3], [4]], np.zeros(4, F))
    state = TrainState(embedding.init(), jnp.ones(2))
    train(embedding, dense_step, [example] * 2, state, on_step=lambda _, s: sums.append(float(s)))
    assert sums[0] == 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 and sums[1] != sums[0]
    backend = JaxBackend(mesh)
    with embsim.TPUStrategy().scope():
        law = embsim.TPUEmbedding(FeatureConfig(table), backend=backend)
    law.enqueue(example[0], training=False)
    assert np.asarray(law.dequeue()).sum() == sums[0]
    law.close()


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
