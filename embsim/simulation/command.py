"""The command `embsim simulate`: schedules side by side, as a table, rows, a picture and traces."""

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from . import pipelines
from .hardware import Pod, chip, chips
from .measured import load, measured
from .planner import estimate
from .simulate import Result, simulate
from .stages import Assumptions, Jitter
from .traffic import Traffic, counted, expected, sampled
from .workload import Workload
from .zoo import workload, workloads

DONE, USAGE = 0, 2
SCHEDULES = ("sequential()", "tpu_embedding_pipelined()", "lookahead(1)")
GANTT_BATCHES = 20  # that a run must have for the picture


class UsageError(Exception):
    """What was asked for cannot be simulated; its message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command."""
    parser.add_argument(
        "--hardware", default="v5p", metavar="CHIP", help="a name, or FILE.toml:NAME; default v5p"
    )
    parser.add_argument("--chips", type=int, default=64, metavar="N", help="default 64")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--workload", default="dcnv2", metavar="NAME", help="default dcnv2")
    which.add_argument(
        "--ids", type=Path, metavar="FILE.npz", help="measured ids (docs/simulation.md)"
    )
    parser.add_argument(
        "--samples", type=int, metavar="N", help="of a batch; default the workload's"
    )
    parser.add_argument("--dim", type=int, metavar="N", help="of all tables of --ids")
    parser.add_argument(
        "--counted", action="store_true", help="draw batches and count, beside the closed form"
    )
    parser.add_argument(
        "--pooled", action="store_true", help="bags travel summed, not distinct rows"
    )
    parser.add_argument(
        "--activation-size", type=int, metavar="BYTES", help="of numbers that travel: 4 or 2"
    )
    parser.add_argument("--planner", action="store_true", help="print TorchRec's estimate, too")
    parser.add_argument(
        "--schedule", action="append", metavar="CALL", help=f"repeatable; default {SCHEDULES}"
    )
    parser.add_argument(
        "--assume", action="append", default=[], metavar="NAME=NUMBER", help="what is not published"
    )
    parser.add_argument("--jitter", type=float, default=0.0, metavar="SIGMA", help="of log times")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of jitter and draws")
    parser.add_argument("--batches", type=int, default=200, metavar="N", help="default 200")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write rows.csv, gantt.png and traces there"
    )
    parser.add_argument("--list", action="store_true", help="names of chips, workloads, schedules")


def run(options: argparse.Namespace) -> int:
    """Returns the exit status."""
    try:
        if options.list:
            _list()
            return DONE
        results = _results(options)
        _show(results)
        if options.ids is not None or options.counted:
            _compare(results[0])
            if options.ids is not None:
                print(
                    "Expected by the file's own shares: too few rows, unless it has many batches."
                )
        if options.planner:
            _plan(results[0])
        if options.out is not None:
            _write(options.out, results)
        return DONE
    except UsageError as error:
        print(f"embsim simulate: {error}", file=sys.stderr)
        return USAGE


def _list() -> None:
    schedules = (each.__name__ for each in pipelines.CONSTRUCTORS)
    for kind, names in (("chips", chips()), ("workloads", workloads()), ("schedules", schedules)):
        print(f"{kind}: {', '.join(names)}")


def _results(options: argparse.Namespace) -> list[Result]:
    if options.batches < 2:
        raise UsageError(f"--batches is {options.batches}; it must be at least 2")
    try:
        pod = Pod(chip(options.hardware), options.chips)
        chosen = [pipelines.pipeline_of(text) for text in options.schedule or SCHEDULES]
        depths = sorted({1, *(pipeline.depth for pipeline in chosen)})
        made, moved = _workload(options, pod.chips, depths)
        assumed = _assumed(options.assume)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return simulate(
        made,
        pod,
        chosen,
        traffic=moved,
        assumed=assumed,
        jitter=Jitter(options.jitter, seed=options.seed) if options.jitter else None,
        batches=options.batches,
    )


def _workload(
    options: argparse.Namespace, chips: int, depths: Sequence[int]
) -> tuple[Workload, Traffic | None]:
    """What is trained; its traffic if that is counted."""
    if options.ids is not None:
        if options.samples is None or options.dim is None:
            raise UsageError("--ids has neither batches nor widths: it needs --samples and --dim")
        features = load(options.ids)
        if options.pooled or options.activation_size is not None:
            raise UsageError("--pooled and --activation-size are for --workload")
        found = measured(options.ids.name, features, options.samples, options.dim)
        return found.workload, found.traffic(chips, depths)
    if options.dim is not None:
        raise UsageError("--dim is for --ids; a workload has its own")
    made = workload(options.workload)
    if options.samples is not None:
        made = _with_samples(made, options.samples)
    size = options.activation_size or made.activation_size
    made = replace(made, pooled=options.pooled, activation_size=size)
    if not options.counted:
        return made, None
    batches = sampled(made, np.random.default_rng(options.seed), max(depths) + 1)
    return made, counted(made, batches, chips, depths)


def _with_samples(made: Workload, samples: int) -> Workload:
    if samples < 1:
        raise UsageError(f"--samples is {samples}; it must be at least 1")
    return replace(made, samples=samples)


def _assumed(given: Sequence[str]) -> Assumptions:
    numbers: dict[str, float] = {}
    for text in given:
        name, _, number = text.partition("=")
        known = vars(Assumptions())
        try:
            numbers[name] = float(number)
        except ValueError:
            raise UsageError(f"--assume {text}: it must be NAME=NUMBER") from None
        if name not in known:
            raise UsageError(f"--assume {text}: the name must be one of {', '.join(known)}")
    return Assumptions(**numbers)


