"""Queues, calls that could never be served, and that an error changes nothing."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...config import FeatureConfig, TableConfig
from ...optimizers import SGD
from ..adapter import Capabilities
from ..check import Draw, check
from ..lockstep import replay
from ..program import (
    Apply,
    Call,
    Dequeue,
    Drain,
    Enqueue,
    Evaluate,
    Look,
    Program,
    Restore,
    Save,
    Setup,
    Train,
    Values,
)
from ..strategies import schedules
from ..subject import Subject
from ._visible import (
    in_order,
    pipelines,
    refuses_calls,
    side_by_side,
    stale_schedules,
    visible_setups,
    visible_steps,
)


def _waits(can: Capabilities) -> bool:
    """A call is refused while a step waits for its gradients."""
    return refuses_calls(can) and can.in_flight >= 1


@check("6.1", when=lambda can: in_order(can) and can.ahead > 1, effort=0.5)
def check_batches_are_dequeued_in_the_order_of_their_enqueues(subject: Subject, draw: Draw) -> None:
    """First in, first out: training and inference batches alike, none overtakes another."""
    can = subject.capabilities
    setup = draw(visible_setups(can), "setup")
    steps = draw(visible_steps(setup, 2, min(can.ahead, 4)), "steps")
    kinds = [True] * len(steps)
    if can.looks and can.offers("inference"):
        patterns = ((True, False, True, False), (False, True, False, False), (True,) * 4)
        kinds = list(draw(st.sampled_from(patterns), "training"))[: len(steps)]
    calls: list[Call] = [Enqueue(each.batch, kind) for each, kind in zip(steps, kinds, strict=True)]
    for each, training in zip(steps, kinds, strict=True):
        calls += [Dequeue(), *([Apply(each.gradients)] if training else [])]
    replay(subject, Program(setup, tuple(calls)))


@check("6.1", when=lambda can: pipelines(can) and can.in_flight > 1, effort=0.5)
def check_gradients_belong_to_the_oldest_step_that_waits(subject: Subject, draw: Draw) -> None:
    """With several steps dequeued, gradients are given first in, first out."""
    can = subject.capabilities
    setup = draw(visible_setups(can, schedule=stale_schedules(can)), "setup")
    steps = draw(visible_steps(setup, 3, 6), "steps")
    calls: list[Call] = []
    waiting: list[Apply] = []
    for step, each in enumerate(steps):
        room = len(waiting) < min(can.in_flight, 4)
        if not room or setup.schedule.version_read(step) > step - len(waiting):
            calls += waiting  # as late as may be
            waiting = []
        calls += [Enqueue(each.batch), Dequeue()]
        waiting.append(Apply(each.gradients))
    replay(subject, Program(setup, (*calls, *waiting)))


@check("6.2", "6.3", "6.4", when=refuses_calls, effort=0.5)
def check_a_full_queue_refuses_a_batch_and_keeps_those_that_it_holds(
    subject: Subject, draw: Draw
) -> None:
    """Enqueue into a full queue is refused; no batch in it is lost, replaced or changed."""
    can = subject.capabilities
    capacity = draw(st.integers(1, min(can.ahead, 3)), "capacity")
    setup = draw(visible_setups(can, capacity=capacity), "setup")
    steps = draw(visible_steps(setup, capacity + 1, capacity + 2), "steps")
    kept = steps[:capacity]
    calls: list[Call] = [Enqueue(each.batch) for each in steps]
    for each in kept:
        calls += [Dequeue(), Apply(each.gradients)]
    replay(subject, Program(setup, (*calls, *draw(visible_steps(setup, 1, 2), "after"))))


@check("6.3", "6.4", when=refuses_calls, effort=0.5)
def check_a_dequeue_with_nothing_enqueued_is_refused(subject: Subject, draw: Draw) -> None:
    """It returns neither zeros nor old activations, and is no step: the next one is as it was."""
    setup = draw(visible_setups(subject.capabilities), "setup")
    calls: list[Call] = []
    for each in draw(visible_steps(setup, 1, 5), "steps"):
        calls += [each, *[Dequeue()] * draw(st.sampled_from((1, 0, 2)), "dequeues of nothing")]
    replay(subject, Program(setup, (*draw(st.sampled_from(((), (Dequeue(),)))), *calls)))


@check("6.3", "6.4", when=refuses_calls, effort=0.5)
def check_gradients_that_no_step_waits_for_are_refused(subject: Subject, draw: Draw) -> None:
    """A second time, after an inference step, or before any step: no table is changed by them."""
    can = subject.capabilities
    setup = draw(visible_setups(can), "setup")
    calls: list[Call] = []
    for each in draw(visible_steps(setup, 1, 4), "steps"):
        looks: list[Call] = [Enqueue(each.batch, training=False), Dequeue(), Apply(each.gradients)]
        evaluated = can.looks and can.offers("inference") and draw(st.booleans(), "evaluated")
        calls += [*(looks if evaluated else []), Enqueue(each.batch), Apply(each.gradients)]
        calls += [Dequeue(), Apply(each.gradients), Apply(each.gradients)]
    replay(subject, Program(setup, tuple(calls)))


@check("6.3", "5.1", when=refuses_calls, effort=0.5)
def check_a_dequeue_before_the_gradients_that_it_must_see_is_refused(
    subject: Subject, draw: Draw
) -> None:
    """Step k reads version r(k): while that is not made, its dequeue is refused, never served with
    an older one.
    """
    can = subject.capabilities
    setup = draw(visible_setups(can), "setup")
    steps = draw(visible_steps(setup, 2, 6), "steps")
    calls: list[Call] = []
    waiting: list[Apply] = []
    for step, each in enumerate(steps):
        calls += [Enqueue(each.batch), Dequeue()]  # a first one that may be too early
        while setup.schedule.version_read(step) > step - len(waiting):
            calls += [waiting.pop(0), Dequeue()]
        waiting.append(Apply(each.gradients))
        if len(waiting) == can.in_flight:
            calls.append(waiting.pop(0))
    replay(subject, Program(setup, (*calls, *waiting)))


def _interrupted(
    subject: Subject, draw: Draw, *between: Call, after: tuple[Call, ...] = ()
) -> None:
    """Steps in flight, one that waits; `between`; its gradients; `after`, and steps that go on."""
    can = subject.capabilities
    schedule = stale_schedules(can) if pipelines(can) else None
    setup = draw(visible_setups(can, schedule=schedule), "setup")
    steps = draw(visible_steps(setup, 2, 7), "steps")
    place = draw(st.integers(0, len(steps) - 1), "the step that waits")
    waits = steps[place]
    calls = [*steps[:place], Enqueue(waits.batch), Dequeue(), *between, Apply(waits.gradients)]
    replay(subject, Program(setup, (*calls, *after, *steps[place + 1 :])))


@check("6.3", "6.4", "5.6", when=lambda can: _waits(can) and can.drain_points == "any", effort=0.5)
def check_a_drain_while_a_step_waits_is_refused(subject: Subject, draw: Draw) -> None:
    """A drain that is refused moves no start and makes nothing visible."""
    _interrupted(subject, draw, Drain())


@check("6.3", "6.4", when=lambda can: _waits(can) and can.looks, effort=0.5)
def check_tables_are_not_read_while_a_step_waits(subject: Subject, draw: Draw) -> None:
    """Tables of which an update is owed are of no version: reading them is refused."""
    _interrupted(subject, draw, Look(), after=(Look(),))


@check("6.3", "6.4", needs=("inference",), when=lambda can: _waits(can) and can.looks, effort=0.5)
def check_inference_while_a_step_waits_is_refused(subject: Subject, draw: Draw) -> None:
    """The inference batch stays at the queue's head, and is served once the gradients are there."""
    can = subject.capabilities
    setup = draw(visible_setups(can), "setup")
    before, waits, look = draw(visible_steps(setup, 3, 3), "steps")
    calls = [Enqueue(waits.batch), Dequeue(), Enqueue(look.batch, training=False), Dequeue()]
    calls += [Apply(waits.gradients), Dequeue(), Evaluate(waits.batch)]
    replay(subject, Program(setup, (before, *calls, before)))


