"""Rows on disk: whole runs only, gone on with after a kill, by one process at a time."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from experiments import results

KEY = {"git_commit": "a", "params_sha256": "whole"}


def row(run, number=0, of=1):
    return {"params_sha256": run, "rows_of_run": of, "number": number, "auc": 0.1 + 0.2}


def test_an_unfinished_run_of_the_same_key_is_gone_on_with(tmp_path):
    with results.opened(tmp_path, "s", KEY, fresh=False) as rows:
        rows.add("p", [row("p")])
        first = rows.directory
    with results.opened(tmp_path, "s", KEY, fresh=False) as rows:
        assert rows.directory == first
        assert rows.finished == {"p": [row("p")]}
        rows.add("q", [row("q")])
        rows.finish([row("p"), row("q")], "text", {"size": "default"})
    table = parquet.read_table(first / "rows.parquet")
    assert table.column("auc").to_pylist() == [0.1 + 0.2] * 2
    with results.opened(tmp_path, "s", KEY, fresh=False) as rows:
        assert rows.directory != first and not rows.finished


@pytest.mark.parametrize(("key", "fresh"), [({**KEY, "git_commit": "b"}, False), (KEY, True)])
def test_other_code_or_data_or_a_fresh_start_begins_anew(tmp_path, key, fresh):
    with results.opened(tmp_path, "s", KEY, fresh=False) as rows:
        rows.add("p", [row("p")])
        first = rows.directory
    with results.opened(tmp_path, "s", key, fresh=fresh) as rows:
        assert rows.directory != first and not rows.finished


def test_what_a_kill_left_of_a_run_is_dropped(tmp_path):
    with results.opened(tmp_path, "s", KEY, fresh=False) as rows:
        rows.add("p", [row("p", 0, 2), row("p", 1, 2)])
        rows.add("q", [row("q", 0, 2), row("q", 1, 2)])
        path = rows.directory / "rows.jsonl"
    whole = path.read_text()
    for cut in (2, len(whole) // 8, len(whole) // 3):
        path.write_text(whole[:-cut])
        with results.opened(tmp_path, "s", KEY, fresh=False) as rows:
            assert rows.finished == {"p": [row("p", 0, 2), row("p", 1, 2)]}
        lines = path.read_text().splitlines()
    assert [json.loads(line)["params_sha256"] for line in lines] == ["p", "p"]


def test_a_directory_in_which_another_process_writes_is_passed_over(tmp_path):
    opened = results.opened(tmp_path, "s", KEY, fresh=False)
    with opened as one, results.opened(tmp_path, "s", KEY, fresh=False) as two:
        assert one.directory != two.directory


def test_a_smoke_test_is_the_last_result_only_where_there_is_no_other(tmp_path):
    for size in ("default", "smoke", "full"):
        with results.opened(tmp_path, "s", {"size": size}, fresh=False) as rows:
            rows.finish([row("p")], size, {"size": size})
        found = results.last(tmp_path, "s")
        assert found is not None and found.report == "default\n"
    assert results.last(tmp_path, "t") is None


def test_a_sweep_that_is_killed_goes_on_where_it_was(tmp_path):
    """SIGKILL, to the command and all that it started, as soon as the first run is on disk."""
    command = [sys.executable, "-m", "experiments", "run", "timing_validation", "--smoke"]
    whole, _ = _ended(command, tmp_path / "whole")
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [*command, "--jobs", "1", "--out", str(killed)],
        env=_environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    while sum(path.read_text().count("\n") for path in killed.glob("*/*/rows.jsonl")) < 1:
        assert process.poll() is None
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    rows, said = _ended(command, killed)
    assert rows == whole and len(rows) == 8 + 8 + 16
    before = re.search(r"3 runs, (\d) of them finished before", said)
    assert before is not None and 1 <= int(before[1]) < 3
    assert len(list(killed.glob("*/*/key.json"))) == 1


def _environment() -> dict[str, str]:
    return {**os.environ, "JAX_PLATFORMS": "cpu"}


def _ended(command: list[str], out: Path) -> tuple[list[dict], str]:
    """Rows, without what differs between equal runs, and what was printed."""
    done = subprocess.run(
        [*command, "--jobs", "1", "--out", str(out)],
        env=_environment(),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    (path,) = out.glob("*/*/rows.parquet")
    columns = parquet.read_table(path).to_pylist()
    return [{k: v for k, v in row.items() if k != "seconds"} for row in columns], done.stdout
