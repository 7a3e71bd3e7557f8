"""The command line and the bookkeeping that all studies share.

    python -m experiments.<name> [--smoke | --full] [--seeds N] [--backend NAME] [--jobs N]
                                 [--param NAME=VALUE ...] [--out DIR]

writes OUT/<name>/<time>/ with rows.jsonl (one row per run, written as it finishes, so a killed
study keeps its rows), rows.parquet, report.txt and figure.png.

A study's `Params` is a frozen dataclass with `smoke()` and `full()`, a `backend`, and a class
variable `axes`: the names of the tuple-valued parameters that are swept. Its `run(params)` returns
one record per point of the sweep.
"""

import argparse
import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from . import parallel, plots, provenance

Record = Any


@dataclass(frozen=True)
class Study:
    """What `main` needs to know of a study."""

    name: str
    params: type
    run: Callable[[Any], list[Record]]
    report: Callable[[list[Record]], str]
    figure: Callable[[list[Record]], Any]
    data: Callable[[], dict[str, str]]


def main(study: Study, arguments: list[str] | None = None) -> list[Record]:
    """Run the study as the command line says; returns the records in the order of the sweep."""
    options = _parse(study, arguments)
    params = _params(study, options)
    directory = options.out / study.name / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    directory.mkdir(parents=True)
    console = Console(soft_wrap=True)
    runs = single_runs(params)
    jobs = min(options.jobs, len(runs))
    console.print(f"{study.name}: {len(runs)} runs in {jobs} processes, rows in {directory}")

    start = time.perf_counter()
    records: dict[int, list[Record]] = {}
    constant = {"study": study.name, **provenance.of_code(), **study.data()}
    try:
        with (directory / "rows.jsonl").open("w") as file:
            finished = parallel.map_unordered(study.run, runs, jobs)
            for i, new in _with_progress(finished, len(runs), console):
                records[i] = new
                for record in new:
                    file.write(json.dumps(_row(constant, runs[i], record)) + "\n")
                file.flush()
                os.fsync(file.fileno())
    except KeyboardInterrupt:
        console.print(f"stopped after {len(records)} of {len(runs)} runs; rows in {directory}")
        sys.exit(130)

    in_order = [record for i in range(len(runs)) for record in records[i]]
    rows = [_row(constant, runs[i], record) for i in range(len(runs)) for record in records[i]]
    parquet.write_table(pa.Table.from_pylist(rows), directory / "rows.parquet")
    plots.save(study.figure(in_order), directory / "figure.png")
    text = study.report(in_order)
    (directory / "report.txt").write_text(text + "\n")
    print(text)
    seconds = time.perf_counter() - start
    console.print(f"{len(runs)} runs in {seconds:.0f} s; table, rows and figure in {directory}")
    return in_order


def single_runs(params: Any) -> list[Any]:
    """One copy of the params per point of the sweep, each axis reduced to one value; the first axis
    varies slowest.
    """
    values = [getattr(params, axis) for axis in params.axes]
    return [
        dataclasses.replace(params, **{a: (v,) for a, v in zip(params.axes, point, strict=True)})
        for point in itertools.product(*values)
    ]


def _parse(study: Study, arguments: list[str] | None) -> argparse.Namespace:
    description = (sys.modules[study.run.__module__].__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(f"python -m experiments.{study.name}", description=description)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--smoke", action="store_true", help="does it run? under a minute")
    size.add_argument("--full", action="store_true", help="more points than the default")
    parser.add_argument("--seeds", type=_positive, metavar="N", help="seeds 0 to N - 1")
    parser.add_argument("--backend", metavar="NAME", help="embedding backend (default: reference)")
    parser.add_argument("--jobs", type=_positive, metavar="N", default=parallel.num_cores())
    parser.add_argument(
        "--param", action="append", default=[], metavar="NAME=VALUE", help="a number not swept"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("results"))
    options = parser.parse_args(arguments)
    try:
        options.param = dict(_changed(study.params(), text) for text in options.param)
    except ValueError as error:
        parser.error(str(error))
    return options


def _params(study: Study, options: argparse.Namespace) -> Any:
    cls: Any = study.params
    params = cls.smoke() if options.smoke else cls.full() if options.full else cls()
    if options.seeds is not None:
        params = dataclasses.replace(params, seeds=tuple(range(options.seeds)))
    if options.backend is not None:
        params = dataclasses.replace(params, backend=options.backend)
    return dataclasses.replace(params, **options.param)


def _changed(params: Any, text: str) -> tuple[str, int | float]:
    """("dense_learning_rate", 0.1) from its text: a parameter that is a number."""
    name, _, value = text.partition("=")
    numbers = [f.name for f in dataclasses.fields(params) if _is_number(getattr(params, f.name))]
    if name not in numbers:
        raise ValueError(f"--param {text}: {name!r} is none of {', '.join(numbers)}")
    return name, type(getattr(params, name))(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def _with_progress(
    finished: Iterator[tuple[int, Any]], total: int, console: Console
) -> Iterator[tuple[int, Any]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("runs", total=total)
        for done, item in enumerate(finished, start=1):
            yield item
            progress.update(task, completed=done)
            if not console.is_terminal and (done % max(1, total // 10) == 0 or done == total):
                console.print(f"{done} of {total} runs")  # a log file shows no bar


def _row(constant: dict[str, Any], params: Any, record: Record) -> dict[str, Any]:
    return {**constant, **provenance.of_params(params), **dataclasses.asdict(record)}
