"""How much of a table the TensorCore kernels take at a time."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Launch:
    """Args:
    interpret: False compiles for a TPU; True, or pltpu.InterpretParams, runs anywhere.
    lookup, update: rows of a chunk of one line, a power of two; of longer rows fewer.
    samples: of a lookup's block, at most.
    unroll: rows in one turn of an inner loop, a power of two.
    block: rows that are computed at a time, a multiple of 8.
    """

    interpret: Any = False
    lookup: int = 256
    update: int = 128
    samples: int = 2048
    unroll: int = 32
    block: int = 64

    def rows(self, chunk: int, lines: int) -> int:
        """Of a chunk of rows of so many lines: as much memory, but at least 8."""
        return max(8, chunk // power(lines))


USUAL = Launch()


def power(number: int) -> int:
    """The next power of two, at least 1."""
    return 1 << max(number - 1, 0).bit_length()
