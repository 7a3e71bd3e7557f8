"""What users hold -> NumPy array, RaggedTensor or SparseTensor.

By duck typing: no foreign library is imported.

    np.ndarray      arrays [B] or [..., 1] of NumPy, JAX, torch, TensorFlow, pandas; a flat list
    RaggedTensor    list of lists, tf.RaggedTensor, torch jagged, JaggedTensor, pyarrow, awkward
    SparseTensor    tf.SparseTensor, torch sparse COO
"""

from collections.abc import Callable
from itertools import chain
from numbers import Number
from typing import Any

import numpy as np

from .errors import BatchError
from .ragged import RaggedTensor, SparseTensor

Feature = np.ndarray | RaggedTensor | SparseTensor

_ACCEPTED = (
    "arrays (NumPy, JAX, torch, pandas, TensorFlow), lists of ids, lists of lists, RaggedTensor "
    "and SparseTensor (embsim's and TensorFlow's), torch jagged and sparse COO tensors, TorchRec "
    "JaggedTensor, pyarrow and awkward lists; for scipy matrices see embsim.from_scipy"
)


def as_feature(value: Any, what: str) -> tuple[Feature, RaggedTensor | None]:
    """One feature (or the weights of one); and the weights that the object itself carries, or None.

    Only a JaggedTensor carries any. Memory is shared with `value` where that is possible. `what`
    names the value in errors.

    Raises:
      BatchError: bags inside bags, missing values (nulls), splits that do not fit.
      TypeError: anything that is no array and no list.

    >>> as_feature([[3, 7], [], [3]], "feature 'clicks'")
    (RaggedTensor(3 rows, 3 values of int64), None)
    """
    if isinstance(value, np.ndarray):
        return _array(value, what), None
    if isinstance(value, RaggedTensor | SparseTensor):
        return value, None
    if hasattr(value, "row_splits") and hasattr(value, "values"):
        values, splits = as_array(value.values, what), as_array(value.row_splits, what)
        return _ragged(what, values, splits=splits), None
    if hasattr(value, "dense_shape") and hasattr(value, "indices"):
        indices, values = as_array(value.indices, what), as_array(value.values, what)
        shape = tuple(np.asarray(value.dense_shape).tolist())
        return _built(what, SparseTensor, indices, values, shape), None
    if isinstance(value, list | tuple):
        return _lists(value, what), None
    if getattr(value, "is_nested", False):
        return _torch_jagged(value, what), None
    if getattr(value, "is_sparse", False) is True:
        # as they lie: coalesce() would add up ids at equal coordinates
        indices, values = as_array(value._indices(), what), as_array(value._values(), what)
        return _built(what, SparseTensor, indices.T, values, tuple(value.shape)), None
    if _methods(value, "values", "lengths", "weights_or_none"):
        return _jagged(value, what)
    if all(hasattr(value, name) for name in ("null_count", "type", "to_numpy")):
        return _arrow(value, what), None
    if hasattr(getattr(value, "layout", None), "to_packed"):
        return _awkward(value, what), None
    return _array(as_array(value, what), what), None


def keyed_jagged(
    features: Any,
) -> tuple[dict[str, RaggedTensor], dict[str, RaggedTensor] | None] | None:
    """A TorchRec KeyedJaggedTensor as (features by key, weights by key or None); else None.

    Drawn: keys a b, lengths 2 0 | 1 1, values 3 7 | 3 5 are {"a": [[3, 7], []], "b": [[3], [5]]}.
    """
    if not _methods(features, "keys", "to_dict", "weights_or_none"):
        return None
    parts = {key: _jagged(part, f"feature {key!r}") for key, part in features.to_dict().items()}
    if len(parts) != len(list(features.keys())):
        raise BatchError(f"features: found the keys {list(features.keys())}; each may occur once")
    ids = {key: part for key, (part, _) in parts.items()}
    weights = {key: carried for key, (_, carried) in parts.items() if carried is not None}
    return ids, weights or None


