"""Embedding against TPUEmbedding: the same tables, batches, refusals and numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import embsim
from embsim import (
    SGD,
    Adagrad,
    BackendError,
    BatchError,
    CapacityError,
    FeatureConfig,
    RaggedTensor,
    SparseTensor,
    TableConfig,
)
from embsim.conformance import Rates, Values
from embsim_tpu import Capacity, Embedding
from tests.embsim.programs import assert_same
from tests.embsim_tpu.conftest import DEVICES, F, mesh_of

SAMPLES = 8


def features(optimizer=None):
    """Combiners, a sequence, a dense feature, a shared table; tables smaller than the mesh too."""
    draw = np.random.default_rng(0)

    def table(name, rows, dim, combiner):
        values = Values(draw.integers(-8, 9, (rows, dim)).astype(F))
        return TableConfig(rows, dim, values, optimizer, combiner, name)

    items, users = table("items", 17, 2, "sum"), table("users", 3, 3, "mean")
    tags = table("tags", 40, 1, "sqrtn")
    return {
        "tags": FeatureConfig(tags),
        "items": [FeatureConfig(items), FeatureConfig(items, max_sequence_length=3)],
        "user": FeatureConfig(users),
    }


def batch(seed):
    """Bags of 1, 2 or 4 ids, so that mean and sqrtn are exact where they should be."""
    draw = np.random.default_rng(seed)

    def bags(rows, lengths):
        return [draw.integers(0, rows, draw.choice(lengths)).tolist() for _ in range(SAMPLES)]

    return {
        "tags": RaggedTensor.from_lists(bags(40, (0, 1, 4))),
        "items": [bags(17, (0, 1, 2, 3)), RaggedTensor.from_lists(bags(17, (0, 2, 5)))],
        "user": draw.integers(0, 3, SAMPLES),
    }


def slopes(activations):
    """Small integers that depend on the activations."""
    return jax.tree.map(lambda a: jnp.clip(jnp.round(a), -2, 2), activations)


@pytest.mark.parametrize("devices", DEVICES)
def test_steps_are_those_of_tpu_embedding(devices):
    optimizer = SGD(Rates((1.0, 0.5)))
    embedding = Embedding(features(), optimizer, mesh=mesh_of(devices))
    lookup, update = jax.jit(embedding.lookup), jax.jit(embedding.update, donate_argnums=0)
    with embsim.TPUStrategy().scope():
        law = embsim.TPUEmbedding(features(), optimizer)
    state = embedding.init()
    for step in range(4):
        plan = embedding.plan(batch(step))
        found = lookup(state, plan)
        law.enqueue(batch(step))
        wanted = law.dequeue()
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            assert_same(f"step {step}", np.asarray(a), np.asarray(b))
        gradients = slopes(found)
        law.apply_gradients(jax.tree.map(np.asarray, gradients))
        state = update(state, plan, gradients, embedding.coefficients(step))
    weights = embedding.get(state, version=4)
    assert weights.version == 4
    for table, array in law.embedding_tables.items():
        assert_same(table.name, weights.weights[table.name], array)
    law.close()


@pytest.mark.parametrize("devices", DEVICES)
def test_tables_begin_as_those_of_tpu_embedding(devices):
    """Drawn initial values too."""
    tables = [TableConfig(rows, 3, name=f"t{rows}") for rows in (1, 9, 70)]
    config = [FeatureConfig(table) for table in tables]
    optimizer = Adagrad(0.1, initial_accumulator_value=0.5)
    embedding = Embedding(config, optimizer, mesh=mesh_of(devices))
    with embsim.TPUStrategy().scope():
        law = embsim.TPUEmbedding(config, optimizer, seed=3)
    found = embedding.get(embedding.init(seed=3))
    for table in tables:
        assert_same(table.name, found.weights[table.name], law.embedding_tables[table])
        (slot,) = found.slots[table.name].values()
        assert (slot == 0.5).all()
    law.close()


def test_what_was_put_comes_back():
    embedding = Embedding(features(SGD(1.0)))
    host = embedding.get(embedding.init())
    copies = {name: array.copy() for name, array in host.weights.items()}
    again = embedding.get(embedding.put(host))
    for name, array in copies.items():
        assert again.weights[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("devices", [1, 8])
def test_weights_of_ids_are_gains(devices):
    table = TableConfig(
        4, 1, Values(F([[1], [10], [100], [1000]])), SGD(1.0), combiner="sum", name="t"
    )
    embedding = Embedding([FeatureConfig(table)], mesh=mesh_of(devices))
    ids = SparseTensor(np.array([[0, 0], [0, 1], [2, 0]]), np.array([3, 0, 2]), (8, 2))
    weights = SparseTensor(ids.indices, F([2.0, -1.0, 0.0]), (8, 2))
    plan = embedding.plan([ids], [weights])
    (found,) = jax.jit(embedding.lookup)(embedding.init(), plan)
    assert found.tolist() == [[1999], *[[0]] * 7]


def test_rates_are_asked_once_a_step():
    asked = []

    def rate(step):
        asked.append(step)
        return 0.5 / (1 + step)

    tables = [TableConfig(4, 1, optimizer=SGD(rate), name=name) for name in "ab"]
    embedding = Embedding([FeatureConfig(table) for table in tables])
    found = embedding.coefficients(3)
    assert asked == [3]
    assert found == {"a": {"lr": F(0.125)}, "b": {"lr": F(0.125)}}


class TestRefusals:
    def test_an_optimizer_that_devices_do_not_offer(self):
        table = TableConfig(4, 1, optimizer=SGD(1.0, use_gradient_accumulation=False), name="t")
        with pytest.raises(BackendError, match=r"'t': SGD has use_gradient_accumulation=False"):
            Embedding([FeatureConfig(table)])

    def test_a_table_without_optimizer(self):
        with pytest.raises(ValueError, match="optimizer"):
            Embedding([FeatureConfig(TableConfig(4, 1, name="t"))])

    def test_two_tables_of_one_name(self):
        with pytest.raises(ValueError, match="'t'"):
            Embedding([FeatureConfig(TableConfig(4, 1, name="t")) for _ in range(2)], SGD(1.0))

    def test_an_unknown_kernel(self):
        with pytest.raises(ValueError, match="kernels is 'cuda'"):
            Embedding(features(SGD(1.0)), kernels="cuda")

    @pytest.mark.parametrize("samples", [1, 7, 12])
    def test_samples_that_the_devices_do_not_divide(self, samples):
        table = TableConfig(4, 1, optimizer=SGD(1.0), name="t")
        embedding = Embedding([FeatureConfig(table)], mesh=mesh_of(8))
        with pytest.raises(BatchError, match=rf"\[{samples}\] samples.*multiple of.* 8 devices"):
            embedding.plan([np.zeros(samples, np.int32)])

    def test_features_of_several_sizes(self):
        table = TableConfig(4, 1, optimizer=SGD(1.0), name="t")
        embedding = Embedding([FeatureConfig(table), FeatureConfig(table)])
        with pytest.raises(BatchError, match=r"\[3, 5\] samples; all must have the same number"):
            embedding.plan([np.zeros(5, np.int32), np.zeros(3, np.int32)])

    def test_what_tpu_embedding_refuses(self):
        embedding = Embedding(features(SGD(1.0)))
        good = batch(0)
        with pytest.raises(BatchError, match="id 99"):
            embedding.plan({**good, "user": np.full(SAMPLES, 99)})
        with pytest.raises(TypeError):
            embedding.plan(list(good.values()))
        with pytest.raises(ValueError, match="user"):
            embedding.plan({name: each for name, each in good.items() if name != "user"})

    def test_a_batch_beyond_the_capacity(self):
        embedding = Embedding(features(SGD(1.0)), capacity={"users": TINY, "tags": TINY})
        with pytest.raises(CapacityError, match=r"table 'tags'.*required: at least Capacity"):
            embedding.plan(batch(0))
        assert embedding.capacities.learned.keys() <= {"items"}

    def test_a_capacity_of_no_table(self):
        with pytest.raises(ValueError, match=r"capacity names the tables \['user'\]; there are"):
            Embedding(features(SGD(1.0)), capacity={"user": TINY, "tags": TINY})

    @pytest.mark.parametrize("mesh", [4, "all", jax.devices()])
    def test_what_is_no_mesh(self, mesh):
        with pytest.raises(TypeError, match=r"must be a jax.sharding.Mesh, or None"):
            Embedding(features(SGD(1.0)), mesh=mesh)

    @pytest.mark.parametrize("step", ["a", -1, 0.5, True])
    def test_what_is_no_step(self, step):
        with pytest.raises(ValueError, match=r"coefficients: step is .*; it must be an int >= 0"):
            Embedding(features(SGD(1.0))).coefficients(step)


TINY = Capacity(positions=2, rows=2)


def test_containers_of_the_caller_are_not_kept():
    config = features(SGD(1.0))
    embedding = Embedding(config)
    config["items"].clear()
    found = jax.jit(embedding.lookup)(embedding.init(), embedding.plan(batch(0)))
    assert len(found["items"]) == 2
