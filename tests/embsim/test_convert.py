"""JAX, pandas, pyarrow, awkward and scipy are real; so are torch and TensorFlow where they are
installed, and everywhere stand fakes for them with the attributes of the real classes."""

from types import SimpleNamespace

import awkward as ak
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from embsim.convert import as_feature, from_scipy
from embsim.errors import BatchError
from embsim.ragged import RaggedTensor, SparseTensor

WHAT = "feature 'clicks'"
ROWS = [[3, 7], [], [5]]


def converted(value):
    feature, weights = as_feature(value, WHAT)
    assert weights is None
    return feature.tolist() if isinstance(feature, np.ndarray) else feature.to_list()


fake = SimpleNamespace


def tensor(values, dtype=None):
    """As torch's and TensorFlow's eager tensors: an array on the host only through numpy()."""
    array = np.array(values, dtype)
    return fake(numpy=lambda: array, detach=lambda: tensor(array), cpu=lambda: tensor(array))


class TestLists:
    @given(st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=4))
    def test_lists_and_tuples_of_bags(self, rows):
        assert converted(rows) == converted(tuple(map(tuple, rows))) == rows
        ragged, _ = as_feature([np.array(row) for row in rows], WHAT)
        assert ragged.to_list() == rows and ragged.dtype.kind == "i"  # though np.array([]) is float

    def test_a_flat_list_is_dense(self):
        assert converted([3, 7]) == converted((3, 7)) == [3, 7]
        assert converted([np.int32(3), np.int64(7)]) == [3, 7]
        assert converted([jnp.int32(3), jnp.int32(7)]) == [3, 7]

    def test_empty_ones(self):
        assert isinstance(as_feature([], WHAT)[0], np.ndarray)
        assert converted([[], []]) == converted([np.zeros(0), np.zeros(0)]) == [[], []]

    def test_object_arrays_are_lists(self):
        assert converted(np.array([[1], [2, 3]], object)) == [[1], [2, 3]]
        assert converted(np.array([1, 2], object)) == [1, 2]

    @pytest.mark.parametrize("deep", [[[[1]]], [[[1], [2]]], [[[1, 2], [3]]], [np.ones((1, 1))]])
    def test_bags_inside_bags(self, deep):
        with pytest.raises(BatchError, match="'clicks': found bags inside bags"):
            as_feature(deep, WHAT)

    @pytest.mark.parametrize(
        ("value", "error", "message"),
        [
            ([[1], 2], BatchError, "item 1 is 2, others are lists"),
            ([1, [2]], BatchError, "item 0 is 1, others are lists"),
            ([[1, None]], TypeError, "found a list of NoneType, int; items must be numbers"),
            ([1, True], TypeError, "found a list of bool, int"),
            ([2**70], BatchError, "found 1180591620717411303424, which no integer type holds"),
            ([2**63, -1], BatchError, "found 9223372036854775808, which no"),
            ("clicks", TypeError, "found str; accepted are arrays"),
            (None, TypeError, "found NoneType; accepted"),
            ({"a": 1}, TypeError, "found dict; accepted"),
            ((n for n in [1]), TypeError, "found generator; accepted"),
            (sp.csr_array((1, 1)), TypeError, r"found csr_array; .*embsim\.from_scipy"),
        ],
    )
    def test_errors(self, value, error, message):
        with pytest.raises(error, match=f"'clicks': .*{message}"):
            as_feature(value, WHAT)


