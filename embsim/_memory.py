"""Arrays that start at a multiple of 64 bytes, a cache line, and memory that a step gives back.

A row that starts anywhere else straddles one cache line more; and XLA takes aligned arrays over
without a copy.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

ALIGNMENT = 64  # bytes


def aligned_empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """As np.empty (C order, whatever was in memory), at an address that is a multiple of 64."""
    kind = np.dtype(dtype)
    size = prod(shape) * kind.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(kind).reshape(shape)


def keep_freed_memory() -> None:
    """Let the next step find the memory that the last one gave back, not fresh pages of the system.

    glibc takes the size of a large block that is freed as the size below which it keeps memory for
    itself, up to 32 MiB, and returns freed memory only from twice that on. Here such a block is
    freed, untouched: a step of 40 MB had 600 to 1100 page faults, and has 70 to 180. Elsewhere
    nothing happens.
    """
    np.empty(2**25 - 2**16, np.uint8)
