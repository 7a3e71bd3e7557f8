"""row -> (shard, local row). Where rows lie has no meaning: no result depends on it.

7 rows, 3 shards     mod   0 3 6 | 1 4 | 2 5     row r on shard r mod n
                     div   0 1 2 | 3 4 | 5 6     contiguous; the first rows mod n one longer
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

KINDS = ("mod", "div")
Integers = np.ndarray | np.integer[Any]


@dataclass(frozen=True)
class Placement:
    """Where each row of a table lies. A table may have fewer rows than there are shards: the last
    ones are empty then.

    Raises:
      ValueError: any argument out of its range.

    >>> [rows.tolist() for rows in Placement(13, 5, "div").split(np.arange(13))]
    [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10], [11, 12]]
    """

    num_rows: int
    num_shards: int
    kind: str = "mod"

    def __post_init__(self) -> None:
        for name, value, minimum in (
            ("num_rows", self.num_rows, 0),
            ("num_shards", self.num_shards, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
                raise ValueError(f"Placement: {name} is {value!r}; it must be an int >= {minimum}")
        if self.kind not in KINDS:
            raise ValueError(f"Placement: kind is {self.kind!r}; it must be one of {KINDS}")

    def shard_of(self, rows: Any) -> Integers:
        """The shard of each row, in the shape and integer type of `rows` (0 .. num_rows - 1, not
        checked)."""
        rows = _integers(rows)
        if self.kind == "mod":
            return rows % self.num_shards
        short, longer = divmod(self.num_rows, self.num_shards)
        boundary = longer * (short + 1)
        after = longer + (rows - boundary) // max(short, 1)
        return np.where(rows < boundary, rows // (short + 1), after)

    def local_row(self, rows: Any) -> Integers:
        """The position of each row in its shard."""
        rows = _integers(rows)
        if self.kind == "mod":
            return rows // self.num_shards
        return rows - self._first_row(self.shard_of(rows))

    def global_row(self, shard: Any, local: Any) -> Integers:
        """The inverse: the row at position `local` of `shard`; both may be arrays."""
        shard, local = _integers(shard), _integers(local)
        if self.kind == "mod":
            return local * self.num_shards + shard
        return local + self._first_row(shard)

    def rows_in_shard(self, shard: int) -> int:
        short, longer = divmod(self.num_rows, self.num_shards)
        return short + int(shard < longer)

    def split(self, array: np.ndarray) -> list[np.ndarray]:
        """The shards' parts of an array [num_rows, ...].

        One view per shard.
        """
        if array.shape[:1] != (self.num_rows,):
            raise ValueError(
                f"split: the array has shape {array.shape}; its first axis must be {self.num_rows}"
            )
        if self.kind == "mod":
            return [array[shard :: self.num_shards] for shard in range(self.num_shards)]
        firsts = [int(self._first_row(np.int64(shard))) for shard in range(self.num_shards)]
        return [array[low : low + self.rows_in_shard(shard)] for shard, low in enumerate(firsts)]

    def join(self, shards: Sequence[np.ndarray]) -> np.ndarray:
        """An array [num_rows, ...]: the inverse of split.

        A new one.
        """
        found = [len(shard) for shard in shards]
        required = [self.rows_in_shard(shard) for shard in range(self.num_shards)]
        if found != required:
            raise ValueError(f"join: the shards have {found} rows; they must have {required}")
        whole = np.empty((self.num_rows, *shards[0].shape[1:]), shards[0].dtype)
        for part, shard in zip(self.split(whole), shards, strict=True):
            part[...] = shard
        return whole

    def _first_row(self, shard: Integers) -> Integers:
        """Of a shard under div."""
        short, longer = divmod(self.num_rows, self.num_shards)
        return shard * short + np.minimum(shard, longer)


def _integers(values: Any) -> np.ndarray:
    """As int32 or int64: narrower ones could not hold the results."""
    values = np.asarray(values)
    return values if values.dtype in (np.int32, np.int64) else values.astype(np.int64)
