"""How often should a pipeline drain?

Question
    TensorFlow's pipelined TPUEmbedding drains at the end of each compiled loop of W steps: the
    first lookup of a loop is fresh, the others are a step old, and the pipeline fills anew. What do
    short loops buy in quality, and what do they cost in speed?

Setup
    Quality: flights in time order, where a stale step costs most, one pass in batches of 64, each
    scored before it is trained on; DeepFM as in staleness_on_flights; sparsecore_loop(W) for W of 2
    to 256, and without staleness (1) or drains (0). Seeds differ in initial values. Speed: the same
    schedules on the simulated clock of MLPerf's DLRM-DCNv2 on 64 TPU v5p.

Expectation (written before the run)
    of W steps W - 1 are stale: the loss at W is (1 - 1/W) of that without drains within 20 bp, and
    so is the time saved within 5 % of a sequential step; no W is better than a straight line
    between sequential and pipelined, by 20 bp or 5 %.

Result (default run, 5 seeds)
    Speed holds: on the line within 0.1 % of a step. Quality is undecided: periods from 4 on are on
    the line within 4 bp, but at W = 2 134 bp are lost where the line has 120, interval of the gap
    -23 to -5. A pipeline without drains costs 240 ± 8 bp in time order; loops of 64 233 ± 8.

Limits
    One stale step only; the clock is that of one model on one kind of chip. In time order a seed
    changes initial values alone.
"""

import time
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

import embsim
from embsim.simulation.hardware import Pod, chip
from embsim.simulation.pipelines import (
    Pipeline,
    sequential,
    sparsecore_loop,
    tpu_embedding_pipelined,
)
from embsim.simulation.simulate import simulate
from embsim.simulation.timeline import Timeline
from embsim.simulation.zoo import workload

from . import plots, statistics, study
from .data.samples import load, provenance
from .replays import Setup, adagrad, auc, scored, train
from .tables import text_table

NEVER = 0  # as a period
QUALITY_BP, SPEED = 20.0, 0.05
TIMED = 2048  # batches, a multiple of all periods


@dataclass(frozen=True)
class Params:
    """The sweep (`axes`) and what stays the same in every run."""

    axes: ClassVar[tuple[str, ...]] = ("seeds", "periods")

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    periods: tuple[int, ...] = (1, 2, 4, 16, 64, 256, NEVER)
    data: str = "flights"
    samples: int | None = None
    batch_size: int = 64
    hardware: str = "v5p"
    chips: int = 64
    clock: str = "dcnv2"
    backend: str = "reference"

    @classmethod
    def smoke(cls) -> Self:
        return cls(seeds=(0, 1), periods=(1, 4, NEVER), samples=15_000)

    @classmethod
    def full(cls) -> Self:
        return cls(periods=(1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 1024, NEVER))


@dataclass(frozen=True)
class Record:
    """One pass. `step_ms` is simulated; `seconds` is no part of the result."""

    seed: int
    period: int
    steps: int
    auc: float
    missed: float
    step_ms: float
    seconds: float = field(compare=False)


def pipeline(period: int) -> Pipeline:
    """One step stale, drained every so many steps; a period of 1 is sequential."""
    if period == NEVER:
        return tpu_embedding_pipelined()
    return sequential() if period == 1 else sparsecore_loop(period)


def run(params: Params) -> list[Record]:
    """One record per point of the sweep, in the order of `study.single_runs`."""
    return [_one(single) for single in study.single_runs(params)]


def _one(params: Params) -> Record:
    (seed,), (period,) = params.seeds, params.periods
    start = time.perf_counter()
    whole = load(params.data)
    data = whole.take(np.arange(len(whole) if params.samples is None else params.samples))
    setup = Setup(
        embsim.Adagrad(learning_rate=0.4),
        adagrad(0.2),
        params.batch_size,
        backend=params.backend,
    )
    result = train(setup, pipeline(period), data, seed)
    return Record(
        seed=seed,
        period=period,
        steps=len(result.scores),
        auc=auc(*scored(result, data)),
        missed=result.account.mean_missed,
        step_ms=1e3 * _timeline(params, period, TIMED).seconds / TIMED,
        seconds=time.perf_counter() - start,
    )


def _timeline(params: Params, period: int, batches: int) -> Timeline:
    pod = Pod(chip(params.hardware), params.chips)
    (timed,) = simulate(workload(params.clock), pod, [pipeline(period)], batches=batches)
    return timed.timeline


def traces(params: Params) -> dict[str, Timeline]:
    """Sixteen batches of each period that fits."""
    fitting = [period for period in params.periods if period <= 16]
    return {f"period-{period or 'never'}": _timeline(params, period, 16) for period in fitting}


