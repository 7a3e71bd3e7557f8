"""Features of any supported kind -> Batch.

Validated here, once, and never again.

    clicks [[3, 7], [], [3]]            ids 3 7 3     splits 0 2 2 3        a bag per output row
    the same, max_sequence_length=2     ids 3 7 3     splits 0 1 2 2 2 3 3  a position per row
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Int64

from .config import FeatureConfig
from .convert import as_feature
from .errors import BatchError
from .nest import pad_batch as pad_batch
from .ragged import RaggedTensor, SparseTensor, checked_splits, kind_of, positions, splits_of
from .ragged import hash_ids as hash_ids
from .shapes import (
    check_no_weight,
    check_output_shape,
    check_same_layout,
    output_rows,
    ragged_layout,
)


@dataclass(frozen=True, eq=False)
class FeatureBatch:
    """One feature of one batch. Read only: batches may share their splits.

    Args:
      ids: [nnz], each from 0 to vocabulary_size - 1.
      splits: [rows + 1]; output row i sums ids[splits[i]:splits[i + 1]].
      weights: [nnz]; None is weight 1.
      combiner: 'sum', 'mean' or 'sqrtn'; None: every output row has 0 or 1 id, of gain 1.
      output_shape: global shape of the activations without dim; its product is rows.
    """

    ids: Int32[np.ndarray, " nnz"]
    splits: Int64[np.ndarray, " splits"]
    weights: Float32[np.ndarray, " nnz"] | None
    combiner: str | None
    output_shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """The features of one global or per-replica batch, in flattened order of the configuration."""

    features: tuple[FeatureBatch, ...]
    vocabulary_sizes: tuple[int, ...] = ()  # by feature; every id is below, as was checked


def make_batch(
    features: Sequence[Any],
    weights: Sequence[Any] | None,
    configs: Sequence[FeatureConfig],
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...] | None],
    num_replicas: int,
    check_numerics: bool = False,
) -> Batch:
    """Check and convert flattened features; everything that the caller could overwrite is copied.

    Args:
      features: of any kind that `convert.as_feature` takes, one per config.
      weights: None, or a leaf per feature: None, or weights of the kind and splits of the ids.
      configs, names: of the features; names are for messages.
      shapes: built output shapes per replica; None is not known yet, taken from this batch.
      num_replicas: replicas that share this batch; 1 for the batch of one replica.
      check_numerics: refuse weights that are not finite.

    Raises:
      BatchError: values, splits, shapes or batch sizes that break the law, with feature and place.
      TypeError: ids that are no integers, weights that are no floats, objects that are no arrays.
    """
    leaves = [None] * len(features) if weights is None else weights
    if not len(features) == len(leaves) == len(configs):
        raise BatchError(
            f"make_batch: found {len(features)} features and {len(leaves)} weights for "
            f"{len(configs)} feature configurations; there must be one for each"
        )
    made = []
    columns = zip(features, leaves, configs, names, shapes, strict=True)
    for feature, weight, config, name, shape in columns:
        spec = _Spec(f"feature {name!r}", config, shape, num_replicas, check_numerics)
        made.append(_feature_batch(feature, weight, spec))
    return Batch(tuple(made), tuple(config.table.vocabulary_size for config in configs))


def per_replica_shapes(batch: Batch, num_replicas: int) -> list[tuple[int, ...]]:
    """The output shapes that a first batch fixes: first axes divided by the replicas."""
    shapes = [feature.output_shape for feature in batch.features]
    return [(shape[0] // num_replicas, *shape[1:]) for shape in shapes]


def concatenate(batches: Sequence[Batch]) -> Batch:
    """The global batch of per-replica batches, in replica order. Weights beside None: that is 1.

    Raises a BatchError if the replicas' batches differ in shape.
    """
    if len(batches) == 1:
        return batches[0]
    features = zip(*(batch.features for batch in batches), strict=True)
    joined = tuple(_joined(i, replicas) for i, replicas in enumerate(features))
    return Batch(joined, batches[0].vocabulary_sizes)


@dataclass(frozen=True, slots=True)
class _Spec:
    what: str
    config: FeatureConfig
    shape: tuple[int, ...] | None
    num_replicas: int
    check_numerics: bool

    @property
    def sequence_length(self) -> int:
        """0 for no sequence feature; for inputs of rank 2."""
        return self.config.max_sequence_length if self.config.output_shape is None else 0

    def check_shape(self, shape: tuple[int, ...]) -> None:
        check_output_shape(self.what, shape, self.shape, self.num_replicas)


def _feature_batch(feature: Any, weight: Any, spec: _Spec) -> FeatureBatch:
    ids, carried = as_feature(feature, spec.what)
    if weight is None:
        weight = carried
    elif carried is not None:
        raise BatchError(f"{spec.what}: found weights, but {type(feature).__name__} has its own")
    else:
        weight = as_feature(weight, f"weights of {spec.what}")[0]
    if isinstance(ids, RaggedTensor):
        return _from_ragged(ids, weight, spec)
    if isinstance(ids, SparseTensor):
        return _from_sparse(ids, weight, spec)
    return _from_dense(ids, weight, spec)


def _from_dense(ids: np.ndarray, weight: Any, spec: _Spec) -> FeatureBatch:
    """[B] or [..., 1]: one id a sample, combiner and weights have no meaning."""
    shape = ids.shape
    if spec.sequence_length:
        raise BatchError(
            f"{spec.what}: found a dense array {shape}, but max_sequence_length is "
            f"{spec.sequence_length}; sequences are ragged (a list of lists) or sparse"
        )
    if weight is not None:
        raise BatchError(
            f"{spec.what}: weight specified for dense input {shape}; dense ids have weight 1, "
            "use ragged bags of one id to weight them"
        )
    if not shape or (len(shape) > 1 and shape[-1] != 1):
        raise BatchError(
            f"{spec.what}: found a dense array of shape {shape}; it must be [B] or [..., 1], one "
            "id a sample; pass bags of ids as ragged (a list of lists) or sparse"
        )
    if len(shape) > 1:
        shape = shape[:-1]
    spec.check_shape(shape)
    flat = _checked_ids(ids.reshape(-1), spec, lambda entry: _dense_place(shape, entry))
    return FeatureBatch(flat, _one_id_a_row(len(flat)), None, None, shape)


def _from_ragged(ids: RaggedTensor, weight: Any, spec: _Spec) -> FeatureBatch:
    try:  # again: the caller may have refilled the arrays since
        splits = checked_splits(ids.row_splits.copy(), len(ids.values))
    except ValueError as error:
        raise BatchError(f"{spec.what}: {error}") from error
    length, shape = ragged_layout(
        spec.what, len(splits) - 1, spec.config, spec.shape, spec.num_replicas
    )

    def place(entry: int) -> str:
        sample = int(np.searchsorted(splits, entry, side="right")) - 1
        return f"sample {sample}, position {entry - splits[sample]}"

    flat = _checked_ids(ids.values, spec, place)
    if length:
        check_no_weight(spec.what, weight, length)
        return FeatureBatch(*positions(flat, splits, length), None, None, shape)
    check_same_layout(spec.what, weight, ids)
    checked = _checked_weights(weight, spec, place)
    return FeatureBatch(flat, splits, checked, spec.config.table.combiner, shape)


def _from_sparse(ids: SparseTensor, weight: Any, spec: _Spec) -> FeatureBatch:
    """The last axis is the position in the bag or sequence, the others name the output row."""
    dense_shape = ids.dense_shape
    if len(dense_shape) < 2:
        raise BatchError(
            f"{spec.what}: found sparse ids of dense_shape {dense_shape}; the rank must be >= 2"
        )
    length = spec.sequence_length if len(dense_shape) == 2 else 0
    shape = (*dense_shape[:-1], length) if length else dense_shape[:-1]
    spec.check_shape(shape)
    rows, indices = output_rows(spec.what, ids.indices, dense_shape), ids.indices

    def place(entry: int) -> str:
        *sample, position = indices[entry].tolist()
        return f"sample {sample[0] if len(sample) == 1 else tuple(sample)}, position {position}"

    flat = _checked_ids(ids.values, spec, place)
    if length:
        check_no_weight(spec.what, weight, length)
        keep = indices[:, -1] < length
        rows = (rows * length + indices[:, -1])[keep]
        return FeatureBatch(flat[keep], splits_of(rows, prod(shape)), None, None, shape)
    check_same_layout(spec.what, weight, ids)
    checked = _checked_weights(weight, spec, place)
    combiner = spec.config.table.combiner
    return FeatureBatch(flat, splits_of(rows, prod(shape)), checked, combiner, shape)


def _checked_ids(values: np.ndarray, spec: _Spec, place: Callable[[int], str]) -> np.ndarray:
    """A copy as int32. One reduction finds both ends: a negative id is a huge unsigned number."""
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    kind, size = kind_of(values.dtype), values.dtype.itemsize
    if not values.size:
        return np.zeros(0, np.int32)
    if kind not in "iu":
        raise TypeError(
            f"{spec.what}: ids are {values.dtype}; they must be integers: cast them, or hash "
            "strings with embsim.hash_ids"
        )
    ids = values if size == 8 or (kind == "u" and size == 4) else values.astype(np.int32)
    table = spec.config.table
    if int(ids.view(np.uint64 if size == 8 else np.uint32).max()) >= table.vocabulary_size:
        entry = int(np.argmax((values < 0) | (values >= table.vocabulary_size)))
        name = "the table" if table.name is None else f"table {table.name!r}"
        raise BatchError(
            f"{spec.what}: id {values[entry]} in {place(entry)}, but {name} has rows "
            f"0..{table.vocabulary_size - 1} (vocabulary_size {table.vocabulary_size}); hash or "
            "clip ids first (embsim.hash_ids)"
        )
    return ids.astype(np.int32, copy=False)  # of the wide types this is the copy


def _checked_weights(weight: Any, spec: _Spec, place: Callable[[int], str]) -> np.ndarray | None:
    """A copy as float32, cast once."""
    if weight is None:
        return None
    values = weight.values
    if not values.size:
        return np.zeros(0, np.float32)
    if kind_of(values.dtype) != "f":
        raise TypeError(f"{spec.what}: weights are {values.dtype}; they must be floats: cast them")
    with np.errstate(over="ignore"):  # beyond float32 is inf, which check_numerics finds
        weights = values.astype(np.float32)
    if spec.check_numerics and not np.isfinite(weights).all():
        entry = int(np.argmin(np.isfinite(weights)))
        raise BatchError(
            f"{spec.what}: weight {weights[entry]} in {place(entry)}; check_numerics=True requires "
            "finite weights"
        )
    return weights


def _dense_place(shape: tuple[int, ...], entry: int) -> str:
    index = tuple(int(axis) for axis in np.unravel_index(entry, shape))
    return f"sample {index[0] if len(index) == 1 else index}, position 0"


@lru_cache(maxsize=64)
def _one_id_a_row(rows: int) -> np.ndarray:
    return np.arange(rows + 1)


def _joined(feature: int, replicas: Sequence[FeatureBatch]) -> FeatureBatch:
    shapes = [replica.output_shape for replica in replicas]
    if len(set(shapes)) > 1:
        raise BatchError(
            f"feature {feature} (flattened order): replicas have batches of the shapes {shapes}; "
            "all must have the same"
        )
    combiners = [r.combiner for r in replicas if r.combiner]  # None: gain 1 under each of them
    starts = np.cumsum([0] + [len(replica.ids) for replica in replicas])
    weights = None
    if any(replica.weights is not None for replica in replicas):
        weights = np.concatenate(
            [np.ones(len(r.ids), np.float32) if r.weights is None else r.weights for r in replicas]
        )
    return FeatureBatch(
        np.concatenate([replica.ids for replica in replicas]),
        np.concatenate(
            [[0]] + [r.splits[1:] + start for r, start in zip(replicas, starts[:-1], strict=True)]
        ),
        weights,
        combiners[0] if combiners else None,
        (sum(shape[0] for shape in shapes), *shapes[0][1:]),
    )
