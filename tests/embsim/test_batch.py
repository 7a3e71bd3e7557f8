import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embsim.batch import Batch, FeatureBatch, concatenate, make_batch, pad_batch, per_replica_shapes
from embsim.config import FeatureConfig, TableConfig
from embsim.errors import BatchError
from embsim.ragged import RaggedTensor, SparseTensor
from tests.embsim.batches import CLICKS, ITEMS, batch_of, ragged, rows_of, sparse

bags = st.lists(st.lists(st.integers(0, 511), max_size=4), min_size=1, max_size=5)


class TestKinds:
    def test_dense(self):
        for ids in (np.array([3, 7]), np.array([[3], [7]]), [3, 7]):
            found = batch_of(ids)
            assert rows_of(found) == [[3], [7]] and found.output_shape == (2,)
            assert found.combiner is None and found.weights is None
        assert batch_of(np.array([3])).output_shape == (1,)
        assert batch_of(np.zeros((2, 3, 1), np.int8)).output_shape == (2, 3)

    @given(bags)
    def test_ragged_and_sparse_say_the_same(self, rows):
        for found in (batch_of(rows), batch_of(ragged(rows)), batch_of(sparse(rows))):
            assert rows_of(found) == rows
            assert found.output_shape == (len(rows),) and found.combiner == "sqrtn"
            assert found.ids.dtype == np.int32 and found.splits.dtype == np.int64

    def test_sparse_of_higher_rank(self):
        indices = np.array([[0, 1, 0], [0, 1, 2], [1, 0, 1]])
        found = batch_of(SparseTensor(indices, np.array([3, 7, 5]), (2, 2, 3)))
        assert rows_of(found) == [[], [3, 7], [5], []] and found.output_shape == (2, 2)

    def test_kinds_mix_across_features(self):
        features = [np.array([1, 2]), ragged([[3], []]), sparse([[], [4]])]
        batch = make_batch(features, None, [CLICKS] * 3, ["a", "b", "c"], [None] * 3, 2)
        assert [rows_of(f) for f in batch.features] == [[[1], [2]], [[3], []], [[], [4]]]
        assert per_replica_shapes(batch, 2) == [(1,), (1,), (1,)]

    @pytest.mark.parametrize(
        "dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4", ">u8"]
    )
    def test_any_integer_type(self, dtype):
        for ids in (np.array([3, 100], dtype), ragged([[3, 100]], dtype=dtype)):
            found = batch_of(ids)
            assert found.ids.tolist() == [3, 100] and found.ids.dtype == np.dtype("=i4")

    def test_strided_ids(self):
        assert batch_of(np.arange(8)[::-2]).ids.tolist() == [7, 5, 3, 1]
        assert batch_of(np.arange(8, dtype=np.int32)[::-2]).ids.tolist() == [7, 5, 3, 1]

    def test_int4_ids(self):
        assert batch_of(np.array([3, 7], ml_dtypes.int4)).ids.tolist() == [3, 7]

    @pytest.mark.parametrize("dtype", [bool, float, "U1", object])
    def test_empty_ids_of_any_dtype(self, dtype):
        empty = RaggedTensor(np.zeros(0, dtype), np.zeros(3, np.int64))
        found = batch_of(empty, RaggedTensor(np.zeros(0, bool), empty.row_splits))
        assert rows_of(found) == [[], []]
        assert found.weights is not None and found.weights.dtype == np.float32

    @pytest.mark.parametrize("kind", [ragged, sparse])
    def test_the_callers_arrays_may_be_overwritten(self, kind):
        ids = kind([[3, 7], [5]], dtype=np.int32)
        weights = kind([[0.5, 1.0], [2.0]], dtype=np.float32)
        found = batch_of(ids, weights)
        for array in (ids.values, weights.values, getattr(ids, "row_splits", ids.values)):
            array[:] = 0
        assert rows_of(found) == [[3, 7], [5]]
        assert found.weights is not None and found.weights.tolist() == [0.5, 1.0, 2.0]
        dense = np.array([3, 7], np.int32)
        found = batch_of(dense)
        dense[:] = 0
        assert found.ids.tolist() == [3, 7]


