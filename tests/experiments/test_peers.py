"""Peers: their protocol, what is said of one that is not there, and that a wrong update is seen."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest

from embsim.conformance import Difference
from experiments.benchmarks.peers import __main__ as command
from experiments.benchmarks.peers import agreement, in_numpy, process, report
from experiments.benchmarks.peers.job import LAWS, Batches, Job, bytes_moved, draw_batches, job_of
from experiments.benchmarks.peers.measure import Peers, Result, summary
from experiments.benchmarks.workloads import WORKLOADS, Workload

JOB = Job(Workload("tiny", 2, 50, 4, 8, 3, "mean"), "Adagrad", 1.05)
WRONG = """
from experiments.benchmarks.peers import in_numpy
from experiments.benchmarks.peers.in_numpy import versions

def prepare(job, batches, threads):
    batches.gradients[0, 0, 0] *= 1.0001
    return in_numpy.prepare(job, batches, threads)
"""
PINS = "tests/oracles/requirements-torch.txt"
SMOKE = ["--smoke", "--workloads", "W3", "--peers", "embsim", "numpy", "torch", "floor"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> tuple[list[Result], Path]:
    """PyTorch's environment is not there."""
    place = tmp_path_factory.mktemp("peers")
    more = ["--optimizers", "RowwiseAdagrad", "Adam", "--environments", str(place)]
    results = command.main([*SMOKE, *more, "--out", str(place)])
    (directory,) = (place / "peers").iterdir()
    return results, directory


def test_each_takes_its_turns_and_who_is_not_there_is_named(smoke) -> None:
    results, _ = smoke
    cells = report.by_cell(results)
    assert [list(cell) for cell in cells] == [["embsim", "torch", "numpy", "floor"]] * 2
    for cell in cells:
        torch = cell.pop("torch")
        assert torch.outcome == "failed" and "there is no" in torch.note
        assert ".venv-oracles-torch/bin/python; --install makes it" in torch.note
        for each in cell.values():
            assert each.outcome == "timed" and each.steps >= 2
            assert 0 < each.step_min <= each.step_low <= each.step <= each.step_high
            assert "numpy" in each.versions
        assert cell["embsim"].plan > 0


