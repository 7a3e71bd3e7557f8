"""Lookup and update of all tables as pure functions of pytrees, in a user's own programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embsim import SGD, Adagrad, Adam, FeatureConfig, QuantizationConfig, TableConfig
from embsim.state import State as HostState
from embsim_tpu import Embedding
from embsim_tpu.functions import Table
from tests.embsim.programs import assert_same
from tests.embsim_tpu.conftest import DEVICES, F, mesh_of

SAMPLES = 8


def embedding_on(devices, optimizer=None, **options):
    """Three features, two tables; the second feature is a sequence on the first one's table."""
    items = TableConfig(17, 2, optimizer=optimizer or SGD(0.5), combiner="sum", name="items")
    users = TableConfig(3, 1, optimizer=SGD(1.0), name="users")
    features = {"a": FeatureConfig(items), "b": (FeatureConfig(items, 2), FeatureConfig(users))}
    return Embedding(features, mesh=mesh_of(devices), **options)


def batch(seed=0):
    draw = np.random.default_rng(seed)
    bags = [[draw.integers(0, 17, draw.integers(1, 4)).tolist() for _ in range(SAMPLES)]] * 2
    return {"a": bags[0], "b": (bags[1], draw.integers(0, 3, SAMPLES).astype(np.int32))}


def gradients_of(activations, number=1.0):
    return jax.tree.map(lambda a: jnp.full(a.shape, number, jnp.float32), activations)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("devices", DEVICES)
def test_a_whole_step_in_one_program(devices):
    """A loss of the activations, its gradient, the update, as a user would write it."""
    embedding = embedding_on(devices)

    @jax.jit
    def step(state, plan, coefficients):
        activations = embedding.lookup(state, plan)

        def loss(activations):
            return sum(jnp.sum(a * a) for a in jax.tree.leaves(activations)) / 2

        value, gradients = jax.value_and_grad(loss)(activations)
        return embedding.update(state, plan, gradients, coefficients), value

    draw, host = np.random.default_rng(0), embedding.get(embedding.init())
    whole = {n: draw.integers(-4, 5, each.shape).astype(F) for n, each in host.weights.items()}

    def first():
        """Whole numbers: every sum is exact, in whatever order a program adds."""
        copies = {name: array.copy() for name, array in whole.items()}
        return embedding.put(HostState(host.specs, copies, host.slots))

    state, plan = first(), embedding.plan(batch())
    alone = jax.jit(embedding.lookup)(state, plan)
    assert isinstance(alone["b"], tuple)
    assert [a.shape for a in jax.tree.leaves(alone)] == [(8, 2), (8, 2, 2), (8, 1)]
    by_hand = jax.jit(embedding.update)(state, plan, alone, embedding.coefficients(0))
    found, value = step(state, plan, embedding.coefficients(0))
    wanted = sum(float(np.sum(np.square(a, dtype=np.float64))) for a in jax.tree.leaves(alone))
    assert value == wanted / 2
    assert bits(found) == bits(by_hand) != bits(state)
    assert bits(state) == bits(first()), "the functions are pure"


