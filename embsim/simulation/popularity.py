"""How often a table's rows are asked for, as classes of rows that are equally likely.

A Zipf law over 400 million rows is a few thousand classes: its first rows one by one, the others in
intervals so narrow that within one of them all are equal. Every expectation is then a short sum.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..config import integer

HEAD = 4096  # ranks that are classes of their own
PER_DOUBLING = 64  # intervals of ranks beyond them


@dataclass(frozen=True, eq=False)
class Popularity:
    """Args:
    count: float64 [classes], rows of each; they need not be whole.
    probability: float64 [classes], with which one id is one given row of the class.
    """

    count: np.ndarray
    probability: np.ndarray

    @property
    def rows(self) -> float:
        return float(self.count.sum())

    def unique(self, ids: float) -> float:
        """Expected distinct rows among so many ids.

        >>> round(uniform(100).unique(100), 2)  # 100 * (1 - 0.99 ** 100)
        63.4
        """
        return float(self.count @ self.hit(ids))

    def hit(self, ids: float) -> np.ndarray:
        """[classes]: with which probability a row is among so many ids."""
        return -np.expm1(ids * np.log1p(-np.minimum(self.probability, 1 - 1e-16)))

    def conflict(self, ids: float, steps: int) -> float:
        """The share of lookups whose row one of the `steps` steps before has updated, of so many
        ids in a step."""
        return float(self.count @ (self.probability * self.hit(steps * ids)))

    def conflict_of_rows(self, ids: float, steps: int) -> float:
        """As conflict, the share of a step's distinct rows."""
        hit = self.hit(ids)
        return float(self.count @ (hit * self.hit(steps * ids)) / (self.count @ hit or 1.0))

    def missed(self, ids: float, steps: int) -> float:
        """Updates that a lookup misses on average when it reads `steps` steps too early."""
        return steps * float(self.count @ (self.probability * self.hit(ids)))

    def cold(self, ids: float, cached: float) -> float:
        """Expected distinct rows among so many ids that are not among the most popular ones, of
        which a cache holds a share `cached` of all rows."""
        before = np.cumsum(self.count) - self.count
        outside = np.clip(before + self.count - cached * self.rows, 0, self.count)
        return float(outside @ self.hit(ids))

    def draw(self, generator: np.random.Generator, ids: int) -> np.ndarray:
        """int64 [ids]: row numbers. The most popular rows lie anywhere, always the same."""
        mass = np.cumsum(self.count * self.probability)
        first = np.concatenate([[0.0], np.cumsum(self.count)])
        at = np.searchsorted(mass, generator.random(ids) * mass[-1], side="right")
        within = generator.random(ids) * self.count[at]
        rank = np.minimum(first[at] + within, self.rows - 1).astype(np.int64)
        return self._row(rank)

    def _row(self, rank: np.ndarray) -> np.ndarray:
        """Where ranks lie: the first at `head`, those displaced by them in the places left."""
        head = self.head
        row, first = rank.copy(), rank < len(head)
        row[first] = head[rank[first]]
        displaced = np.sort(head[head >= len(head)])
        left = np.setdiff1d(np.arange(len(head)), head)
        if len(displaced):
            # Most ranks are told from all displaced ones by their last 16 bits.
            like = np.zeros(2**16, np.bool_)
            like[displaced % 2**16] = True
            perhaps = np.flatnonzero(like[rank % 2**16])
            at = np.minimum(np.searchsorted(displaced, rank[perhaps]), len(displaced) - 1)
            moved = displaced[at] == rank[perhaps]
            row[perhaps[moved]] = left[at[moved]]
        return row

    @cached_property
    def head(self) -> np.ndarray:
        """int64: the rows of the first classes, as many as have one row each, up to HEAD."""
        alone = np.flatnonzero(np.append(self.count[:HEAD], 0.0) != 1)[0]
        rows = round(self.rows)
        return np.random.default_rng(rows).choice(rows, int(alone), replace=False)


def uniform(rows: int) -> Popularity:
    """All rows alike."""
    rows = integer("uniform: rows", rows, minimum=1)
    return Popularity(np.array([float(rows)]), np.array([1 / rows]))


def zipf(rows: int, alpha: float) -> Popularity:
    """Rank r = 1 .. rows with a probability proportional to r ** -alpha.

    Raises:
      ValueError: no row, or a negative exponent.
    """
    rows = integer("zipf: rows", rows, minimum=1)
    if not 0 <= alpha < np.inf:
        raise ValueError(f"zipf: alpha is {alpha!r}; it must be a number >= 0")
    if alpha == 0:
        return uniform(rows)
    head = np.arange(1, min(rows, HEAD) + 1, dtype=np.float64)
    count, weight = np.ones(len(head)), head**-alpha
    if rows > HEAD:
        doublings = np.log2(rows / HEAD)
        edges = HEAD * 2 ** np.linspace(0, doublings, int(np.ceil(PER_DOUBLING * doublings)) + 1)
        edges = np.unique(np.floor(edges))
        edges[-1] = rows
        # The sum over ranks low + 1 .. high is the integral from low + 1/2 to high + 1/2, nearly.
        low, high = edges[:-1] + 0.5, edges[1:] + 0.5
        mass = (
            np.log(high / low)
            if alpha == 1
            else (high ** (1 - alpha) - low ** (1 - alpha)) / (1 - alpha)
        )
        count = np.concatenate([count, high - low])
        weight = np.concatenate([weight, mass / (high - low)])
    return Popularity(count, weight / (count @ weight))


def zeta(rows: int, alpha: float) -> Popularity:
    """Zipf over all natural numbers, modulo `rows`, as NumPy's zipf and FBGEMM's benchmark draw
    ids: what lies beyond the rows falls on all of them alike.

    Raises:
      ValueError: no row, or an exponent of 1 or less.
    """
    if not 1 < alpha < np.inf:
        raise ValueError(f"zeta: alpha is {alpha!r}; it must be a number > 1")
    law, ranks = zipf(rows, alpha), np.arange(1, HEAD, dtype=np.float64)
    # The sum of r ** -alpha over all r, by its first terms, an integral and half a term.
    whole = (ranks**-alpha).sum() + HEAD ** (1 - alpha) / (alpha - 1) + HEAD**-alpha / 2
    inside = 1 / whole / law.probability[0]
    return Popularity(law.count, law.probability * inside + (1 - inside) / rows)


def mixture(parts: list[tuple[float, Popularity]]) -> Popularity:
    """Ids that come from one of several laws over rows of their own, by the weights' shares.

    >>> mixture([(1, uniform(2)), (3, uniform(6))]).probability.tolist()
    [0.125, 0.125]
    """
    total = sum(weight for weight, _ in parts)
    return Popularity(
        np.concatenate([each.count for _, each in parts]),
        np.concatenate([each.probability * weight / total for weight, each in parts]),
    )


def counted(ids: np.ndarray, rows: int) -> Popularity:
    """As often as rows are among measured ids; the others have no chance."""
    times = np.bincount(np.bincount(np.asarray(ids, np.int64), minlength=rows))
    which = np.flatnonzero(times)[::-1]
    return Popularity(times[which].astype(np.float64), which / len(ids))
