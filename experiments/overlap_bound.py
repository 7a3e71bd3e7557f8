"""How much can overlap save?

Question
    TorchRec's semi-synchronous pipeline saves 10 %, DeepRec's asynchronous stage makes 1.19, NVIDIA
    finds 0.65 % where 3.3 % of a step is exposed. Is what a schedule saves bounded by what was
    exposed, whatever the hardware and the model?

Setup
    The timing model alone (embsim.simulation): six workloads of the zoo on 64 TPU v5p, 64 v6e, 8
    A100 and 8 H100, 200 batches, each schedule over sequential().

Expectation (written before the run)
    speed-up = T_sequential / max(resource busy time); with 3.3 % exposed the ceiling is 3.4 %.

Result (default run)
    Holds: 0 of 96 above the bound. stale(16) reaches 97.6 % of it on average; one stale step less
    where lookup, exchange and update together take longer than the dense part.

Limits
    A model's times (timing_validation); no contention between resources.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from embsim.simulation.hardware import Pod, chip
from embsim.simulation.pipelines import pipeline_of
from embsim.simulation.simulate import simulate
from embsim.simulation.zoo import workload

from . import plots, study
from .tables import text_table

SCHEDULES = ("lookahead(1)", "tpu_embedding_pipelined()", "stale(4)", "stale(16)")
PODS = ("v5p x 64", "v6e x 64", "a100 x 8", "h100 x 8")
BATCHES = 200


@dataclass(frozen=True)
class Params:
    """The sweep (`axes`) and what stays the same in every run."""

    axes: ClassVar[tuple[str, ...]] = ("workloads", "pods")

    workloads: tuple[str, ...] = (
        *("dcnv2", "dlrm_mlperf", "dlrm_bench", "torchrec_sdd_base", "meta_2021", "hugectr_7"),
    )
    pods: tuple[str, ...] = PODS
    seeds: tuple[int, ...] = (0,)
    backend: str = "none"

    @classmethod
    def smoke(cls) -> Self:
        return cls(workloads=("dcnv2", "dlrm_bench"))

    @classmethod
    def full(cls) -> Self:
        return cls()


@dataclass(frozen=True)
class Record:
    """A schedule's speed-up over sequential(), and the most that there can be: the time of a
    sequential run over that for which this one's busiest resource is taken."""

    workload: str
    pod: str
    schedule: str
    step_ms: float
    speedup: float
    bound: float
    busiest: str


def run(params: Params) -> list[Record]:
    """Four records, of the schedules, per point of the sweep."""
    return [record for single in study.single_runs(params) for record in _of(single)]


def _of(params: Params) -> list[Record]:
    (name,), (pod,) = params.workloads, params.pods
    kind, _, count = pod.partition(" x ")
    made = [pipeline_of(text) for text in ("sequential()", *SCHEDULES)]
    slow, *others = simulate(workload(name), Pod(chip(kind), int(count)), made, batches=BATCHES)
    return [
        Record(
            workload=name,
            pod=pod,
            schedule=each.pipeline.name,
            step_ms=1e3 * each.step_seconds,
            speedup=slow.timeline.seconds / each.timeline.seconds,
            bound=slow.timeline.seconds / max(each.timeline.busy.values()),
            busiest=each.bound[0],
        )
        for each in others
    ]


# --- what is shown


def _above(records: list[Record]) -> int:
    return sum(r.speedup > r.bound * (1 + 1e-9) for r in records)


def verdict(records: list[Record]) -> str:
    """No speed-up is above its bound."""
    return "does not hold" if _above(records) else "holds"


def report(records: list[Record]) -> str:
    """Speed-ups beside their bounds."""
    groups = [
        [
            (
                *(r.workload, r.pod, r.schedule, f"{r.step_ms:.2f}", f"{r.speedup:.3f}"),
                *(f"{r.bound:.3f}", r.busiest),
            )
            for r in records
            if r.pod == pod
        ]
        for pod in dict.fromkeys(r.pod for r in records)
    ]
    names = ("workload", "on", "schedule")
    columns = [*((n, "left") for n in names), ("ms/step", "right"), ("faster", "right")]
    columns += [("at most", "right"), ("busiest", "left")]
    over = _above(records)
    near = np.mean([r.speedup / r.bound for r in records if r.schedule == "stale(16)"])
    return (
        f"{text_table(columns, groups)}\nAbove the bound: {over} of {len(records)}. stale(16) "
        f"reaches {near:.1%} of it on average."
    )


def figure(records: list[Record]) -> Any:
    """Speed-up against the bound."""
    colours = (plots.PURPLE, plots.BLUE, plots.ORANGE, plots.GREEN)
    with plots.style():
        canvas, (axes,) = plots.panels(1, 3.8, 3.4)
        for number, schedule in enumerate(SCHEDULES):
            pairs = [(r.bound, r.speedup) for r in records if r.schedule == schedule]
            x, y = np.array(pairs).T
            axes.scatter(x, y, s=16, c=colours[number], marker="os^D"[number], label=schedule)
        most = max(r.bound for r in records) * 1.05
        axes.plot([1, most], [1, most], color="black", linewidth=0.8)
        axes.set(xlabel="sequential time / busy time of the busiest", ylabel="speed-up")
        axes.legend()
    return canvas


def _data(params: Params) -> dict[str, str]:
    return {"data": "embsim.simulation.zoo"}


STUDY = study.Study(
    "overlap_bound",
    Params,
    Record,
    run,
    report,
    verdict,
    figure,
    _data,
    minutes=0.1,
)
