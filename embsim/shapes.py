"""Output shapes, on which `build` and all batches must agree; and what batches must be to fit them.

The output shape of a feature is that of its activations without dim, per replica; globally the
first axis is multiplied by the replicas. Priority: FeatureConfig.output_shape, then `build`,
then the first batch.
"""

import operator
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import numpy as np

from .config import FeatureConfig
from .errors import BatchError
from .ragged import RaggedTensor, SparseTensor

Shape = tuple[int, ...]


def resolve(
    configs: Sequence[FeatureConfig],
    names: Sequence[str],
    per_replica_input_shapes: Any,
    per_replica_batch_size: Any,
) -> list[Shape | None]:
    """The per-replica output shapes that `build` fixes; None where the first batch decides.

    A batch size B is [B], or [B, L] for a sequence feature. An input shape loses its last axis,
    unless it is of rank 1; [B, n] of a sequence feature is [B, L] (n = 1 excepted, as in
    TensorFlow). If both are given, shapes win.

    Args:
      per_replica_input_shapes: one shape per feature, flattened: ints, None for an unknown axis; or
        a batch size.

    Raises:
      ValueError: a shape of rank 0 or unknown rank, one that contradicts output_shape, an axis left
        unknown.
    """
    if per_replica_input_shapes is None:
        size = per_replica_batch_size
    elif isinstance(per_replica_input_shapes, Sequence):
        if len(per_replica_input_shapes) != len(configs):
            raise ValueError(
                f"build: found {len(per_replica_input_shapes)} input shapes for {len(configs)} "
                "features; there must be one for each"
            )
        shapes = zip(configs, names, per_replica_input_shapes, strict=True)
        return [_from_input(config, name, shape) for config, name, shape in shapes]
    else:
        size = per_replica_input_shapes
    if size is None:
        return [_configured(config) for config in configs]
    size = _axis("build: per_replica_batch_size", size)
    return [
        _merged(
            name,
            _configured(config),
            (size, config.max_sequence_length) if _is_sequence(config) else (size,),
        )
        for config, name in zip(configs, names, strict=True)
    ]


def check_output_shape(
    what: str, found: Shape, per_replica: Shape | None, num_replicas: int
) -> None:
    """That a batch's global output shape is the built one, or one that the replicas can share.

    Raises:
      BatchError: no samples, another batch size or shape, a batch that the replicas do not divide.
    """
    if 0 in found:
        raise BatchError(
            f"{what}: found a batch without samples, output shape {found}; give at least one"
        )
    if per_replica is None:
        if found[0] % num_replicas:
            raise BatchError(
                f"{what}: found {found[0]} samples for {num_replicas} replicas; the global batch "
                "must be a multiple of the number of replicas: pad it with embsim.pad_batch"
            )
        return
    if found != (per_replica[0] * num_replicas, *per_replica[1:]):
        raise BatchError(
            f"{what}: inconsistent shape, found a batch of output shape {found}; it was built for "
            f"{(per_replica[0] * num_replicas, *per_replica[1:])} ({num_replicas} replicas of "
            f"{per_replica}): keep the batch size, pad the last batch with embsim.pad_batch"
        )


def ragged_layout(
    what: str, rows: int, config: FeatureConfig, per_replica: Shape | None, num_replicas: int
) -> tuple[int, Shape]:
    """(m, global output shape) of `rows` bags: combined (m = 0), or sequences of length m.

    Raises:
      BatchError: rows that the output shape does not allow.
    """
    fixed = config.output_shape is not None
    if config.max_sequence_length and not fixed:
        shape = (rows, config.max_sequence_length)
        check_output_shape(what, shape, per_replica, num_replicas)
        return config.max_sequence_length, shape
    if rows == 0 or per_replica is None or (len(per_replica) == 1 and not fixed):
        check_output_shape(what, (rows,), per_replica, num_replicas)
        return 0, (rows,)
    shape = (per_replica[0] * num_replicas, *per_replica[1:])
    if prod(shape) == rows:
        return 0, shape
    if fixed and prod(shape) % rows == 0 and rows % num_replicas == 0:
        return prod(shape) // rows, shape
    needed = f"{prod(shape)} to combine" + (", or a divisor of that as sequences" if fixed else "")
    raise BatchError(
        f"{what}: found {rows} bags; output shape {shape} ({num_replicas} replicas of "
        f"{per_replica}) needs {needed}: pad the batch (embsim.pad_batch) or change the shape"
    )


