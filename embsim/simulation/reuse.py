"""Tables whose ids repeat as published histograms of reuse (reuse.toml) have it.

No one Zipf law does. A histogram is met by tables of several: how many tables have which exponent
and how many rows is found by least squares, with no table counted less than zero times.
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from math import lgamma, log
from pathlib import Path
from typing import Any

import numpy as np

from .popularity import Popularity, zipf

_PUBLISHED: dict[str, Any] = tomllib.loads(Path(__file__).with_name("reuse.toml").read_text())
EDGES = np.array(_PUBLISHED.pop("edges"), np.int64)  # bin b: more than EDGES[b] times
ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)
ROWS = tuple(int(10 ** (half / 2)) for half in range(17))  # 1 .. 10 ** 8
FIRM = 30.0  # weight of the two totals, against 1 of each bin
MEANS = 3000  # expected times, from 1e-7 to 1e7, at which bins are tabulated


@dataclass(frozen=True, eq=False)
class Histogram:
    """Of one batch, all tables together.

    Args:
      tables, samples, ids, unique: how many; ids and unique (distinct rows) in all tables.
      rows_share, ids_share: float64 [bins], of the distinct rows and of the ids in each bin.
    """

    tables: int
    samples: int
    ids: int
    unique: int
    rows_share: np.ndarray
    ids_share: np.ndarray


def histogram(name: str) -> Histogram:
    """A published one: "meta_2021" or "meta_2022".

    Raises:
      ValueError: no such histogram.
    """
    if name not in _PUBLISHED:
        raise ValueError(f"histogram is {name!r}; it must be one of {', '.join(_PUBLISHED)}")
    found: dict[str, Any] = dict(_PUBLISHED[name])
    rows_share, ids_share = (np.array(found.pop(key)) for key in ("rows_share", "ids_share"))
    return Histogram(**found, rows_share=rows_share, ids_share=ids_share)


def reuse(law: Popularity, ids: float) -> tuple[np.ndarray, np.ndarray]:
    """Float64 [bins] twice: expected distinct rows in each bin, and ids whose row is in it.

    Times are Poisson's; a binomial's differ by a factor 1 - p of the variance.
    """
    mean = law.probability * ids
    at, (rows, again) = np.log(mean.clip(1e-300)), _bins()
    means, whole = np.log(_means()), law.count * mean
    return (
        np.array([whole @ np.interp(at, means, each / _means()) for each in rows]),
        np.array([whole @ np.interp(at, means, each) for each in again]),
    )


def fit(wanted: Histogram) -> list[tuple[int, int, float]]:
    """(tables, rows of each, Zipf exponent): all with the same number of ids."""
    grid = [(rows, alpha) for alpha in ALPHAS for rows in ROWS]
    ids, unique = wanted.ids / wanted.tables, wanted.unique / wanted.tables
    found = [reuse(zipf(rows, alpha), ids) for rows, alpha in grid]
    rows = np.stack([each[0] for each in found], axis=1) / unique
    again = np.stack([each[1] for each in found], axis=1) / ids
    totals = FIRM * np.stack([rows.sum(axis=0), np.ones(len(grid))])
    share = nonnegative(
        np.concatenate([rows, again, totals]),
        np.concatenate([wanted.rows_share, wanted.ids_share, [FIRM, FIRM]]),
    )
    tables = _whole(share, wanted.tables)
    return [(number, *each) for number, each in zip(tables, grid, strict=True) if number]


def nonnegative(matrix: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """x >= 0 for which |matrix @ x - wanted| is least: Lawson and Hanson's active set.

    >>> nonnegative(np.eye(2), np.array([2.0, -1.0])).tolist()
    [2.0, 0.0]
    """
    size = matrix.shape[1]
    x, free = np.zeros(size), np.zeros(size, bool)
    for _ in range(3 * size):
        slope = matrix.T @ (wanted - matrix @ x)
        slope[free] = -np.inf
        if slope.max(initial=-np.inf) <= 1e-12:
            break
        free[slope.argmax()] = True
        while True:
            best = np.zeros(size)
            best[free] = np.linalg.lstsq(matrix[:, free], wanted, rcond=None)[0]
            below = free & (best <= 0)
            if not below.any():
                x = best
                break
            x = x + (x[below] / (x[below] - best[below])).min() * (best - x)
            free &= x > 1e-14
            x[~free] = 0.0
    return x


def _whole(share: np.ndarray, total: int) -> list[int]:
    """Whole numbers near the shares of a total, and of that sum: largest remainders go up."""
    exact = share / share.sum() * total
    down = np.floor(exact).astype(int)
    down[np.argsort(down - exact, kind="stable")[: total - down.sum()]] += 1
    return [int(number) for number in down]


def _means() -> np.ndarray:
    return np.exp(np.linspace(log(1e-7), log(1e7), MEANS))


@cache
def _bins() -> tuple[np.ndarray, np.ndarray]:
    """Float64 [bins, means] twice: the chance of a row that is expected `mean` times to be in a
    bin, and the part of that mean that it then has."""
    rows, ids = np.empty((MEANS, len(EDGES))), np.empty((MEANS, len(EDGES)))
    for i, mean in enumerate(_means().tolist()):
        around = 12 * mean**0.5 + 25  # further away is less than 1e-15
        first = max(0, int(mean - around))
        times = np.arange(first + 1, int(mean + around) + 1)
        chance = np.append(0.0, np.cumsum(log(mean) - np.log(times)))
        chance = np.exp(chance + first * log(mean) - mean - lgamma(first + 1))
        # [k]: less than first + k times
        below = np.append(0.0, np.cumsum(chance)).clip(max=1.0)
        for part, shift in ((rows, 1), (ids, 0)):  # k * chance(k) is mean * chance(k - 1)
            at = np.clip(EDGES + shift - first, 0, len(chance))
            part[i] = np.diff(np.append(below[at], 1.0))
    return rows.T, ids.T