class TestWeights:
    @pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", ml_dtypes.bfloat16])
    def test_floats_are_cast_to_float32_once(self, dtype):
        for kind in (ragged, sparse):
            found = batch_of(kind([[3], [7, 7]]), kind([[0.5], [1.5, -2.0]], dtype=dtype))
            assert found.weights is not None and found.weights.dtype == np.float32
            assert found.weights.tolist() == [0.5, 1.5, -2.0]

    def test_one_rounding_and_no_warning(self):
        found = batch_of([[1, 1]], [[0.1, 1e300]])
        assert found.weights is not None
        assert found.weights.tolist() == [np.float32(0.1), np.inf]

    @pytest.mark.parametrize("weight", [[[1], [2]], [[True], [False]]])
    def test_integers_and_booleans_are_no_weights(self, weight):
        with pytest.raises(
            TypeError, match=r"'clicks': weights are (int64|bool); they must be floats"
        ):
            batch_of([[1], [2]], weight)

    @pytest.mark.parametrize(
        ("ids", "weight", "message"),
        [
            ([1, 2], [0.5, 0.5], "'clicks': weight specified for dense input"),
            ([[1]], sparse([[0.5]], dtype=float), "weights are SparseTensor, .* RaggedTensor"),
            (sparse([[1]]), [[0.5]], "weights are RaggedTensor, .* ids of type SparseTensor"),
            ([[1], [2]], np.ones(2), "weights are ndarray"),
            ([[1, 2], [3]], [[0.5], [0.5, 0.5]], r"row_splits of .* are 1 at \[1\], .* ids 2"),
            (
                [[1, 2]],
                [[0.5, 0.5], []],
                r"row_splits .* have shape \(3,\), those of the ids \(2,\)",
            ),
            (
                sparse([[1], [2]]),
                sparse([[0.5], [0.5]], [[0], [1]], dtype=float),
                r"indices of the weights are \[1, 1\] at \[1\], those of the ids \[1, 0\]",
            ),
            (sparse([[1]]), sparse([[0.5, 0.5]], dtype=float), r"have shape \(2, 2\)"),
        ],
    )
    def test_weights_must_fit_their_ids(self, ids, weight, message):
        with pytest.raises(BatchError, match=message):
            batch_of(ids, weight)

    def test_numerics_are_checked_on_request(self):
        weight = [[0.5], [1.0, np.nan]]
        assert np.isnan(batch_of([[1], [2, 3]], weight).weights[-1])
        with pytest.raises(
            ValueError, match="'clicks': weight nan in sample 1, position 1; check_num"
        ):
            batch_of([[1], [2, 3]], weight, check_numerics=True)
        with pytest.raises(ValueError, match="weight inf in sample 0, position 0"):
            batch_of(sparse([[1]]), sparse([[1e39]], dtype=float), check_numerics=True)

    def test_an_object_may_carry_its_own(self):
        class Jagged:
            values = staticmethod(lambda: np.array([3, 7]))
            lengths = staticmethod(lambda: np.array([2, 0]))
            weights_or_none = staticmethod(lambda: np.array([0.5, 2.0]))

        found = batch_of(Jagged())
        assert rows_of(found) == [[3, 7], []] and found.weights.tolist() == [0.5, 2.0]
        with pytest.raises(BatchError, match="found weights, but Jagged has its own"):
            batch_of(Jagged(), [[1.0, 1.0], []])


