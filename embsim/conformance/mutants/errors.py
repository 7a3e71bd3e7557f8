"""Faults of queues and of calls that must be refused."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import DeadlockError
from ...schedule import Schedule
from ..embsim_engine import EmbsimEngine
from ..program import Batch
from .mutant import mutant


def inside(engine: EmbsimEngine) -> Any:
    """embsim's engine: its queue, progress, schedule and store."""
    embedding: Any = engine.embedding
    return embedding._engine


@mutant(
    "check_a_dequeue_with_nothing_enqueued_is_refused",
    "Reason to expect it: an output buffer keeps the last step's activations until the next ones.",
)
class AnEmptyQueueReturnsTheLastActivations(EmbsimEngine):
    """A dequeue of nothing returns the activations of the dequeue before it."""

    def dequeue(self) -> Sequence[Any] | None:
        if inside(self)._queue.queued or not hasattr(self, "last"):
            self.last = super().dequeue()
        return self.last


@mutant(
    "check_a_dequeue_with_nothing_enqueued_is_refused",
    "jax-tpu-embedding's pipelined example: the first two calls return zeros, "
    "https://github.com/jax-ml/jax-tpu-embedding",
)
class AnEmptyQueueReturnsZeros(EmbsimEngine):
    """A dequeue of nothing returns zeros, as a pipeline that is being filled."""

    def dequeue(self) -> Sequence[Any] | None:
        if inside(self)._queue.queued:
            return super().dequeue()
        shapes = [self.setup.activation_shape(i) for i in range(len(self.setup.features))]
        return [np.zeros(shape, np.float32) for shape in shapes]


@mutant(
    "check_gradients_that_no_step_waits_for_are_refused",
    "TensorFlow documents that gradients after enqueue(training=False) may deadlock: "
    "https://www.tensorflow.org/api_docs/python/tf/tpu/experimental/embedding/TPUEmbedding",
)
class GradientsOfNobodyTrainTheLastStepAgain(EmbsimEngine):
    """Gradients that no step waits for are applied to the last step a second time."""

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        engine = inside(self)
        waiting = engine._queue.waiting
        if not waiting and hasattr(self, "last"):
            waiting.append(self.last)
            engine._progress = replace(engine._progress, submitted=engine._progress.submitted - 1)
        self.last = waiting[0] if waiting else None
        super().apply_gradients(gradients)


@mutant(
    "check_gradients_that_no_step_waits_for_are_refused",
    "Reason to expect it: a loop that ends with one send too many is easiest to forgive.",
)
class GradientsOfNobodyAreDropped(EmbsimEngine):
    """Gradients that no step waits for are dropped without a word."""

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        with suppress(DeadlockError):
            super().apply_gradients(gradients)


@mutant(
    "check_a_full_queue_refuses_a_batch_and_keeps_those_that_it_holds",
    "A full infeed blocks, https://github.com/tensorflow/tensorflow/issues/24155; a ring buffer "
    "that must not block drops its oldest entry.",
)
class AFullQueueDropsItsOldestBatch(EmbsimEngine):
    """Enqueue into a full queue makes room: the oldest batch is gone."""

    place = 0

    def enqueue(self, batch: Batch, training: bool = True) -> None:
        if inside(self)._queue.is_full:
            del inside(self)._queue.queued[self.place]
        super().enqueue(batch, training)


@mutant(
    "check_a_full_queue_refuses_a_batch_and_keeps_those_that_it_holds",
    "Reason to expect it: a mailbox of one place holds the newest message.",
)
class AFullQueueOverwritesItsNewestBatch(AFullQueueDropsItsOldestBatch):
    """Enqueue into a full queue replaces the batch that was enqueued last."""

    place = -1


@mutant(
    "check_gradients_of_a_wrong_shape_change_nothing",
    "Reason to expect it: tables are updated one after the other, each checked on its turn.",
)
class TheFirstTableIsUpdatedBeforeTheLastIsChecked(EmbsimEngine):
    """Gradients of a wrong shape are refused when the first table has already been updated."""

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        store, waiting = inside(self)._store, inside(self)._queue.waiting
        try:
            super().apply_gradients(gradients)
        except ValueError:
            first = store.tables.specs[0]
            part = waiting[0].plans[first.name]
            given = np.zeros((part.samples, first.dim), np.float32)
            given[: self.setup.samples] = gradients[0]
            numbers = store.coefficients(inside(self)._progress.submitted)
            store.backend.update(store.state, {first.name: part}, {first.name: given}, numbers)
            raise


@mutant(
    "check_a_batch_with_an_id_outside_its_table_changes_nothing",
    "Reason to expect it: the device checks ids when it has the batch, the host raises its error.",
)
class ABatchThatIsRefusedStaysInTheQueue(EmbsimEngine):
    """A batch with an id outside its table is an error, but is looked up, with the id clipped."""

    def enqueue(self, batch: Batch, training: bool = True) -> None:
        try:
            super().enqueue(batch, training)
        except ValueError:
            rows = [feature.table.vocabulary_size for feature in self.setup.features]
            clipped = [
                [[min(max(i, 0), n - 1) for i in bag] for bag in bags]
                for bags, n in zip(batch, rows, strict=True)
            ]
            super().enqueue(clipped, training)
            raise


