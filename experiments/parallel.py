"""Independent runs in separate processes, one thread each; through joblib, so also on a cluster.

    map_unordered(run, points, jobs=2)                         processes on this machine (loky)
    map_unordered(run, points, jobs=2, where="threading")      threads: nothing is copied or killed
    map_unordered(run, points, jobs=64, where="dask=tcp://scheduler:8786")
    map_unordered(run, points, jobs=64, where="ray")           the cluster of ray.init()

A cluster's machines need embsim[experiments] installed, in the same version.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import joblib

import embsim

KINDS = ("loky", "threading", "dask", "ray")


def map_unordered(
    function: Callable[[Any], Any], arguments: Sequence[Any], jobs: int, where: str = "loky"
) -> Iterator[tuple[int, Any]]:
    """(position, function(arguments[position])) as they finish.

    Processes are started anew, never forked: JAX and Numba hold threads. If the caller stops early,
    or a call fails, they are stopped: nothing waits for what is still running.

    Raises:
      ValueError: `where` is none of KINDS.
      ImportError: its package is not installed.
    """
    checked(where)
    if not arguments:
        return
    with ExitStack() as stack:
        backend = _backend(where, stack)
        # At least two, or joblib would run the calls in this process, with its threads.
        stack.enter_context(joblib.parallel_config(backend, n_jobs=max(2, jobs)))
        how: dict[str, Any] = {"pre_dispatch": jobs, "batch_size": 1}
        pool = joblib.Parallel(return_as="generator_unordered", **how)
        here = os.getpid() if backend == "loky" else None
        calls = (joblib.delayed(_call)(function, *each, here) for each in enumerate(arguments))
        finished: Any = pool(calls)
        try:
            yield from finished
        finally:
            finished.close()


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def checked(where: str) -> str:
    """`where`, if it is one of KINDS. Raises ValueError."""
    kind, _, address = where.partition("=")
    if kind not in KINDS or (address and kind != "dask"):
        raise ValueError(
            f"experiments: runs cannot be made by {where!r}; it must be one of {', '.join(KINDS)}, "
            "or dask=ADDRESS of a scheduler"
        )
    return where


def _backend(where: str, stack: ExitStack) -> str:
    kind, _, address = where.partition("=")
    if kind == "dask":
        from distributed import Client  # not needed without a cluster

        stack.enter_context(Client(address) if address else Client(set_as_default=True))
    elif kind == "ray":
        from ray.util.joblib import register_ray  # pyright: ignore[reportMissingImports]

        register_ray()
    return kind


def _call(
    function: Callable[[Any], Any], position: int, argument: Any, parent: int | None
) -> tuple[int, Any]:
    _prepare(parent)
    return position, function(argument)


_prepared = False


def _prepare(parent: int | None) -> None:
    """Once in each process: one thread, Ctrl-C left to the parent, gone with the parent.

    Args:
      parent: the process that started this one for itself alone; None of others, of threads too.
    """
    global _prepared
    if _prepared:
        return
    _prepared = True
    # XLA reads this when its first program runs, not when jax is imported.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    embsim.set_num_threads(1)
    if parent is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: int) -> None:
    """A worker whose parent was killed would otherwise wait for work."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