class TestIds:
    @pytest.mark.parametrize(
        ("ids", "found"),
        [
            (np.array([0, 1, 2, 512]), "id 512 in sample 3, position 0"),
            (np.array([[[0], [1]], [[2], [-1]]]), r"id -1 in sample \(1, 1\), position 0"),
            ([[0, 1], [], [2, 600]], "id 600 in sample 2, position 1"),
            ([[], [512]], "id 512 in sample 1, position 0"),
            (sparse([[0], [1, 999]], [[2], [0, 5]]), "id 999 in sample 1, position 5"),
            (
                SparseTensor(np.array([[1, 0, 2]]), np.array([-7]), (2, 1, 3)),
                r"id -7 in sample \(1, 0\), position 2",
            ),
            (np.array([-1], np.int8), "id -1 in sample 0"),
            (np.array([-1], np.int16), "id -1 in sample 0"),
            (np.array([-1], np.int32), "id -1 in sample 0"),
            (np.array([2**32], np.int64), "id 4294967296 in"),
            (np.array([2**32 - 1], np.uint32), "id 4294967295 in"),
            (np.array([2**64 - 1], np.uint64), "id 18446744073709551615 in"),
            (np.array([2**32 + 1], ">u8"), "id 4294967297 in"),
        ],
    )
    def test_an_id_outside_the_table_is_named_with_its_place(self, ids, found):
        rest = (
            r", but table 'items' has rows 0\.\.511 \(vocabulary_size 512\); hash or clip ids first"
        )
        with pytest.raises(BatchError, match=f"feature 'clicks': {found}.*{rest}"):
            batch_of(ids)

    def test_the_last_row_is_legal_and_the_table_may_have_no_name(self):
        table = TableConfig(2**31 - 1, 1)
        assert batch_of([2**31 - 2], config=FeatureConfig(table)).ids.tolist() == [2**31 - 2]
        with pytest.raises(
            BatchError, match=r"id 2147483647 in sample 0, .* but the table has rows"
        ):
            batch_of([2**31 - 1], config=FeatureConfig(table))

    def test_small_types_need_no_large_table(self):
        small = FeatureConfig(TableConfig(2, 1))
        with pytest.raises(BatchError, match="id 2 in sample 0"):
            batch_of(np.array([2], np.uint8), config=small)

    def test_ids_beyond_the_sequence_are_checked_too(self):
        short = FeatureConfig(ITEMS, max_sequence_length=1)
        for ids in ([[1, 512]], sparse([[1, 512]])):
            with pytest.raises(BatchError, match="id 512 in sample 0, position 1"):
                batch_of(ids, config=short)

    @pytest.mark.parametrize(
        "ids",
        [
            np.array([1.0]),
            [[True], [False]],
            np.array(["a"]),
            ragged([[0.5]]),
            sparse([[1]], dtype=bool),
        ],
    )
    def test_booleans_floats_and_strings_are_a_type_error(self, ids):
        with pytest.raises(
            TypeError, match=r"'clicks': ids are .*; they must be integers.*hash_ids"
        ):
            batch_of(ids)


def same(left: FeatureBatch, right: FeatureBatch) -> bool:
    weights = (
        np.array_equal(left.weights, right.weights)
        if left.weights is not None
        else right.weights is None
    )
    return (
        rows_of(left) == rows_of(right)
        and weights
        and (left.combiner, left.output_shape) == (right.combiner, right.output_shape)
        and left.ids.dtype == right.ids.dtype
        and left.splits.dtype == right.splits.dtype
    )


class TestConcatenate:
    @given(st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 2), st.data())
    def test_replicas_add_up_to_the_whole(self, replicas, size, weighted, length, data):
        many = replicas * size
        rows = data.draw(
            st.lists(st.lists(st.integers(0, 511), max_size=3), min_size=many, max_size=many)
        )
        weights = (
            [[0.5 * item for item in row] for row in rows] if weighted and not length else None
        )
        config = FeatureConfig(ITEMS, max_sequence_length=length)
        whole = batch_of(
            ragged(rows), weights and ragged(weights, dtype=float), config, None, replicas
        )
        parts = []
        for r in range(replicas):
            mine = slice(r * size, (r + 1) * size)
            part = ragged(weights[mine], dtype=float) if weights else None
            parts.append(Batch((batch_of(ragged(rows[mine]), part, config),)))
        assert same(concatenate(parts).features[0], whole)
        assert per_replica_shapes(Batch((whole,)), replicas)[0] == parts[0].features[0].output_shape

    def test_missing_weights_become_ones(self):
        parts = [Batch((batch_of([[1], []]),)), Batch((batch_of([[2], [3]], [[0.5], [2.0]]),))]
        assert concatenate(parts).features[0].weights.tolist() == [1.0, 0.5, 2.0]

    def test_a_padded_replica_beside_a_dense_one(self):
        padded, _ = pad_batch([3], 2)
        found = concatenate([Batch((batch_of([1, 2]),)), Batch((batch_of(padded),))]).features[0]
        assert rows_of(found) == [[1], [2], [3], []] and found.combiner == "sqrtn"
        assert found.output_shape == (4,) and found.weights is None

    def test_replicas_must_have_one_shape(self):
        with pytest.raises(BatchError, match=r"feature 0 .* shapes \[\(1,\), \(2,\)\]; all must"):
            concatenate([Batch((batch_of([1]),)), Batch((batch_of([1, 2]),))])


def test_features_and_configurations_come_in_equal_numbers():
    with pytest.raises(ValueError, match="found 2 features and 2 weights for 1 feature"):
        make_batch([[1], [2]], None, [CLICKS], ["clicks"], [None], 1)