@mutant(
    "check_wrong_gradients_are_refused_before_queues_are_looked_at",
    "Reason to expect it: shapes are known from the step that waits, so that is looked for first.",
)
class QueuesAreLookedAtBeforeGradients(EmbsimEngine):
    """Wrong gradients are taken for gradients that come at the wrong time."""

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        if not inside(self)._queue.waiting:
            raise DeadlockError("no step waits for gradients")
        super().apply_gradients(gradients)


@mutant(
    "check_a_drain_while_a_step_waits_is_refused",
    "Reason to expect it: a drain of the updates that are there looks complete.",
)
class ADrainWhileAStepWaitsIsNoError(EmbsimEngine):
    """A drain while a step waits for gradients drains what is there and returns."""

    def drain(self) -> None:
        engine = inside(self)
        with suppress(DeadlockError):
            super().drain()
            return
        engine._store.apply(engine._progress.submitted)


@mutant(
    "check_a_drain_while_a_step_waits_is_refused",
    "Reason to expect it: state is set before the check that refuses.",
)
class ARefusedDrainMovesTheStart(EmbsimEngine):
    """A drain that is refused has moved the start of the pipeline all the same."""

    def drain(self) -> None:
        engine = inside(self)
        engine._progress = replace(engine._progress, start=engine._progress.dequeued)
        super().drain()


class _Overlooks(EmbsimEngine):
    """Calls that are made as if no step waited for gradients."""

    def overlooked(self, call: Any) -> Any:
        engine = inside(self)
        progress = engine._progress
        engine._progress = replace(progress, dequeued=progress.submitted)
        try:
            return call()
        finally:
            engine._progress = progress


@mutant(
    "check_tables_are_not_read_while_a_step_waits",
    "TensorFlow's save callback retrieves the tables from the device, whatever step is half-way.",
)
class TablesAreReadWhileAStepWaits(_Overlooks):
    """Tables are read while a step's update is still to come."""

    def tables(self) -> Any:
        return self.overlooked(super().tables)

    def slots(self) -> Any:
        return self.overlooked(super().slots)


@mutant(
    "check_a_save_while_a_step_waits_is_refused",
    "TensorFlow's save callback retrieves the tables from the device, whatever step is half-way.",
)
class ASaveWhileAStepWaitsIsNoError(_Overlooks):
    """A checkpoint is written while a step's update is still to come."""

    def save(self) -> Any:
        return self.overlooked(super().save)


@mutant(
    "check_inference_while_a_step_waits_is_refused",
    "A pipeline for both training and evaluation mixed up its iterators: "
    "https://github.com/meta-pytorch/torchrec/pull/3751",
)
class InferenceIsServedWhileAStepWaits(_Overlooks):
    """An inference step is looked up while a training step's update is still to come."""

    def dequeue(self) -> Sequence[Any] | None:
        queued = inside(self)._queue.queued
        inference = queued and not queued[0].training
        return self.overlooked(super().dequeue) if inference else super().dequeue()


@mutant(
    "check_a_dequeue_before_the_gradients_that_it_must_see_is_refused",
    "A race between a prefetching lookup and what it must wait for gave garbage embeddings: "
    "https://github.com/meta-pytorch/torchrec/pull/4191",
)
class ADequeueDoesNotWaitForGradients(EmbsimEngine):
    """A dequeue that needs gradients which were not given reads the tables as they are."""

    def dequeue(self) -> Sequence[Any] | None:
        engine = inside(self)
        try:
            return super().dequeue()
        except DeadlockError:
            if not engine._queue.queued or not engine._queue.queued[0].training:
                raise
        schedule, engine.schedule = engine.schedule, Schedule(staleness=1000)
        try:
            return super().dequeue()
        finally:
            engine.schedule = schedule


@mutant(
    "check_gradients_belong_to_the_oldest_step_that_waits",
    "Reason to expect it: saved contexts are a stack in reverse-mode differentiation.",
)
class GradientsGoToTheNewestStep(EmbsimEngine):
    """Gradients are taken for those of the step that was dequeued last."""

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        waiting = inside(self)._queue.waiting
        waiting.insert(0, waiting.pop())
        super().apply_gradients(gradients)


@mutant(
    "check_batches_are_dequeued_in_the_order_of_their_enqueues",
    "A pipeline for both training and evaluation mixed up its iterators: "
    "https://github.com/meta-pytorch/torchrec/pull/3751",
)
class InferenceOvertakesTraining(EmbsimEngine):
    """Inference batches are served before training batches that were enqueued earlier."""

    def dequeue(self) -> Sequence[Any] | None:
        inside(self)._queue.queued.sort(key=lambda entry: entry.training)
        return super().dequeue()


@mutant(
    "check_ids_beyond_the_end_of_a_sequence_are_checked_too",
    "Reason to expect it: sequences are cut before their ids are looked at.",
)
class SequencesAreCutBeforeIdsAreChecked(EmbsimEngine):
    """An id outside its table is accepted where a sequence has ended."""

    def enqueue(self, batch: Batch, training: bool = True) -> None:
        lengths = [feature.max_sequence_length or None for feature in self.setup.features]
        cut = [[bag[:n] for bag in bags] for bags, n in zip(batch, lengths, strict=True)]
        super().enqueue(cut, training)
