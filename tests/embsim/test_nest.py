from collections import OrderedDict, defaultdict, namedtuple
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embsim.batch import make_batch, per_replica_shapes
from embsim.config import FeatureConfig, TableConfig
from embsim.convert import as_feature, keyed_jagged
from embsim.errors import BatchError
from embsim.nest import flatten, flatten_up_to, pack, pad_batch
from embsim.ragged import RaggedTensor, SparseTensor

Pair = namedtuple("Pair", "user ad")
Other = namedtuple("Other", "ad user")

nests = st.recursive(
    st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=8,
)


def types(nest):
    if isinstance(nest, dict):
        return dict, {key: types(child) for key, child in nest.items()}
    if isinstance(nest, list | tuple):
        return type(nest), [types(child) for child in nest]
    return None


@given(nests)
def test_pack_is_the_inverse_of_flatten(nest):
    packed = pack(nest, [leaf for _, leaf in flatten(nest)])
    assert packed == nest and types(packed) == types(nest)


@given(nests)
def test_a_structure_flattens_up_to_itself(nest):
    assert flatten_up_to(nest, nest) == [leaf for _, leaf in flatten(nest)]


def test_keys_are_sorted_as_in_tensorflow_and_packed_in_their_own_order():
    nest = {"b": [1, (2,)], "a": Pair(3, {"x": 4})}
    assert flatten(nest) == [("a/user", 3), ("a/ad/x", 4), ("b/0", 1), ("b/1/0", 2)]
    packed = pack(nest, "wxyz")
    assert packed == {"b": ["y", ("z",)], "a": Pair("w", {"x": "x"})}
    assert list(packed) == ["b", "a"] and isinstance(packed["a"], Pair)


def test_a_single_leaf_is_a_structure():
    assert flatten(7) == [("", 7)]
    assert flatten_up_to(7, [[1, 2], []]) == [[[1, 2], []]]
    assert pack(7, ["x"]) == "x"


def test_lists_and_dicts_at_leaves_are_leaves():
    assert flatten_up_to([0, 0], [[1, 2], {"any": 3}]) == [[1, 2], {"any": 3}]
    assert flatten_up_to({"a": 0, "b": 0}, {"b": None, "a": ()}) == [(), None]


def test_mapping_types_are_kept():
    ordered = OrderedDict(b=1, a=2)
    assert isinstance(pack(ordered, [5, 6]), OrderedDict)
    assert list(pack(ordered, [5, 6]).items()) == [("b", 6), ("a", 5)]
    default = pack(defaultdict(list, a=1), [5])
    assert default == {"a": 5} and default.default_factory is list
    assert pack(MappingProxyType({"a": 1}), [5]) == MappingProxyType({"a": 5})


def test_any_mapping_serves_for_a_mapping():
    assert flatten_up_to({"a": 0}, MappingProxyType({"a": 1})) == [1]
    assert flatten_up_to(OrderedDict(b=0, a=0), {"a": 1, "b": 2}) == [1, 2]


@pytest.mark.parametrize(
    ("config", "value", "message"),
    [
        ([0, 0], (1, 2), r"features: found tuple; .* has a list there"),
        ((0, 0), [1, 2], "found list; .* has a tuple there"),
        ({"u": [0]}, {"u": {"x": 1}}, r"features at 'u': found dict; .* a list there"),
        ({"u": {"v": (0,)}}, {"u": {"v": np.zeros(1)}}, "at 'u/v': found ndarray; .* a tuple"),
        ({"u": 0}, [1], r"found list; .* a mapping \(a dict\) there"),
        ((0, 0), Pair(1, 2), "found Pair; .* has a tuple there"),
        (Pair(0, 0), (1, 2), "found tuple; .* a namedtuple with the fields user, ad there"),
        (Pair(0, 0), Other(1, 2), "found Other; .* the fields user, ad"),
        ([0], None, "found NoneType"),
    ],
)
def test_another_container_is_a_type_error(config, value, message):
    with pytest.raises(TypeError, match=message):
        flatten_up_to(config, value)


