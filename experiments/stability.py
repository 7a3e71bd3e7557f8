"""How fast may tables learn when their lookups are stale?

Question
    For a quadratic of curvature c, gradient descent whose gradients are k steps old is stable for
    rates below 2 sin(pi / (2 (2 k + 1))) / c (PipeMare). Does the largest stable rate of SGD on
    tables follow this law?

Setup
    Flights, shuffled by the seed, one pass of 150,000 in batches of 256; DeepFM, d = 16, MLP 64-32;
    SGD on the tables, whose rate is sought, Adagrad at 0.05 on the dense half, which is fresh. A
    rate is stable if every score is finite and the log loss over the last quarter of the pass,
    scored before training, is below that of a constant, the mean label of this quarter. The largest
    stable rate is found by bisection of its logarithm, from 2^-6 to 2^10, to an octave / 8: inside
    of one run, so that no grid is trained. c is not known: it is taken from staleness 0.

Expectation (written before the run)
    slope of log eta_max against log(2k+1) between -0.7 and -1.0; within x2 of
    2 sin(pi/(2(2k+1)))/c.

Result (default run, 5 seeds)
    Does not hold. The largest stable rate falls from 14.8 at k = 0 to 9.8, 7.2, 5.0, 3.5, 2.3 and
    1.6 at 1, 2, 4, 8, 16 and 32: as the power -0.55 ± 0.02 of 2k + 1. The law asks for too much
    caution: by a factor of 1.3 at 1 and of 4.5 at 32.

Limits
    The model is no quadratic, and only its tables are stale. Bisection takes stability to be
    monotone in the rate. "Stable" is better than a constant: a rate may be stable and useless.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

import embsim
from embsim.simulation.pipelines import stale

from . import plots, statistics, study
from .data.samples import load, provenance
from .replays import Setup, adagrad, scored, train
from .tables import text_table

OCTAVES = (-6.0, 10.0)
SLOPE = (-1.0, -0.7)
FACTOR = 2.0


@dataclass(frozen=True)
class Params:
    """The sweep (`axes`) and what stays the same in every run."""

    axes: ClassVar[tuple[str, ...]] = ("seeds", "staleness")

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    staleness: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32)
    data: str = "flights"
    samples: int = 150_000
    batch_size: int = 256
    halvings: int = 7  # of 16 octaves: to an eighth of one
    backend: str = "reference"

    @classmethod
    def smoke(cls) -> Self:
        return cls(seeds=(0,), staleness=(0, 4), samples=12_000, halvings=4)

    @classmethod
    def full(cls) -> Self:
        return cls(staleness=(0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32), samples=327_346)


@dataclass(frozen=True)
class Record:
    """The largest rate that was stable, and the smallest that was not, of those tried; NaN and inf
    if there was none. `seconds` is no part of the result.
    """

    seed: int
    staleness: int
    stable: float
    unstable: float
    trained: int
    seconds: float = field(compare=False)


def run(params: Params) -> list[Record]:
    """One record per point of the sweep, in the order of `study.single_runs`."""
    return [_one(single) for single in study.single_runs(params)]


def _one(params: Params) -> Record:
    (seed,), (staleness,) = params.seeds, params.staleness
    start = time.perf_counter()
    whole = load(params.data)
    data = whole.take(np.random.default_rng([seed, 11]).permutation(len(whole))[: params.samples])

    def is_stable(rate: float) -> bool:
        optimizer = embsim.SGD(learning_rate=rate)
        setup = Setup(optimizer, adagrad(0.05), params.batch_size, backend=params.backend)
        return beats_a_constant(*scored(train(setup, stale(staleness), data, seed), data))

    low, high = bisected(is_stable, OCTAVES, params.halvings)
    return Record(
        seed=seed,
        staleness=staleness,
        stable=low,
        unstable=high,
        trained=params.halvings,
        seconds=time.perf_counter() - start,
    )


def bisected(
    is_stable: Callable[[float], bool], octaves: tuple[float, float], halvings: int
) -> tuple[float, float]:
    """The largest stable and the smallest unstable rate that were tried, 2^octave.

    >>> bisected(lambda rate: rate < 3.0, (-6.0, 10.0), 4)
    (2.0, 4.0)
    >>> bisected(lambda rate: True, (0.0, 2.0), 2)
    (2.8284271247461903, inf)
    """
    low, high = octaves
    stable, unstable = float("nan"), float("inf")
    for _ in range(halvings):
        middle = (low + high) / 2
        if is_stable(2.0**middle):
            low, stable = middle, 2.0**middle
        else:
            high, unstable = middle, 2.0**middle
    return stable, unstable


def beats_a_constant(labels: np.ndarray, scores: np.ndarray) -> bool:
    """All scores are finite, and the last quarter has less log loss than its mean label would."""
    if not np.isfinite(scores).all():
        return False
    last = slice(3 * len(scores) // 4, None)
    y, z = labels[last].astype(np.float64), scores[last].astype(np.float64)
    rate = float(y.mean())
    constant = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    return float(np.mean(np.logaddexp(0.0, z) - y * z)) < constant


# --- what is shown


def law(staleness: float | np.ndarray) -> Any:
    """The largest stable rate over that of staleness 0, of a quadratic."""
    return np.sin(np.pi / (2 * (2 * np.asarray(staleness) + 1)))


def slopes(records: list[Record]) -> np.ndarray:
    """Of log eta against log(2k + 1), by least squares, one for each seed."""
    fits: list[float] = []
    for each in _by_seed(records):
        x = np.log([2 * r.staleness + 1 for r in each])
        fits.append(float(np.polyfit(x, np.log([_eta(r) for r in each]), 1)[0]))
    return np.array(fits)


def ratios(records: list[Record]) -> dict[int, np.ndarray]:
    """Found over law, by staleness, of each seed; at staleness 0 both are the same."""
    by = _by_seed(records)
    return {
        r.staleness: np.array([_eta(e[i]) / _eta(e[0]) / float(law(r.staleness)) for e in by])
        for i, r in enumerate(by[0])
        if r.staleness > 0
    }


def _eta(record: Record) -> float:
    """The middle of what is stable and what is not, in octaves."""
    return float(np.sqrt(record.stable * record.unstable))


def _by_seed(records: list[Record]) -> list[list[Record]]:
    seeds = sorted({r.seed for r in records})
    by_staleness = sorted(records, key=lambda r: r.staleness)
    return [[r for r in by_staleness if r.seed == seed] for seed in seeds]


def verdict(records: list[Record]) -> str:
    """Of the slope, by the 95 % interval of its mean; of the law, by means of logarithms."""
    found = statistics.PairedDifference(tuple(slopes(records).tolist()))
    if len(found.differences) < statistics.MIN_PAIRS:
        return found.verdict
    low, high = found.interval
    inside = "holds" if SLOPE[0] <= low and high <= SLOPE[1] else "undecided"
    if high < SLOPE[0] or low > SLOPE[1] or np.isnan(found.mean):
        inside = "does not hold"
    off = max(float(np.abs(np.log(r).mean())) for r in ratios(records).values())
    near = "holds" if off <= np.log(FACTOR) else f"does not hold: off by {np.exp(off):.1f}"
    return f"slope: {inside}; within x{FACTOR:.0f} of the law: {near}"


def report(records: list[Record]) -> str:
    """Largest stable rates by staleness, beside the law."""
    by, off = _by_seed(records), ratios(records)
    rows: list[tuple[str, ...]] = []
    for i, first in enumerate(by[0]):
        etas = np.array([_eta(each[i]) for each in by])
        ratio = off.get(first.staleness)
        rows.append(
            (
                *(str(first.staleness), f"{np.exp(np.log(etas).mean()):.3g}"),
                f"{etas.min():.3g} to {etas.max():.3g}",
                f"{float(law(first.staleness)):.3f}",
                "" if ratio is None else f"{np.exp(np.log(ratio).mean()):.2f}",
            )
        )
    heads = ("staleness", "largest stable rate", "over seeds", "law, over staleness 0", "found/law")
    mean, sd = statistics.mean_and_sd(slopes(records))
    return (
        f"{text_table([(n, 'right') for n in heads], [rows])}\n{len(by)} seeds; rates to "
        f"{first_width(records):.0%}. Slope of log rate against log(2k + 1): {mean:.2f} ± {sd:.2f},"
        f" expected {SLOPE[0]} to {SLOPE[1]}.\nExpected: {verdict(records)}."
    )


def first_width(records: list[Record]) -> float:
    """How far the unstable rate is above the stable one, at least."""
    return float(np.nanmin([r.unstable / r.stable - 1 for r in records]))


def figure(records: list[Record]) -> Any:
    """Largest stable rate against staleness, each seed a point, with the law."""
    by = _by_seed(records)
    x = np.array([r.staleness for r in by[0]])
    start = np.exp(np.mean([np.log(_eta(each[0])) for each in by]))
    with plots.style():
        canvas, (axes,) = plots.panels(1, 4.2, 3.2)
        for n, each in enumerate(by):
            label = "found, one for each seed" if n == 0 else None
            etas = [_eta(r) for r in each]
            axes.plot(2 * x + 1, etas, "o", color=plots.BLUE, alpha=0.6, label=label)
        fine = np.linspace(0, x.max(), 200)
        lawful = start * law(fine)
        axes.plot(2 * fine + 1, lawful, color="black", linewidth=0.8, label="law of a quadratic")
        axes.fill_between(
            2 * fine + 1, lawful / FACTOR, lawful * FACTOR, color="black", alpha=0.08, linewidth=0
        )
        axes.set(xscale="log", yscale="log", xlabel="2k + 1", ylabel="largest stable rate of SGD")
        axes.set_title("Staleness k against the rate; band: a factor of 2")
        axes.legend()
    return canvas


STUDY = study.Study(
    "stability",
    Params,
    Record,
    run,
    report,
    verdict,
    figure,
    lambda params: provenance(params.data),
    minutes=10,
)
