from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from embsim._memory import aligned_empty
from embsim._pytree import flatten, rebuild
from embsim.errors import CheckpointError

Pair = namedtuple("Pair", ["left", "right"])


@jax.tree_util.register_dataclass
@dataclass
class Layer:
    kernel: jax.Array
    bias: np.ndarray | None


def params():
    return {
        "layers": [Layer(jnp.ones((2, 3)), None), Layer(jnp.zeros((3, 1)), np.zeros(1))],
        "pair": Pair(jnp.bfloat16(1.5), (np.float32(2.0), 3, 4.5, True)),
        "a/b": OrderedDict(z=np.arange(3), a=np.array(5)),
        "numbered": defaultdict(list, {3: np.zeros((0, 2))}),
        "empty": [[], (), {}, None],
    }


def roundtrip(tree, template):
    arrays, containers = flatten(tree, "tree")
    return rebuild(template, arrays, containers, "tree")


def test_a_tree_comes_back_in_its_containers_and_kinds():
    tree = params()
    zeros = jax.tree.map(
        lambda leaf: np.zeros_like(leaf) if isinstance(leaf, np.ndarray) else leaf * 0, tree
    )
    zeros["pair"] = Pair(jnp.bfloat16(0), (np.float32(0.0), 0, 0.0, False))
    found = roundtrip(tree, zeros)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for leaf, required in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
        assert type(leaf) is type(required)
        np.testing.assert_array_equal(leaf, required)
        assert getattr(leaf, "dtype", None) == getattr(required, "dtype", None)
    assert type(found["a/b"]) is OrderedDict and list(found["a/b"]) == ["z", "a"]
    assert found["numbered"].default_factory is list
    assert list(found) == list(zeros)
    assert zeros["layers"][0].kernel.sum() == 0


def test_numpy_leaves_are_writable_and_own_their_memory():
    arrays, containers = flatten({"x": np.arange(3)}, "tree")
    arrays["['x']"].flags.writeable = False
    found = rebuild({"x": np.zeros(3, int)}, arrays, containers, "tree")["x"]
    found[0] = 9
    assert arrays["['x']"].tolist() == [0, 1, 2]


def test_jax_leaves_own_their_memory():
    array = aligned_empty((1000,), np.float32)
    array[...] = 1.0
    found = rebuild([jnp.zeros(1000)], {"[0]": array}, {"": "list of 1"}, "tree")[0]
    assert found.unsafe_buffer_pointer() != array.ctypes.data
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("leaf", [np.arange(3), 7, True, 0.1, jnp.ones(2), ml_dtypes.bfloat16(1)])
def test_a_lone_leaf_is_a_tree(leaf):
    found = roundtrip(leaf, leaf)
    assert type(found) is type(leaf)
    np.testing.assert_array_equal(found, leaf)


def test_optax_states_come_back():
    tree = {"w": jnp.ones((3, 2)), "b": jnp.ones(2, jnp.bfloat16)}
    optimizer = optax.chain(optax.clip(1.0), optax.adam(optax.linear_schedule(0.1, 0.0, 10)))
    fresh = optimizer.init(tree)
    _, state = optimizer.update(tree, fresh, tree)
    found = roundtrip(state, fresh)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a == b).all(), found, state)))


def test_weak_types_deleted_templates_and_shardings_are_kept():
    weak, strong = jnp.full((3,), 2.0), jnp.ones(3)
    device = jax.devices()[0]
    committed = jax.device_put(jnp.ones(3), device)
    found = roundtrip(
        [weak, strong, committed, jnp.asarray(1)], [weak, strong, committed, jnp.asarray(0)]
    )
    assert [leaf.weak_type for leaf in found] == [True, False, False, True]
    assert [leaf.committed for leaf in found] == [False, False, True, False]
    assert found[2].sharding == committed.sharding
    arrays, containers = flatten(strong, "tree")
    strong.delete()
    np.testing.assert_array_equal(rebuild(strong, arrays, containers, "tree"), np.ones(3))


@pytest.mark.parametrize(
    "found, required, message",
    [
        ({"a": 1}, {"b": 1}, "tree: found dict with keys 'a' in.* has dict with keys 'b'"),
        ({"a": [1]}, {"a": (1,)}, r"tree at \['a'\]: found list of 1 in.* has tuple of 1"),
        ({"a": [1]}, {"a": [1, 2]}, r"tree at \['a'\]: found list of 1 in.* has list of 2"),
        ({"a": None}, {"a": 1}, r"at \['a'\]: found None in .* has int64 \[\]"),
        ({"a": {}}, {"a": 1}, "found dict with keys none"),
        (Pair(1, 2), (1, 2), "found namedtuple with fields .left, .right in .* has tuple of 2"),
        (np.zeros(3), np.zeros((3, 1)), r"tree: found float64 \[3\] in .* has float64 \[3, 1\]"),
        ([np.zeros(3)], [jnp.zeros(3)], r"at \[0\]: found float64 \[3\] in .* has float32 \[3\]"),
        ({"a/b": 1}, {"a": {"b": 1}}, "found dict with keys 'a/b' in .* has dict with keys 'a'"),
        ({1: 1}, {"1": 1}, "found dict with keys 1 in .* has dict with keys '1'"),
        (True, 1, r"found bool \[\] in .* has int64 \[\]"),
        (Layer(jnp.ones(1), None), (jnp.ones(1), None), "found Layer with .kernel, .bias in"),
    ],
)
def test_another_structure_shape_or_dtype_is_refused(found, required, message):
    with pytest.raises(CheckpointError, match=message):
        roundtrip(found, required)


@pytest.mark.parametrize(
    "tree, message",
    [
        ({"a": ["text"]}, r"tree at \['a'\]\[0\]: found str; leaves must be NumPy or JAX arrays"),
        ({"f": len}, r"at \['f'\]: found builtin_function_or_method"),
        ([object()], r"at \[0\]: found object;"),
        ({(1, 2): 1}, r"tree: found the key \(1, 2\); keys must be str or int"),
        (2**63, "found the int 9223372036854775808; it must fit 64 bits"),
        (1j, "found complex"),
        (np.zeros(2, complex), "found dtype complex128"),
        (np.array(["x"]), "found dtype str32"),
        (np.ma.masked_array([1, 2], [0, 1]), "found MaskedArray"),
        (jax.random.key(0), "found dtype key<fry>"),
        (jax.ShapeDtypeStruct((2,), jnp.float32), "found ShapeDtypeStruct"),
    ],
)
def test_what_is_no_array_is_refused(tree, message):
    with pytest.raises(TypeError, match=message):
        flatten(tree, "tree")
