"""What a study is, and how it is run: `python -m experiments run NAME [options]`.

A study's `Params` is a frozen dataclass with `smoke()` and `full()`, a `backend`, and a class
variable `axes`: the names of the tuple-valued parameters that are swept. Its `run(params)` returns
the records of every point of the sweep; points may run apart, in any process.

Its text begins with the question, and has the sections Question, Setup, Expectation (written before
the run), Result and Limits.

A run that was killed is gone on with by the same command, if code, data and parameters are the
same: see results.py.
"""

import argparse
import dataclasses
import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from embsim.simulation.timeline import Timeline
from embsim.simulation.trace import write_trace

from . import parallel, plots, provenance, results
from .results import Finished

Record = Any


@dataclass(frozen=True)
class Study:
    """A question and how to answer it.

    Args:
      name: of the module.
      params: the class of its parameters.
      record: the class of its records, a dataclass of numbers, strings and tuples of them.
      run: the records of a sweep.
      report: tables, and what became of the expectation.
      verdict: the same in a few words: "holds", "does not hold", or of what it does.
      figure: of the records.
      data: name, hash and licence of what is read, by the parameters.
      minutes: that the default size takes on two cores, about.
      traces: timelines worth looking at, by name.
    """

    name: str
    params: type
    record: type
    run: Callable[[Any], list[Record]]
    report: Callable[[list[Record]], str]
    verdict: Callable[[list[Record]], str]
    figure: Callable[[list[Record]], Any]
    data: Callable[[Any], dict[str, str]]
    minutes: float
    traces: Callable[[Any], dict[str, Timeline]] | None = None

    @property
    def question(self) -> str:
        """The first line of its text."""
        return self._text.partition("\n")[0]

    @property
    def sections(self) -> dict[str, str]:
        """Of its text, by heading."""
        line = r"(?: {4}[^\n]*\n)"
        pattern = rf"^(\w+)[^\n]*\n({line}(?:{line}|\n)*)"
        found = re.findall(pattern, self._text + "\n", re.MULTILINE)
        return {name: _unwrapped(body) for name, body in found}

    @property
    def _text(self) -> str:
        return sys.modules[self.run.__module__].__doc__ or ""


def _unwrapped(text: str) -> str:
    """Without indentation; lines are broken before bullets and between paragraphs only."""
    plain = re.sub(r"^ {4}", "", text, flags=re.MULTILINE).strip()
    return re.sub(r"(?<!\n)\n *(?![\n*])", " ", plain)


def main(study: Study, arguments: list[str] | None = None) -> list[Record]:
    """Run the study as the command line says; returns the records in the order of the sweep."""
    options = _parse(study, arguments)
    params = _params(study, options)
    console = Console(soft_wrap=True)
    code = provenance.of_code()
    try:
        data = study.data(params)
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(str(error))
    whole = {**code, **data, **provenance.of_params(params)}
    fresh = options.fresh or code["git_commit"] == "unknown"  # two such may differ unseen
    console.print(f"data: {data['data']}; licence: {data.get('data_licence', 'none needed')}")
    start = time.perf_counter()
    with results.opened(options.out, study.name, whole, fresh) as rows:
        try:
            _run_rest(study, params, rows, {"study": study.name, **code, **data}, options, console)
        except KeyboardInterrupt:
            console.print(
                f"stopped after {len(rows.finished)} of {len(single_runs(params))} runs; the same "
                f"command goes on with the rest; rows in {rows.directory}"
            )
            sys.exit(130)
        in_order = [row for run in single_runs(params) for row in rows.finished[_hash(run)]]
        records = [record_of(study.record, row) for row in in_order]
        text = study.report(records)
        plots.save(study.figure(records), rows.directory / "figure.png")
        for name, timeline in study.traces(params).items() if study.traces else ():
            write_trace(rows.directory / f"{name}.trace.json", timeline, title=name)
        seconds = time.perf_counter() - start
        summary = _summary(study, options, params, records)
        rows.finish(in_order, text, {**summary, **whole, "seconds": seconds})
    print(text)
    runs = len(single_runs(params))
    console.print(f"{runs} runs in {seconds:.0f} s; table, rows and figure in {rows.directory}")
    return records