def output_rows(what: str, indices: np.ndarray, dense_shape: Shape) -> np.ndarray:
    """[nnz] output rows of sparse entries: all axes but the last, row-major.

    Raises:
      BatchError: indices outside dense_shape, or not strictly increasing.
    """
    unsigned = indices.view(np.uint64)  # a negative index is a huge one
    if len(indices) and any(unsigned[:, k].max() >= size for k, size in enumerate(dense_shape)):
        outside = ((indices < 0) | (indices >= np.array(dense_shape))).any(axis=1)
        entry = int(np.argmax(outside))
        raise BatchError(
            f"{what}: sparse index {indices[entry].tolist()} of entry {entry} lies outside "
            f"dense_shape {dense_shape}"
        )
    rows, column = indices[:, 0], indices[:, -1]
    for axis, size in enumerate(dense_shape[1:-1], start=1):
        rows = rows * size + indices[:, axis]
    step = np.diff(rows)
    falls = (step < 0) | ((step == 0) & (column[1:] <= column[:-1]))
    if falls.any():
        entry = int(np.argmax(falls)) + 1
        raise BatchError(
            f"{what}: sparse index {indices[entry].tolist()} of entry {entry} follows "
            f"{indices[entry - 1].tolist()}; indices must be strictly increasing: sort them, and "
            "give duplicate ids positions of their own"
        )
    return rows


def check_same_layout(what: str, weight: Any, ids: RaggedTensor | SparseTensor) -> None:
    """That weights are of the kind of their ids, with equal splits or indices."""
    if weight is None:
        return
    if type(weight) is not type(ids):
        raise BatchError(
            f"{what}: weights are {type(weight).__name__}, which does not match ids of type "
            f"{type(ids).__name__}; they must be of one kind"
        )
    field = "row_splits" if isinstance(ids, RaggedTensor) else "indices"
    found, wanted = getattr(weight, field), getattr(ids, field)
    if found is wanted or np.array_equal(found, wanted):
        return
    if found.shape != wanted.shape:
        where = f"have shape {found.shape}, those of the ids {wanted.shape}"
    else:
        at = int(np.argmax((found != wanted).reshape(len(found), -1).any(axis=1)))
        where = f"are {found[at].tolist()} at [{at}], those of the ids {wanted[at].tolist()}"
    raise BatchError(
        f"{what}: {field} of the weights {where}; every id needs one weight, in the same place"
    )


def check_no_weight(what: str, weight: Any, length: int) -> None:
    """That a sequence has no weights."""
    if weight is not None:
        raise BatchError(
            f"{what}: found weights for sequences of length {length}; positions are not combined "
            "and have weight 1: pass None"
        )


def _is_sequence(config: FeatureConfig) -> bool:
    return config.max_sequence_length > 0 and config.output_shape is None


def _configured(config: FeatureConfig) -> Shape | None:
    return None if config.output_shape is None else tuple(config.output_shape)  # pyright: ignore


def _from_input(config: FeatureConfig, name: str, shape: Any) -> Shape | None:
    configured = _configured(config)
    if shape is None and configured is not None:
        return configured
    axes = tuple(shape) if isinstance(shape, Iterable) else (shape,) * (shape is not None)
    if not axes:
        raise ValueError(
            f"build: input shape of feature {name!r} is {shape!r}; Rank must be 1 and above"
        )
    what = f"build: input shape {axes} of feature {name!r}: axis"
    known = tuple(None if n is None else _axis(what, n) for n in axes)
    if len(known) == 2 and known[1] != 1 and _is_sequence(config):
        output = (known[0], config.max_sequence_length)
    else:
        output = known[:-1] if len(known) > 1 else known
    return _merged(name, configured, output)


def _merged(name: str, configured: Shape | None, incoming: tuple[int | None, ...]) -> Shape:
    """`configured` where it is set; `incoming` must agree with it, unless it is flat."""
    if configured is not None:
        flat = len(incoming) <= 2 and len(configured) > len(incoming)
        agree = len(incoming) == len(configured) and all(
            new is None or new == old for new, old in zip(incoming, configured, strict=True)
        )
        if not flat and not agree:
            raise ValueError(
                f"build: inconsistent shape for feature {name!r}: FeatureConfig.output_shape is "
                f"{configured}, build gives {incoming}; both are per replica and must agree"
            )
        return configured
    if None in incoming:
        raise ValueError(
            f"build: feature {name!r} is not fully defined: its output shape is {incoming}; give "
            "every axis, or leave all shapes to the first batch"
        )
    return tuple(axis for axis in incoming if axis is not None)


def _axis(what: str, value: Any) -> int:
    if (
        isinstance(value, bool)
        or not hasattr(type(value), "__index__")
        or operator.index(value) < 1
    ):
        raise ValueError(f"{what} is {value!r}; it must be an int >= 1")
    return operator.index(value)
