"""Plain NumPy, as in plain_numpy.py."""

import numpy as np

from experiments.benchmarks.plain_numpy import PlainNumpy

from .job import Batches, Job, named


def versions() -> dict[str, str]:
    return {"numpy": np.__version__}


def prepare(job: Job, batches: Batches, threads: int) -> "Plain":
    """It has one thread, whatever it is given."""
    return Plain(job, batches)


class Plain:
    def __init__(self, job: Job, batches: Batches) -> None:
        self._batches, self._law = batches, job.law
        tables = [job.initial() for _ in range(job.workload.tables)]
        self._plain = PlainNumpy(tables, job.law, job.workload.combiner)
        self._found: list[np.ndarray] = []

    def plan(self, k: int) -> None:
        pass

    def lookup(self, k: int) -> None:
        self._found = self._plain.lookup(list(self._batches.ids[k]))

    def update(self, k: int) -> None:
        self._plain.update(list(self._batches.ids[k]), list(self._batches.gradients))

    def read(self) -> dict[str, np.ndarray]:
        slots = {
            slot.name: [of_table[i] for of_table in self._plain.slots]
            for i, slot in enumerate(self._law.slots)
        }
        return named(self._found, self._plain.tables, slots)