@pytest.mark.parametrize(
    ("config", "value", "message"),
    [
        ([0, 0], [1], "weights: found list of length 1; the feature configuration has length 2"),
        ({"u": (0,)}, {"u": (1, 2)}, "weights at 'u': found tuple of length 2; .* length 1"),
        ({"a": 0, "b": 0}, {"a": 1}, r"weights: missing keys \['b'\], unexpected keys \[\]"),
        ({"a": 0}, {"a": 1, "c": 2}, r"missing keys \[\], unexpected keys \['c'\]; .*\['a'\]"),
    ],
)
def test_another_length_or_other_keys_are_a_value_error(config, value, message):
    with pytest.raises(ValueError, match=message):
        flatten_up_to(config, value, "weights")


def test_keys_must_be_sortable():
    with pytest.raises(TypeError, match="keys 'a', 1 cannot be sorted"):
        flatten({"a": 0, 1: 0})


def test_pack_counts_its_leaves():
    with pytest.raises(ValueError, match="found 1 leaves; the structure has 2"):
        pack([0, 0], ["x"])


class TestPadBatch:
    def test_empty_bags_fill_every_kind_of_leaf(self):
        features = {
            "dense": np.array([4, 5]),
            "column": np.array([[4], [5]]),
            "grid": np.array([[[1], [2]], [[3], [4]]]),
            "lists": [[3, 7], []],
            "sparse": SparseTensor(np.array([[1, 2]]), np.array([9]), (2, 3)),
            "pair": (RaggedTensor.from_lists([[1], [2]]), [4, 5]),
        }
        padded, mask = pad_batch(features, 3)
        assert mask.tolist() == [True, True, False]
        for name in ("dense", "column"):
            leaf = padded[name]
            assert leaf.indices.tolist() == [[0, 0], [1, 0]] and leaf.dense_shape == (3, 1)
            assert leaf.values.tolist() == [4, 5]
        assert padded["grid"].dense_shape == (3, 2, 1)
        assert padded["grid"].indices.tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]]
        assert padded["lists"].to_list() == [[3, 7], [], []]
        assert padded["sparse"].dense_shape == (3, 3)
        assert padded["pair"][0].to_list() == [[1], [2], []]
        assert padded["pair"][1].dense_shape == (3, 1)

    def test_a_full_batch_stays_and_an_empty_one_is_all_padding(self):
        padded, mask = pad_batch([RaggedTensor.from_lists([[1], []])], 2)
        assert padded[0].to_list() == [[1], []] and mask.all()
        padded, mask = pad_batch([np.zeros(0, np.int32)], 2)
        assert padded[0].dense_shape == (2, 1) and not mask.any()

    def test_a_list_of_arrays_is_a_structure_unless_the_configuration_says_otherwise(self):
        arrays = [np.array([1, 2]), np.array([3, 4])]
        assert len(pad_batch(arrays, 3)[0]) == 2
        padded, _ = pad_batch(arrays, 3, feature_config=0)
        assert padded.to_list() == [[1, 2], [3, 4], []]

    def test_weights_are_padded_alike(self):
        weights = {"a": RaggedTensor.from_lists([[0.5], []]), "b": None}
        padded, _ = pad_batch(weights, 3)
        assert padded["a"].to_list() == [[0.5], [], []] and padded["b"] is None

    def test_containers_are_kept(self):
        padded, _ = pad_batch(Pair([1], OrderedDict(x=[2])), 2)
        assert isinstance(padded, Pair) and isinstance(padded.ad, OrderedDict)

    @pytest.mark.parametrize(
        ("features", "size", "message"),
        [
            ([np.arange(3)], 2, "found 3 samples; batch_size is 2"),
            ({"a": [1, 2], "b": [1]}, 4, r"features of \[1, 2\] samples; all must have the same"),
            ([np.zeros((2, 3), int)], 4, r"shape \(2, 3\); it must be \[B\] or \[..., 1\]"),
            ([1], 0, "batch_size is 0; it must be an int from 1"),
        ],
    )
    def test_errors(self, features, size, message):
        with pytest.raises(ValueError, match=message):
            pad_batch(features, size)

    def test_weights_of_their_own_are_never_lost(self):
        with pytest.raises(BatchError, match="with weights of its own; pad the two apart"):
            pad_batch([jagged([1], [1], [0.5])], 2)

    def test_a_padded_batch_has_the_shape_of_a_full_one(self):
        table = TableConfig(512, 2)
        plain, sequence = FeatureConfig(table), FeatureConfig(table, max_sequence_length=2)
        full = [np.zeros(4, int), np.zeros((4, 3, 1), int), [[1], [], [], [2]], [[1]] * 4]
        configs, names = [plain, plain, plain, sequence], list("abcd")
        shapes = per_replica_shapes(make_batch(full, None, configs, names, [None] * 4, 2), 2)
        last = {
            "a": np.array([7]),
            "b": np.array([[[1], [2], [3]]]),
            "c": [[5, 6]],
            "d": [[8, 9, 1]],
        }
        padded, mask = pad_batch(last, 4)
        batch = make_batch(list(padded.values()), None, configs, names, shapes, 2)
        assert mask.tolist() == [True, False, False, False]
        found = [RaggedTensor(f.ids, f.splits).to_list() for f in batch.features]
        assert found[0] == [[7], [], [], []]
        assert found[1] == [[1], [2], [3]] + [[]] * 9
        assert found[2] == [[5, 6], [], [], []]
        assert found[3] == [[8], [9]] + [[]] * 6


