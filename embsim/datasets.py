"""Per-replica values, and the datasets that yield them.

    two replicas      source yields            next(iterator)
    from a function   b0  b1  b2  b3           PerReplica(b0, b1)           then PerReplica(b2, b3)
    global batches    [s0 s1 s2 s3]            PerReplica([s0 s1], [s2 s3])

Only the leaves of a batch become PerReplica; its mappings, lists and tuples stay. In a batch, a
list of numbers or of such lists is data, hence a leaf. With one replica all leaves are plain.
"""

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np

from .ragged import RaggedTensor, SparseTensor


@dataclass(frozen=True, eq=False, repr=False)
class PerReplica:
    """One value for each replica, in replica order. No array: take `.values[i]` or reduce it."""

    values: tuple[Any, ...]

    __array_ufunc__ = None  # array + PerReplica is a TypeError, not a guess

    def __getitem__(self, replica: int) -> Any:
        return self.values[replica]

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError(
            f"array of PerReplica: found {len(self)} values, one for each replica; "
            "take .values[i] or strategy.reduce(op, value)"
        )

    def __repr__(self) -> str:
        return f"PerReplica({', '.join(f'{i}: {value!r}' for i, value in enumerate(self.values))})"


@dataclass(frozen=True)
class InputOptions:
    """TensorFlow's options, accepted and without effect: batches stay where the source put them.

    On a TPU, False keeps on the host the batches that feed `enqueue`. Newer programs call the
    option experimental_fetch_to_device.
    """

    experimental_prefetch_to_device: bool = True
    experimental_fetch_to_device: bool | None = None


@dataclass(frozen=True)
class InputContext:
    """What a dataset function is told. One input pipeline feeds all replicas."""

    num_input_pipelines: int = 1
    input_pipeline_id: int = 0
    num_replicas_in_sync: int = 1

    def get_per_replica_batch_size(self, global_batch_size: int) -> int:
        """global_batch_size / num_replicas_in_sync; a ValueError if that is no whole number.

        >>> InputContext(num_replicas_in_sync=4).get_per_replica_batch_size(1024)
        256
        """
        if global_batch_size % self.num_replicas_in_sync:
            raise ValueError(
                f"get_per_replica_batch_size: global batch size {global_batch_size} over "
                f"{self.num_replicas_in_sync} replicas; it must be a multiple of them"
            )
        return global_batch_size // self.num_replicas_in_sync


@dataclass(frozen=True, eq=False, repr=False)
class DistributedDataset:
    """The elements of `source` as steps of all replicas; iterable as often as `source` is."""

    source: Any
    num_replicas: int
    take: Callable[[Iterator[Any], int], Any]

    def __post_init__(self) -> None:
        if isinstance(self.source, Mapping | str) or not hasattr(self.source, "__iter__"):
            raise TypeError(
                f"distributed dataset: found {type(self.source).__name__}; a dataset is an "
                "iterable of batches: a list, a generator, any object with __iter__"
            )

    def __iter__(self) -> "DistributedIterator":
        return DistributedIterator(iter(self.source), self.num_replicas, self.take)


@dataclass(frozen=True, eq=False, repr=False)
class DistributedIterator:
    """One pass over a DistributedDataset. After a batch that raises, next() goes on behind it."""

    source: Iterator[Any]
    num_replicas: int
    take: Callable[[Iterator[Any], int], Any]

    def __iter__(self) -> "DistributedIterator":
        return self

    def __next__(self) -> Any:
        return self.take(self.source, self.num_replicas)

    get_next = __next__


def take_group(source: Iterator[Any], num_replicas: int) -> Any:
    """The next `num_replicas` elements, one for each; too few are dropped with a warning."""
    batches = list(itertools.islice(source, num_replicas))
    if 0 < len(batches) < num_replicas:
        warnings.warn(
            f"distributed dataset: the last {len(batches)} of the per-replica batches are dropped; "
            f"a step takes {num_replicas}, one for each replica",
            stacklevel=3,
        )
    if len(batches) < num_replicas:
        raise StopIteration
    return merge_replicas(batches, "distribute_datasets_from_function: batch", _is_data)


def take_split(source: Iterator[Any], num_replicas: int) -> Any:
    """The next global batch, split along axis 0."""
    batch = next(source)
    return batch if num_replicas == 1 else _split(batch, num_replicas, "")


# Structures are mappings, lists, tuples and namedtuples; all else, None too, is a leaf.


def map_structure(function: Callable[[Any], Any], tree: Any) -> Any:
    """`tree` in new containers of the same kinds, with function(leaf) for every leaf."""
    if not _kind(tree):
        return function(tree)
    return _rebuilt(tree, [map_structure(function, child) for _, child in _items(tree)])


def select_replica(tree: Any, replica: int, num_replicas: int) -> Any:
    """What one replica sees of `tree`: its values of the PerReplica leaves, all else uncopied."""
    if isinstance(tree, PerReplica):
        if len(tree) != num_replicas:
            raise ValueError(
                f"PerReplica: found {len(tree)} values under {num_replicas} replicas; "
                "it must hold one for each"
            )
        return tree.values[replica]
    if not _kind(tree):
        return tree
    old = [child for _, child in _items(tree)]
    new = [select_replica(child, replica, num_replicas) for child in old]
    return tree if all(a is b for a, b in zip(old, new, strict=True)) else _rebuilt(tree, new)


