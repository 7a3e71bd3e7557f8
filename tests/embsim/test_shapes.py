import numpy as np
import pytest

from embsim.config import FeatureConfig, TableConfig
from embsim.errors import BatchError
from embsim.ragged import RaggedTensor, SparseTensor
from embsim.shapes import check_output_shape, output_rows, ragged_layout, resolve
from tests.embsim.batches import ITEMS, batch_of, ragged, rows_of, sparse

TABLE = TableConfig(8, 2)
PLAIN, SEQUENCE = FeatureConfig(TABLE), FeatureConfig(TABLE, max_sequence_length=3)
GRID = FeatureConfig(TABLE, output_shape=(4, 2))


def resolved(config, shape, batch_size=None):
    shapes = None if shape is None else [shape if shape != "unknown" else None]
    return resolve([config], ["f"], shapes, batch_size)[0]


class TestResolve:
    def test_nothing_given_leaves_it_to_the_first_batch(self):
        assert resolve([PLAIN, GRID, SEQUENCE], list("abc"), None, None) == [None, (4, 2), None]

    def test_a_batch_size(self):
        assert resolve([PLAIN, GRID, SEQUENCE], list("abc"), None, 4) == [(4,), (4, 2), (4, 3)]
        assert resolve([PLAIN, SEQUENCE], list("ab"), np.int64(4), None) == [(4,), (4, 3)]
        long = FeatureConfig(TABLE, max_sequence_length=3, output_shape=(4, 2))
        assert resolved(long, None, 4) == (4, 2)

    @pytest.mark.parametrize(
        ("config", "shape", "output"),
        [
            (PLAIN, (4,), (4,)),
            (PLAIN, 4, (4,)),
            (PLAIN, (4, 1), (4,)),
            (PLAIN, [4, 7], (4,)),
            (PLAIN, (4, None), (4,)),
            (PLAIN, (4, 2, 7), (4, 2)),
            (SEQUENCE, (4,), (4,)),
            (SEQUENCE, (4, 7), (4, 3)),
            (SEQUENCE, (4, None), (4, 3)),
            (SEQUENCE, (4, 1), (4,)),
            (SEQUENCE, (4, 3, 1), (4, 3)),
            (GRID, (4, 2, 9), (4, 2)),
            (GRID, (None, 2, 9), (4, 2)),
            (GRID, (8,), (4, 2)),
            (GRID, (8, 5), (4, 2)),
            (GRID, "unknown", (4, 2)),
        ],
    )
    def test_input_shapes(self, config, shape, output):
        assert resolved(config, shape) == output

    def test_shapes_win_over_a_batch_size(self):
        assert resolved(PLAIN, (4, 2, 7), batch_size=9) == (4, 2)

    @pytest.mark.parametrize(
        ("config", "shape", "message"),
        [
            (PLAIN, (), "'f' is \\(\\); Rank must be 1 and above"),
            (PLAIN, "unknown", "'f' is None; Rank must be 1 and above"),
            (PLAIN, (None, 1), r"'f' is not fully defined: its output shape is \(None,\)"),
            (PLAIN, (0, 1), r"\(0, 1\) of feature 'f': axis is 0; it must be an int >= 1"),
            (PLAIN, (2.0,), "axis is 2.0"),
            (
                GRID,
                (4, 3, 9),
                r"inconsistent .* 'f': .*output_shape is \(4, 2\), build gives \(4, 3\)",
            ),
            (FeatureConfig(TABLE, output_shape=4), (5,), r"is \(4,\), build gives \(5,\)"),
            (FeatureConfig(TABLE, output_shape=4), (4, 2, 9), r"is \(4,\), build gives \(4, 2\)"),
        ],
    )
    def test_errors(self, config, shape, message):
        with pytest.raises(ValueError, match=message):
            resolved(config, shape)

    def test_batch_size_errors(self):
        for size in (0, -1, 2.5, True):
            with pytest.raises(ValueError, match=f"per_replica_batch_size is {size}"):
                resolve([PLAIN], ["f"], size, None)
        with pytest.raises(ValueError, match=r"is \(8,\), build gives \(4,\)"):
            resolved(FeatureConfig(TABLE, output_shape=8), None, 4)

    def test_there_is_one_shape_for_each_feature(self):
        with pytest.raises(ValueError, match="found 1 input shapes for 2 features"):
            resolve([PLAIN, PLAIN], ["a", "b"], [(4,)], None)


class TestCheckOutputShape:
    def test_built_and_unbuilt(self):
        check_output_shape("f", (8, 3), (2, 3), 4)
        check_output_shape("f", (8,), None, 4)

    @pytest.mark.parametrize(
        ("found", "built", "replicas", "message"),
        [
            ((0,), (2,), 1, r"f: found a batch without samples, output shape \(0,\)"),
            ((0,), None, 1, "without samples"),
            ((6,), None, 4, "found 6 samples for 4 replicas; .*embsim.pad_batch"),
            ((6,), (2,), 4, r"shape \(6,\); it was built for \(8,\) \(4 replicas of \(2,\)\)"),
            ((8, 2), (2, 3), 4, r"shape \(8, 2\); it was built for \(8, 3\)"),
        ],
    )
    def test_errors(self, found, built, replicas, message):
        with pytest.raises(BatchError, match=message):
            check_output_shape("f", found, built, replicas)


