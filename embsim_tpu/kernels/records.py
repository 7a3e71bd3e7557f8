"""How Pallas kernels want rows to lie: each with its slots beside it, in lines of 128 numbers.

A TPU copies whole lines, and what lies together costs one copy. So a row's weights and its slots
form one record, and a narrow row shares its lines with others:

    width   lanes that a row takes: dim, up to a power of two below 128 or to a multiple of 128
    pack    rows in one record: 128 // width, or 1
    lines   of one stream, which is w or one slot: width // 128, or 1; of bfloat16, of one group

    record, dim 32 with one slot     | w0 | w1 | w2 | w3 |   line 0: four rows' weights
                                     | s0 | s1 | s2 | s3 |   line 1: their slots

Of bfloat16 tables the weights' lines hold two numbers in each place, as int32, and the others the
bits of floats. A narrow row then shares its record with twice as many others, so that no half of a
line is empty; the rows in the lower halves are one group, those in the upper ones another:

    bfloat16, dim 32, one slot       | w0 w4 | w1 w5 | w2 w6 | w3 w7 |   line 0: weights
                                     |  s0   |  s1   |  s2   |  s3   |   line 1: slots of group 0
                                     |  s4   |  s5   |  s6   |  s7   |   line 2: of group 1

Records are held as arrays [records, n, 128] with n = 8m, 4, 2 or 1, the binary digits of all their
lines: of other n a TPU pads each record. Rowwise slots stay arrays [rows, 1] of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

from .bfloat16 import as_type, paired, parted

LANES = 128
Pieces = tuple[Any, ...]


@dataclass(frozen=True)
class Records:
    """Of a table of width `dim`; `streams` is 1 and the number of slots that are as
    wide; `narrowest`, a power of two, is the least width; `half`: its weights are bfloat16.

    >>> adam = Records(32, 3)
    >>> adam.width, adam.pack, adam.lines, adam.pieces, adam.count(1001)
    (32, 4, 1, (2, 1), 251)
    >>> Records(300).width, Records(300, 2).pieces
    (384, (4, 2))
    >>> half = Records(32, 3, half=True)
    >>> half.width, half.pack, half.lines, half.groups, half.pieces
    (32, 8, 1, 2, (4, 1))
    """

    dim: int
    streams: int = 1
    narrowest: int = 1
    half: bool = False

    @cached_property
    def width(self) -> int:
        if self.dim > LANES // 2:
            return -(-self.dim // LANES) * LANES
        return max(self.narrowest, 1 << (self.dim - 1).bit_length())

    @property
    def groups(self) -> int:
        return 2 if self.half and self.width <= LANES else 1

    @property
    def pack(self) -> int:
        return max(1, LANES // self.width) * self.groups

    @property
    def lines(self) -> int:
        return max(1, self.width // LANES)

    @property
    def all_lines(self) -> int:
        """Of one stream of float32."""
        return self.groups * self.lines

    @property
    def weights(self) -> int:
        """Lines of the weights, as they are held."""
        return -(-self.all_lines // 2) if self.half else self.lines

    @cached_property
    def pieces(self) -> tuple[int, ...]:
        """Lines of each array, in the order of the lines."""
        lines = self.weights + (self.streams - 1) * self.all_lines
        whole, rest = lines // 8 * 8, lines % 8
        return tuple(n for n in (whole, *(rest & digit for digit in (4, 2, 1))) if n)

    @property
    def words(self) -> int:
        """32-bit words that one row of float32 takes, with padding: at least streams * dim."""
        return self.streams * self.width

    def count(self, rows: int) -> int:
        """Records of so many rows."""
        return -(-rows // self.pack)

    def place(self, line: int) -> tuple[int, int]:
        """Of a line of the record: its piece, and its place there."""
        for piece, lines in enumerate(self.pieces):
            if line < lines:
                return piece, line
            line -= lines
        raise IndexError(line)

    def runs(self, lines: int) -> tuple[tuple[int, int, int], ...]:
        """(piece, first line, length) of the first `lines` lines: what one copy each can move."""
        found: list[tuple[int, int, int]] = []
        for piece, length in enumerate(self.pieces):
            taken = min(length, lines)
            if taken:
                found.append((piece, sum(self.pieces[:piece]), taken))
            lines -= taken
        return tuple(found)

    def split(self, arrays: Sequence[Any], xp: Any) -> Pieces:
        """[rows, dim] each, w first -> pieces. `xp` is numpy or jax.numpy."""
        record, ends = self.whole(arrays, xp), accumulate(self.pieces)
        return tuple(record[:, end - n : end] for end, n in zip(ends, self.pieces, strict=True))

    def join(self, pieces: Pieces, rows: int, xp: Any) -> tuple[Any, ...]:
        """The inverse of split."""
        return self.parts(xp.concatenate(pieces, axis=1), rows, xp)

    def whole(self, arrays: Sequence[Any], xp: Any) -> Any:
        """[rows, dim] each, w first -> [records, lines, 128]."""
        rows = len(arrays[0])
        padding = ((0, self.count(rows) * self.pack - rows), (0, self.width - self.dim))
        lines = [xp.pad(array, padding).reshape(-1, self.all_lines, LANES) for array in arrays]
        if self.half:
            lines = [paired(lines[0], xp), *(as_type(each, np.int32, xp) for each in lines[1:])]
        return xp.concatenate(lines, axis=1)

    def parts(self, record: Any, rows: int, xp: Any) -> tuple[Any, ...]:
        """The inverse of whole."""
        found = self.taken_apart(record, xp)
        return tuple(each.reshape(-1, self.width)[:rows, : self.dim] for each in found)

    def taken_apart(self, record: Any, xp: Any) -> list[Any]:
        """[n, lines, 128] -> the streams, float32 [n, all_lines, 128] each."""
        n, first = self.all_lines, self.weights
        slots = [record[:, first + i * n : first + (i + 1) * n] for i in range(self.streams - 1)]
        if not self.half:
            return [record[:, :first], *slots]
        w = parted(record[:, :first], xp)[:, :n]
        return [w, *(as_type(each, np.float32, xp) for each in slots)]