@check("6.3", "6.4", needs=("checkpoints",), when=_waits, effort=0.3)
def check_a_save_while_a_step_waits_is_refused(subject: Subject, draw: Draw) -> None:
    """A checkpoint would lack the update that is owed."""
    _interrupted(subject, draw, Save())


@check("6.3", "7.4", needs=("checkpoints",), when=refuses_calls, effort=0.3)
def check_a_restore_with_work_in_hand_is_refused(subject: Subject, draw: Draw) -> None:
    """While batches are enqueued or a step waits: none is lost, and no table goes back."""
    setup = draw(visible_setups(subject.capabilities), "setup")
    before, forgotten, step, after = draw(visible_steps(setup, 4, 4), "steps")
    queued = [Enqueue(step.batch), Restore(), Dequeue(), Restore(), Apply(step.gradients)]
    replay(subject, Program(setup, (before, Save(), forgotten, *queued, after)))


def _wrong_gradients(draw: Draw, right: Any) -> list[Any]:
    """As `right`, but for the last feature's, or their number."""
    last = np.asarray(right[-1])
    wrong = draw(
        st.sampled_from(
            (
                [*right[:-1], np.ones((last.shape[0] + 1, *last.shape[1:]), np.float32)],
                [*right[:-1], np.ones((*last.shape[:-1], last.shape[-1] + 1), np.float32)],
                [*right[:-1], last[:-1]],
                [*right, last],
                list(right[:-1]),
            )
        ),
        "wrong gradients",
    )
    return list(wrong)


