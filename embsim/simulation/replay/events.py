"""What a replay does as operations begin and end."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ..operations import Stage
from ..pipelines import Pipeline
from ..timeline import Timeline
from .clocks import Clocked
from .dense import Dense, parameters_of
from .replicas import Replicated
from .setting import Setting
from .shared import Shared
from .step import Step

Keeper = Shared | Clocked | Replicated  # of tables, as a schedule has them


def events(timeline: Timeline) -> Iterator[tuple[int, bool]]:
    """Operations as they begin (False) and end (True)."""
    count = len(timeline.operations)
    order = np.empty(2 * count, np.int64)
    order[timeline.began] = np.arange(count)
    order[timeline.ended] = np.arange(count) + count
    for event in order.tolist():
        yield event % count, event >= count


class Run:
    """A replay in progress: what happens as an operation of each stage begins or ends."""

    def __init__(
        self,
        timeline: Timeline,
        pipeline: Pipeline,
        setting: Setting,
        keeper: Keeper,
        dense: Dense,
        batches: Iterator[tuple[Mapping[str, Any], Any]],
    ) -> None:
        self.timeline, self.pipeline, self.setting = timeline, pipeline, setting
        self.keeper, self.dense, self.batches = keeper, dense, batches
        self.parameters = parameters_of(dense, pipeline)
        operations = timeline.operations
        self.count = len(operations.of("dense"))
        self.steps: dict[int, Step] = {}  # from their first read to their last write
        self.planned = 0
        self.scores: list[Any] = [None] * self.count
        self.served: list[Any] = [None] * self.count
        self.seconds = np.zeros(self.count)
        self.waiting: dict[int, list[Step]] = defaultdict(list)  # by the batch of their update
        self.syncs: dict[int, list[Callable[[], None]]] = {}
        self.copied: tuple[Any, Any] | None = None  # for serving, on its way
        self.snapshot: tuple[Any, Any] | None = None  # there
        self.applied = pipeline.rule.applied(np.arange(self.count)).tolist()

    def all(self) -> None:
        """All events."""
        for operation, ended in events(self.timeline):
            self.happens(operation, ended)

    def happens(self, operation: int, ended: bool) -> None:
        """An operation begins, or it has ended."""
        operations = self.timeline.operations
        stage = operations.stages[operations.stage[operation]]
        batch = int(operations.batch[operation])
        if stage.reads and not ended:
            self._read(self._step(batch, operation), stage)
        elif stage.writes:
            if ended:
                self._update(batch)
        elif act := _ACTS.get((stage.name, ended)):
            act(self, batch, operation)

    def _step(self, batch: int, operation: int) -> Step:
        """A batch, planned; those before it are, too."""
        while self.planned <= batch:
            found = next(self.batches, None)
            if found is None:
                raise ValueError(
                    f"replay: the data ended after {self.planned} batches, of the {self.count} of "
                    "the timeline; make the timeline of as many as there are"
                )
            worker = self.planned % self.pipeline.workers
            self.steps[self.planned] = self.setting.step(self.planned, worker, *found)
            self.planned += 1
        book = self.setting.book
        while book.entered < batch:
            book.enter(book.entered, self.steps.get(book.entered))
        return self.steps[batch]

    def _read(self, step: Step, stage: Stage) -> None:
        if self.keeper.read(step, stage):
            self.parameters.looked_up(step)
            if self.snapshot is not None:
                self._score_copy(step)

    def _score_copy(self, step: Step) -> None:
        """Score the batch by the last copy."""
        assert self.snapshot is not None
        copy, parameters = self.snapshot
        own = step.activations
        found = self.setting.backend.lookup(copy, step.planned.device_plan)
        self.setting.looked_up(step, found)
        score, _, _ = self.dense.gradients(parameters, step.activations, step.inputs)
        self.served[step.batch], step.activations = score, own

    def compute(self, batch: int, operation: int) -> None:
        """The dense model, as it begins: its score is there as it ends."""
        step = self.steps[batch]
        parameters = self.parameters.of(step)
        score, gradients, own = self.dense.gradients(parameters, step.activations, step.inputs)
        self.setting.computed(step, gradients)
        self.scores[batch], step.slopes = score, own
        self.seconds[batch] = self.timeline.end[operation]
        self.waiting[self.applied[batch]].append(step)

    def computed(self, batch: int, operation: int) -> None:
        step = self.steps[batch]
        self.parameters.computed(step, step.slopes)

    def _update(self, batch: int) -> None:
        steps = sorted(self.waiting.pop(batch, []), key=lambda step: step.batch)
        if steps:
            self.keeper.update(steps)
        for step in steps:
            self.parameters.updated(step)
            if not isinstance(self.keeper, Clocked):  # whose steps have still to push
                del self.steps[step.batch]

    def pull(self, batch: int, operation: int) -> None:
        if isinstance(self.keeper, Clocked):
            self.keeper.pull(self._step(batch, operation))

    def push(self, batch: int, operation: int) -> None:
        if isinstance(self.keeper, Clocked):
            self.keeper.push(self.steps.pop(batch))

    def reduce(self, batch: int, operation: int) -> None:
        self.parameters.reduced(self.steps[batch])

    def sync(self, batch: int, operation: int) -> None:
        assert isinstance(self.keeper, Replicated)
        self.syncs[operation] = [self.keeper.sync(), self.parameters.sync()]

    def synced(self, batch: int, operation: int) -> None:
        for end in self.syncs.pop(operation):
            end()

    def copy(self, batch: int, operation: int) -> None:
        """For serving, of tables and dense weights as they are."""
        assert isinstance(self.keeper, Shared)
        backend = self.setting.backend
        copy = backend.get_state(self.keeper.state).copied()
        self.copied = backend.put_state(copy), self.parameters.drain()

    def serve(self, batch: int, operation: int) -> None:
        self.snapshot = self.copied


_ACTS: dict[tuple[str, bool], Callable[[Run, int, int], None]] = {
    ("pull", False): Run.pull,
    ("dense", False): Run.compute,
    ("dense", True): Run.computed,
    ("all_reduce", False): Run.reduce,
    ("push", True): Run.push,
    ("sync", False): Run.sync,
    ("sync", True): Run.synced,
    ("snapshot", False): Run.copy,
    ("snapshot", True): Run.serve,
}
