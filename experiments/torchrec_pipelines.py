"""TorchRec's three pipelines, published and predicted, in their order.

"Base" begins a batch's input when the last update has ended; SparseDist is sequential(), SemiSync
semi_sync(0).
"""

from dataclasses import replace

import numpy as np

from embsim.simulation.hardware import Pod, chip
from embsim.simulation.operations import Builder, Operations
from embsim.simulation.pipelines import Pipeline, semi_sync, sequential
from embsim.simulation.pipelines.base import STAGES, Rows, batch
from embsim.simulation.simulate import Result, simulate
from embsim.simulation.zoo import workload

from .tables import text_table

# PR #1971 of pytorch/torchrec: seconds (P90) and bytes; the hardware is not published.
PIPELINES = {
    "Base": (10.098, 8.418e9),
    "SparseDist": (10.050, 8.655e9),
    "SemiSync": (9.541, 10.332e9),
}


def base() -> Pipeline:
    """Nothing overlaps, not even a batch's input."""

    def make(batches: int) -> Operations:
        made, rows, steps = Builder(STAGES), Rows(), np.arange(batches)
        batch(made, STAGES, steps, rows)
        made.wait(rows["host_prep"][1:], rows["update"][:-1])
        return made.build()

    return replace(sequential(), name="base", make=make)


def ranking(kind: str = "a100", chips: int = 2) -> list[Result]:
    """Of PIPELINES, in their order, on TorchRec's benchmark of pipelines."""
    made = replace(workload("torchrec_sdd_base"), pooled=True)
    schedules = [base(), sequential(), semi_sync(0)]
    return simulate(made, Pod(chip(kind), chips), schedules)


def ranking_report() -> str:
    """Seconds and buffers, relative to Base."""
    results, rows = ranking(), []
    for (name, (seconds, size)), result in zip(PIPELINES.items(), results, strict=True):
        more = (result.buffer_bytes - results[0].buffer_bytes) / 1e9
        rows.append(
            (
                f"{name}: {result.pipeline.name}",
                f"{seconds / PIPELINES['Base'][0]:.3f}",
                f"{result.step_seconds / results[0].step_seconds:.3f}",
                f"{(size - PIPELINES['Base'][1]) / 1e9:+.2f}",
                f"{more:+.2f}",
            )
        )
    head = [("pipeline", "left"), ("published time", "right"), ("predicted", "right")]
    head += [("published GB", "right"), ("predicted", "right")]
    pod = results[0].pod
    where = f"relative to Base; {pod.chips} x {pod.chip.name} (the published hardware is unknown)"
    return f"{text_table(head, [rows])}\n{where}"
