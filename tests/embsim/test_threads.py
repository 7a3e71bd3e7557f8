"""The pool of threads: every task once, errors after all have stopped, forks, sizes."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import embsim
from embsim._threads import WORTH_THREADS, parallel, ranges

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def restored_threads():
    before = embsim.num_threads()
    yield
    embsim.set_num_threads(before)


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=15,
    )


@given(count=st.integers(0, 1000), chunk=st.integers(1, 100))
def test_ranges_are_consecutive_and_cover_everything(count, chunk):
    found = ranges(count, chunk)
    assert [i for low, high in found for i in range(low, high)] == list(range(count))
    assert all(0 < high - low <= chunk for low, high in found)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("tasks", [0, 1, 2, 100])
@pytest.mark.parametrize("size", [0, WORTH_THREADS])
def test_every_task_runs_once(threads, tasks, size):
    embsim.set_num_threads(threads)
    done = []
    parallel([lambda i=i: done.append(i) for i in range(tasks)], size)
    assert sorted(done) == list(range(tasks))


def test_as_many_threads_work_as_were_set_and_the_caller_is_one_of_them():
    for threads in (3, 1, 2):
        embsim.set_num_threads(threads)
        assert embsim.num_threads() == threads
        barrier, seen = threading.Barrier(threads, timeout=30), set()

        def meet(barrier=barrier, seen=seen):
            barrier.wait()  # only passed when all work at the same time
            seen.add(threading.current_thread())

        parallel([meet] * threads)
        assert len(seen) == threads
        assert threading.current_thread() in seen


def test_little_work_wakes_no_threads():
    embsim.set_num_threads(3)
    seen = set()
    parallel([lambda: seen.add(threading.current_thread())] * 20, WORTH_THREADS - 1)
    assert seen == {threading.current_thread()}


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_is_raised_after_all_have_stopped(threads):
    embsim.set_num_threads(threads)
    running = []

    def task(i):
        running.append(i)
        try:
            if i == 3:
                raise KeyError("task 3")
        finally:
            running.remove(i)

    with pytest.raises(KeyError, match="task 3"):
        parallel([lambda i=i: task(i) for i in range(50)])
    assert running == []
    done = []
    parallel([lambda i=i: done.append(i) for i in range(50)])
    assert len(done) == 50


def test_numpy_warns_in_no_task():
    """Tasks are kernels, or what stands for them with NUMBA_DISABLE_JIT=1."""
    embsim.set_num_threads(2)
    zeros = np.zeros(3, np.float32)
    parallel([lambda: zeros / zeros] * 10)
    parallel([lambda: zeros / zeros])


def test_several_threads_may_use_the_pool_while_its_size_changes():
    embsim.set_num_threads(2)
    sums, callers = np.zeros((3, 200)), []

    def call(caller):
        for i in range(200):
            numbers = np.zeros(4)
            parallel([lambda k=k, n=numbers: n.__setitem__(k, k) for k in range(4)])
            sums[caller, i] = numbers.sum()

    for caller in range(3):
        callers.append(threading.Thread(target=call, args=(caller,)))
        callers[-1].start()
    for size in (1, 3, 2) * 10:
        embsim.set_num_threads(size)
    for thread in callers:
        thread.join(timeout=60)
    assert (sums == 6).all()


NESTED = """
import embsim
from embsim._threads import parallel
embsim.set_num_threads(2)
done = []
parallel([lambda: parallel([lambda: done.append(1)] * 4)] * 8)
print(len(done))
"""


def test_a_task_may_itself_be_parallel():
    """Initializers of users run in tasks, and may call anything."""
    found = python(NESTED)
    assert (found.stdout, found.returncode) == ("32\n", 0), found.stderr


FORK = """
import os, threading
import embsim
from embsim._threads import parallel
embsim.set_num_threads(2)
def both():
    barrier, done = threading.Barrier(2, timeout=30), []
    parallel([lambda: (barrier.wait(), done.append(1))] * 2)
    return len(done)
assert both() == 2
child = os.fork()
if child == 0:
    os._exit(0 if both() == 2 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert both() == 2
"""


def test_the_pool_works_in_a_forked_process():
    found = python(FORK)
    assert found.returncode == 0, found.stderr


def test_the_environment_sets_the_number_of_threads():
    ask = "import embsim; print(embsim.num_threads())"
    assert python(ask, EMBSIM_NUM_THREADS="7").stdout == "7\n"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert python(ask, EMBSIM_NUM_THREADS="").stdout == f"{cores}\n"
    for wrong in ("0", "two"):
        found = python(ask, EMBSIM_NUM_THREADS=wrong)
        message = f"EMBSIM_NUM_THREADS is '{wrong}'; it must be an integer >= 1"
        assert found.returncode == 1
        assert message in found.stderr


@pytest.mark.parametrize("count", [0, -1, True, 2.0, "2", None])
def test_a_number_of_threads_that_is_none_is_a_value_error(count):
    embsim.set_num_threads(2)
    jaxtyping.config.update("jaxtyping_disable", True)  # as users run it
    try:
        with pytest.raises(ValueError, match=f"count is {count!r}; it must be an int >= 1"):
            embsim.set_num_threads(count)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert embsim.num_threads() == 2