class TestArrays:
    def test_memory_is_shared(self):
        array = np.arange(3)
        assert as_feature(array, WHAT)[0] is array
        ragged = RaggedTensor.from_lists(ROWS)
        assert as_feature(ragged, WHAT)[0] is ragged

    def test_jax_pandas_and_numbers(self):
        assert converted(jnp.array([[3], [7]])) == [[3], [7]]
        assert as_feature(jnp.ones(2, jnp.bfloat16), WHAT)[0].dtype == jnp.bfloat16
        assert converted([jnp.array([3, 7]), jnp.array([5])]) == [[3, 7], [5]]
        assert converted(pd.Series([3, 7])) == [3, 7]
        assert converted(pd.Series(ROWS)) == ROWS
        assert converted(pd.Series(ROWS, dtype=pd.ArrowDtype(pa.list_(pa.int64())))) == ROWS
        assert converted(3) == 3

    def test_dlpack_alone_is_enough(self):
        array = np.array([3, 7])
        exporter = fake(__dlpack__=array.__dlpack__, __dlpack_device__=array.__dlpack_device__)
        assert converted(exporter) == [3, 7]

    def test_tracers_are_refused(self):
        with pytest.raises(RuntimeError, match=r"'clicks': found a JAX tracer; .*outside jax\.jit"):
            jax.jit(lambda ids: as_feature(ids, WHAT))(jnp.arange(2))

    def test_masked_items_are_refused(self):
        assert converted(np.ma.array([3, 7])) == [3, 7]
        with pytest.raises(BatchError, match="'clicks': found masked items"):
            as_feature(np.ma.array([3, 7], mask=[False, True]), WHAT)


class TestArrow:
    @pytest.mark.parametrize("kind", [pa.list_, pa.large_list, pa.list_view, pa.large_list_view])
    def test_lists_and_slices_of_them(self, kind):
        array = pa.array([[9], *ROWS, [8, 8]], kind(pa.int64()))
        assert converted(array[1:4]) == ROWS
        assert converted(array) == [[9], *ROWS, [8, 8]]
        assert converted(array[:0]) == []

    def test_chunks_fixed_sizes_and_flat_arrays(self):
        assert converted(pa.chunked_array([[[3, 7], []], [[5]]])) == ROWS
        assert converted(pa.chunked_array([], pa.list_(pa.int64()))) == []
        assert converted(pa.table({"clicks": ROWS})["clicks"]) == ROWS
        assert converted(pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2))[1:]) == [[3, 4]]
        assert converted(pa.array([3, 7])) == converted(pa.chunked_array([[3], [7]])) == [3, 7]
        assert converted(pa.array([["a"], ["b", "c"]])) == [["a"], ["b", "c"]]
        assert converted(pa.array([[0.5], []], pa.list_(pa.float32()))) == [[0.5], []]

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (pa.array([[1], None, [2]]), "sample 1 is null; drop nulls or make them empty bags"),
            (pa.array([[9], [1], None])[1:], "sample 1 is null"),
            (pa.array([[1], [2, None]]), "item 2 is null"),
            (pa.array([1, None]), "sample 1 is null"),
            (pa.array([[[1]], [[2]]]), "bags inside bags"),
        ],
    )
    def test_errors(self, array, message):
        with pytest.raises(BatchError, match=f"'clicks': .*{message}"):
            as_feature(array, WHAT)