def test_rows_are_tidy_and_a_result_can_be_shown_again(smoke, capsys) -> None:
    results, directory = smoke
    rows = [json.loads(line) for line in (directory / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == len(results)
    assert {"git_commit", "version_numpy", "processor", "load", "versions"} <= rows[0].keys()
    assert (rows[0]["param_rounds"], rows[0]["param_scale"], rows[0]["param_sweep"]) == (2, 1, "")
    assert parquet.read_table(directory / "rows.parquet").to_pylist() == rows
    assert (directory / "figure.png").stat().st_size > 10_000
    assert command.main(["--of", str(directory), "--markdown"]) == results
    shown = capsys.readouterr().out
    assert shown.startswith("| workload | ids | optimizer | embsim | PyTorch | NumPy | floor |")
    assert shown.strip() == (directory / "report.md").read_text().strip()
    assert "failed: PyTorch: there is no" in shown


def test_another_update_stops_the_run_before_anything_is_timed(tmp_path, monkeypatch) -> None:
    (tmp_path / "wrong_peer.py").write_text(WRONG)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    wrong = process.Peer("wrong", "wrong_peer")
    monkeypatch.setitem(process.PEERS, "numpy", wrong)
    peers = Peers(["numpy"], 1, tmp_path, tmp_path)
    monkeypatch.setattr(Peers, "time", lambda *_: pytest.fail("timed"))
    try:
        with pytest.raises(Difference, match=r"wrong: .* the computed bound is"):
            peers.compare(JOB)
    finally:
        peers.close()


def test_what_a_worker_says_comes_back_as_an_error(tmp_path) -> None:
    def started(module: str) -> process.Worker:
        return process.Worker(process.Peer("one", module), 1, tmp_path, tmp_path / "log")

    with pytest.raises(process.PeerError, match=r"one: No module named 'no_such_module'"):
        started("no_such_module")
    worker = started(process.PEERS["numpy"].module)
    with pytest.raises(process.PeerError, match=r"prepare comes first"):
        worker.ask(do="run", count=1, first=0)
    draw_batches(JOB).save(tmp_path / "batches.npz")
    given = {"job": JOB.to_json(), "batches": str(tmp_path / "batches.npz")}
    assert worker.ask(do="prepare", **given) == {}
    assert all(len(x) == 2 for x in worker.ask(do="run", count=2, first=0).values())
    worker._process.kill()
    with pytest.raises(process.PeerError, match=r"one: its process ended with -9"):
        worker.ask(do="versions")
    worker.close()


@pytest.mark.parametrize("combiner", ["sum", "mean"])
@pytest.mark.parametrize("optimizer", LAWS)
def test_the_bound_holds_for_numpy_and_is_tight(optimizer: str, combiner: str) -> None:
    job = Job(replace(JOB.workload, combiner=combiner), optimizer, 1.05)
    batches = draw_batches(job)
    law = agreement.lawful(job, batches)
    steps = in_numpy.prepare(job, batches, 1)
    for k in range(agreement.STEPS):
        steps.lookup(k)
        steps.update(k)
    found = steps.read()
    agreement.check("NumPy", found, law)
    for name, bounded in law.items():
        assert np.max(bounded.error) < 1e-4 * np.max(np.abs(bounded.value)), name
        moved = found | {name: found[name] + np.float32(1e-4) * np.max(np.abs(found[name]))}
        with pytest.raises(Difference, match=rf"NumPy: {name}: "):
            agreement.check("NumPy", moved, law)
    with pytest.raises(Difference, match=r"has \[\]; it must have \[.*'table 0'"):
        agreement.check("NumPy", {}, law)


@pytest.mark.parametrize("name", [n for n, peer in process.PEERS.items() if n != process.FLOOR])
def test_peers_compute_the_same_update(name: str, tmp_path) -> None:
    """Of those whose environments are here, every optimizer that they offer."""
    if not process.PEERS[name].python(process.ROOT).exists():
        pytest.skip("its environment is not there: make oracles")
    peers = Peers([name], 2, process.ROOT, tmp_path)
    assert peers.missing == {}
    refused = {o: peers.compare(replace(JOB, optimizer=o)) for o in LAWS}
    peers.close()
    assert {outcome for each in refused.values() for outcome, _ in each.values()} <= {"not offered"}
    assert refused["SGD"] == {}


def test_a_job_goes_through_json() -> None:
    assert job_of(json.loads(json.dumps(JOB.to_json()))) == JOB


def test_the_bytes_of_a_small_batch() -> None:
    """3 distinct rows of 2 numbers and one of a slot; 2 samples."""
    job = Job(Workload("", 1, 10, 2, 2, 2, "sum"), "RowwiseAdagrad", 0)
    batches = Batches(np.array([[[[7, 1], [7, 2]]]]), np.zeros((1, 2, 2), np.float32))
    assert bytes_moved(job, batches) == (4 * (3 * 2 + 2 * 2), 4 * (2 * 3 * (2 + 1) + 2 * 2))


def test_steps_that_waited_do_not_count_where_enough_did_not() -> None:
    def turns(waited: list[float]) -> list[dict[str, list[float]]]:
        turn = {"plan": [0.0] * 5, "lookup": [9, 1, 2, 3, 8], "update": [0.0] * 5}
        return [{**turn, "waited": [0.0, *waited]}]

    calm, busy = summary(turns([0, 0, 0, 7])), summary(turns([0, 0, 1, 7]))
    assert (calm["quiet"], calm["step"], calm["step_max"], calm["steps"]) == (True, 2e3, 3e3, 3)
    assert (busy["quiet"], busy["step"], busy["step_max"], busy["steps"]) == (False, 2.5e3, 8e3, 4)


def test_cells_that_embsim_loses_are_named(smoke) -> None:
    results, _ = smoke
    timed = [replace(r, step=2.0 if r.peer == "embsim" else 1.0) for r in results]
    lost = next(x for x in report.notes(timed) if x.startswith("Cells that embsim loses"))
    assert "W3 Zipf 1.05 Adam (NumPy 0.50)" in lost
    won = [replace(r, step=2.0 if r.peer == "numpy" else 1.0) for r in results]
    assert "Cells that embsim loses: none." in report.notes(won)


def test_a_sweep_is_drawn_as_one_line_for_each_peer(smoke) -> None:
    adam = [r for r in smoke[0] if r.optimizer == "Adam"]
    swept = [replace(r, workload=f"W3, batch {n}", batch=n) for n in (1, 2, 4) for r in adam]
    (axes,) = report.lines(swept, "batch").axes
    assert [list(np.asarray(line.get_xdata())) for line in axes.get_lines()] == [[1, 2, 4]] * 3


def test_a_sweep_changes_one_size() -> None:
    options = command._parse(["--sweep", "pooling", "--alphas", "0"])
    made = list(command.jobs(options))
    assert [job.workload.pooling for job in made] == [1, 5, 20, 80]
    assert {replace(job.workload, name="W1", pooling=20) for job in made} == {WORKLOADS["W1"]}
    assert {job.optimizer for job in made} == {"RowwiseAdagrad"}


def test_tables_that_memory_cannot_hold_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Job, "held", lambda self: 10**15)
    with pytest.raises(SystemExit, match=r"of 1 peers are 1000000.0 GB, .* larger --scale"):
        command.main(["--peers", "numpy", "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_install_makes_what_make_oracles_makes_once(tmp_path, monkeypatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(process.subprocess, "run", lambda c, **_: commands.append([*map(str, c)]))
    place = tmp_path / ".venv-oracles-torch"
    place.mkdir()
    process.install(["embsim", "torch"], tmp_path)
    assert commands[0] == [sys.executable, "-m", "venv", str(place)]
    assert commands[1][-4:-2] == ["--requirement", str(process.ROOT / PINS)]
    commands.clear()
    process.install(["torch"], tmp_path)
    assert commands == []
