"""The command: its table, its files, its refusals."""

import csv
import json
import re

import numpy as np
import pytest

from embsim.cli import main


def run(capsys, *arguments):
    status = main(["simulate", "--batches", "30", *arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_schedules_stand_side_by_side(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    status, out, _ = run(
        capsys, "--chips", "16", "--schedule", "stale(0)", "--schedule", "stale(1)"
    )
    assert status == 0
    assert "dcnv2, batch 65,536, 4 x 2 x 2 v5p" in out
    rows = [line.split() for line in out.splitlines() if line.startswith("stale")]
    assert [row[0] for row in rows] == ["stale(0)", "stale(1)"]
    assert float(rows[0][3]) == 1.0 and float(rows[1][3]) > 1.2
    assert "gather_efficiency 0.6 (assumed)" in out.replace("\n", " ")
    assert "Criteo's ids: Zipf with exponent 1.1 (memory)" in out.replace("\n", " ")


def test_files_hold_the_same_rows_a_picture_and_a_trace_each(capsys, tmp_path):
    status, out, _ = run(capsys, "--out", str(tmp_path / "new"), "--assume", "overhead=0.002")
    assert status == 0 and "written:" in out
    with (tmp_path / "new" / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["schedule"] for row in rows] == [
        "sequential()",
        "tpu_embedding_pipelined()",
        "lookahead(1)",
    ]
    assert {row["assumed_overhead"] for row in rows} == {"0.002"}
    assert (tmp_path / "new" / "gantt.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(
        r"trace_0.json sequential\(\): \d+ operations, 0 of 20 lookups stale, 19 arr", out
    )
    assert "trace_1.json tpu_embedding_pipelined(): " in out and "19 of 20 lookups stale" in out
    for number in range(3):
        assert json.loads((tmp_path / "new" / f"trace_{number}.json").read_text())["traceEvents"]


def test_names_are_listed(capsys):
    status, out, _ = run(capsys, "--list")
    assert status == 0
    assert "chips: v4, v5e" in out and "workloads: dcnv2" in out and "lookahead" in out


def table_of(out):
    """{name: (counted, expected)} of the comparison."""
    lines = out.partition("counted in the last batch")[2].splitlines()[1:]
    rows = [line.replace(",", "").rsplit(maxsplit=2) for line in lines if line.startswith("  ")]
    return {name.strip(): (float(a), float(b)) for name, a, b in rows}


def test_what_is_drawn_is_counted_beside_the_closed_form(capsys):
    status, out, _ = run(
        *(capsys, "--workload", "dlrm_mlperf", "--samples", "4096", "--chips", "8"),
        *("--counted", "--schedule", "stale(2)"),
    )
    found = table_of(out)
    assert status == 0 and len(found) == 6
    assert found["ids of a chip"] == (4096 / 8 * 26,) * 2
    for name, (counted, closed) in found.items():
        assert counted == pytest.approx(closed, rel=0.1 if "busiest" in name else 0.02), name


def test_measured_ids_are_simulated(capsys, tmp_path):
    """Two rows, of which every batch asks for both: all lookups are stale, a step late."""
    np.savez(tmp_path / "mine.npz", clicks=np.tile([[0, 1]], (64, 1)))
    status, out, _ = run(
        *(capsys, "--ids", str(tmp_path / "mine.npz"), "--samples", "16", "--dim", "8"),
        *("--chips", "2", "--schedule", "stale(1)", "--out", str(tmp_path)),
    )
    assert status == 0 and "mine.npz, batch 16" in out
    found = table_of(out)
    assert "Expected by the file's own shares" in out
    assert found["distinct rows of a chip's ids"][0] == 2
    assert found["share of lookups that are stale"][0] == 1
    with (tmp_path / "rows.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["workload"], row["samples"], row["stale_lookups"]) == ("mine.npz", "16", "1.0")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--ids", "no.npz", "--samples", "4", "--dim", "8"], "ids of no.npz: it must be an .npz"),
        (["--ids", "no.npz"], "it needs --samples and --dim"),
        (["--dim", "8"], "--dim is for --ids; a workload has its own"),
        (["--counted", "--samples", "100"], "100 samples; it must be a multiple of 64 chips"),
        (["--hardware", "v99"], "chip 'v99': embsim has v4"),
        (["--workload", "mine"], "workload is 'mine'"),
        (["--schedule", "fast()"], r"schedule is 'fast\(\)'"),
        (["--chips", "0"], "chips is 0"),
        (["--samples", "0"], "--samples is 0"),
        (["--batches", "1"], "--batches is 1"),
        (["--assume", "speed=2"], "--assume speed=2: the name must be one of gather_efficiency"),
        (["--assume", "overhead"], "--assume overhead: it must be NAME=NUMBER"),
        (["--assume", "overhead=-1"], "assumptions: overhead is -1.0"),
    ],
)
def test_what_is_wrong_is_said(capsys, arguments, message):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("embsim simulate: ")
    assert re.search(message, err)


def test_bags_may_travel_summed_in_two_bytes(capsys, monkeypatch):
    """The exchange is shorter; TorchRec's planner is asked, too."""
    monkeypatch.setenv("COLUMNS", "160")
    given = ("--workload", "dcnv2", "--hardware", "h100", "--chips", "64", "--schedule", "stale(0)")

    def step(*more):
        status, out, _ = run(capsys, *given, *more)
        assert status == 0
        return float(next(x for x in out.splitlines() if x.startswith("stale")).split()[1]), out

    rows, whole, half = step(), step("--pooled"), step("--pooled", "--activation-size", "2")
    assert half[0] < whole[0] < rows[0]
    assert "TorchRec's planner" not in rows[1]
    _, out = step("--planner")
    assert re.search(r"TorchRec's planner, of the tables alone: \d+\.\d{3} ms \(forward ", out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--activation-size", "3"), "activation_size is 3; it must be 2 or 4"),
        (("--ids", "x.npz", "--samples", "2", "--dim", "4", "--pooled"), "are for --workload"),
    ],
)
def test_what_travels_is_of_a_workload(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", clicks=np.zeros((4, 1), np.int64))
    status, _, err = run(capsys, *arguments)
    assert status == 2 and message in err
