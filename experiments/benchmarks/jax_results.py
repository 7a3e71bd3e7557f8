"""What jax_step measures, and its tables."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import jax
import numpy as np
from rich.table import Table

import embsim
from experiments.benchmarks.jax_contenders import Optimizer
from experiments.benchmarks.workloads import Workload

OTHERS = ("sorted", "dense", "engine")


@dataclass(frozen=True)
class Result:
    """Of one contender on one workload: milliseconds and bytes.

    Args:
      step: median of `steps`; as it took from `step_min` to `step_max`.
      floor: what a step cannot do without; `of_copy` as in the module's docstring.
      arguments, outputs, aliased, temporaries: of the compiled step.
    """

    workload: str
    rows: int
    optimizer: str
    ids: str
    contender: str
    steps: int
    step: float
    step_min: float
    step_max: float
    plan: float
    put: float
    floor: int
    of_copy: float
    tables_and_slots: int
    arguments: int = 0
    outputs: int = 0
    aliased: int = 0
    temporaries: int = 0

    @property
    def beyond(self) -> int:
        """The most that a compiled step holds beside tables and slots."""
        held = self.arguments + self.outputs - self.aliased + self.temporaries
        return held - self.tables_and_slots

    @property
    def run(self) -> str:
        return f"{self.workload} {self.optimizer} {self.ids}"


def floor_bytes(
    workload: Workload, optimizer: Optimizer, batches: Sequence[Sequence[embsim.RaggedTensor]]
) -> int:
    """Of one step; see the module's docstring."""
    rows = sum(len(np.unique(ids.values)) for batch in batches for ids in batch) // len(batches)
    samples = workload.tables * workload.batch
    numbers = rows * (1 + 2 * (1 + len(optimizer.slots))) + 2 * samples
    return 4 * workload.dim * numbers


def machine() -> dict[str, Any]:
    """Where it runs; `load` is of all that runs there."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "jax": jax.__version__,
    }


def time_table(results: Sequence[Result]) -> Table:
    where = ", ".join(f"{name} {value}" for name, value in machine().items())
    what = f"milliseconds, median of {results[0].steps}; x: of the other / of embsim_tpu"
    table = Table(title=f"{what}\n{where}")
    ratios = [f"x {name}" for name in OTHERS]
    for column in ("plan", "put", "embsim_tpu", *OTHERS, *ratios, "of copy"):
        _add(table, column)
    for run, by_name in _runs(results):
        ours, each = by_name.get("embsim_tpu"), next(iter(by_name.values()))
        times = [by_name[n].step if n in by_name else None for n in ("embsim_tpu", *OTHERS)]
        table.add_row(
            run,
            *(_number(x, 1) for x in (each.plan, each.put, *times)),
            *(_number(x and ours and x / ours.step, 2) for x in times[1:]),
            f"{ours.of_copy:.0%}" if ours else "-",
        )
    return table


def memory_table(results: Sequence[Result]) -> Table:
    names = ("embsim_tpu", "sorted", "dense")
    table = Table(
        title="MB that the compiled step holds beside tables and slots, of which temporaries"
    )
    for column in ("tables and slots", *names):
        _add(table, column)
    for run, by_name in _runs(results):
        held = next(iter(by_name.values())).tables_and_slots
        cells = [
            f"{by_name[n].beyond / 1e6:,.1f} ({by_name[n].temporaries / 1e6:,.1f})"
            if n in by_name
            else "-"
            for n in names
        ]
        table.add_row(run, f"{held / 1e6:,.1f}", *cells)
    return table


def _runs(results: Sequence[Result]) -> list[tuple[str, dict[str, Result]]]:
    return [
        (run, {each.contender: each for each in group})
        for run, group in groupby(results, key=lambda each: each.run)
    ]


def _add(table: Table, column: str) -> None:
    """The first is preceded by the one that names a run."""
    if not table.columns:
        table.add_column("workload", no_wrap=True)
    table.add_column(column, justify="right", no_wrap=True)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
