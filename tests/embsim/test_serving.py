from collections import OrderedDict, namedtuple

import jax.numpy as jnp
import numpy as np
import pytest

from embsim import (
    SGD,
    FeatureConfig,
    QuantizationConfig,
    RaggedTensor,
    SparseTensor,
    TableConfig,
    TPUEmbedding,
)
from embsim.serving import serving_embedding_lookup
from embsim.strategy import TPUStrategy

ITEMS = TableConfig(8, 4, name="items")
USERS = TableConfig(5, 2, combiner="sum", name="users")
TABLES = {
    ITEMS: np.arange(32, dtype=np.float32).reshape(8, 4),
    USERS: np.float32([[1, -1], [2, -2], [4, -4], [8, -8], [16, -16]]),
}


def sparse(indices, values, shape):
    return SparseTensor(np.array(indices), np.array(values), shape)


def served(inputs, config, weights=None, tables=TABLES):
    return serving_embedding_lookup(inputs, weights, tables, config)


def test_each_kind_of_input():
    items = TABLES[ITEMS]
    feature = FeatureConfig(ITEMS)
    np.testing.assert_array_equal(served(np.array([3, 0]), feature), items[[3, 0]])
    np.testing.assert_array_equal(served(np.array([[3], [0]]), feature), items[[3, 0]])
    np.testing.assert_array_equal(served(jnp.array([3, 0]), feature), items[[3, 0]])
    mean = [items[[3, 4]].mean(0), items[7], np.zeros(4)]
    ragged = RaggedTensor.from_lists([[3, 4], [7], []])
    coordinates = sparse([[0, 0], [0, 1], [1, 0]], [3, 4, 7], (3, 2))
    for bags in (ragged, coordinates, [[3, 4], [7], []]):
        np.testing.assert_array_equal(served(bags, feature), mean)
    deep = sparse([[0, 0, 0], [0, 0, 1], [1, 1, 0]], [3, 4, 7], (2, 2, 2))
    required = np.zeros((2, 2, 4))
    required[0, 0], required[1, 1] = mean[0], mean[1]
    np.testing.assert_array_equal(served(deep, feature), required)


def test_weights_sequences_and_output_shapes():
    found = served([[0, 2], [3]], FeatureConfig(USERS), weights=[[1.0, 0.5], [2.0]])
    np.testing.assert_array_equal(found, [[3, -3], [16, -16]])
    found = served([[0, 2, 1], [3]], FeatureConfig(USERS, max_sequence_length=2))
    np.testing.assert_array_equal(found, [[[1, -1], [4, -4]], [[8, -8], [0, 0]]])
    found = served([[0], [1], [2], [3]], FeatureConfig(USERS, output_shape=(2, 2)))
    np.testing.assert_array_equal(found, [[[1, -1], [2, -2]], [[4, -4], [8, -8]]])


def test_quantization_is_applied():
    table = TableConfig(2, 1, quantization_config=QuantizationConfig(3, 0.0, 1.0))
    found = served([0, 1], FeatureConfig(table), tables={table: np.float32([[0.3], [9.0]])})
    np.testing.assert_array_equal(found, [[0.5], [1.0]])


def test_structures_and_shared_tables():
    pair = namedtuple("Pair", ["a", "b"])
    config = {
        "x": [FeatureConfig(ITEMS), FeatureConfig(USERS)],
        "y": pair(FeatureConfig(ITEMS), (FeatureConfig(USERS),)),
    }
    inputs = {"y": pair([5, 6], ([3, 4],)), "x": [[1, 2], [[0, 1], []]]}
    found = served(inputs, config)
    assert type(found["y"]) is pair
    np.testing.assert_array_equal(found["x"][0], TABLES[ITEMS][[1, 2]])
    np.testing.assert_array_equal(found["x"][1], [[3, -3], [0, 0]])
    np.testing.assert_array_equal(found["y"].a, TABLES[ITEMS][[5, 6]])
    np.testing.assert_array_equal(found["y"].b[0], TABLES[USERS][[3, 4]])


