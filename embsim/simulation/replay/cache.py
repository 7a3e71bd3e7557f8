"""Which rows a cache holds: sets of 32, of which the least recently used goes, as in FBGEMM."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..._numba import kernel

WAYS = 32
NEVER = -1


class Caches:
    """One for each table.

    Args:
      sizes: rows of the tables.
      share: of a table's rows that its cache can hold; at least one set.
    """

    def __init__(self, sizes: Mapping[str, int], share: float) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"replay: cached is {share!r}; it must be above 0 and at most 1")
        sets = {name: max(1, round(rows * share / WAYS)) for name, rows in sizes.items()}
        self._row = {name: np.full((n, WAYS), NEVER, np.int64) for name, n in sets.items()}
        self._used = {name: np.full((n, WAYS), NEVER, np.int64) for name, n in sets.items()}

    def miss(self, table: str, rows: np.ndarray, batch: int) -> np.ndarray:
        """bool [rows]: which rows of a batch the cache lacks. It holds them now, in place of rows
        that the batch does not have; a row whose set the batch's other rows fill is not held."""
        missed = np.zeros(len(rows), np.bool_)
        _use(rows, batch, self._row[table], self._used[table], missed)
        return missed


@kernel
def _use(rows: Any, now: int, row: Any, used: Any, missed: Any) -> None:
    sets = len(row)
    for u in range(len(rows)):
        s = rows[u] % sets
        missed[u] = True
        for way in range(row.shape[1]):
            if row[s, way] == rows[u]:
                used[s, way], missed[u] = now, False
    for u in range(len(rows)):
        if missed[u]:
            s, oldest = rows[u] % sets, 0
            for way in range(row.shape[1]):
                if used[s, way] < used[s, oldest]:
                    oldest = way
            if used[s, oldest] < now:
                row[s, oldest], used[s, oldest] = rows[u], now
