import hashlib
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embsim.config import FeatureConfig
from embsim.errors import BatchError
from embsim.ragged import RaggedTensor, SparseTensor, hash_ids, positions, splits_of
from tests.embsim.batches import ITEMS, batch_of, ragged, rows_of, sparse

bags = st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=6)


@given(bags)
def test_lists_survive_the_round_trip(rows):
    ragged = RaggedTensor.from_lists(rows)
    assert ragged.to_list() == rows
    assert ragged.shape == (len(rows), None) and len(ragged) == len(rows)
    assert ragged.row_lengths().tolist() == [len(row) for row in rows]
    again = RaggedTensor.from_row_lengths(ragged.values, ragged.row_lengths())
    assert again.to_list() == rows


def test_from_lists_takes_any_iterables_and_a_dtype():
    ragged = RaggedTensor.from_lists((range(n) for n in (2, 0, 1)), dtype=np.int64)
    assert ragged.to_list() == [[0, 1], [], [0]] and ragged.dtype == np.int64
    assert RaggedTensor.from_lists([[], []]).dtype == np.int32


def test_values_and_splits_are_not_copied():
    values, splits = np.arange(3), np.array([0, 3])
    ragged = RaggedTensor(values, splits)
    assert ragged.values is values and ragged.row_splits is splits


@pytest.mark.parametrize(
    ("values", "splits", "message"),
    [
        ([1, 2], [0, 1], "run from 0 to 1, but there are 2 values; they must run from 0 to 2"),
        ([1, 2], [1, 2], "run from 1 to 2"),
        ([1, 2], [0, 2, 1, 2], r"row_splits\[2\] is 1, below row_splits\[1\] = 2"),
        ([1, 2], [0.0, 2.0], "dtype float64; they must be integers"),
        ([1, 2], [], "starting with 0"),
        ([[1, 2]], [0, 1], r"values have shape \(1, 2\); they must be of rank 1"),
    ],
)
def test_splits_must_describe_the_values(values, splits, message):
    with pytest.raises(ValueError, match=message):
        RaggedTensor(np.array(values), np.array(splits))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([1, -1, 2], r"row_lengths\[1\] is -1"),
        ([1, 2], "0 to 3, but there are 2"),
        ([[2]], "integers of rank 1"),
        ([2.0], "dtype float64"),
    ],
)
def test_lengths_must_describe_the_values(lengths, message):
    with pytest.raises(ValueError, match=message):
        RaggedTensor.from_row_lengths([5, 6], lengths)


@pytest.mark.parametrize(
    ("indices", "values", "shape", "message"),
    [
        ([[0, 0]], [1, 2], (1, 1), r"indices \(1, 2\), values \(2,\) and dense_shape \(1, 1\)"),
        ([[0, 0]], [1], (1, 1, 1), "do not fit together"),
        ([[0.0, 0.0]], [1], (1, 1), "dtype float64; they must be integers"),
        ([[0, 0]], [1], (1, -1), "every axis must be >= 0"),
    ],
)
def test_sparse_parts_must_fit_together(indices, values, shape, message):
    with pytest.raises(ValueError, match=message):
        SparseTensor(np.array(indices), np.array(values), shape)


def test_an_empty_sparse_tensor_needs_no_indices_of_its_rank():
    empty = SparseTensor(np.zeros(0), np.zeros(0), (2, 3))
    assert empty.indices.shape == (0, 2) and empty.shape == (2, 3)


@given(bags, st.integers(1, 5))
def test_positions_hold_one_value_or_none(rows, length):
    ragged = RaggedTensor.from_lists(rows)
    values, splits = positions(ragged.values, ragged.row_splits, length)
    found = RaggedTensor(values, splits).to_list()
    assert found == [row[p : p + 1] for row in rows for p in range(length)]


@given(st.lists(st.integers(0, 5)).map(sorted))
def test_splits_of_sorted_rows(rows):
    splits = splits_of(np.array(rows, np.int64), 6)
    assert np.diff(splits).tolist() == [rows.count(i) for i in range(6)]


def splitmix64(state: int) -> int:
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def fnv1a(data: bytes) -> int:
    key = 0xCBF29CE484222325
    for byte in data:
        key = ((key ^ byte) * 0x100000001B3) % 2**64
    return key