def from_scipy(matrix: Any) -> tuple[RaggedTensor, RaggedTensor]:
    """(ids, weights) of a scipy.sparse matrix or array: a bag a row, column = id, data = weight.

    Weights are float32. Stored entries are taken one by one, row by row in their stored order: an
    explicit zero is an id with weight 0, an entry stored twice is the id twice in its bag. Nothing
    is summed, sorted or dropped (but scipy itself finds no explicit zeros in DIA).

    Raises:
      BatchError: not of rank 2.
      TypeError: no scipy.sparse matrix, or complex data.
    """
    if not hasattr(matrix, "tocsr"):
        raise TypeError(f"from_scipy: found {type(matrix).__name__}; pass a scipy.sparse matrix")
    if len(matrix.shape) != 2:
        raise BatchError(f"from_scipy: found shape {matrix.shape}; it must be [samples, ids]")
    if matrix.dtype.kind not in "biuf":
        raise TypeError(f"from_scipy: data are {matrix.dtype}; weights must be real numbers")
    if matrix.format in ("csr", "csc"):
        rows = matrix.tocsr()
        splits = np.asarray(rows.indptr, np.int64)
        ids, data = rows.indices[: splits[-1]], rows.data[: splits[-1]]
    else:  # not tocsr(): from COO that would sum the entries that are stored twice
        entries = matrix.tocoo()
        order = np.argsort(entries.row, kind="stable")
        ids, data = entries.col[order], entries.data[order]
        splits = np.searchsorted(entries.row[order], np.arange(matrix.shape[0] + 1))
    return RaggedTensor(ids, splits), RaggedTensor(data.astype(np.float32), splits)


def _methods(value: Any, *names: str) -> bool:
    return all(callable(getattr(value, name, None)) for name in names)


def _ragged(what: str, values: np.ndarray, splits: Any = None, lengths: Any = None) -> RaggedTensor:
    if values.dtype == object:
        values = _flat(values.tolist(), what)
    if lengths is None:
        return _built(what, RaggedTensor, values, splits)
    return _built(what, RaggedTensor.from_row_lengths, values, lengths)


def _built(what: str, build: Callable[..., Any], *parts: Any) -> Any:
    try:
        return build(*parts)
    except ValueError as error:
        raise BatchError(f"{what}: {error}") from error


def as_array(value: Any, what: str) -> np.ndarray:
    """Any library's dense array on the host."""
    if any(base.__name__ == "Tracer" for base in type(value).__mro__):
        found = "found a JAX tracer; embsim's calls run outside jax.jit, jax.grad and jax.vmap"
        raise RuntimeError(f"{what}: {found}: pass concrete arrays")
    if hasattr(value, "row_splits"):
        raise _deeper(what)
    if _methods(value, "detach", "cpu", "numpy"):
        host = value.detach().cpu()
        try:
            return host.numpy()
        except TypeError:  # bfloat16 and float8: floats that torch cannot hand to NumPy
            return host.float().numpy()
    if hasattr(value, "__array__") or isinstance(value, Number):
        return np.asarray(value)
    if hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    if _methods(value, "numpy"):
        return np.asarray(value.numpy())
    raise TypeError(f"{what}: found {type(value).__name__}; accepted are {_ACCEPTED}")


def _array(value: np.ndarray, what: str) -> np.ndarray | RaggedTensor:
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.is_masked(value):
            raise BatchError(f"{what}: found masked items; use an empty bag where there is no id")
        return value.data
    if value.dtype == object and value.ndim:
        return _lists(value.tolist(), what)
    return value


def _lists(value: list[Any] | tuple[Any, ...], what: str) -> np.ndarray | RaggedTensor:
    """A flat list is dense, a list of lists or of arrays is ragged."""
    if not value:
        return np.zeros(0, np.int32)
    if not any(_has_items(kind) for kind in set(map(type, value))):
        return _flat(value, what)
    rows = [row if isinstance(row, list | tuple) else as_array(row, what) for row in value]
    ranks = [1 if isinstance(row, list | tuple) else row.ndim for row in rows]
    if max(ranks) == 0:  # arrays of one number each
        return np.asarray(rows)
    if max(ranks) > 1:
        raise _deeper(what)
    if 0 in ranks:
        odd = ranks.index(0)
        raise BatchError(
            f"{what}: item {odd} is {value[odd]!r}, others are lists; a list holds one id a "
            "sample, or one list a sample"
        )
    lengths = list(map(len, rows))
    if all(isinstance(row, np.ndarray) for row in rows):
        filled = [row for row in rows if len(row)]
        flat = np.concatenate(filled) if filled else np.zeros(0, np.int32)
    else:
        flat = _flat(list(chain.from_iterable(rows)), what)
    return _ragged(what, flat, lengths=lengths)


def _has_items(kind: type) -> bool:
    array = hasattr(kind, "__array__") and not issubclass(kind, np.generic)
    return array or issubclass(kind, list | tuple)


