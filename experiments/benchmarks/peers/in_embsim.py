"""embsim's engine of NumPy and Numba."""

import importlib.metadata
from typing import Any

import numpy as np

import embsim

from .job import Batches, Job, named


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("embsim", "numba", "numpy")}


def prepare(job: Job, batches: Batches, threads: int) -> "Reference":
    embsim.set_num_threads(threads)
    return Reference(job, batches)


def bags(batches: Batches, k: int) -> list[embsim.RaggedTensor]:
    samples, pooling = batches.ids[k].shape[1:]
    splits = np.arange(samples + 1) * pooling
    return [embsim.RaggedTensor(ids.reshape(-1), splits) for ids in batches.ids[k]]


def of_state(found: Any, state: Any) -> dict[str, np.ndarray]:
    by_table = list(state.slots.values())
    slots = {name: [each[name] for each in by_table] for name in by_table[0]}
    return named(found, list(state.weights.values()), slots)


class Reference:
    """`plan` is the engine's enqueue: ids checked, and sorted by row."""

    def __init__(self, job: Job, batches: Batches) -> None:
        self._engine = embsim.Engine(job.workload.configs(), job.law)
        self._ids = [bags(batches, k) for k in range(len(batches.ids))]
        self._gradients = list(batches.gradients)
        self._found: list[Any] = []

    def plan(self, k: int) -> None:
        self._engine.enqueue(self._engine.make_batch(self._ids[k]))

    def lookup(self, k: int) -> None:
        self._found = list(self._engine.dequeue())

    def update(self, k: int) -> None:
        self._engine.apply_gradients(self._gradients)

    def read(self) -> dict[str, np.ndarray]:
        return of_state(self._found, self._engine.read())