class TestRaggedLayout:
    @pytest.mark.parametrize(
        ("config", "rows", "built", "replicas", "layout"),
        [
            (PLAIN, 4, None, 2, (0, (4,))),
            (PLAIN, 4, (2,), 2, (0, (4,))),
            (PLAIN, 8, (2, 2), 2, (0, (4, 2))),
            (SEQUENCE, 4, (2, 3), 2, (3, (4, 3))),
            (GRID, 8, (4, 2), 1, (0, (4, 2))),
            (GRID, 4, (4, 2), 1, (2, (4, 2))),
            (GRID, 1, (4, 2), 1, (8, (4, 2))),
            (GRID, 8, (4, 2), 2, (2, (8, 2))),
        ],
    )
    def test_layouts(self, config, rows, built, replicas, layout):
        assert ragged_layout("f", rows, config, built, replicas) == layout

    @pytest.mark.parametrize(
        ("config", "rows", "built", "replicas", "message"),
        [
            (GRID, 3, (4, 2), 1, r"found 3 bags; output shape \(4, 2\) .*needs 8 to combine, or a"),
            (GRID, 16, (4, 2), 1, "found 16 bags"),
            (GRID, 0, (4, 2), 1, "without samples"),
            # 4 x 3 = 2 x 6 in the whole, but no replica can have 1.5 bags
            (FeatureConfig(TABLE, output_shape=(3,)), 3, (3,), 2, "found 3 bags"),
            # only FeatureConfig.output_shape makes sequences: this is half a batch
            (PLAIN, 2, (4,), 1, r"shape \(2,\); it was built for \(4,\)"),
            (PLAIN, 4, (4, 2), 1, r"found 4 bags; .*needs 8 to combine:"),
            (SEQUENCE, 3, (4, 3), 1, r"shape \(3, 3\); it was built for \(4, 3\)"),
        ],
    )
    def test_errors(self, config, rows, built, replicas, message):
        with pytest.raises(BatchError, match=message):
            ragged_layout("f", rows, config, built, replicas)


class TestOutputRows:
    def test_all_axes_but_the_last_row_major(self):
        indices = np.array([[0, 0, 1], [0, 2, 0], [1, 0, 0], [1, 0, 3]])
        assert output_rows("f", indices, (2, 3, 4)).tolist() == [0, 2, 3, 3]
        assert output_rows("f", np.zeros((0, 2), np.int64), (2, 3)).tolist() == []

    @pytest.mark.parametrize(
        ("indices", "message"),
        [
            (
                [[0, 0], [2, 0]],
                r"f: sparse index \[2, 0\] of entry 1 lies outside dense_shape \(2, 3\)",
            ),
            ([[0, -1]], r"\[0, -1\] of entry 0 lies outside"),
            ([[0, 3]], r"\[0, 3\] of entry 0 lies outside"),
            ([[0, 1], [0, 1]], r"\[0, 1\] of entry 1 follows \[0, 1\]; .* strictly increasing"),
            ([[0, 1], [0, 0]], r"\[0, 0\] of entry 1 follows \[0, 1\]"),
            ([[0, 0], [1, 0], [0, 2]], r"\[0, 2\] of entry 2 follows \[1, 0\]"),
        ],
    )
    def test_errors(self, indices, message):
        with pytest.raises(BatchError, match=message):
            output_rows("f", np.array(indices), (2, 3))

    def test_a_huge_last_axis_does_not_overflow(self):
        indices = np.array([[0, 2**62], [1, 0], [1, 2**62 - 1]])
        assert output_rows("f", indices, (2, 2**62 + 1)).tolist() == [0, 1, 1]


class TestBatches:
    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            (np.array(3), r"a dense array of shape \(\); it must be \[B\] or \[\.\.\., 1\]"),
            (3, r"a dense array of shape \(\)"),
            (np.zeros((4, 2), int), r"shape \(4, 2\); it must .* bags of ids as ragged"),
            (SparseTensor(np.array([[0]]), np.array([1]), (1,)), r"dense_shape \(1,\); the rank"),
            ([], "without samples"),
            (np.zeros((0, 1), int), "without samples"),
            (RaggedTensor(np.zeros(0), np.zeros(1, int)), "without samples"),
            (SparseTensor(np.zeros((0, 2), int), np.zeros(0), (0, 3)), "without samples"),
        ],
    )
    def test_what_is_no_batch(self, ids, message):
        with pytest.raises(BatchError, match=rf"feature 'clicks': found .*{message}"):
            batch_of(ids)

    @pytest.mark.parametrize("ids", [np.arange(3), [[1], [2], []], sparse([[1], [2], []])])
    def test_another_batch_size(self, ids):
        with pytest.raises(BatchError, match=r"shape \(3,\); it was built for \(4,\)"):
            batch_of(ids, shape=(2,), replicas=2)
        with pytest.raises(BatchError, match="found 3 samples for 2 replicas"):
            batch_of(ids, replicas=2)

    def test_combined_bags_are_reshaped(self):
        grid = FeatureConfig(ITEMS, output_shape=(2, 2))
        found = batch_of([[1], [2, 3], [], [0]], [[0.5], [1.0, 2.0], [], [1.0]], grid, (2, 2))
        assert rows_of(found) == [[1], [2, 3], [], [0]] and found.output_shape == (2, 2)
        assert found.combiner == "sqrtn" and found.weights is not None

    def test_bags_become_sequences(self):
        grid = FeatureConfig(ITEMS, output_shape=(2, 4), max_sequence_length=9)
        found = batch_of([[1], [2, 3, 5], [], [0]], None, grid, (2, 4))
        assert rows_of(found) == [[1], [], [2], [3], [], [], [0], []]
        assert found.output_shape == (2, 4) and found.combiner is None
        with pytest.raises(BatchError, match="weights for sequences of length 2"):
            batch_of([[1], [2], [], []], [[0.5], [0.5], [], []], grid, (2, 4))

    def test_splits_that_were_overwritten(self):
        ids = ragged([[1], [2]])
        ids.row_splits[1] = 9
        with pytest.raises(BatchError, match=r"'clicks': .*row_splits\[2\] is 2, below"):
            batch_of(ids)