class TestHashIds:
    def test_the_first_numbers_of_splitmix64(self):
        assert splitmix64(0) == 0xE220A8397B1DCDAF  # as published
        assert hash_ids([0], 2**31 - 1).tolist() == [0xE220A8397B1DCDAF % (2**31 - 1)]

    @given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5), st.integers(1, 2**31 - 1))
    def test_integers_follow_the_documented_formula(self, ids, buckets):
        found = hash_ids(np.array(ids, np.int64), buckets)
        assert found.dtype == np.int32
        assert found.tolist() == [splitmix64(n % 2**64) % buckets for n in ids]

    @given(st.lists(st.text(max_size=5).filter(lambda s: not s.endswith("\0")), max_size=5))
    def test_strings_follow_the_documented_formula(self, words):
        expected = [splitmix64(fnv1a(word.encode())) % 1000 for word in words]
        assert hash_ids(words, 1000).tolist() == expected
        assert hash_ids(np.array(words, object), 1000).tolist() == expected
        assert hash_ids([word.encode() for word in words], 1000).tolist() == expected

    def test_the_integer_type_does_not_matter(self):
        expected = hash_ids(np.array([3, 200], np.int64), 97).tolist()
        for dtype in (np.uint8, np.int16, np.int32, np.uint32, np.uint64):
            assert hash_ids(np.array([3, 200], dtype), 97).tolist() == expected
        assert hash_ids(np.array([-3], np.int8), 97) == hash_ids(np.array([-3], np.int64), 97)

    @given(st.lists(st.integers(-5, 30)), st.integers(1, 9))
    def test_known_ids_stay_and_others_go_to_the_last_buckets(self, ids, oov):
        found = hash_ids(np.array(ids, np.int64), 10, oov).tolist()
        for before, after in zip(ids, found, strict=True):
            if 0 <= before < 10 - oov:
                assert after == before
            else:
                assert 10 - oov <= after < 10

    def test_small_dtypes_hold_large_buckets(self):
        assert hash_ids(np.array([100], np.int8), 2000, oov=1900).item() >= 100
        assert hash_ids(np.array([-100], np.int8), 2000, oov=1).tolist() == [1999]
        assert hash_ids(np.array([2**64 - 1], np.uint64), 20, oov=1).tolist() == [19]

    def test_the_structure_is_kept(self):
        ragged = hash_ids(RaggedTensor.from_lists([[5], []]), 7)
        assert ragged.row_splits.tolist() == [0, 1, 1]
        sparse = hash_ids(SparseTensor(np.array([[0, 1]]), np.array([5]), (1, 2)), 7)
        assert sparse.indices.tolist() == [[0, 1]] and sparse.dense_shape == (1, 2)
        assert ragged.values.tolist() == sparse.values.tolist() == hash_ids([5], 7).tolist()
        assert hash_ids([[5], [], [5]], 7).to_list() == [
            ragged.values.tolist(),
            [],
            ragged.values.tolist(),
        ]
        assert hash_ids(np.array([[5], [6]]), 7).shape == (2, 1)
        assert hash_ids(np.zeros((0, 1)), 7).shape == (0, 1)

    def test_buckets_fill_evenly(self):
        counts = np.bincount(hash_ids(np.arange(100_000), 100), minlength=100)
        assert counts.min() > 850 and counts.max() < 1150
        words = [hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(20_000)]
        assert np.bincount(hash_ids(words, 20), minlength=20).min() > 850

    @pytest.mark.parametrize(
        ("ids", "buckets", "oov", "error", "message"),
        [
            ([1], 0, None, ValueError, "num_buckets is 0; it must be an int from 1 to"),
            ([1], 2**31, None, ValueError, "num_buckets is 2147483648"),
            ([1], 10, 11, ValueError, "oov is 11; it must be an int from 1 to 10"),
            ([1], 10, 0, ValueError, "oov is 0"),
            ([1.5], 10, None, TypeError, "ids are float64; they must be integers or strings"),
            ([True], 10, None, TypeError, "ids are bool"),
            (["a"], 10, 1, TypeError, "only integers can be kept"),
        ],
    )
    def test_errors(self, ids, buckets, oov, error, message):
        with pytest.raises(error, match=message):
            hash_ids(ids, buckets, oov)


class TestSequences:
    @given(bags.filter(len), st.integers(1, 4), st.data())
    def test_one_output_row_per_position(self, rows, length, data):
        config = FeatureConfig(ITEMS, max_sequence_length=length)
        expected = [row[p : p + 1] for row in rows for p in range(length)]
        found = batch_of(rows, config=config)
        assert rows_of(found) == expected and found.combiner is None and found.weights is None
        assert found.output_shape == (len(rows), length)
        holes = [
            sorted(data.draw(st.sets(st.integers(0, 6), min_size=len(r), max_size=len(r))))
            for r in rows
        ]
        found = batch_of(sparse(rows, holes), config=config)
        assert rows_of(found) == [
            [item for item, at in zip(row, places, strict=True) if at == p]
            for row, places in zip(rows, holes, strict=True)
            for p in range(length)
        ]

    @pytest.mark.parametrize("ids", [np.arange(2), np.zeros((2, 1), int), np.zeros((2, 3, 1), int)])
    def test_dense_sequences_are_refused(self, ids):
        with pytest.raises(
            BatchError, match=r"'clicks': found a dense array .* max_sequence_length is 3"
        ):
            batch_of(ids, config=FeatureConfig(ITEMS, max_sequence_length=3))

    @pytest.mark.parametrize("kind", [ragged, partial(sparse, dtype=float)])
    def test_weights_are_refused(self, kind):
        ids = ragged([[1]]) if kind is ragged else sparse([[1]])
        with pytest.raises(BatchError, match="'clicks': found weights for sequences of length 3"):
            batch_of(ids, kind([[0.5]]), FeatureConfig(ITEMS, max_sequence_length=3))

    def test_max_sequence_length_is_ignored_with_output_shape_or_a_higher_rank(self):
        both = FeatureConfig(ITEMS, max_sequence_length=3, output_shape=(2,))
        found = batch_of([[1, 2], []], [[0.5, 0.5], []], both, (2,))
        assert rows_of(found) == [[1, 2], []] and found.output_shape == (2,)
        assert batch_of(np.array([1, 2]), config=both, shape=(2,)).output_shape == (2,)
        cube = SparseTensor(np.array([[0, 0, 0], [0, 0, 1]]), np.array([1, 2]), (1, 1, 2))
        weight = SparseTensor(cube.indices, np.array([0.5, 0.5]), (1, 1, 2))
        found = batch_of(cube, weight, FeatureConfig(ITEMS, max_sequence_length=3))
        assert rows_of(found) == [[1, 2]] and found.weights.tolist() == [0.5, 0.5]

    def test_built_shapes(self):
        config = FeatureConfig(ITEMS, max_sequence_length=2)
        assert batch_of([[1], [2]], config=config, shape=(1, 2), replicas=2).output_shape == (2, 2)
        with pytest.raises(BatchError, match=r"shape \(2, 2\); it was built for \(3, 2\)"):
            batch_of([[1], [2]], config=config, shape=(3, 2))
