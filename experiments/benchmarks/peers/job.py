"""What every peer is given: one workload, one optimizer, the same batches and gradients.

No library but NumPy and embsim's configuration, so that every environment can import it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import embsim
from experiments.benchmarks.workloads import Workload, draw, small_values

RATE = 0.01
BATCHES = 3  # distinct ones, gone through in turn

Law = embsim.SGD | embsim.Adagrad | embsim.RowwiseAdagrad | embsim.Adam
LAWS: dict[str, Law] = {
    "SGD": embsim.SGD(RATE),
    "Adagrad": embsim.Adagrad(RATE),
    "RowwiseAdagrad": embsim.RowwiseAdagrad(RATE),
    "Adam": embsim.Adam(RATE, sum_inside_sqrt=False),  # lazy, no correction of the bias
}


class NotOfferedError(Exception):
    """The library has no such thing, or not on a CPU."""


@dataclass(frozen=True)
class Job:
    """`alpha` 0: uniform ids; else of a Zipf law."""

    workload: Workload
    optimizer: str
    alpha: float

    @property
    def law(self) -> Law:
        return LAWS[self.optimizer]

    @property
    def ids(self) -> str:
        return f"Zipf {self.alpha:g}" if self.alpha else "uniform"

    def small(self) -> "Job":
        """To compare numbers on: the same dim, pooling, combiner; ids that meet often."""
        tables, pooling = min(self.workload.tables, 2), min(self.workload.pooling, 32)
        tiny = replace(self.workload, tables=tables, rows=60, batch=24, pooling=pooling)
        return replace(self, workload=tiny, alpha=1.05)

    def initial(self) -> np.ndarray:
        """Of every table."""
        return small_values((self.workload.rows, self.workload.dim), np.float32)

    def held(self) -> int:
        """Bytes of tables and slots."""
        return 4 * self.workload.tables * self.workload.rows * _numbers_a_row(self)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def job_of(fields: Mapping[str, Any]) -> Job:
    """The inverse of to_json."""
    return Job(Workload(**fields["workload"]), fields["optimizer"], fields["alpha"])


@dataclass(frozen=True)
class Batches:
    """ids[k][t]: [samples, pooling] int32 of table t in batch k; gradients[t]: [samples, dim], the
    same for every batch, positive multiples of 1/64."""

    ids: np.ndarray
    gradients: np.ndarray

    def save(self, path: Path) -> None:
        np.savez(path, ids=self.ids, gradients=self.gradients)

    @staticmethod
    def load(path: Path) -> "Batches":
        with np.load(path) as file:
            return Batches(file["ids"], file["gradients"])


def draw_batches(job: Job, seed: int = 0) -> Batches:
    """The same for the same seed."""
    w, rng = job.workload, np.random.default_rng(seed)
    count = BATCHES * w.batch * w.pooling
    by_table = [
        draw(rng, w.rows, count, job.alpha).reshape(BATCHES, w.batch, w.pooling)
        for _ in range(w.tables)
    ]
    steps = rng.integers(1, 65, (w.tables, w.batch, w.dim), dtype=np.int16)
    return Batches(np.stack(by_table, axis=1), steps.astype(np.float32) / 64)


class Steps(Protocol):
    """A peer with its tables: what is timed. `k` is a batch, 0 to BATCHES - 1."""

    def plan(self, k: int) -> None:
        """What a library does on the host before its lookup, and no other library has."""
        ...

    def lookup(self, k: int) -> None: ...

    def update(self, k: int) -> None:
        """Of the batch that was looked up: gradients of equal ids summed, then the optimizer."""
        ...

    def read(self) -> dict[str, np.ndarray]:
        """See `named`."""
        ...


def named(
    activations: Sequence[Any],
    tables: Sequence[Any],
    slots: Mapping[str, Sequence[Any]],
) -> dict[str, np.ndarray]:
    """By "what table": the activations of the newest lookup, tables and slots, as copies."""
    groups = {"activations": activations, "table": tables, **slots}
    return {
        f"{what} {t}": np.array(array, np.float32)
        for what, arrays in groups.items()
        for t, array in enumerate(arrays)
    }


def bytes_moved(job: Job, batches: Batches) -> tuple[int, int]:
    """(lookup, update) of a step: what it cannot do without, each once.

    Distinct rows read, activations written; distinct rows and their slots read and written,
    gradients read.
    """
    w = job.workload
    rows = sum(len(np.unique(ids)) for batch in batches.ids for ids in batch) // len(batches.ids)
    samples = w.tables * w.batch * w.dim
    return 4 * (rows * w.dim + samples), 4 * (2 * rows * _numbers_a_row(job) + samples)


def _numbers_a_row(job: Job) -> int:
    slots = sum(1 if slot.rowwise else job.workload.dim for slot in job.law.slots)
    return job.workload.dim + slots
