"""Independent runs in separate processes, one thread each."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from typing import Any

import embsim


def map_unordered(
    function: Callable[[Any], Any], arguments: Sequence[Any], jobs: int
) -> Iterator[tuple[int, Any]]:
    """(position, function(arguments[position])) as they finish.

    Workers are spawned, never forked: JAX and Numba hold threads. If the caller stops early, or a
    call fails, the workers are stopped: nothing waits for what is still running.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(arguments)), context, _prepare_worker)
    others = multiprocessing.active_children()
    try:
        futures = {pool.submit(function, argument): i for i, argument in enumerate(arguments)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BaseException:  # Ctrl-C, a failed call, or a caller that wants no more: do not wait
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - set(others):
            worker.terminate()
        raise
    pool.shutdown()


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _prepare_worker() -> None:
    # XLA reads this when its first program runs, not when jax is imported.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    embsim.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """A worker whose parent was killed would otherwise wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