class TestAwkward:
    @pytest.mark.parametrize(
        "change",
        [
            lambda a: a,
            lambda a: a[::-1][::-1],
            lambda a: ak.Array([[9], *ROWS, [8]])[1:-1],
            lambda a: ak.Array([[9], *ROWS])[[False, True, True, True]],
            lambda a: ak.Array([[3, 7, 9], [9], [5, 9]])[:, :-1],
            lambda a: ak.Array([None, *ROWS])[1:],
            lambda a: ak.from_arrow(pa.array(ROWS)),
            lambda a: ak.values_astype(a, np.uint8),
        ],
    )
    def test_lists_of_any_layout(self, change):
        assert converted(change(ak.Array(ROWS))) == ROWS

    def test_regular_flat_empty_and_strings(self):
        assert converted(ak.Array(np.arange(4).reshape(2, 2))) == [[0, 1], [2, 3]]
        assert converted(ak.to_regular(ak.Array([[1], [2]]))) == [[1], [2]]
        assert converted(ak.Array([3, 7])) == [3, 7]
        assert converted(ak.Array([])) == [] and converted(ak.Array([[], []])) == [[], []]
        assert converted(ak.Array(["ab", "c"])) == ["ab", "c"]
        assert converted(ak.Array([["ab"], ["c", "d"]])) == [["ab"], ["c", "d"]]

    @pytest.mark.parametrize(
        ("array", "error", "message"),
        [
            (ak.Array([[1], None]), BatchError, "sample 1 is null"),
            (ak.Array([[1], [2, None]]), BatchError, "item 2 is null"),
            (ak.Array([1, None]), BatchError, "sample 1 is null"),
            (ak.Array([[[1]], []]), BatchError, "bags inside bags"),
            (ak.Array([{"x": 1}]), TypeError, "awkward records or unions"),
            (ak.Array([[1], "a"]), TypeError, "awkward records or unions"),
        ],
    )
    def test_errors(self, array, error, message):
        with pytest.raises(error, match=f"'clicks': .*{message}"):
            as_feature(array, WHAT)


class TestTensorFlow:
    def test_fakes(self):
        ragged = fake(values=tensor([3, 7, 5]), row_splits=tensor([0, 2, 2, 3]))
        assert converted(ragged) == ROWS
        words = fake(values=tensor([b"a", b"b"], object), row_splits=tensor([0, 1, 2]))
        assert converted(words) == [[b"a"], [b"b"]]
        sparse = fake(indices=tensor([[0, 1], [2, 0]]), values=tensor([5, 6]), dense_shape=(3, 2))
        found, _ = as_feature(sparse, WHAT)
        assert isinstance(found, SparseTensor) and found.dense_shape == (3, 2)
        assert found.indices.tolist() == [[0, 1], [2, 0]] and found.values.tolist() == [5, 6]

    def test_errors(self):
        inner = fake(values=tensor([1]), row_splits=tensor([0, 1]))
        with pytest.raises(BatchError, match="bags inside bags"):
            as_feature(fake(values=inner, row_splits=tensor([0, 1])), WHAT)
        with pytest.raises(BatchError, match="'clicks': RaggedTensor: row_splits run from 0 to 2"):
            as_feature(fake(values=tensor([1]), row_splits=tensor([0, 2])), WHAT)

    def test_real_ones(self):
        tf = pytest.importorskip("tensorflow")
        assert converted(tf.ragged.constant(ROWS)[1:]) == ROWS[1:]
        found, _ = as_feature(tf.sparse.from_dense([[0, 5], [6, 0]]), WHAT)
        assert found.indices.tolist() == [[0, 1], [1, 0]] and found.values.tolist() == [5, 6]
        assert converted(tf.constant([[3], [7]])) == [[3], [7]]


def jagged(values, lengths, weights=None):
    carried = None if weights is None else tensor(weights)
    found = {"values": tensor(values), "lengths": tensor(lengths), "weights_or_none": carried}
    return fake(**{name: lambda part=part: part for name, part in found.items()})