@check("3.4", "6.3", "6.4", when=refuses_calls, effort=0.5)
def check_gradients_of_a_wrong_shape_change_nothing(subject: Subject, draw: Draw) -> None:
    """They are refused before the first table is touched; the right ones are still waited for."""
    setup = draw(visible_setups(subject.capabilities, tables=2), "setup")
    before, step, after = draw(visible_steps(setup, 3, 3), "steps")
    with side_by_side(subject, setup) as pair:
        pair.do(before, Enqueue(step.batch), Dequeue())
        wrong = _wrong_gradients(draw, step.gradients)
        give = lambda: pair.engine.apply_gradients(wrong)  # noqa: E731
        pair.refused("gradients of a wrong shape", give, ValueError, TypeError)
        pair.do(Apply(step.gradients), after)


@check("6.5", "3.4", when=refuses_calls, effort=0.5)
def check_wrong_gradients_are_refused_before_queues_are_looked_at(
    subject: Subject, draw: Draw
) -> None:
    """Wrong gradients are a ValueError or TypeError also when no step waits for any."""
    setup = draw(visible_setups(subject.capabilities), "setup")
    before, after = draw(visible_steps(setup, 2, 2), "steps")
    with side_by_side(subject, setup) as pair:
        pair.do(before)
        wrong = _wrong_gradients(draw, before.gradients)
        give = lambda: pair.engine.apply_gradients(wrong)  # noqa: E731
        what = "gradients of a wrong shape, while no step waits,"
        pair.refused(what, give, ValueError, TypeError)
        pair.do(after)


@check("2.9", "6.3", "6.4", "6.5", when=refuses_calls, effort=0.5)
def check_a_batch_with_an_id_outside_its_table_changes_nothing(
    subject: Subject, draw: Draw
) -> None:
    """It is refused at its enqueue, also when the queue is full, and is not in the queue."""
    setup = draw(visible_setups(subject.capabilities, tables=2, capacity=1), "setup")
    before, step, after = draw(visible_steps(setup, 3, 3), "steps")
    rows = setup.features[-1].table.vocabulary_size
    bad = draw(st.sampled_from((rows, -1, rows + 7, 2**31 - 1)), "the id outside the table")
    can = subject.capabilities
    infers = can.looks and can.offers("inference")
    training = draw(st.booleans(), "training") or not infers
    batch = [*step.batch[:-1], [[0, bad], *step.batch[-1][1:]]]
    with side_by_side(subject, setup) as pair:
        pair.do(before, *([Enqueue(step.batch)] if draw(st.booleans(), "full") else []))
        put = lambda: pair.engine.enqueue(batch, training)  # noqa: E731
        pair.refused(f"a batch with id {bad} for a table of {rows} rows", put, ValueError)
        pair.do(*([] if pair.both.queue else [Enqueue(step.batch)]))
        pair.do(Dequeue(), Apply(step.gradients), after)


@check("10.20", "2.9", needs=("max_sequence_length",), when=refuses_calls, effort=0.2)
def check_ids_beyond_the_end_of_a_sequence_are_checked_too(subject: Subject, draw: Draw) -> None:
    """An id outside the table is refused also where it would not be looked up."""
    table = TableConfig(4, 2, Values(np.arange(8).reshape(4, 2)), SGD(1.0), "sum", "t0")
    schedule = draw(schedules(subject.capabilities), "schedule")
    setup = Setup((FeatureConfig(table, 2),), schedule, samples=2)
    bad = draw(st.sampled_from((4, -1)), "the id outside the table")
    place = draw(st.integers(2, 3), "its position")
    bag = [1] * place + [bad]
    with side_by_side(subject, setup) as pair:
        put = lambda: pair.engine.enqueue([[[0], bag]], True)  # noqa: E731
        what = f"a sequence of length 2 with id {bad} at position {place}, of a table of 4 rows,"
        pair.refused(what, put, ValueError)
        pair.do(Train([[[0], bag[:-1]]], [np.ones((2, 2, 2), np.float32)]))
