"""One small pool of threads for kernels that release the GIL.

Tasks are independent by construction, so results do not depend on how many threads run them, or in
which order.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from typing import Any

import numpy as np

Task = Callable[[], Any]
WORTH_THREADS = 2**17  # floats: about 50 microseconds of work, what handing it to threads costs


def num_threads() -> int:
    """Threads that embsim's kernels use: set_num_threads, else EMBSIM_NUM_THREADS, else the cores
    of this process.
    """
    return _pool.size


def set_num_threads(count: int) -> None:
    """Use `count` >= 1 threads from now on. Changes speed, never a bit."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"set_num_threads: count is {count!r}; it must be an int >= 1")
    _pool.resize(count)


def parallel(tasks: Sequence[Task], size: int = WORTH_THREADS) -> None:
    """Run all tasks and wait; the calling thread works too.

    The first exception is raised after all have stopped.

    `size` is the number of floats or ids that the tasks go through together: threads are not woken
    for a few.
    """
    if len(tasks) <= 1 or _pool.size == 1 or size < WORTH_THREADS or _here.working:
        with np.errstate(all="ignore"):
            for task in tasks:
                task()
        return
    remaining = iter(tasks)
    turn = threading.Lock()

    def work() -> None:
        _here.working = True  # a task that is itself parallel must not wait for its own thread
        try:
            with np.errstate(all="ignore"):
                while (task := _next(remaining, turn)) is not None:
                    task()
        finally:
            _here.working = False

    helpers = [_pool.submit(work) for _ in range(min(_pool.size, len(tasks)) - 1)]
    try:
        work()
    finally:
        wait(helpers)
    for helper in helpers:
        helper.result()


def _next(remaining: Iterator[Task], turn: threading.Lock) -> Task | None:
    with turn:
        return next(remaining, None)


def ranges(count: int, chunk: int) -> list[tuple[int, int]]:
    """[0, count) as consecutive half-open ranges of at most `chunk`."""
    return [(low, min(low + chunk, count)) for low in range(0, count, chunk)]


def even_ranges(starts: np.ndarray, chunk: int) -> list[tuple[int, int]]:
    """[0, len(starts) - 1) as consecutive half-open ranges of about `chunk` items of work each.

    Entry i has the items starts[i] .. starts[i + 1]: Zipf's law gives one row thousands of them.
    """
    work = int(starts[-1])
    if work <= chunk:
        return [(0, len(starts) - 1)] if len(starts) > 1 else []
    cuts = np.searchsorted(starts, np.arange(chunk, work, chunk)).tolist()
    return list(pairwise(sorted({0, *cuts, len(starts) - 1})))


class _Here(threading.local):
    """Whether this thread is inside a task."""

    working = False


class _Pool:
    """A lazily started executor that survives a fork and a change of size."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self.size = _default_size()

    def submit(self, task: Task) -> Any:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(
                    max(1, self.size - 1), thread_name_prefix="embsim"
                )
            return self._executor.submit(task)

    def resize(self, size: int) -> None:
        with self._lock:
            old, self._executor, self.size = self._executor, None, size
        if old is not None:
            old.shutdown(wait=True)

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._executor = None


def _default_size() -> int:
    chosen = os.environ.get("EMBSIM_NUM_THREADS", "")
    if chosen:
        if not chosen.isdecimal() or int(chosen) < 1:
            raise ValueError(f"EMBSIM_NUM_THREADS is {chosen!r}; it must be an integer >= 1")
        return int(chosen)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_pool, _here = _Pool(), _Here()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.forget)
