"""Bags of unequal size: ragged (values and splits) and sparse (coordinates), of NumPy arrays.

RaggedTensor    values      3 7 | | 3 | 1 1 2
                row_splits  0   2 2   3       6    bag i = values[row_splits[i]:row_splits[i + 1]]
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from .config import integer


@dataclass(frozen=True, eq=False)
class RaggedTensor:
    """Rows of unequal length: row i is values[row_splits[i]:row_splits[i + 1]].

    Args:
      values: [nnz], any dtype (ids: integers; weights: floats).
      row_splits: [rows + 1], integers from 0 to nnz, never decreasing. Stored as int64.

    Raises:
      ValueError: splits that do not describe `values`.

    >>> clicks = RaggedTensor.from_lists([[3, 7], [], [3]], dtype=np.int32)
    >>> clicks.values, clicks.row_splits
    (array([3, 7, 3], dtype=int32), array([0, 2, 2, 3]))
    """

    values: np.ndarray
    row_splits: np.ndarray

    def __post_init__(self) -> None:
        values, splits = np.asarray(self.values), np.asarray(self.row_splits)
        if values.ndim != 1:
            raise ValueError(
                f"RaggedTensor: values have shape {values.shape}; they must be of rank 1"
            )
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "row_splits", checked_splits(splits, len(values)))

    @classmethod
    def from_lists(cls, rows: Iterable[Sequence[Any]], dtype: Any = None) -> "RaggedTensor":
        """One row per inner list. `dtype` is NumPy's choice by default; int32 without any item."""
        try:
            lists = [row if isinstance(row, Sequence) else list(row) for row in rows]
            flat = list(chain.from_iterable(lists))
            if dtype is None and not flat:
                dtype = np.int32
            values = np.array(flat, dtype)
        except (TypeError, ValueError, OverflowError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(
                f"RaggedTensor: from_lists: found {_short(rows)} and dtype {dtype}; required: a "
                f"list of numbers of this dtype for each row ({error})"
            ) from None
        return cls.from_row_lengths(values, list(map(len, lists)))

    @classmethod
    def from_row_lengths(cls, values: Any, row_lengths: Any) -> "RaggedTensor":
        """`row_lengths` [rows] integers that add up to len(values)."""
        lengths = np.asarray(row_lengths)
        lengths = lengths.astype(np.int64) if lengths.size == 0 else lengths
        if lengths.ndim != 1 or not np.issubdtype(lengths.dtype, np.integer):
            raise ValueError(
                f"RaggedTensor: row_lengths have shape {lengths.shape} and dtype {lengths.dtype}; "
                "they must be integers of rank 1"
            )
        if lengths.size and lengths.min() < 0:
            row = int(np.argmax(lengths < 0))
            raise ValueError(
                f"RaggedTensor: row_lengths[{row}] is {lengths[row]}; a length must be >= 0"
            )
        splits = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=splits[1:])
        return cls(np.asarray(values), splits)

    @property
    def shape(self) -> tuple[int, None]:
        """(rows, None): the second axis is ragged."""
        return (len(self.row_splits) - 1, None)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def row_lengths(self) -> np.ndarray:
        """[rows] int64."""
        return np.diff(self.row_splits)

    def to_list(self) -> list[list[Any]]:
        return (
            [part.tolist() for part in np.split(self.values, self.row_splits[1:-1])]
            if len(self)
            else []
        )

    def __len__(self) -> int:
        return len(self.row_splits) - 1

    def __repr__(self) -> str:
        return f"RaggedTensor({len(self)} rows, {len(self.values)} values of {self.dtype})"


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """Values at coordinates: the last axis is the position in the bag, the others name the bag.

    Args:
      indices: [nnz, rank] integers, rank >= 2. Stored as int64.
      values: [nnz], any dtype.
      dense_shape: rank ints.

    Raises:
      ValueError: ranks or lengths that do not fit together. (That coordinates are in range and
        strictly increasing is checked where the tensor is used, with the feature's name.)
    """

    indices: np.ndarray
    values: np.ndarray
    dense_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        shape = tuple(int(axis) for axis in np.asarray(self.dense_shape).reshape(-1))
        values, indices = np.asarray(self.values), np.asarray(self.indices)
        if indices.size == 0:
            indices = np.zeros((0, len(shape)), np.int64)
        if indices.ndim != 2 or not np.issubdtype(indices.dtype, np.integer):
            raise ValueError(
                f"SparseTensor: indices have shape {indices.shape} and dtype {indices.dtype}; "
                "they must be integers [nnz, rank]"
            )
        if values.shape != (len(indices),) or len(shape) != indices.shape[1]:
            raise ValueError(
                f"SparseTensor: indices {indices.shape}, values {values.shape} and dense_shape "
                f"{shape} do not fit together; they must be [nnz, rank], [nnz] and rank ints"
            )
        if any(axis < 0 for axis in shape):
            raise ValueError(f"SparseTensor: dense_shape is {shape}; every axis must be >= 0")
        object.__setattr__(self, "indices", indices.astype(np.int64, copy=False))
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "dense_shape", shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dense_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def __repr__(self) -> str:
        values = f"{len(self.values)} values of {self.dtype}"
        return f"SparseTensor({values}, dense_shape={self.dense_shape})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def positions(values: np.ndarray, splits: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(values, splits) with one row per position: `length` rows for each bag.

    A row holds one value or none; positions from `length` on are dropped.

    >>> positions(np.array([3, 7, 3]), np.array([0, 2, 2, 3]), 2)
    (array([3, 7, 3]), array([0, 1, 2, 2, 2, 3, 3]))
    """
    lengths = np.diff(splits)
    filled = np.arange(length) < lengths[:, None]
    if lengths.size and lengths.max() > length:
        position = np.arange(len(values)) - np.repeat(splits[:-1], lengths)
        values = values[position < length]
    expanded = np.zeros(filled.size + 1, np.int64)
    np.cumsum(filled.reshape(-1), out=expanded[1:])
    return values, expanded


def splits_of(rows: np.ndarray, num_rows: int) -> np.ndarray:
    """[num_rows + 1] splits of entries whose rows never decrease."""
    splits = np.zeros(num_rows + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=num_rows), out=splits[1:])
    return splits


def hash_ids(ids: Any, num_buckets: int, oov: int | None = None) -> Any:
    """Integers or strings -> int32 ids in 0 .. num_buckets - 1, the same on every machine and run.

    Integers: splitmix64 of the number in 64 bits (two's complement), modulo num_buckets. Strings:
    FNV-1a (64 bits) of the UTF-8 bytes, then the same. Different ids may meet in one bucket.

    Args:
      ids: array of any shape, list, list of lists, RaggedTensor or SparseTensor; structure is kept.
      num_buckets: 1 to 2^31 - 1, at most the table's vocabulary_size.
      oov: None hashes every id. k > 0 keeps the ids of a known vocabulary as they are, those from 0
        to num_buckets - k - 1, and hashes all other integers into the last k buckets.

    >>> hash_ids(np.array([0, 1, -1, 10**12]), 100)
    array([35, 65, 36, 24], dtype=int32)
    >>> hash_ids(RaggedTensor.from_lists([[3, 7], [], [99]]), 10, oov=2).to_list()
    [[3, 7], [], [9]]
    >>> hash_ids(["red", "green"], 1000)
    array([844, 858], dtype=int32)
    """
    num_buckets = integer("hash_ids: num_buckets", num_buckets, minimum=1, maximum=2**31 - 1)
    if oov is not None:
        oov = integer("hash_ids: oov", oov, minimum=1, maximum=num_buckets)
    if isinstance(ids, RaggedTensor):
        return RaggedTensor(_hashed(ids.values, num_buckets, oov), ids.row_splits)
    if isinstance(ids, SparseTensor):
        values = _hashed(ids.values, num_buckets, oov)
        return SparseTensor(ids.indices, values, ids.dense_shape)
    if isinstance(ids, list | tuple) and any(isinstance(row, list | tuple) for row in ids):
        return hash_ids(RaggedTensor.from_lists(ids), num_buckets, oov)
    return _hashed(np.asarray(ids), num_buckets, oov)


def _hashed(ids: np.ndarray, num_buckets: int, oov: int | None) -> np.ndarray:
    if ids.size == 0:
        return ids.astype(np.int32)
    if ids.dtype == object:  # strings, as TensorFlow and pandas hold them
        ids = np.array(ids.tolist())
    if ids.dtype.kind in "US" and oov is None:
        keys = _fnv1a(ids)
    elif ids.dtype.kind in "iu":
        keys = ids.astype(np.int64).view(np.uint64)  # uint64 keeps its bits
    else:
        what = (
            "only integers can be kept as they are (oov)"
            if oov
            else "they must be integers or strings"
        )
        raise TypeError(f"hash_ids: ids are {ids.dtype}; {what}")
    keys = keys + np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    keys = keys ^ (keys >> np.uint64(31))
    if oov is None:
        return (keys % np.uint64(num_buckets)).astype(np.int32)
    known = num_buckets - oov
    hashed = known + (keys % np.uint64(oov)).astype(np.int64)
    return np.where((ids >= 0) & (ids < known), ids.astype(np.int64), hashed).astype(np.int32)


def _fnv1a(strings: np.ndarray) -> np.ndarray:
    """One pass per byte position, over all strings at once."""
    encoded = np.char.encode(strings, "utf-8") if strings.dtype.kind == "U" else strings
    width = encoded.dtype.itemsize
    letters = np.ascontiguousarray(encoded).view(np.uint8).reshape(*strings.shape, width)
    lengths = np.char.str_len(encoded)
    keys = np.full(strings.shape, 0xCBF29CE484222325, np.uint64)
    for position in range(width):
        mixed = (keys ^ letters[..., position]) * np.uint64(0x100000001B3)
        keys = np.where(position < lengths, mixed, keys)
    return keys


def checked_splits(splits: np.ndarray, nnz: int) -> np.ndarray:
    if splits.ndim != 1 or len(splits) < 1 or not np.issubdtype(splits.dtype, np.integer):
        raise ValueError(
            f"RaggedTensor: row_splits have shape {splits.shape} and dtype {splits.dtype}; "
            "they must be integers [rows + 1], starting with 0"
        )
    splits = splits.astype(np.int64, copy=False)
    if splits[0] != 0 or splits[-1] != nnz:
        raise ValueError(
            f"RaggedTensor: row_splits run from {splits[0]} to {splits[-1]}, but there are {nnz} "
            f"values; they must run from 0 to {nnz}"
        )
    falls = np.flatnonzero(splits[1:] < splits[:-1])
    if len(falls):
        row = int(falls[0])
        raise ValueError(
            f"RaggedTensor: row_splits[{row + 1}] is {splits[row + 1]}, below row_splits[{row}] = "
            f"{splits[row]}; splits must never decrease"
        )
    return splits


def kind_of(dtype: np.dtype[Any]) -> str:
    """dtype.kind; ml_dtypes' numbers (bfloat16, int4), of kind 'V', count as floats and ints."""
    if dtype.kind != "V":
        return dtype.kind
    return {"b": "f", "f": "f", "i": "i", "u": "u"}.get(dtype.name[0], "V")