def jagged(values, lengths, weights=None):
    arrays = [np.array(values), np.array(lengths), None if weights is None else np.array(weights)]
    names = ("values", "lengths", "weights_or_none")
    return SimpleNamespace(**{n: lambda a=a: a for n, a in zip(names, arrays, strict=True)})


def keyed(parts):
    return SimpleNamespace(keys=lambda: list(parts), to_dict=lambda: parts, **vars(parts["b"]))


class TestKeyedJagged:
    """TorchRec's KeyedJaggedTensor stands for a dict of features."""

    def test_ids_and_weights_by_key(self):
        parts = {"b": jagged([3, 7], [2, 0], [0.5, 1.0]), "a": jagged([3], [1, 0], [2.0])}
        features, weights = keyed_jagged(keyed(parts))
        assert {key: bags.to_list() for key, bags in features.items()} == {
            "b": [[3, 7], []],
            "a": [[3], []],
        }
        assert weights["b"].to_list() == [[0.5, 1.0], []] and weights["a"].to_list() == [[2.0], []]
        with pytest.raises(BatchError, match="features with weights of their own"):
            pad_batch(keyed(parts), 4)

    def test_without_weights(self):
        parts = {"b": jagged([3, 7], [2, 0])}
        assert keyed_jagged(keyed(parts))[1] is None
        assert pad_batch(keyed(parts), 3)[0]["b"].to_list() == [[3, 7], [], []]

    def test_a_key_may_occur_once(self):
        features = keyed({"b": jagged([3], [1])})
        features.keys = lambda: ["b", "b"]
        with pytest.raises(BatchError, match=r"keys \['b', 'b'\]; each may occur once"):
            keyed_jagged(features)

    def test_it_is_no_single_feature(self):
        with pytest.raises(TypeError, match=r"'clicks': .*it replaces a whole dict of features"):
            as_feature(keyed({"b": jagged([3], [1])}), "feature 'clicks'")

    def test_other_things_are_none(self):
        for value in ({"a": [1]}, [1], np.ones(1), jagged([1], [1])):
            assert keyed_jagged(value) is None
