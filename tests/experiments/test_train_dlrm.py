"""The command, as a user runs it: killed at any time it goes on as if it had not been."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.nightly import nightly

pytest.importorskip("orbax.checkpoint")

SMALL = ["--rows", "500", "--batch-size", "64", "--dim", "4", "--bottom", "8", "--top", "8"]
RUN = [*SMALL, "--steps", "60", "--every", "10", "--held-out", "2"]


def command(out: Path, *more: str) -> list[str]:
    module = [sys.executable, "-m", "experiments.train_dlrm"]
    return [*module, *RUN, "--out", str(out), *more]


def run(out: Path, *more: str) -> list[dict]:
    """The rows of the curve of a whole run."""
    return finished(out, *more)[0]


def finished(out: Path, *more: str) -> tuple[list[dict], str]:
    """And what it said."""
    done = subprocess.run(command(out, *more), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return curve(out), done.stderr


def curve(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[dict]:
    return run(tmp_path_factory.mktemp("whole"), "--schedule", "stale(2)")


def test_the_curve_has_a_row_for_every_so_many_steps(whole):
    assert [row["step"] for row in whole] == [10, 20, 30, 40, 50, 60]
    for row in whole:
        assert 0 < row["auc"] < 1 and row["log_loss"] > 0 and row["samples"] == 128


@pytest.mark.parametrize("rows_first", [pytest.param(1, marks=nightly), 3])
def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path, whole, rows_first):
    """SIGKILL as soon as so many rows are there: before, during or after their checkpoint."""
    process = subprocess.Popen(command(tmp_path, "--schedule", "stale(2)"))
    try:
        path, deadline = tmp_path / "curve.jsonl", time.monotonic() + 120
        while not (path.exists() and len(path.read_text().splitlines()) >= rows_first):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert run(tmp_path, "--schedule", "stale(2)") == whole


def test_scoring_less_often_changes_no_number(tmp_path, whole):
    rows = run(tmp_path, "--schedule", "stale(2)", "--every", "30")
    scores = [(row["step"], row["auc"], row["log_loss"]) for row in whole]
    assert [(row["step"], row["auc"], row["log_loss"]) for row in rows] == [scores[2], scores[5]]


def test_staleness_changes_the_numbers(tmp_path, whole):
    assert run(tmp_path, "--schedule", "sequential") != whole


def test_a_mesh_of_four_learns_what_one_device_does(tmp_path, whole):
    rows = run(tmp_path, "--schedule", "stale(2)", "--virtual", "4", "--devices", "all")
    for ours, one in zip(rows, whole, strict=True):
        assert ours["log_loss"] == pytest.approx(one["log_loss"], abs=1e-3)


def test_another_run_in_the_same_directory_is_refused(tmp_path):
    run(tmp_path, "--steps", "10")
    again = subprocess.run(
        command(tmp_path, "--seed", "1"), capture_output=True, text=True, check=False
    )
    assert again.returncode == 1
    assert "'seed': (0, 1)" in again.stderr and "another --out" in again.stderr


def test_a_finished_run_can_be_made_longer(tmp_path, whole):
    tmp_path /= "[/run] :x:"  # rich must print it as it is
    _, said = finished(tmp_path, "--schedule", "stale(2)", "--steps", "30")
    first, *scores, last = said.splitlines()
    what = "dlrm on synthetic, stale(2), 64 samples a step, on 1 x cpu"
    assert first == f"{what}; writes to {tmp_path}"
    for row, line in zip(whole, scores, strict=False):
        found = re.fullmatch(
            r"step +(\d+)  train log loss (.+)  AUC (.+)  log loss (.+)  .+ steps/s", line
        )
        assert found
        names = ("step", "train_log_loss", "auc", "log_loss")
        for name, number in zip(names, found.groups(), strict=True):
            assert float(number) == pytest.approx(row[name], abs=1e-4)
    assert len(scores) == 3
    assert last == f"{tmp_path / 'curve.jsonl'} has the curve"
    rows, said = finished(tmp_path, "--schedule", "stale(2)")
    assert rows == whole
    assert said.splitlines()[1] == "goes on from step 30, of 60"
    rows, said = finished(tmp_path, "--schedule", "stale(2)")
    assert rows == whole
    assert said.splitlines()[1] == "is finished: 60 of 60 steps; more with --steps"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--schedule", "fresh"], "one of sequential"),
        (["--data", "criteo"], "needs --path"),
        (["--devices", "99"], "--devices 99: it must be 'all' or from 1 to"),
        (["--devices", "some"], "--devices some"),
        (
            ["--batch-size", "62", "--virtual", "4", "--devices", "all"],
            "--batch-size 62: it must be a multiple of the 4 devices",
        ),
    ],
)
def test_wrong_arguments_are_explained(tmp_path, arguments, message):
    done = subprocess.run(
        command(tmp_path, *arguments), capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())  # the right command can have the directory


def test_tensorboard_files_are_written(tmp_path):
    pytest.importorskip("tensorboardX")
    run(tmp_path / "run", "--steps", "10", "--tensorboard", str(tmp_path / "events"))
    (file,) = (tmp_path / "events").iterdir()
    assert b"train_log_loss" in file.read_bytes()
