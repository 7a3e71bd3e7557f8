"""Runs in other processes: all of them, one thread each, and none left behind."""

import math
import multiprocessing
import os
from multiprocessing.connection import wait

import pytest

from experiments import parallel


def test_every_result_comes_with_its_position() -> None:
    squares = [float(i * i) for i in range(7)]
    assert sorted(parallel.map_unordered(math.sqrt, squares, jobs=2)) == [
        (i, float(i)) for i in range(7)
    ]


def test_workers_are_other_processes_with_one_thread_for_xla() -> None:
    ((_, flags),) = parallel.map_unordered(os.getenv, ["XLA_FLAGS"], jobs=4)
    assert "--xla_cpu_multi_thread_eigen=false" in flags
    assert flags != os.getenv("XLA_FLAGS")


def test_a_failed_call_raises_and_leaves_no_worker() -> None:
    before = multiprocessing.active_children()
    with pytest.raises(ValueError, match="math domain error"):
        list(parallel.map_unordered(math.sqrt, [4.0, -1.0], jobs=1))
    for worker in set(multiprocessing.active_children()) - set(before):
        # Not is_alive(): it is also true while the pool's own thread is reaping the dead worker.
        assert wait([worker.sentinel], timeout=10), f"worker {worker.pid} still runs"


def test_there_is_a_core() -> None:
    assert 1 <= parallel.num_cores() <= (os.cpu_count() or 1)
