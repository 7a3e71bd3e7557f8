"""A step of embsim beside the same step in FBGEMM, PyTorch, TensorFlow and plain NumPy.

python -m experiments.benchmarks.peers [--smoke] [--workloads W1 W2 W3] [--optimizers NAME ...]
    [--alphas 0 1.05] [--peers NAME ...] [--threads N ...] [--rounds N] [--scale N]
    [--sweep batch|pooling|vocabulary|dim] [--install] [--environments DIR]
    [--out DIR] [--markdown] [--of DIR]

Every peer runs in a process of its own, in its own environment where packages clash
(`make oracles`, or --install), and they take turns on the same batches and gradients: quote the
ratios, not the milliseconds, which move with whatever else the machine does. Before anything is
timed, each is held to the same update on small tables, within computed bounds (agreement.py); one
that computes another stops the run. One that is not there is named with its error.

--of DIR prints the table of an earlier result again and draws its figure, of a run that was stopped
too; --markdown prints it as docs/performance.md has it.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from experiments import plots, provenance
from experiments.benchmarks.workloads import WORKLOADS

from . import report
from .job import LAWS, Job
from .measure import Peers, Result
from .process import PEERS, ROOT, install

SWEEPS: dict[str, tuple[str, tuple[int, ...]]] = {
    "batch": ("batch", (512, 2048, 8192, 32_768)),
    "pooling": ("pooling", (1, 5, 20, 80)),
    "vocabulary": ("rows", (10_000, 100_000, 1_000_000)),
    "dim": ("dim", (8, 16, 32, 64, 128)),
}


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    field, values = SWEEPS.get(options.sweep, ("", (0,)))
    for alpha in options.alphas:
        for name in options.workloads:
            workload = WORKLOADS[name].scaled(256) if options.smoke else WORKLOADS[name]
            workload = replace(workload, rows=max(1, workload.rows // options.scale))
            for optimizer in options.optimizers:
                for value in values[:2] if options.smoke else values:
                    yield Job(_sized(workload, options.sweep, field, value), optimizer, alpha)


def _sized(workload: Any, sweep: str | None, field: str, value: int) -> Any:
    if sweep is None:
        return workload
    return replace(workload, **{field: value}, name=f"{workload.name}, {sweep} {value}")


def run(options: argparse.Namespace, directory: Path) -> list[Result]:
    """Rows are written as they come."""
    results: list[Result] = []
    asked = {name: getattr(options, name) or "" for name in ("rounds", "scale", "sweep")}
    params = {f"param_{name}": value for name, value in asked.items()}
    constant = {"benchmark": "peers", **provenance.of_code(), **machine(), **params}
    for threads in options.threads:
        with tempfile.TemporaryDirectory() as place:
            peers = Peers(options.peers, threads, options.environments, Path(place))
            try:
                for text in peers.missing.values():
                    _say(text)
                compared: dict[Any, dict[str, tuple[str, str]]] = {}
                for job in jobs(options):
                    small = job.small()
                    if small not in compared:
                        compared[small] = peers.compare(job)
                    made = peers.time(job, options.rounds, compared[small])
                    results += made
                    with (directory / "rows.jsonl").open("a") as file:
                        for each in made:
                            row = {**constant, "load": os.getloadavg()[0], **asdict(each)}
                            file.write(json.dumps(row) + "\n")
                    _say(
                        f"{job.workload.name} {job.ids} {job.optimizer}: "
                        + ", ".join(
                            f"{r.peer} {r.step:.3g} ms" for r in made if r.outcome == "timed"
                        )
                    )
            finally:
                peers.close()
    return results


def read_rows(directory: Path) -> tuple[list[Result], str | None]:
    """Of an earlier run, and what it swept."""
    names = [field.name for field in fields(Result)]
    rows = [json.loads(line) for line in (directory / "rows.jsonl").read_text().splitlines()]
    results = [Result(**{name: row[name] for name in names}) for row in rows]
    return results, rows[0].get("param_sweep") or None


def machine() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": _processor(), "cores": cores}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next(
        (x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "unknown"
    )


def write(results: list[Result], options: argparse.Namespace, directory: Path) -> None:
    rows = (directory / "rows.jsonl").read_text().splitlines()
    table = pa.Table.from_pylist([json.loads(row) for row in rows])
    parquet.write_table(table, directory / "rows.parquet")
    axis = SWEEPS[options.sweep][0] if options.sweep else ""
    figure = report.lines(results, axis) if axis else report.bars(results)
    plots.save(figure, directory / "figure.png")
    (directory / "report.txt").write_text(report.text(results) + "\n")
    (directory / "report.md").write_text(report.markdown(results) + "\n")


def check_memory(options: argparse.Namespace) -> None:
    """Raises SystemExit: the tables of all peers, which are held at once, are more than is free."""
    held = max(job.held() for job in jobs(options)) * len(options.peers)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return
    free = next(1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
    if held > free:
        raise SystemExit(
            f"peers: tables and slots of {len(options.peers)} peers are {held / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free; choose a larger --scale or fewer --peers"
        )


def main(arguments: list[str] | None = None) -> list[Result]:
    options = _parse(arguments)
    show = report.markdown if options.markdown else report.text
    if options.of:
        results, options.sweep = read_rows(options.of)
        write(results, options, options.of)
        print(show(results))
        return results
    check_memory(options)
    if options.install:
        install(options.peers, options.environments)
    directory = options.out / "peers" / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    directory.mkdir(parents=True)
    results = run(options, directory)
    write(results, options, directory)
    print(show(results))
    _say(f"rows, table and figure in {directory}")
    return results


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m experiments.benchmarks.peers", description=(__doc__ or "").split("\n", 1)[0]
    )
    add = parser.add_argument
    add(
        "--smoke", action="store_true", help="does it run? small tables and batches, two optimizers"
    )
    add("--workloads", nargs="+", choices=sorted(WORKLOADS))
    add("--optimizers", nargs="+", choices=list(LAWS))
    add("--alphas", nargs="+", type=float, help="of Zipf laws; 0: uniform (default: 0 1.05)")
    add("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    add("--threads", nargs="+", type=int, default=[2])
    add("--rounds", type=int, help="turns of each peer (default: 5; with --smoke 2)")
    add("--scale", type=int, default=1, help="tables this many times smaller; batches as they are")
    add(
        "--sweep",
        choices=list(SWEEPS),
        help="one size of W1 and RowwiseAdagrad, or of what is said",
    )
    add("--install", action="store_true", help="make the environments that are not there")
    add("--environments", type=Path, metavar="DIR", default=ROOT, help="of .venv-oracles-*")
    add("--out", type=Path, metavar="DIR", default=Path("results"))
    add("--markdown", action="store_true")
    add("--of", type=Path, metavar="DIR", help="an earlier result, also a stopped one; run nothing")
    options = parser.parse_args(arguments)
    swept = options.sweep is not None
    options.workloads = options.workloads or (["W1"] if swept else sorted(WORKLOADS))
    some = ["RowwiseAdagrad"] if swept else ["Adagrad", "Adam"] if options.smoke else list(LAWS)
    options.optimizers = options.optimizers or some
    options.alphas = options.alphas or ([1.05] if options.smoke else [0.0, 1.05])
    options.rounds = options.rounds or (2 if options.smoke else 5)
    return options


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