def _run_rest(
    study: Study,
    params: Any,
    rows: results.Rows,
    constant: dict[str, Any],
    options: argparse.Namespace,
    console: Console,
) -> None:
    """Every run of the sweep of which there are no rows yet."""
    runs = single_runs(params)
    rest = [run for run in runs if _hash(run) not in rows.finished]
    before = f", {len(runs) - len(rest)} of them finished before" if len(rest) < len(runs) else ""
    jobs = max(1, min(options.jobs, len(rest)))
    console.print(f"{study.name}: {len(runs)} runs{before}, {jobs} at a time, in {rows.directory}")
    found = parallel.map_unordered(study.run, rest, jobs, options.parallel)
    for i, records in _with_progress(found, len(rest), console):
        of_params = {**provenance.of_params(rest[i]), "rows_of_run": len(records)}
        values = [{**constant, **of_params, **dataclasses.asdict(record)} for record in records]
        rows.add(_hash(rest[i]), values)


def record_of(cls: type, row: dict[str, Any]) -> Record:
    """The record of a row; lists, which JSON makes of tuples, are tuples again."""
    values = {field.name: row[field.name] for field in dataclasses.fields(cls)}
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def records_of(study: Study, finished: Finished) -> list[Record]:
    """Those of a finished run, in the order in which its runs finished."""
    lines = (finished.directory / "rows.jsonl").read_text().splitlines()
    return [record_of(study.record, json.loads(line)) for line in lines]


def _summary(
    study: Study, options: argparse.Namespace, params: Any, records: Sequence[Record]
) -> dict[str, Any]:
    size = "smoke" if options.smoke else "full" if options.full else "default"
    default = params == study.params() or size != "default"
    return {
        "study": study.name,
        "size": size if default else "default, changed",
        "seeds": len({record.seed for record in records if hasattr(record, "seed")}),
        "finished": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        "verdict": study.verdict(list(records)),
    }


def _hash(params: Any) -> str:
    return str(provenance.of_params(params)["params_sha256"])


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
    program = f"python -m experiments run {study.name}"
    parser = argparse.ArgumentParser(program, description=study.question)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--smoke", action="store_true", help="does it run? under a minute")
    size.add_argument("--full", action="store_true", help="more points than the default")
    parser.add_argument("--seeds", type=_positive, metavar="N", help="seeds 0 to N - 1")
    parser.add_argument("--backend", metavar="NAME", help="embedding backend (default: reference)")
    parser.add_argument("--data", metavar="NAME", help="another data set: see docs/studies.md")
    parser.add_argument("--jobs", type=_positive, metavar="N", default=parallel.num_cores())
    parser.add_argument(
        "--parallel",
        metavar="KIND",
        default="loky",
        help="loky, threading, dask[=ADDRESS] or ray",
    )
    parser.add_argument("--fresh", action="store_true", help="go on with no run that was killed")
    parser.add_argument(
        "--param", action="append", default=[], metavar="NAME=VALUE", help="a number not swept"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("results"))
    options = parser.parse_args(arguments)
    try:
        options.param = dict(_changed(study.params(), text) for text in options.param)
        parallel.checked(options.parallel)
    except ValueError as error:
        parser.error(str(error))
    for name in ("seeds", "backend", "data"):
        if getattr(options, name) is not None and name not in _names(study.params):
            parser.error(f"--{name}: {study.name} has none")
    return options


def _names(params: type) -> set[str]:
    return {field.name for field in dataclasses.fields(params)}


def _params(study: Study, options: argparse.Namespace) -> Any:
    cls: Any = study.params
    params = cls.smoke() if options.smoke else cls.full() if options.full else cls()
    if options.seeds is not None:
        params = dataclasses.replace(params, seeds=tuple(range(options.seeds)))
    for name in ("backend", "data"):
        if getattr(options, name) is not None:
            params = dataclasses.replace(params, **{name: getattr(options, name)})
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