def test_none_is_a_gradient_of_zero():
    embedding = embedding_on(1, Adam(0.5))
    state, plan = embedding.init(), embedding.plan(batch())
    zeros = jax.tree.map(jnp.zeros_like, embedding.lookup(state, plan))
    c = embedding.coefficients(0)
    some = {"a": gradients_of(zeros["a"]), "b": (None, None)}
    same = {"a": gradients_of(zeros["a"]), "b": zeros["b"]}
    assert bits(embedding.update(state, plan, some, c)) == bits(
        embedding.update(state, plan, same, c)
    )


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(
    "gradients, error",
    [
        ({"a": None}, ValueError),
        ([None, None, None], TypeError),
        ({"a": None, "b": (None,)}, ValueError),
        ({"a": None, "b": (None, None), "c": None}, ValueError),
        ({"a": jnp.zeros((2, 8)), "b": (None, None)}, ValueError),
        ({"a": jnp.zeros((16,)), "b": (None, None)}, ValueError),
        ({"a": jnp.zeros((8, 2), jnp.int32), "b": (None, None)}, TypeError),
        ({"a": 0.5, "b": (None, None)}, ValueError),
        ({"a": [[0.0, 0.0]] * 8, "b": (None, None)}, TypeError),
        ({"a": jnp.zeros((1, 2)), "b": (None, None)}, ValueError),
    ],
    ids=[
        "keys",
        "type",
        "length",
        "a key more",
        "transposed",
        "flat",
        "integers",
        "one",
        "list",
        "few",
    ],
)
def test_gradients_of_another_form_are_refused(gradients, error, devices):
    embedding = embedding_on(devices)
    plan = embedding.plan(batch())
    with pytest.raises(error, match="gradient"):
        embedding.update(embedding.init(), plan, gradients, embedding.coefficients(0))


@pytest.mark.parametrize("devices", [1, 8])
def test_state_plan_and_coefficients_are_of_one_embedding(devices):
    """Whatever is wrong is said before anything is compiled."""
    embedding = embedding_on(devices)
    state, plan, c = embedding.init(), embedding.plan(batch()), embedding.coefficients(0)
    g = {"a": None, "b": (None, None)}
    named = TableConfig(1000, 2, optimizer=SGD(1.0), name="other")
    other = Embedding([FeatureConfig(named)], mesh=mesh_of(devices))
    for call, error, match in (
        (lambda: embedding.lookup(plan, state), TypeError, r"state is a Plan; .*be the State"),
        (
            lambda: embedding.lookup(state, batch()),
            TypeError,
            r"plan is a dict; .*be the Plan",
        ),
        (
            lambda: embedding.lookup(other.init(), plan),
            ValueError,
            r"state has .*\['other'\]",
        ),
        (
            lambda: embedding.lookup(state, other.plan([[[1]] * 8])),
            ValueError,
            "plan has the",
        ),
        (
            lambda: embedding.update(state, plan, g, None),
            TypeError,
            "coefficients is None; it",
        ),
        (lambda: embedding.update(state, plan, g, {}), TypeError, r"coefficients is \[\]; it"),
    ):
        with pytest.raises(error, match=match):
            call()
    embedding.update(state, plan, g, c)


@pytest.mark.parametrize("made, used", [(1, 8), (8, 1), (1, 1)])
def test_a_plan_for_another_size_or_mesh_is_refused(made, used):
    """Of a table of the same name: its ids would be read somewhere else, or nowhere."""
    large, small = (
        Embedding(
            [FeatureConfig(TableConfig(rows, 2, optimizer=SGD(1.0), name="t"))],
            mesh=mesh_of(devices),
        )
        for rows, devices in ((10_000, made), (10, used))
    )
    plan, state = large.plan([[[9999]] * 8]), small.init()
    gradients = [jnp.ones((8, 2))]
    with pytest.raises(ValueError, match=r"plan of table 't' is for \d+ rows on each of"):
        small.lookup(state, plan)
    with pytest.raises(ValueError, match="use the state and plans of one Embedding"):
        small.update(state, plan, gradients, small.coefficients(0))


