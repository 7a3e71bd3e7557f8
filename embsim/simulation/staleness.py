"""What every lookup of a run missed: counted in the order in which operations touch tables."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .._numba import kernel
from .pipelines.base import NEVER, Rule
from .timeline import Timeline


@dataclass(frozen=True, eq=False)
class Ages:
    """Of each lookup, in the order of Operations.

    Args:
      lookup: int64 [lookups], indices of operations.
      age: int64 [lookups], steps before that had made no update yet when it read; of several
        workers, steps of all of them.
    """

    lookup: np.ndarray
    age: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.age.mean()) if len(self.age) else 0.0

    def quantile(self, q: float) -> int:
        """The age that a share q of lookups does not exceed."""
        return int(np.quantile(self.age, q, method="higher")) if len(self.age) else 0

    @property
    def histogram(self) -> dict[int, int]:
        """Lookups by age."""
        ages, counts = np.unique(self.age, return_counts=True)
        return dict(zip(ages.tolist(), counts.tolist(), strict=True))


def ages(timeline: Timeline) -> Ages:
    """How many updates of earlier batches each lookup misses.

    A lookup of rows that no batch in flight changes misses none, and is left out.
    """
    operations = timeline.operations
    quiet = np.array([stage.share == "quiet" for stage in operations.stages], bool)
    lookups = np.flatnonzero(operations.reads & ~quiet[operations.stage])
    writes = np.flatnonzero(operations.writes)
    order = writes[np.argsort(timeline.ended[writes])]
    seen = np.searchsorted(timeline.ended[order], timeline.began[lookups])
    batch = operations.batch.astype(np.int64)
    return Ages(lookups, _missed(batch[order], batch[lookups], seen))


def most_waiting(timeline: Timeline, rule: Rule) -> int:
    """The most batches that are read and not yet updated at one time."""
    operations = timeline.operations
    lookups = np.flatnonzero(operations.reads)
    batch, first = np.unique(operations.batch[lookups], return_index=True)
    began = np.sort(timeline.began[lookups[first]])
    writes = np.flatnonzero(operations.writes)
    ended = dict(zip(operations.batch[writes].tolist(), timeline.ended[writes], strict=True))
    applied = rule.applied(batch.astype(np.int64)).tolist()
    gone = np.sort([ended.get(each, NEVER) for each in applied])
    waiting = np.arange(1, len(began) + 1) - np.searchsorted(gone, began)
    return int(waiting.max(initial=0))


@kernel
def _missed(written: Any, batch: Any, seen: Any) -> Any:
    """Of the updates of batches below batch[i], how many are not among the first seen[i]."""
    size = max(written.max() if len(written) else 0, batch.max() if len(batch) else 0) + 2
    tree, total = np.zeros(size + 1, np.int64), np.zeros(size + 1, np.int64)  # Fenwick; prefixes
    for each in written:
        total[each + 1] += 1
    total = np.cumsum(total)
    missed, added = np.zeros(len(batch), np.int64), 0
    for i in np.argsort(seen):
        while added < seen[i]:
            at = written[added] + 1
            while at <= size:
                tree[at] += 1
                at += at & -at
            added += 1
        at, found = batch[i], 0
        while at > 0:
            found += tree[at]
            at -= at & -at
        missed[i] = total[batch[i]] - found
    return missed
