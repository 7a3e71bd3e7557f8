"""Schedules side by side on one pod and one workload: seconds, what bounds them, what is stale."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil

from .hardware import Pod
from .pipelines import Pipeline
from .stages import Assumptions, Jitter, seconds, shares, works
from .staleness import Ages, ages, most_waiting
from .timeline import Timeline, run
from .traffic import Traffic, expected
from .workload import Workload

LOOP = ("lookup", "emb_a2a", "dense", "grad_a2a", "update")  # from a lookup to its update
BATCHES = 200


@dataclass(frozen=True, eq=False)
class Result:
    """One schedule's run.

    Args:
      pipeline: the schedule.
      timeline: of all its batches.
      works: seconds of each kind of work of one batch.
      traffic: of one batch.
      workload, pod, assumed: what it ran.
    """

    pipeline: Pipeline
    timeline: Timeline
    works: dict[str, float]
    traffic: Traffic
    workload: Workload
    pod: Pod
    assumed: Assumptions

    @cached_property
    def step_seconds(self) -> float:
        """Between two batches, in the steady state."""
        return self.timeline.seconds_per_batch()

    @property
    def samples_per_second(self) -> float:
        return self.workload.samples / self.step_seconds

    @cached_property
    def bound(self) -> tuple[str, float]:
        """The resource that is busy most, and the share of time for which it is."""
        busy = {
            str(resource.name): time / self.timeline.seconds
            for resource, time in self.timeline.busy.items()
        }
        name = max(busy, key=busy.__getitem__)
        return name, busy[name]

    @property
    def useful_depth(self) -> int:
        """Steps of staleness beyond which nothing more can overlap: what a batch takes from its
        lookup to its update, over the time of the busiest resource."""
        stages = self.timeline.operations.stages
        busiest: dict[str, float] = {}
        for stage in stages:
            if stage.work in LOOP:
                part = shares(self.pipeline, self.traffic, self.assumed)[stage.share]
                time = self.works[stage.work] * part
                busiest[stage.resource] = busiest.get(stage.resource, 0.0) + time
        loop = sum(busiest.values())
        return ceil(loop / max(busiest.values()) - 1e-9) - 1 if loop else 0

    @cached_property
    def ages(self) -> Ages:
        """Of its lookups."""
        return ages(self.timeline)

    @property
    def buffer_bytes(self) -> float:
        """Of one chip, for rows and activations of batches that are read and not yet updated."""
        waiting = most_waiting(self.timeline, self.pipeline.rule)
        return waiting * (self.traffic.asked_bytes + self.traffic.activation_bytes)


def simulate(
    workload: Workload,
    pod: Pod,
    pipelines: Sequence[Pipeline],
    *,
    traffic: Traffic | None = None,
    assumed: Assumptions | None = None,
    jitter: Jitter | None = None,
    batches: int = BATCHES,
) -> list[Result]:
    """Run each schedule for so many batches.

    Args:
      traffic: counted; by default what is expected of the workload.
    """
    assumed = assumed or Assumptions()
    depths = sorted({1, *(pipeline.depth for pipeline in pipelines)})
    traffic = traffic or expected(workload, pod.chips, depths)
    times = works(workload, traffic, pod, assumed)
    results: list[Result] = []
    for pipeline in pipelines:
        operations = pipeline.operations(batches)
        each = seconds(operations, times, shares(pipeline, traffic, assumed), jitter)
        timeline = run(operations, each)
        results.append(Result(pipeline, timeline, times, traffic, workload, pod, assumed))
    return results
