"""Batches of samples to train on and to score, from any step on.

for examples in stream.batches(512, start=1000): ...    what a run never stopped would see next
for examples in stream.held_out(4096): ...              the same at every call, never trained on
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int32


@dataclass(frozen=True, eq=False)
class Examples:
    """Some samples. Read only: batches may share memory.

    Args:
      ids: one id per sample and categorical field, from 0 to the field's vocabulary size - 1.
      dense: numeric features; [samples, 0] without any.
      labels: 0 or 1.
      mask: False for padding: such a sample is zeros and must not count.
    """

    ids: Int32[np.ndarray, "samples fields"]
    dense: Float32[np.ndarray, "samples dense"]
    labels: Float32[np.ndarray, " samples"]
    mask: Bool[np.ndarray, " samples"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, samples: slice) -> "Examples":
        return Examples(*(column[samples] for column in _columns(self)))


@runtime_checkable
class Stream(Protocol):
    """Samples in a fixed order: the batch of a step is the same wherever the iteration began."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the categorical fields."""
        ...

    @property
    def vocabulary_sizes(self) -> tuple[int, ...]:
        """Rows of the table that each field needs."""
        ...

    @property
    def num_dense(self) -> int: ...

    def num_steps(self, batch_size: int) -> int | None:
        """Full batches in one pass over the training samples; None: there is no end."""
        ...

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Examples]:
        """The training batches of the steps start, start + 1, ...; all full, none of padding."""
        ...

    def held_out(self, batch_size: int) -> Iterator[Examples]:
        """The samples that no training batch has; the last batch is padded to batch_size."""
        ...


def unmasked(ids: np.ndarray, dense: np.ndarray | None, labels: np.ndarray) -> Examples:
    """Examples of which all count; dense None is [samples, 0]."""
    if dense is None:
        dense = np.zeros((len(labels), 0), np.float32)
    return Examples(ids, dense, labels, np.ones(len(labels), np.bool_))


def rebatched(pieces: Iterable[Examples], batch_size: int) -> Iterator[Examples]:
    """The samples of `pieces` in their order, batch_size at a time; the last may be fewer."""
    waiting: list[Examples] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(map(len, waiting)) < batch_size:
            continue
        joined = _joined(waiting)
        full = len(joined) // batch_size * batch_size
        for first in range(0, full, batch_size):
            yield joined[first : first + batch_size]
        waiting = [joined[full:]]
    if sum(map(len, waiting)):
        yield _joined(waiting)


def padded(examples: Examples, batch_size: int) -> Examples:
    """Followed by masked-out zeros up to batch_size."""
    missing = batch_size - len(examples)
    if not missing:
        return examples
    zeros = (np.zeros((missing, *column.shape[1:]), column.dtype) for column in _columns(examples))
    return _joined([examples, Examples(*zeros)])


def check_batches(batch_size: int, start: int = 0) -> None:
    if batch_size < 1 or start < 0:
        raise ValueError(
            f"batches: batch_size is {batch_size}, start is {start}; they must be >= 1 and >= 0"
        )


def full_batches(num_samples: int, batch_size: int) -> int:
    """How many batch_size samples at a time; what remains of the training samples is dropped.

    Raises:
      ValueError: not even one.
    """
    check_batches(batch_size)
    if num_samples < batch_size:
        raise ValueError(
            f"batches: batch_size is {batch_size}, but there are only {num_samples} training "
            "samples; reduce it"
        )
    return num_samples // batch_size


def _joined(pieces: list[Examples]) -> Examples:
    if len(pieces) == 1:
        return pieces[0]
    return Examples(*map(np.concatenate, zip(*map(_columns, pieces), strict=True)))


def _columns(examples: Examples) -> tuple[np.ndarray, ...]:
    return tuple(getattr(examples, field.name) for field in fields(Examples))
