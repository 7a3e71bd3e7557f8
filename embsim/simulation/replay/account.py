"""Who pays: updates that reads missed, row by row, and the gradient that came of such reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..._numba import kernel
from ..._threads import parallel
from .step import Step

DECILES = 10


@dataclass(frozen=True, eq=False)
class Account:
    """Sums over a run, of all tables' rows that any batch touched, the most popular first.

    Args:
      reads: int64 [rows], batches that read each row; a bag's duplicates are one read.
      lookups: int64 [rows], ids.
      missed: int64 [rows], updates that its reads missed: those of earlier batches that were not
        yet made, or not where the worker read.
      stale: int64 [rows], reads that missed any.
      stale_lookups: int64 [rows], ids of such reads.
      mass, stale_mass: float64 [rows], L2 norms of its gradients, and those of stale reads.
    """

    reads: np.ndarray
    lookups: np.ndarray
    missed: np.ndarray
    stale: np.ndarray
    stale_lookups: np.ndarray
    mass: np.ndarray
    stale_mass: np.ndarray

    @property
    def conflict(self) -> float:
        """The share of reads of rows that were stale."""
        return _share(self.stale, self.reads)

    @property
    def stale_share(self) -> float:
        """The share of lookups, ids with duplicates, that were stale."""
        return _share(self.stale_lookups, self.lookups)

    @property
    def mean_missed(self) -> float:
        """Updates that the read of a row missed, on average."""
        return _share(self.missed, self.reads)

    @property
    def stale_mass_share(self) -> float:
        """The share of all gradient norms that came of stale reads."""
        return _share(self.stale_mass, self.mass)

    def deciles(self) -> list["Account"]:
        """Of tenths of the rows, the most popular first."""
        parts = [np.array_split(column, DECILES) for column in vars(self).values()]
        return [Account(*part) for part in zip(*parts, strict=True)]


class Book:
    """Counts of every row while a replay runs.

    `outstanding` of a row: batches among the first `entered` that will update it and have not.
    `made`: updates that it has had, by whomever.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.outstanding = {name: np.zeros(rows, np.int32) for name, rows in sizes.items()}
        self.made = {name: np.zeros(rows, np.int32) for name, rows in sizes.items()}
        self._sums = {name: np.zeros((5, rows), np.int64) for name, rows in sizes.items()}
        self._mass = {name: np.zeros((2, rows), np.float64) for name, rows in sizes.items()}
        self._open: dict[int, Step] = {}  # of the first `entered`: those not yet updated
        self._early: set[int] = set()  # updated before they entered
        self.entered = 0

    def enter(self, batch: int, step: Step | None) -> None:
        """The next batch is an earlier one of all that are read from now on. None: it is over."""
        if step is not None and batch not in self._early:
            self._open[batch] = step
            self._count(step, 1)
        self._early.discard(batch)
        self.entered = batch + 1

    def missing(self, step: Step, table: str) -> np.ndarray:
        """int32 [unique]: updates of the step's rows by earlier batches, not yet made."""
        rows = step.unique(table)
        found = self.outstanding[table][rows]
        for later in [b for b in self._open if b >= step.batch]:
            found -= np.isin(rows, self._open[later].unique(table), assume_unique=True)
        return found

    def read(self, step: Step, table: str, missed: np.ndarray) -> None:
        """The step's rows of a table are read, and this many updates with them missed."""
        step.missed[table] = missed
        rows = step.planned.plans[table].by_row
        _add_reads(rows.unique, rows.starts, missed, self._sums[table])

    def updated(self, step: Step) -> None:
        """The step's update is made, of gradients that are computed."""
        parallel(
            [lambda table=table: self._updated_table(step, table) for table in step.gradients],
            sum(gradients.size for gradients in step.gradients.values()),
        )
        if step.batch in self._open:
            del self._open[step.batch]
            self._count(step, -1)
        else:
            self._early.add(step.batch)

    def _updated_table(self, step: Step, table: str) -> None:
        rows = step.planned.plans[table].by_row
        _add_update(
            *(rows.unique, rows.starts, rows.sample, rows.gain, step.gradients[table]),
            *(step.missed[table], self.made[table], self._mass[table]),
        )

    def account(self) -> Account:
        """Of the run so far."""
        sums = np.concatenate(list(self._sums.values()), axis=1)
        mass = np.concatenate(list(self._mass.values()), axis=1)
        touched = np.flatnonzero(sums[0])
        order = touched[np.argsort(-sums[0, touched], kind="stable")]
        return Account(*sums[:, order], *mass[:, order])

    def _count(self, step: Step, change: int) -> None:
        for table, outstanding in self.outstanding.items():
            outstanding[step.unique(table)] += np.int32(change)


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    everything = float(whole.sum())
    return float(part.sum()) / everything if everything else 0.0


@kernel
def _add_reads(unique: Any, starts: Any, missed: Any, sums: Any) -> None:
    """sums: reads, lookups, missed, stale, stale lookups."""
    for u in range(len(unique)):
        row, ids = unique[u], starts[u + 1] - starts[u]
        sums[0, row] += 1
        sums[1, row] += ids
        if missed[u] > 0:
            sums[2, row] += missed[u]
            sums[3, row] += 1
            sums[4, row] += ids


@kernel
def _add_update(
    unique: Any,
    starts: Any,
    sample: Any,
    gain: Any,
    gradients: Any,
    missed: Any,
    made: Any,
    mass: Any,
) -> None:
    """made: of rows. mass: L2 norms of the rows' gradients, and of those of stale reads."""
    samples, dim = gradients.shape
    total, norms = np.empty(dim, np.float32), np.empty(samples, np.float64)
    for i in range(samples):
        norms[i] = _norm(gradients[i])
    for u in range(len(unique)):
        low, high, row = starts[u], starts[u + 1], unique[u]
        if high == low + 1:
            norm = abs(gain[low]) * norms[sample[low]]
        else:
            for d in range(dim):
                total[d] = np.float32(0.0)
            for j in range(low, high):
                g, k = gradients[sample[j]], gain[j]
                for d in range(dim):
                    total[d] = total[d] + k * g[d]
            norm = _norm(total)
        made[row] += 1
        mass[0, row] += norm
        if missed[u] > 0:
            mass[1, row] += norm


@kernel
def _norm(x: Any) -> float:
    a, b, c, e = 0.0, 0.0, 0.0, 0.0  # four sums side by side: one alone would wait for itself
    for d in range(0, len(x) - 3, 4):
        a += x[d] * x[d]
        b += x[d + 1] * x[d + 1]
        c += x[d + 2] * x[d + 2]
        e += x[d + 3] * x[d + 3]
    for d in range(len(x) // 4 * 4, len(x)):
        a += x[d] * x[d]
    return np.sqrt(a + b + c + e)