def test_gradients_of_another_float_are_cast():
    embedding = embedding_on(1)
    state, plan = embedding.init(), embedding.plan(batch())
    ones = gradients_of(embedding.lookup(state, plan))
    half = jax.tree.map(lambda g: g.astype(jnp.bfloat16), ones)
    c = embedding.coefficients(0)
    assert bits(embedding.update(state, plan, ones, c)) == bits(
        embedding.update(state, plan, half, c)
    )


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("optimizer", [Adagrad(0.5), Adam(0.5, lazy_adam=False)], ids=["", "all"])
def test_touched_rows_are_put_back_to_the_bit(devices, optimizer):
    """Whatever the bits are, and only these rows."""
    embedding, draw = embedding_on(devices, optimizer), np.random.default_rng(0)
    host = embedding.get(embedding.init())

    def noise(array):
        return draw.integers(0, 2**32, array.shape, np.uint32).view(F)

    weights = {name: noise(array) for name, array in host.weights.items()}
    slots = {t: {s: noise(a) for s, a in each.items()} for t, each in host.slots.items()}
    state, plan = embedding.put(HostState(host.specs, weights, slots)), embedding.plan(batch())
    functions, before = embedding.functions, bits(state)
    rows = jax.jit(functions.touched)(state, plan)
    slopes, c = gradients_of(jax.jit(functions.lookup)(state, plan)), embedding.coefficients(0)
    updated = jax.jit(functions.update)(state, plan, slopes, c)
    assert bits(updated) != before
    assert bits(jax.jit(functions.with_touched)(updated, plan, rows)) == before
    smaller = sum(leaf.size for leaf in jax.tree.leaves(rows))
    every = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert smaller <= every or devices > 1


class TestEquality:
    def test_sizes_initial_values_names_and_rates_are_no_part(self):
        one = embedding_on(1).functions
        items = TableConfig(900, 2, optimizer=SGD(lambda: 0.1), combiner="mean", name="items")
        users = TableConfig(5, 1, optimizer=SGD(7.0), name="users")
        features = {"a": FeatureConfig(items), "b": (FeatureConfig(items), FeatureConfig(users))}
        other = Embedding(features).functions
        assert one == other
        assert hash(one) == hash(other)

    def test_structure_rules_quantization_and_mesh_are(self):
        one = embedding_on(1).functions
        assert one != embedding_on(2).functions
        assert one != embedding_on(1, Adagrad(0.5)).functions
        items = TableConfig(17, 2, optimizer=SGD(0.5), combiner="sum", name="items")
        users = TableConfig(3, 1, optimizer=SGD(1.0), name="users")
        a, b, c = FeatureConfig(items), FeatureConfig(items, 2), FeatureConfig(users)
        assert Embedding({"a": a, "b": (b, c)}).functions == one
        assert Embedding({"a": a, "b": [b, c]}).functions != one
        assert Embedding({"a": a, "b": (c, b)}).functions != one
        quantized = TableConfig(
            17,
            2,
            optimizer=SGD(0.5),
            name="items",
            quantization_config=QuantizationConfig(5, -1.0, 1.0),
        )
        features = {"a": FeatureConfig(quantized), "b": (FeatureConfig(quantized), c)}
        assert Embedding(features).functions != one

    def test_which_tables_every_row_is_updated_of(self):
        lazy, whole = (
            dict(embedding_on(1, Adam(0.1, lazy_adam=lazy)).functions.tables)["items"]
            for lazy in (True, False)
        )
        assert isinstance(lazy, Table)
        assert (lazy.every_row, whole.every_row) == (False, True)
        assert lazy != whole


@pytest.mark.parametrize("devices", [1, 8])
def test_the_update_adds_what_all_features_of_a_table_say(devices):
    embedding = embedding_on(devices)
    state, plan = embedding.init(), embedding.plan(batch())
    before = {name: array.copy() for name, array in embedding.get(state).weights.items()}
    ones = gradients_of(jax.jit(embedding.lookup)(state, plan))
    made = jax.jit(embedding.update)(state, plan, ones, embedding.coefficients(0))
    after = embedding.get(made)
    counts = np.zeros(17)
    ids = batch()["a"]
    for bag in ids:
        np.add.at(counts, bag, 1)  # feature a, all of the bag
        np.add.at(counts, bag[:2], 1)  # feature b, its first two
    wanted = before["items"] - F(0.5) * counts[:, None].astype(F)
    assert_same("items", after.weights["items"], wanted)
