"""row -> (shard, local row) on devices. Where rows lie has no meaning: no result depends on it.

7 rows, 3 shards     mod   0 3 6 . | 1 4 . . | 2 5 . .     row r on shard r mod n, at r div n

Every shard has the same number of local rows, `local_rows`; those that no row of the table lies on
are padding (dots), and are never read or trained.
"""

from dataclasses import dataclass

import numpy as np

import embsim.placement as host

SMALL = 2**16  # local rows up to which they are padded to a power of two
STEP = 2**13  # beyond: to a multiple of this


@dataclass(frozen=True)
class Placement(host.Placement):
    """Where each row of a table lies. A table may have fewer rows than there are shards: the last
    ones are empty then.

    Raises:
      ValueError: any argument out of its range, or another kind than "mod".

    >>> rows = Placement(7, 3)
    >>> rows.local_rows, rows.physical_row(np.array([0, 1, 2, 3])).tolist()
    (8, [0, 8, 16, 1])
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind != "mod":
            raise ValueError(
                f"Placement: kind is {self.kind!r}; on devices it must be 'mod': 'div' would put "
                "the frequent rows of a sorted vocabulary on one device"
            )
        if self.num_shards * self.local_rows >= 2**31:
            raise ValueError(
                f"Placement: {self.num_rows} rows; with padding they must be fewer than 2**31"
            )

    @property
    def local_rows(self) -> int:
        """Rows of each shard's array, padding included. Tables of about the same size share
        compiled programs: a power of two if small, else a multiple of 8192."""
        rows = -(-self.num_rows // self.num_shards)
        if rows <= SMALL:
            return max(8, 1 << (rows - 1).bit_length())
        return -(-rows // STEP) * STEP

    def physical_row(self, rows: np.ndarray) -> np.ndarray:
        """The position of each row in the shards' arrays, laid one after the other."""
        if self.num_shards == 1:
            return rows
        return self.shard_of(rows) * self.local_rows + self.local_row(rows)

    def split(self, array: np.ndarray) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The shards' parts of an array [num_rows, ...].

        One array, [num_shards * local_rows, ...]: the parts, each padded with zeros, one after the
        other.
        """
        whole = np.zeros((self.num_shards, self.local_rows, *array.shape[1:]), array.dtype)
        for part, shard in zip(super().split(array), whole, strict=True):
            shard[: len(part)] = part
        return whole.reshape(-1, *array.shape[1:])

    def join(self, shards: np.ndarray) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """An array [num_rows, ...]: the inverse of split.

        A view if there is one shard.
        """
        if self.num_shards == 1:
            return shards[: self.num_rows]
        parts = shards.reshape(self.num_shards, self.local_rows, *shards.shape[1:])
        whole = np.empty((self.num_rows, *shards.shape[1:]), shards.dtype)
        for part, shard in zip(super().split(whole), parts, strict=True):
            part[...] = shard[: len(part)]
        return whole