def merge_replicas(
    values: Sequence[Any], strict: str = "", is_leaf: Callable[[Any], bool] = lambda _: False
) -> Any:
    """The inverse of select_replica: one structure with PerReplica leaves; a lone value as it is.

    None in all replicas is None. Where structures differ, whole values become one PerReplica leaf;
    if `strict` says what they are, a ValueError.
    """
    first = values[0]
    if len(values) == 1 or all(value is None for value in values):
        return first
    kinds = ["" if is_leaf(value) else _kind(value) for value in values]
    other = next((i for i, kind in enumerate(kinds) if kind != kinds[0]), None)
    if other is not None and strict:
        raise ValueError(
            f"{strict} is {kinds[0] or 'a leaf'} in replica 0 and {kinds[other] or 'a leaf'} in "
            f"replica {other}; all replicas must have the same structure"
        )
    if other is not None or not kinds[0]:
        return PerReplica(tuple(values))
    parts: list[Any] = []
    for key, _ in _items(first):
        where = strict and f"{strict}[{key!r}]"
        parts.append(merge_replicas([value[key] for value in values], where, is_leaf))
    return _rebuilt(first, parts)


def _split(batch: Any, num_replicas: int, path: str) -> Any:
    if batch is None:
        return None
    if _kind(batch) and not _is_data(batch):
        items = [(f"{path}[{key!r}]", part) for key, part in _items(batch)]
        return _rebuilt(batch, [_split(part, num_replicas, where) for where, part in items])
    where = f"experimental_distribute_dataset: batch{path}"
    rows = _num_rows(batch, where)
    if rows % num_replicas:
        raise ValueError(
            f"{where} has {rows} samples for {num_replicas} replicas; it must be a multiple of "
            f"{num_replicas}: drop or pad the last batch"
        )
    size = rows // num_replicas
    if isinstance(batch, SparseTensor):
        return PerReplica(_sparse_parts(batch, size, num_replicas))
    starts = [replica * size for replica in range(num_replicas)]
    return PerReplica(tuple(_rows(batch, start, start + size, where) for start in starts))


def _num_rows(leaf: Any, where: str) -> int:
    shape = getattr(leaf, "shape", None)
    if shape is not None and len(shape) and shape[0] is not None:
        return int(shape[0])
    if shape is None and hasattr(leaf, "__len__") and not isinstance(leaf, str | bytes):
        return len(leaf)
    raise ValueError(
        f"{where} is a {type(leaf).__name__} without a first axis; global batches are split along "
        "axis 0: make it an array with one entry for each sample"
    )


def _rows(leaf: Any, start: int, stop: int, where: str) -> Any:
    if isinstance(leaf, RaggedTensor):
        splits = leaf.row_splits[start : stop + 1]
        return RaggedTensor(leaf.values[splits[0] : splits[-1]], splits - splits[0])
    try:
        return leaf[start:stop]
    except TypeError as error:
        raise TypeError(
            f"{where} is a {type(leaf).__name__}, which cannot be sliced; "
            "use an array, a RaggedTensor or a SparseTensor"
        ) from error


def _sparse_parts(batch: SparseTensor, size: int, num_replicas: int) -> tuple[SparseTensor, ...]:
    # Coordinates out of range stay so, in the first or last part: the engine reports them.
    owner = np.clip(batch.indices[:, 0] // max(size, 1), 0, num_replicas - 1)
    parts: list[SparseTensor] = []
    for replica in range(num_replicas):
        indices = batch.indices[owner == replica]
        indices[:, 0] -= replica * size
        values = batch.values[owner == replica]
        parts.append(SparseTensor(indices, values, (size, *batch.dense_shape[1:])))
    return tuple(parts)


def _is_data(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, Number | np.generic) or _is_data(item) for item in value
    )


def _kind(tree: Any) -> str:
    """Which container this is, in words; "" for a leaf."""
    name = type(tree).__name__
    if isinstance(tree, Mapping):
        return f"a {name} with the keys {', '.join(sorted(map(repr, tree)))}"
    if isinstance(tree, list) or type(tree) is tuple or _is_namedtuple(tree):
        return f"a {name} of length {len(tree)}"
    return ""


def _is_namedtuple(tree: Any) -> bool:
    return isinstance(tree, tuple) and hasattr(tree, "_fields")


def _items(tree: Any) -> list[tuple[Any, Any]]:
    return list(tree.items()) if isinstance(tree, Mapping) else list(enumerate(tree))


def _rebuilt(tree: Any, children: list[Any]) -> Any:
    if isinstance(tree, dict):
        twin = copy.copy(tree)  # keeps an OrderedDict's order, a defaultdict's factory
        twin.update(zip(tree, children, strict=True))
        return twin
    if isinstance(tree, Mapping):
        return dict(zip(tree, children, strict=True))
    if _is_namedtuple(tree):
        return type(tree)(*children)
    return children if isinstance(tree, list) else tuple(children)
