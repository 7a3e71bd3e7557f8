"""Arrays that start at a multiple of 64 bytes: a cache line; XLA takes them over without a copy."""

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