def _flat(items: list[Any] | tuple[Any, ...], what: str) -> np.ndarray:
    if not items:
        return np.zeros(0, np.int32)
    try:
        array = np.array(items)
    except ValueError as error:  # lists of different lengths among the items
        raise _deeper(what) from error
    if array.ndim != 1:
        raise _deeper(what)
    kinds = set(map(type, items))
    if kinds == {int} and array.dtype.kind not in "iu":  # NumPy has no integer for them
        worst = next(item for item in items if not -(2**63) <= item < 2**63)
        raise BatchError(f"{what}: found {worst}, which no integer type holds; ids must fit int32")
    if array.dtype == object or (len(kinds) > 1 and bool in kinds):
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise TypeError(f"{what}: found a list of {names}; items must be numbers of one kind")
    return array


def _torch_jagged(value: Any, what: str) -> RaggedTensor:
    if not _methods(value, "values", "offsets"):
        raise TypeError(f"{what}: found a strided nested tensor; build it with layout=torch.jagged")
    if value.ndim != 2:
        raise _deeper(what)
    values, offsets = as_array(value.values(), what), as_array(value.offsets(), what)
    lengths = value.lengths() if _methods(value, "lengths") else None
    if lengths is None:
        return _ragged(what, values, splits=offsets)
    lengths = as_array(lengths, what)  # a narrowed view: its bags lie in `values` with gaps between
    shifts = offsets[:-1] - (np.cumsum(lengths) - lengths)
    keep = np.arange(lengths.sum()) + np.repeat(shifts, lengths)
    return _ragged(what, values[keep], lengths=lengths)


def _jagged(value: Any, what: str) -> tuple[RaggedTensor, RaggedTensor | None]:
    if _methods(value, "keys"):
        raise TypeError(
            f"{what}: found {type(value).__name__}; it replaces a whole dict of features"
        )
    ids = _ragged(what, as_array(value.values(), what), lengths=as_array(value.lengths(), what))
    weights = value.weights_or_none()
    if weights is None:
        return ids, None
    return ids, _ragged(f"weights of {what}", as_array(weights, what), splits=ids.row_splits)


def _arrow(value: Any, what: str) -> np.ndarray | RaggedTensor:
    if hasattr(value, "combine_chunks"):
        value = value.combine_chunks()
    _no_nulls(value.null_count and value.is_null().to_numpy(zero_copy_only=False), what, "sample")
    if not hasattr(value, "value_lengths"):
        return _array(value.to_numpy(zero_copy_only=False), what)
    items = value.flatten()  # of this slice only
    if hasattr(items, "value_lengths"):
        raise _deeper(what)
    _no_nulls(items.null_count and items.is_null().to_numpy(zero_copy_only=False), what, "item")
    lengths = value.value_lengths().to_numpy(zero_copy_only=False)
    return _ragged(what, items.to_numpy(zero_copy_only=False), lengths=lengths)


def _awkward(value: Any, what: str) -> np.ndarray | RaggedTensor:
    rebuild, layout = type(value), _without_options(value.layout.to_packed(), what, "sample")
    if layout.is_numpy and layout.purelist_depth > 1:
        layout = layout.to_RegularArray()
    if not layout.is_list or layout.parameter("__array__"):  # a string is a list of characters
        return _awkward_flat(rebuild, layout, what)
    layout = layout.to_ListOffsetArray64(True)
    splits = np.asarray(layout.offsets.data)
    content = _without_options(layout.content[: splits[-1]], what, "item")
    return _ragged(what, _awkward_flat(rebuild, content, what), splits=splits)


def _awkward_flat(rebuild: type, layout: Any, what: str) -> np.ndarray:
    if layout.is_unknown:  # no item, no type
        return np.zeros(0, np.int32)
    if layout.is_record or layout.is_union:
        raise TypeError(f"{what}: found awkward records or unions; items must be numbers")
    array = np.asarray(rebuild(layout)) if layout.purelist_depth == 1 else None
    if array is None or array.ndim != 1:
        raise _deeper(what)
    return array


def _without_options(layout: Any, what: str, item: str) -> Any:
    while layout.is_option or layout.is_indexed:
        if layout.is_option:
            _no_nulls(layout.mask_as_bool(valid_when=False), what, item)
        layout = layout.project()
    return layout


def _no_nulls(nulls: Any, what: str, item: str) -> None:
    if np.any(nulls):
        where = int(np.argmax(nulls))
        raise BatchError(f"{what}: {item} {where} is null; drop nulls or make them empty bags")


def _deeper(what: str) -> BatchError:
    return BatchError(
        f"{what}: found bags inside bags; a feature has one id a sample (flat) or one list a "
        "sample. For more axes use an embsim.SparseTensor, or flat bags and output_shape"
    )
