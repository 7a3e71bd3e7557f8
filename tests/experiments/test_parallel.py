"""Runs in other processes: all of them, one thread each, and none left behind."""

import math
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from experiments import parallel

SLEEP = """
import signal, time
from experiments import parallel
signal.signal(signal.SIGINT, signal.default_int_handler)
list(parallel.map_unordered(time.sleep, [60.0] * 3, 2, {!r}))
"""


@pytest.mark.parametrize("where", ["loky", "threading", "dask"])
def test_every_result_comes_with_its_position(where: str, monkeypatch) -> None:
    if where == "threading":  # prepares this very process
        monkeypatch.setattr(parallel, "_prepared", True)
    squares = [float(i * i) for i in range(7)]
    assert sorted(parallel.map_unordered(math.sqrt, squares, 2, where)) == [
        (i, float(i)) for i in range(7)
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_cluster_runs_a_study_as_processes_do() -> None:
    """One local Dask cluster, given by its address."""
    from distributed import LocalCluster

    from experiments import overlap_bound, study

    points = study.single_runs(overlap_bound.Params.smoke())
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        on_cluster = dict(
            parallel.map_unordered(
                overlap_bound.run, points, 2, f"dask={cluster.scheduler_address}"
            )
        )
    here = dict(parallel.map_unordered(overlap_bound.run, points, 2))
    assert on_cluster == here and len(here) == 8


def test_workers_are_other_processes_with_one_thread_for_xla() -> None:
    ((_, flags),) = parallel.map_unordered(os.getenv, ["XLA_FLAGS"], jobs=4)
    assert "--xla_cpu_multi_thread_eigen=false" in flags
    assert flags != os.getenv("XLA_FLAGS")


@pytest.mark.parametrize("where", ["loky", "threading"])
def test_a_failed_call_raises(where: str, monkeypatch) -> None:
    monkeypatch.setattr(parallel, "_prepared", where == "threading")
    with pytest.raises(ValueError, match="math domain error"):
        list(parallel.map_unordered(math.sqrt, [4.0, -1.0], 1, where))


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_its_parent(stop: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEP.format("loky")],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    workers: list[psutil.Process] = []
    while len(_busy(workers)) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
        workers = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, stop) if stop == signal.SIGINT else process.send_signal(stop)
    started = time.monotonic()
    process.communicate(timeout=30)
    assert process.returncode == -stop and time.monotonic() - started < 20
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def _busy(workers: list[psutil.Process]) -> list[psutil.Process]:
    """Those that watch their parent, which they do from their first call on."""
    return [worker for worker in workers if worker.num_threads() > 1]


@pytest.mark.parametrize("where", ["lokky", "loky=4", ""])
def test_another_kind_is_refused(where: str) -> None:
    with pytest.raises(ValueError, match=r"runs cannot be made by .*; it must be one of loky"):
        list(parallel.map_unordered(math.sqrt, [1.0], 1, where))


def test_nothing_is_run_for_no_arguments() -> None:
    assert list(parallel.map_unordered(math.sqrt, [], 1)) == []


def test_there_is_a_core() -> None:
    assert 1 <= parallel.num_cores() <= (os.cpu_count() or 1)
