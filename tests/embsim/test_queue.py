"""Batches from enqueue to gradients: order, giving up, runs that are undone, messages."""

import warnings

import numpy as np
import pytest

import embsim
from embsim import Engine, FeatureConfig, TableConfig
from embsim._queue import BatchQueue, Enqueued, by_feature, plan_batch
from embsim.optimizers import SGD
from embsim.plan import Output
from embsim.schedule import Progress

F = np.float32


def entry(training=True):
    return Enqueued({}, None, (), training)


def queue_of(*kinds, capacity=8):
    queue = BatchQueue(capacity)
    for training in kinds:
        queue.add(entry(training), in_run=False)
    return queue


def test_first_in_first_out_and_only_training_steps_wait():
    queue = queue_of(True, False, True)
    first, _, third = queue.queued
    for number in range(3):
        queue.take((np.array([number]),))
    assert queue.queued == []
    assert [waiting.plans for waiting in queue.waiting] == [first.plans, third.plans]
    assert [waiting.activations[0].item() for waiting in queue.waiting] == [0, 2]


def test_it_is_full_at_its_capacity_of_batches_that_are_not_dequeued():
    queue = queue_of(True, True, capacity=3)
    assert not queue.is_full
    queue.add(entry(), in_run=False)
    assert queue.is_full
    queue.take(())
    assert not queue.is_full


def test_steps_that_are_given_up_are_the_head_again_with_their_activations():
    queue = queue_of(True, True, True)
    kept = [(np.array([number]),) for number in range(2)]
    for activations in kept:
        queue.take(activations)
    assert queue.give_up() == 2
    assert [each.activations for each in queue.queued] == [*kept, None]
    assert (queue.waiting, queue.give_up()) == ([], 0)
    queue.forget_activations()
    assert [each.activations for each in queue.queued] == [None] * 3


def test_an_undone_run_leaves_what_was_there_and_what_others_enqueued_meanwhile():
    queue = queue_of(True, True)
    queue.take(())
    queued, waiting = list(queue.queued), list(queue.waiting)
    queue.begin_run()
    arrived = entry()
    queue.add(entry(), in_run=True)
    queue.add(arrived, in_run=False)
    queue.take(()), queue.take(())
    queue.rollback_run()
    assert queue.queued == [*queued, arrived]
    assert queue.waiting == waiting


def test_a_run_that_is_done_stays_done():
    queue = queue_of(True)
    queue.begin_run()
    queue.add(entry(), in_run=True)
    queue.take(())
    queue.commit_run()
    assert (len(queue.queued), len(queue.waiting)) == (1, 1)


def test_discard_drops_what_is_not_dequeued():
    queue = queue_of(True, True, False)
    queue.take(())
    assert queue.discard() == 2
    assert (len(queue.queued), len(queue.waiting)) == (0, 1)


def test_messages_name_contents_and_progress():
    queue, progress = queue_of(True, False), Progress(dequeued=5, submitted=4)
    contents = (
        r"queue: \['training', 'inference'\]; dequeued 5 training steps, gradients given for 4"
    )
    with pytest.raises(RuntimeError, match=rf"^restore: batches are enqueued \({contents}\)"):
        queue.check_empty("restore", progress)
    with pytest.warns(UserWarning, match=rf"\({contents}, 3 updates not yet applied\)"):
        queue.warn_of_lost_work(progress, 3)


def test_nothing_is_warned_of_where_nothing_is_lost():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BatchQueue(1).warn_of_lost_work(Progress(), 0)
    BatchQueue(1).check_empty("restore", Progress())
    queue = queue_of(True, True)
    queue.take(())
    with pytest.warns(UserWarning, match="0 updates"):
        queue.warn_of_lost_work(Progress(), 0)
    queue.clear()
    queue.check_empty("restore", Progress())


@pytest.mark.parametrize("training", [True, False])
def test_a_planned_batch_has_its_rows_sorted_if_it_will_train(training):
    tables = [TableConfig(4, 1, name=name) for name in "ab"]
    engine = Engine([FeatureConfig(tables[0]), FeatureConfig(tables[1])], SGD())
    batch = engine.make_batch([[[3, 0], [3]], np.array([2, 2])])
    made = plan_batch(batch, engine.tables, embsim.ReferenceBackend(), training)
    assert list(made.plans) == ["a", "b"]
    assert made.device_plan is made.plans
    assert ["by_row" in vars(plan) for plan in made.plans.values()] == [training] * 2
    assert [plan.unique.tolist() for plan in made.plans.values()] == [[0, 3], [2]]
    assert [(out.table, out.lo, out.hi, out.shape) for out in made.outputs] == [
        ("a", 0, 2, (2,)),
        ("b", 0, 2, (2,)),
    ]
    assert (made.training, made.activations) == (training, None)


def test_activations_by_feature_are_read_only_views_in_each_feature_s_shape():
    found = {"t": np.arange(16, dtype=F).reshape(8, 2), "u": np.ones((1, 3), F)}
    outputs = [Output("t", 0, 6, (3, 2)), Output("u", 0, 1, (1,)), Output("t", 6, 8, (2,))]
    first, other, last = by_feature(outputs, found)
    assert first.tolist() == found["t"][:6].reshape(3, 2, 2).tolist()
    assert (other.tolist(), last.tolist()) == ([[1, 1, 1]], [[12, 13], [14, 15]])
    for part, table in ((first, "t"), (other, "u"), (last, "t")):
        assert np.shares_memory(part, found[table])
        with pytest.raises(ValueError, match="read-only"):
            part[0] = 1
    assert found["t"].flags.writeable


def test_what_a_device_gives_becomes_an_array():
    class OnDevice:
        def __array__(self, dtype=None, copy=None):
            return np.ones((1, 2), F)

    (activations,) = by_feature([Output("t", 0, 1, (1,))], {"t": OnDevice()})
    assert activations.tolist() == [[1, 1]]