class TestTorch:
    def test_jagged_fakes(self):
        nested = fake(
            is_nested=True,
            ndim=2,
            values=lambda: tensor([3, 7, 5]),
            offsets=lambda: tensor([0, 2, 2, 3]),
            lengths=lambda: None,
        )
        assert converted(nested) == ROWS
        nested.values, nested.offsets = lambda: tensor(range(12)), lambda: tensor([0, 5, 10, 11])
        nested.lengths = lambda: tensor([2, 3, 1])
        assert converted(nested) == [[0, 1], [5, 6, 7], [10]]
        nested.ndim = 3
        with pytest.raises(BatchError, match="bags inside bags"):
            as_feature(nested, WHAT)
        with pytest.raises(TypeError, match=r"strided nested tensor; .*layout=torch\.jagged"):
            as_feature(fake(is_nested=True), WHAT)

    def test_sparse_fakes(self):
        indices, values = tensor([[0, 1], [2, 0]]), tensor([5, 6])
        coo = fake(is_sparse=True, _indices=lambda: indices, _values=lambda: values, shape=(2, 3))
        found, _ = as_feature(coo, WHAT)
        assert found.indices.tolist() == [[0, 2], [1, 0]] and found.dense_shape == (2, 3)

    def test_jagged_tensors_bring_their_weights(self):
        assert converted(jagged([3, 7, 5], [2, 0, 1])) == ROWS
        ids, weights = as_feature(jagged([3, 7, 5], [2, 0, 1], [0.5, 1.0, 2.0]), WHAT)
        assert ids.to_list() == ROWS and weights.to_list() == [[0.5, 1.0], [], [2.0]]

    @pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's, once a process
    def test_real_ones(self):
        torch = pytest.importorskip("torch")
        bags = [torch.tensor(row, dtype=torch.int64) for row in ROWS]
        assert converted(torch.nested.nested_tensor(bags, layout=torch.jagged)) == ROWS
        assert converted(bags) == ROWS and converted(torch.tensor([[3], [7]])) == [[3], [7]]
        assert converted(torch.ones(2, dtype=torch.bfloat16, requires_grad=True)) == [1.0, 1.0]
        found, _ = as_feature(torch.sparse_coo_tensor([[0, 1], [2, 0]], [5, 6], (2, 3)), WHAT)
        assert found.indices.tolist() == [[0, 2], [1, 0]] and found.dense_shape == (2, 3)


class TestScipy:
    @given(
        st.dictionaries(
            st.tuples(st.integers(0, 2), st.integers(0, 3)), st.sampled_from([-1.0, 0.5])
        ),
        st.sampled_from(["coo", "csr", "csc", "lil", "dok", "bsr", "dia"]),
        st.sampled_from([sp.coo_array, sp.coo_matrix]),
    )
    def test_a_row_is_a_bag(self, entries, layout, make):
        places = np.array(list(entries), int).reshape(-1, 2).T
        matrix = make((np.array(list(entries.values()), float), tuple(places)), shape=(3, 4))
        ids, weights = from_scipy(matrix.asformat(layout))
        assert weights.dtype == np.float32 and len(ids) == 3
        found = {
            (row, j): x
            for row in range(3)
            for j, x in zip(ids.to_list()[row], weights.to_list()[row], strict=True)
            if x  # BSR stores the zeros of its blocks
        }
        assert found == entries

    def test_entries_are_kept_one_by_one_in_their_order(self):
        data, row, column = np.arange(60), np.arange(60) % 2, np.arange(60) // 3 % 7
        ids, weights = from_scipy(sp.coo_array((data, (row, column)), shape=(2, 7)))
        assert ids.to_list() == [column[::2].tolist(), column[1::2].tolist()]
        assert weights.to_list() == [data[::2].tolist(), data[1::2].tolist()]
        csr = sp.csr_array(([1.0, 2.0, 3.0], [2, 0, 2], [0, 3]), shape=(1, 3))
        ids, weights = from_scipy(csr)
        assert ids.to_list() == [[2, 0, 2]] and weights.to_list() == [[1, 2, 3]]
        assert from_scipy(sp.csr_array((2, 3)))[0].to_list() == [[], []]
        assert from_scipy(sp.csr_array(np.array([[True]])))[1].values.dtype == np.float32

    def test_errors(self):
        with pytest.raises(BatchError, match=r"found shape \(3,\); it must be \[samples, ids\]"):
            from_scipy(sp.coo_array(np.ones(3)))
        with pytest.raises(TypeError, match="found ndarray; pass a scipy"):
            from_scipy(np.ones((2, 2)))
        with pytest.raises(TypeError, match="data are complex128"):
            from_scipy(sp.csr_array(np.array([[1j]])))
