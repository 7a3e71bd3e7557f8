"""Numbers compared, then rounds: every peer takes its turn on the same batches."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .agreement import STEPS, check, lawful
from .job import BATCHES, Job, bytes_moved, draw_batches
from .process import FLOOR, PEERS, PeerError, Worker
from .worker import PHASES

QUIET = 0.05  # of a step's time its threads waited for a core, at most, for it to count
ENOUGH = 3  # quiet steps; with fewer all steps count, and `quiet` says so
TURN = 0.1  # seconds of steps that are timed in a turn, at least one and at most 5


@dataclass(frozen=True)
class Result:
    """Of one peer on one job; milliseconds. A step is plan + lookup + update.

    Args:
      outcome: "timed", "not offered" by the library, or "failed"; `note` says what it said.
      step: median of `steps`; the middle half of them from `step_low` to `step_high`.
      quiet: whether the numbers are of steps alone that waited for cores for QUIET of their time
        at most; if not, there were too few.
      bytes_lookup, bytes_update: what a step must move (job.bytes_moved).
    """

    workload: str
    tables: int
    rows: int
    dim: int
    batch: int
    pooling: int
    combiner: str
    optimizer: str
    ids: str
    threads: int
    peer: str
    versions: str
    outcome: str
    note: str = ""
    steps: int = 0
    quiet: bool = False
    step: float = 0.0
    step_low: float = 0.0
    step_high: float = 0.0
    step_min: float = 0.0
    step_max: float = 0.0
    plan: float = 0.0
    lookup: float = 0.0
    update: float = 0.0
    bytes_lookup: int = 0
    bytes_update: int = 0

    @property
    def cell(self) -> tuple[str, ...]:
        """What the peers of one comparison share."""
        sizes = (self.tables, self.rows, self.dim, self.batch, self.pooling)
        return (self.workload, *map(str, sizes), self.ids, self.optimizer, str(self.threads))


class Peers:
    """Workers, and what became of those that are not there."""

    def __init__(
        self, names: Sequence[str], threads: int, environments: Path, directory: Path
    ) -> None:
        self.threads, self.directory = threads, directory
        self.workers: dict[str, Worker] = {}
        self.missing: dict[str, str] = {}
        for name in names:
            try:
                log = directory / f"{name}.{threads}.log"
                self.workers[name] = Worker(PEERS[name], threads, environments, log)
            except PeerError as error:
                self.missing[name] = str(error)

    def compare(self, job: Job) -> dict[str, tuple[str, str]]:
        """(outcome, what it said) of those that do not offer the job, or fail on small tables.

        Raises:
          Difference: one computes another update.
        """
        small, refused = job.small(), dict[str, tuple[str, str]]()
        batches = draw_batches(small)
        with tempfile.TemporaryDirectory(dir=self.directory) as place:
            given, taken = Path(place) / "batches.npz", Path(place) / "found.npz"
            batches.save(given)
            law = lawful(small, batches)
            for name, worker in self.workers.items():
                try:
                    worker.ask(do="prepare", job=small.to_json(), batches=str(given))
                    worker.ask(do="run", count=STEPS, first=0)
                    worker.ask(do="read", to=str(taken))
                except PeerError as error:
                    refused[name] = _outcome(error), str(error)
                    continue
                if name != FLOOR:
                    with np.load(taken) as file:
                        check(worker.peer.label, dict(file), law)
        return refused

    def time(self, job: Job, rounds: int, refused: Mapping[str, tuple[str, str]]) -> list[Result]:
        """`rounds` turns of each, one after the other. A step goes untimed before each turn: it
        finds in the caches what another peer left."""
        batches = draw_batches(job)
        lookup, update = bytes_moved(job, batches)
        moved = {"bytes_lookup": lookup, "bytes_update": update}
        taken: dict[str, list[dict[str, Any]]] = {}
        lost = dict(refused) | {name: ("failed", text) for name, text in self.missing.items()}
        with tempfile.TemporaryDirectory(dir=self.directory) as place:
            given = Path(place) / "batches.npz"
            batches.save(given)
            for name in [name for name in self.workers if name not in lost]:
                self._try(name, lost, do="prepare", job=job.to_json(), batches=str(given))
        first = {
            name: self._try(name, lost, do="run", count=BATCHES + 1, first=0)
            for name in self.workers
            if name not in lost
        }  # compiles
        counts = {name: _steps_a_turn(answer) for name, answer in first.items() if answer}
        for turn in range(rounds):
            for name, count in counts.items():
                if name in lost:
                    continue
                answer = self._try(name, lost, do="run", count=1 + count, first=turn)
                if answer:
                    taken.setdefault(name, []).append(answer)
        for name in counts:
            self._try(name, lost, do="forget")
        return [
            self._result(job, name, lost.get(name), taken.get(name, []), moved)
            for name in PEERS
            if name in self.workers or name in self.missing
        ]

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()

    def _try(self, name: str, lost: dict[str, tuple[str, str]], **request: Any) -> dict[str, Any]:
        try:
            return self.workers[name].ask(**request)
        except PeerError as error:
            lost[name] = _outcome(error), str(error)
            return {}

    def _result(
        self,
        job: Job,
        name: str,
        lost: tuple[str, str] | None,
        turns: Sequence[Mapping[str, list[float]]],
        moved: Mapping[str, int],
    ) -> Result:
        workload = asdict(job.workload)
        shape = {"workload": workload.pop("name"), **workload}
        worker = self.workers.get(name)
        common: dict[str, Any] = {
            **shape,
            "optimizer": job.optimizer,
            "ids": job.ids,
            "threads": self.threads,
            "peer": name,
            "versions": worker.versions if worker else "",
            **moved,
        }
        if lost:
            return Result(**common, outcome=lost[0], note=lost[1])
        return Result(**common, outcome="timed", **summary(turns))


def summary(turns: Sequence[Mapping[str, list[float]]]) -> dict[str, Any]:
    """Of the steps of all turns but each one's first."""
    by_phase = {
        phase: np.array([x for turn in turns for x in turn[phase][1:]])
        for phase in (*PHASES, "waited")
    }
    waited = by_phase.pop("waited")
    step = np.sum(list(by_phase.values()), axis=0)
    calm = waited <= QUIET * step
    quiet = int(calm.sum()) >= min(ENOUGH, len(step))
    chosen = calm if quiet else np.ones(len(step), bool)
    step = 1e3 * step[chosen]
    low, middle, high = (float(x) for x in np.quantile(step, (0.25, 0.5, 0.75)))
    return {
        "steps": len(step),
        "quiet": quiet,
        "step": middle,
        "step_low": low,
        "step_high": high,
        "step_min": float(step.min()),
        "step_max": float(step.max()),
        **{phase: 1e3 * float(np.median(x[chosen])) for phase, x in by_phase.items()},
    }


def _steps_a_turn(answer: Mapping[str, list[float]]) -> int:
    last = sum(answer[phase][-1] for phase in PHASES)
    return max(1, min(5, round(TURN / last)))


def _outcome(error: PeerError) -> str:
    return "not offered" if error.kind == "NotOfferedError" else "failed"
