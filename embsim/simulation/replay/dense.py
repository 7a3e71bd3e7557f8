"""The dense model of a replay: whose parameters a step sees, and when its gradients are in them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...nest import flatten_up_to, pack
from ..pipelines import Pipeline
from ..pipelines.base import Replicas
from .step import Step

Gradients = Mapping[str, Any]  # by feature: float arrays of the activations' shapes; None is zeros


@dataclass(frozen=True, eq=False)
class Dense:
    """A dense model as functions; parameters (with the optimizer's state) are any nest of arrays,
    and are never changed in place.

    Args:
      parameters: the initial ones.
      gradients: (parameters, activations by feature, inputs of the batch) -> (score, gradients by
        feature, gradients of the parameters). The score is yours: logits, a loss.
      update: (parameters, gradients) -> parameters.
    """

    parameters: Any
    gradients: Callable[[Any, Mapping[str, np.ndarray], Any], tuple[Any, Gradients, Any]]
    update: Callable[[Any, Any], Any]


class Parameters:
    """In one place, in the order of batches: step t sees the updates of the first `dense_seen`
    batches. Batches of one update (accumulate) make one of the dense model, too, with their sum."""

    def __init__(self, dense: Dense, pipeline: Pipeline) -> None:
        self.dense, self.pipeline = dense, pipeline
        self.now = dense.parameters
        self.waiting: dict[int, list[Any]] = {}  # gradients, by the batch whose update has them

    def of(self, step: Step) -> Any:
        """What the step computes with, as its dense part begins."""
        self._apply(self._numbers(self.pipeline.dense_seen, step.batch))
        return self.now

    def computed(self, step: Step, gradients: Any) -> None:
        """As its dense part ends."""
        applied = self._numbers(self.pipeline.rule.applied, step.batch)
        self.waiting.setdefault(applied, []).append(gradients)

    def drain(self) -> Any:
        """With all gradients in them, at the end."""
        self._apply(None)
        return self.now

    def looked_up(self, step: Step) -> None:
        """As the step's lookup begins."""

    def reduced(self, step: Step) -> None:
        """As its all-reduce begins."""

    def updated(self, step: Step) -> None:
        """As the update of its rows ends."""

    def sync(self) -> Callable[[], None]:
        """As an average over replicas begins -> what is to be done as it ends."""
        return lambda: None

    def _apply(self, seen: int | None) -> None:
        for batch in sorted(self.waiting):
            if seen is None or batch < seen:
                self.now = self.dense.update(self.now, total(self.waiting.pop(batch)))

    @staticmethod
    def _numbers(function: Any, batch: int) -> int:
        return int(function(np.array([batch]))[0])


class Reduced(Parameters):
    """The same at all workers, which take a step with the mean of their gradients together."""

    def of(self, step: Step) -> Any:
        return self.now

    def computed(self, step: Step, gradients: Any) -> None:
        self.waiting.setdefault(step.batch // self.pipeline.workers, []).append(gradients)

    def reduced(self, step: Step) -> None:
        if parts := self.waiting.pop(step.batch // self.pipeline.workers, None):
            self.now = self.dense.update(self.now, mean(parts))


class Served(Parameters):
    """On a server: read with the rows, and changed as they are."""

    def __init__(self, dense: Dense, pipeline: Pipeline) -> None:
        super().__init__(dense, pipeline)
        self.read: dict[int, Any] = {}
        self.made: dict[int, Any] = {}

    def looked_up(self, step: Step) -> None:
        self.read[step.batch] = self.now

    def of(self, step: Step) -> Any:
        return self.read.pop(step.batch)

    def computed(self, step: Step, gradients: Any) -> None:
        self.made[step.batch] = gradients

    def updated(self, step: Step) -> None:
        self.now = self.dense.update(self.now, self.made.pop(step.batch))


class Own(Parameters):
    """Each worker's own, averaged now and then."""

    def __init__(self, dense: Dense, pipeline: Pipeline) -> None:
        super().__init__(dense, pipeline)
        self.each = [dense.parameters] * pipeline.workers

    def of(self, step: Step) -> Any:
        return self.each[step.worker]

    def computed(self, step: Step, gradients: Any) -> None:
        self.each[step.worker] = self.dense.update(self.each[step.worker], gradients)

    def sync(self) -> Callable[[], None]:
        before, average = list(self.each), mean(self.each)

        def end() -> None:
            self.each = [
                mapped(moved, average, now, then)
                for now, then in zip(self.each, before, strict=True)
            ]

        return end

    def drain(self) -> Any:
        return mean(self.each)


def parameters_of(dense: Dense, pipeline: Pipeline) -> Parameters:
    """As the schedule has them."""
    stages = {stage.name for stage in pipeline.operations(1).stages}
    if isinstance(pipeline.copies, Replicas):
        return Own(dense, pipeline)
    if "all_reduce" in stages:
        return Reduced(dense, pipeline)
    return Served(dense, pipeline) if pipeline.workers > 1 else Parameters(dense, pipeline)


# --- arithmetic on nests


def mapped(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    """The function on every leaf."""
    columns = (flatten_up_to(first, each, "dense parameters") for each in (first, *others))
    return pack(first, [function(*leaves) for leaves in zip(*columns, strict=True)])


def total(trees: Sequence[Any]) -> Any:
    return mapped(lambda *leaves: sum(leaves[1:], leaves[0]), *trees)


def mean(trees: Sequence[Any]) -> Any:
    """Leaves of whole numbers (counts of steps) are the first one's."""
    return mapped(_mean, *trees)


def _mean(*leaves: Any) -> Any:
    if np.asarray(leaves[0]).dtype.kind != "f":
        return leaves[0]
    return sum(leaves[1:], leaves[0]) / len(leaves)


def moved(average: Any, now: Any, then: Any) -> Any:
    """The average of what replicas were then, with what one has changed since."""
    return average if now is then or np.asarray(now).dtype.kind != "f" else average + (now - then)
