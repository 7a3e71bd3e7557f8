"""Positions in chunks, as kernels that sum in on-chip memory take them.

    samples      | 0 1 2 3 | 4 5 6 7 |        blocks, here of 4 samples
    chunks       [ ... ][ .] [ ...  ]         each of one block, here of 5 positions, not all filled

Every block has a chunk, if an empty one, since a block's sums begin at 0 with its first.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class Sizes:
    """Args:
    samples: of one block.
    chunk: positions in one chunk.
    """

    samples: int
    chunk: int

    def blocks(self, samples: int) -> int:
        return max(1, -(-samples // self.samples))

    def chunks(self, samples: int, positions: int) -> int:
        """That suffice, however the positions lie: one for each block may be filled in part."""
        return positions // self.chunk + self.blocks(samples)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Chunks:
    """Where chunks are: int32 [chunks]: the positions that each has, and its block, ascending."""

    counts: Any
    block: Any
    sizes: Sizes = field(metadata={"static": True})
    blocks: int = field(metadata={"static": True})


@dataclass(frozen=True, eq=False)
class Order:
    """Where the positions of ragged samples stand in chunks.

    Args:
      places: of each position, in [chunks * chunk].
      within: of each position, its sample's number within its block.
      counts, block: as in Chunks.
    """

    places: np.ndarray
    within: np.ndarray
    counts: np.ndarray
    block: np.ndarray


def ordered(splits: np.ndarray, sizes: Sizes, chunks: int) -> Order:
    """Of samples with the positions splits[s] .. splits[s + 1]; `chunks` is at least what
    sizes.chunks says."""
    samples = len(splits) - 1
    edges = splits[np.minimum(np.arange(sizes.blocks(samples) + 1) * sizes.samples, samples)]
    lengths = np.diff(edges)
    each = np.maximum(1, -(-lengths // sizes.chunk))
    firsts = np.concatenate([[0], np.cumsum(each)])
    assert firsts[-1] <= chunks, "more chunks than sizes.chunks says"
    block = np.full(chunks, len(lengths) - 1, np.int32)
    block[: firsts[-1]] = np.repeat(np.arange(len(lengths), dtype=np.int32), each)
    before = (np.arange(firsts[-1]) - np.repeat(firsts[:-1], each)) * sizes.chunk
    counts = np.zeros(chunks, np.int32)
    counts[: firsts[-1]] = np.clip(np.repeat(lengths, each) - before, 0, sizes.chunk)
    shift = np.repeat(firsts[:-1] * sizes.chunk - edges[:-1], lengths)
    sample = np.repeat(np.arange(samples, dtype=np.int32), np.diff(splits))
    return Order(np.arange(len(sample)) + shift, sample % np.int32(sizes.samples), counts, block)
