"""What runs of studies leave behind: OUT/<study>/<time>/, a directory for each.

key.json       what another run must agree in to go on with this one: code, data, parameters
rows.jsonl     a row per record, on disk as soon as its run is finished
rows.parquet, report.txt, figure.png and perhaps traces, at the end
summary.json   last of all: size, seeds, seconds, verdict. Without it the study was not finished
"""

import fcntl
import json
import os
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

Row = dict[str, Any]
SIZES = ("smoke", "default", "full")


@dataclass(frozen=True)
class Finished:
    """A study that was run to its end."""

    directory: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.directory / "summary.json").read_text())

    @property
    def report(self) -> str:
        return (self.directory / "report.txt").read_text()


def last(out: Path, name: str) -> Finished | None:
    """The newest result of the largest size but "full", which only counts where there is no other:
    a smoke test is no result as long as there is a default run.
    """
    found = [Finished(path.parent) for path in sorted((out / name).glob("*/summary.json"))]
    by_size = {result.summary["size"]: result for result in found}
    return next((by_size[size] for size in ("default", "full", "smoke") if size in by_size), None)


@contextmanager
def opened(out: Path, name: str, key: dict[str, Any], fresh: bool) -> Generator["Rows"]:
    """The rows of an unfinished run of the same key, or of a new one.

    Held by one process at a time: a directory in which another writes is passed over.
    """
    candidates = [] if fresh else sorted((out / name).glob("*/key.json"), reverse=True)
    for path in candidates:
        if (path.parent / "summary.json").exists() or json.loads(path.read_text()) != key:
            continue
        with suppress(BlockingIOError), _locked(path.parent):
            with closing(Rows(path.parent)) as rows:
                yield rows
            return
    directory = out / name / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    directory.mkdir(parents=True)
    with _locked(directory), closing(Rows(directory)) as rows:
        _write(directory / "key.json", json.dumps(key, indent=1))
        yield rows


class Rows:
    """Rows on disk, of runs known by the hash of their parameters."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "rows.jsonl").touch()
        self.finished = _complete((directory / "rows.jsonl").read_text().splitlines())
        kept = "".join(line for rows in self.finished.values() for line in map(_line, rows))
        _write(directory / "rows.jsonl.new", kept)
        os.replace(directory / "rows.jsonl.new", directory / "rows.jsonl")
        self._rows = (directory / "rows.jsonl").open("a")

    def add(self, params_sha256: str, rows: Sequence[Row]) -> None:
        """All rows of one run; they are on disk when this returns."""
        self.finished[params_sha256] = list(rows)
        self._rows.write("".join(map(_line, rows)))
        self._rows.flush()
        os.fsync(self._rows.fileno())

    def close(self) -> None:
        self._rows.close()

    def finish(self, rows: Sequence[Row], report: str, summary: dict[str, Any]) -> None:
        """Write what there is at the end; after it the run counts as finished."""
        self.close()
        parquet.write_table(pa.Table.from_pylist(list(rows)), self.directory / "rows.parquet")
        _write(self.directory / "report.txt", report + "\n")
        _write(self.directory / "summary.json.new", json.dumps(summary, indent=1))
        os.replace(self.directory / "summary.json.new", self.directory / "summary.json")


def _complete(lines: Sequence[str]) -> dict[str, list[Row]]:
    """Rows by run, of runs of which all are there; a process that was killed may leave part."""
    by: dict[str, list[Row]] = {}
    for line in lines:
        with suppress(json.JSONDecodeError):
            row = json.loads(line)
            by.setdefault(row["params_sha256"], []).append(row)
    return {run: rows for run, rows in by.items() if len(rows) == rows[0]["rows_of_run"]}


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _locked(directory: Path) -> Generator[None]:
    """For this process alone; the system frees it when the process dies."""
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
