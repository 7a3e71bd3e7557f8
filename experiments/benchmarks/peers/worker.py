"""One peer in a process of its own: python -m experiments.benchmarks.peers.worker MODULE THREADS

Reads a request a line, in JSON, and answers each with a line:

    {"do": "versions"}                                      {"numpy": "2.4.6"}
    {"do": "prepare", "job": {...}, "batches": FILE}        {}
    {"do": "run", "count"  : 3, "first": 0}                 {"lookup": [seconds, ...], ...}
    {"do": "read", "to": FILE}                              {}
    {"do": "forget"}                                        {}

or with {"error": ..., "kind": ...}. Arrays go through files of NumPy. It runs on as many cores as
it has threads.
"""

import gc
import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .job import BATCHES, Batches, Steps, job_of

PHASES = ("plan", "lookup", "update")


class Worker:
    """Answers requests."""

    def __init__(self, module: str, threads: int) -> None:
        self._library: Any = import_module(module)
        self._threads = threads
        self._steps: Steps | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        return getattr(self, f"_{request.pop('do')}")(**request)

    def _versions(self) -> dict[str, Any]:
        return self._library.versions()

    def _prepare(self, job: dict[str, Any], batches: str) -> dict[str, Any]:
        self._forget()
        loaded = Batches.load(Path(batches))
        self._steps = self._library.prepare(job_of(job), loaded, self._threads)
        return {}

    def _prepared(self) -> Steps:
        assert self._steps is not None, "prepare comes first"
        return self._steps

    def _run(self, count: int, first: int) -> dict[str, Any]:
        """`first`: how many steps came before."""
        steps = self._prepared()
        seconds: dict[str, list[float]] = {phase: [] for phase in (*PHASES, "waited")}
        for number in range(first, first + count):
            waited = seconds_waited()
            for phase in PHASES:
                start = time.perf_counter()
                getattr(steps, phase)(number % BATCHES)
                seconds[phase].append(time.perf_counter() - start)
            seconds["waited"].append(seconds_waited() - waited)
        return seconds

    def _read(self, to: str) -> dict[str, Any]:
        np.savez(to, **self._prepared().read())  # pyright: ignore[reportArgumentType]
        return {}

    def _forget(self) -> dict[str, Any]:
        self._steps = None
        gc.collect()
        return {}


def seconds_waited() -> float:
    """Of all threads of this process, for a core that others had; 0 where Linux does not tell."""
    total = 0
    for thread in Path("/proc/self/task").glob("*"):
        try:
            total += int((thread / "schedstat").read_text().split()[1])
        except OSError:  # it has ended, or there is no such file
            continue
    return total / 1e9


def limit_cores(threads: int) -> None:
    """Whatever starts threads, they share so many cores."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[:threads])


def main(module: str, threads: int) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    limit_cores(threads)
    worker = None
    for line in sys.stdin:
        try:
            worker = worker or Worker(module, threads)
            answer = worker.answer(json.loads(line))
        except Exception as error:
            answer = {"error": str(error) or repr(error), "kind": type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