# --- what is shown


COLUMNS: dict[str, Callable[[Result, Result], Any]] = {
    "schedule": lambda r, first: r.pipeline.name,
    "step_ms": lambda r, first: 1e3 * r.step_seconds,
    "samples_per_second": lambda r, first: r.samples_per_second,
    "speedup": lambda r, first: first.step_seconds / r.step_seconds,
    "bound": lambda r, first: r.bound[0],
    "busy": lambda r, first: r.bound[1],
    "useful_depth": lambda r, first: r.useful_depth,
    "age_mean": lambda r, first: r.ages.mean,
    "age_p99": lambda r, first: r.ages.quantile(0.99),
    "stale_lookups": lambda r, first: r.traffic.stale[1] if r.ages.mean else 0.0,
    "buffer_bytes": lambda r, first: r.buffer_bytes,
}


def rows_of(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One for each schedule: what was simulated, then COLUMNS; speed-ups are over the first."""
    return [
        {
            "hardware": each.pod.chip.name,
            "chips": each.pod.chips,
            "workload": each.workload.name,
            "samples": each.workload.samples,
            **{name: get(each, results[0]) for name, get in COLUMNS.items()},
            **{f"assumed_{name}": value for name, value in vars(each.assumed).items()},
        }
        for each in results
    ]


def _show(results: Sequence[Result]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError as error:
        raise UsageError("it needs rich; pip install 'embsim[simulation]'") from error
    first, console = results[0], Console()
    shape = " x ".join(map(str, first.pod.shape))
    title = (
        f"{first.workload.name}, batch {first.workload.samples:,}, {shape} {first.pod.chip.name}"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("schedule", no_wrap=True)
    for head in ("ms/step", "M/s", "faster", "bound by", "age", "p99", "MB"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows_of(results):
        table.add_row(
            row["schedule"],
            f"{row['step_ms']:.3f}",
            f"{row['samples_per_second'] / 1e6:.2f}",
            f"{row['speedup']:.2f}",
            f"{row['bound']} {row['busy']:.0%}",
            f"{row['age_mean']:.2f}",
            str(row["age_p99"]),
            f"{row['buffer_bytes'] / 1e6:.0f}",
        )
    console.print(table)
    doubtful = [*first.pod.chip.doubtful(), *first.workload.doubtful, *first.assumed.text()]
    legend = (
        "M/s: million samples a second. age: updates that a lookup misses, on average and at the "
        "99th percentile. MB: held by a chip for batches that are read and not yet updated."
    )
    console.print(f"\n{legend}", markup=False, highlight=False)
    console.print("Not published: " + "; ".join(doubtful), markup=False, highlight=False)
    console.print("A model; how far it is off: docs/studies.md, timing_validation.")


def _plan(result: Result) -> None:
    found = estimate(result.workload, result.pod.chips)
    print(
        f"\nTorchRec's planner, of the tables alone: {1e3 * found.seconds:.3f} ms (forward "
        f"{1e3 * found.forward:.3f}, backward {1e3 * found.backward:.3f}, exchanges "
        f"{1e3 * found.exchange:.3f}), on its own constants, whatever the chip"
    )


def _compare(result: Result) -> None:
    """The closed form beside what was counted, which the times above are of."""
    found, chips = result.traffic, result.pod.chips
    closed = expected(result.workload, chips, tuple(found.stale))
    print("\ncounted in the last batch, and expected of independent ids:")
    for name, get in COUNTED.items():
        pair = (f"{x:,.0f}" if x >= 100 else f"{x:.4f}" for x in (get(found), get(closed)))
        print(f"  {name:<34}" + "".join(f"{text:>14}" for text in pair))


COUNTED: dict[str, Callable[[Traffic], float]] = {
    "ids of a chip": lambda t: t.ids,
    "distinct rows of a chip's ids": lambda t: t.asked,
    "distinct rows of a shard": lambda t: t.changed,
    "requests to the busiest shard/mean": lambda t: t.imbalance,
    "share of rows in conflict": lambda t: t.conflict[1],
    "share of lookups that are stale": lambda t: t.stale[1],
}


def _write(directory: Path, results: Sequence[Result]) -> None:
    from .trace import Summary, write_trace

    summaries: dict[str, Summary] = {}
    try:
        from .pictures import save_gantt

        directory.mkdir(parents=True, exist_ok=True)
        rows = rows_of(results)
        with (directory / "rows.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        for number, each in enumerate(results):
            name, first = f"trace_{number}.json", range(GANTT_BATCHES)
            found = write_trace(directory / name, each.timeline, first, each.pipeline.name)
            summaries[f"{name} {each.pipeline.name}"] = found
        enough = {each.pipeline.name: each.timeline for each in results}
        if all(each.operations.batch.max() >= GANTT_BATCHES for each in enough.values()):
            save_gantt(directory / "gantt.png", enough)
    except OSError as error:
        raise UsageError(f"--out {directory}: {error}") from error
    except ModuleNotFoundError as error:
        raise UsageError(f"it needs {error.name}; pip install 'embsim[simulation]'") from error
    for name, found in summaries.items():
        print(f"{name}: {found}")
    print(f"written: {directory}/rows.csv, gantt.png, trace_*.json (https://ui.perfetto.dev)")