def test_some_features_are_enough_but_others_are_refused():
    config = OrderedDict(a=FeatureConfig(ITEMS), b=FeatureConfig(USERS))
    found = served({"b": [1]}, config, tables={USERS: TABLES[USERS]})
    assert list(found) == ["b"]
    np.testing.assert_array_equal(found["b"], [[2, -2]])
    assert served({}, config) == {}
    with pytest.raises(
        ValueError, match=r"inputs have the keys 'c'; .* configuration has 'a', 'b'"
    ):
        served({"b": [1], "c": [1]}, config)


@pytest.mark.parametrize(
    "inputs, weights, config, message",
    [
        ([1, 2], [1.0, 1.0], FeatureConfig(ITEMS), "feature 'inputs': weight specified for dense"),
        ([[1], [2]], np.ones(2), FeatureConfig(ITEMS), "weights are ndarray, which does not match"),
        ([[1], [2]], [[1.0], [1.0]], FeatureConfig(ITEMS, 3), "weights for sequences of length 3"),
        ([1, 2], None, FeatureConfig(ITEMS, 3), "a dense array .* max_sequence_length is 3"),
        ([[1]] * 3, None, FeatureConfig(ITEMS, output_shape=2), "3 bags; output shape"),
        ([[[1]]], None, FeatureConfig(ITEMS), "bags inside bags"),
        ([7, 8], None, FeatureConfig(ITEMS), r"id 8 in sample 1.*table 'items' has rows 0..7"),
        ([-1], None, FeatureConfig(ITEMS, name="clicks"), "feature 'clicks': id -1 in sample 0"),
    ],
)
def test_what_enqueue_refuses_is_refused(inputs, weights, config, message):
    with pytest.raises(ValueError, match=message):
        served(inputs, config, weights)


def test_another_structure_is_refused():
    config = (FeatureConfig(ITEMS), FeatureConfig(USERS))
    with pytest.raises(ValueError, match="inputs: found tuple of length 1"):
        served(([1],), config)
    with pytest.raises(TypeError, match="inputs: found dict"):
        served({"a": [1]}, config)
    with pytest.raises(ValueError, match="weights: found tuple of length 1"):
        served(([1], [1]), config, weights=(None,))


@pytest.mark.parametrize(
    "tables, message",
    [
        (
            {USERS: TABLES[USERS]},
            "table 'items' of 8 rows is not in tables; its keys must be the",
        ),
        ({ITEMS: np.zeros((8, 5), np.float32)}, r"'items' is float32 \(8, 5\); .* \(8, 4\)"),
        ({ITEMS: np.zeros((8, 4))}, r"'items' is float64 \(8, 4\); it must be float32"),
    ],
)
def test_wrong_tables_are_refused(tables, message):
    with pytest.raises(ValueError, match=message):
        served([1], FeatureConfig(ITEMS), tables=tables)


def test_a_lookup_equals_what_the_embedding_dequeues():
    rng = np.random.default_rng(0)
    table = TableConfig(50, 7, combiner="sqrtn", quantization_config=QuantizationConfig(9, -0.3, 1))
    other = TableConfig(20, 3)
    config = {"a": FeatureConfig(table), "b": FeatureConfig(table), "c": FeatureConfig(other)}
    lengths = rng.integers(0, 6, 16)
    inputs = {
        "a": RaggedTensor.from_row_lengths(rng.integers(0, 50, lengths.sum()), lengths),
        "b": rng.integers(0, 50, (16, 1)),
        "c": RaggedTensor.from_row_lengths(rng.integers(0, 20, lengths.sum()), lengths),
    }
    weights = {"a": None, "b": None, "c": inputs["a"].values / 50}
    weights["c"] = RaggedTensor(weights["c"].astype(np.float32), inputs["c"].row_splits)
    strategy = TPUStrategy(2)
    with strategy.scope():
        embedding = TPUEmbedding(config, SGD(0.1))
    embedding.enqueue(inputs, weights, training=False)
    required = embedding.dequeue()
    found = serving_embedding_lookup(inputs, weights, embedding.embedding_tables, config)
    for name, activations in required.items():
        np.testing.assert_array_equal(found[name], activations)
    embedding.close()