# --- what is shown


@dataclass(frozen=True)
class Point:
    """Of a period: change of AUC in bp against period 1, that of a straight line, and the share of
    a sequential step that is saved, found and straight.
    """

    bp: statistics.PairedDifference
    off_line: statistics.PairedDifference
    saved: float
    saved_on_line: float


def points(records: list[Record]) -> dict[int, Point]:
    """By period, NEVER last."""
    by: dict[int, list[Record]] = {}
    for r in sorted(records, key=lambda r: (r.period or np.inf, r.seed)):
        by.setdefault(r.period, []).append(r)
    aucs = {period: 1e4 * np.array([r.auc for r in each]) for period, each in by.items()}
    step = {period: each[0].step_ms for period, each in by.items()}
    made: dict[int, Point] = {}
    for period in by:
        share = 1 - 1 / period if period else 1.0
        line = aucs[1] + share * (aucs[NEVER] - aucs[1])
        made[period] = Point(
            statistics.paired_difference(aucs[period], aucs[1], 5.0),
            statistics.paired_difference(aucs[period], line, 5.0),
            1 - step[period] / step[1],
            share * (1 - step[NEVER] / step[1]),
        )
    return made


def verdict(records: list[Record]) -> str:
    """Of quality and of speed, over all periods between."""
    between = {p: point for p, point in points(records).items() if p not in (1, NEVER)}
    said = [statistics.within(QUALITY_BP, point.off_line) for point in between.values()]
    if said[0].startswith("no claim"):
        return said[0]
    quality = next((s for s in ("diverged", "does not hold", "undecided") if s in said), "holds")
    off = max(abs(point.saved - point.saved_on_line) for point in between.values())
    return f"quality: {quality}; speed: {'holds' if off <= SPEED else 'does not hold'}"


def report(records: list[Record]) -> str:
    """By period: quality and speed, and how far from the line."""
    found, rows = points(records), []
    for period, point in found.items():
        each = [r for r in records if r.period == period]
        mean, sd = statistics.mean_and_sd([r.auc for r in each])
        change = "" if period == 1 else f"{point.bp.mean:+.1f} ± {point.bp.sd:.1f}"
        rows.append(
            (
                *(str(period or "never"), f"{mean:.4f} ± {sd:.4f}", change),
                *(f"{point.off_line.mean:+.1f}", f"{np.mean([r.missed for r in each]):.2f}"),
                *(f"{each[0].step_ms:.3f}", f"{point.saved:.1%}", f"{point.saved_on_line:.1%}"),
            )
        )
    heads = ("drained every", "AUC", "change, bp", "off the line, bp", "missed", "ms/step")
    columns = [(n, "right") for n in (*heads, "saved", "on the line")]
    return (
        f"{text_table(columns, [rows])}\n{len({r.seed for r in records})} seeds. Change: against "
        "drains after every step. The line: 1 - 1/W of the change, and of the time saved, without "
        f"drains.\nExpected on the line, within {QUALITY_BP:.0f} bp and {SPEED:.0%} of a step: "
        f"{verdict(records)}."
    )


def figure(records: list[Record]) -> Any:
    """Loss of quality against time saved, a point for each period."""
    found = points(records)
    with plots.style():
        canvas, (axes,) = plots.panels(1, 4.4, 3.2)
        x = [100 * point.saved for point in found.values()]
        y = [(point.bp.mean, point.bp.sd) for point in found.values()]
        plots.curve(axes, x, y, plots.Look("drained every W steps", plots.BLUE, "o", "-"))
        labels = [str(period or "never") for period in found]
        for i, at in enumerate(x):
            near = [label for label, other in zip(labels, x, strict=True) if abs(other - at) < 1]
            if near[0] == labels[i]:  # one label for points that are too close to have their own
                alone = len(near) == 1
                axes.annotate(
                    ", ".join(near),
                    (at, y[i][0]),
                    xytext=(4, 6) if alone else (-6, -12),
                    textcoords="offset points",
                    ha="left" if alone else "right",
                )
        ends = [found[1], found[NEVER]]
        axes.plot(
            [100 * p.saved for p in ends],
            [p.bp.mean for p in ends],
            color="black",
            linewidth=0.8,
            label="straight line",
        )
        axes.set(xlabel="time saved, % of a sequential step", ylabel="change of AUC, bp (bars: sd)")
        axes.legend()
    return canvas


STUDY = study.Study(
    "drain_period",
    Params,
    Record,
    run,
    report,
    verdict,
    figure,
    lambda params: provenance(params.data),
    minutes=4,
    traces=traces,
)
