"""embsim's API over the subject's backend: errors, abandoned steps, runs, whose memory it is."""

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...errors import DeadlockError
from ...ragged import RaggedTensor
from ...strategy import get_replica_context
from ..adapter import arrays
from ..check import Draw, check
from ..difference import Difference, compare
from ..lockstep import Lockstep
from ..program import Apply, Dequeue, Drain, Enqueue, Look, Setup, Train
from ..subject import Subject
from ._visible import (
    Pair,
    Steps,
    side_by_side,
    stale_schedules,
    visible_setups,
    visible_steps,
)

Wrong = tuple[Callable[[], Any], type[Exception]]


def _setup(subject: Subject, draw: Draw, **options: Any) -> Setup:
    return draw(visible_setups(subject.capabilities, **options), "setup")


def _inputs(step: Train) -> list[RaggedTensor]:
    return [RaggedTensor(values, splits) for values, splits, _ in arrays(step.batch)]


@check("6.3", "6.4", backend=True, effort=0.3)
def check_a_deadlock_names_the_call_that_is_missing(subject: Subject, draw: Draw) -> None:
    """Each is a DeadlockError with the call that was missing, and the run goes on as it was."""
    setup = _setup(subject, draw, capacity=1)
    before, step, after = draw(visible_steps(setup, 3, 3), "steps")
    with side_by_side(subject, setup) as pair:
        embedding, gradients = pair.engine.embedding, list(step.gradients)

        def deadlock(call: Callable[..., Any], *given: Any, missing: str) -> None:
            error = pair.refused(call.__name__, lambda: call(*given), DeadlockError)
            if f"missing call: {missing}" not in str(error):
                raise Difference(f"the DeadlockError must name {missing}; it says: {error}")

        pair.do(before)
        deadlock(embedding.dequeue, missing="enqueue")
        deadlock(embedding.apply_gradients, gradients, missing="dequeue")
        pair.do(Enqueue(step.batch))
        deadlock(embedding.enqueue, _inputs(after), missing="dequeue")
        pair.do(Dequeue())
        for call in (embedding.drain, embedding.snapshot):
            deadlock(call, missing="apply_gradients for training step 1")
        pair.do(Apply(gradients), after)


def _wrong_batches(embedding: Any, setup: Setup, step: Train) -> dict[str, Wrong]:
    right = _inputs(step)
    rows = setup.features[-1].table.vocabulary_size
    samples = len(right[-1])

    def last(value: Any) -> Callable[[], Any]:
        return lambda: embedding.enqueue([*right[:-1], value])

    return {
        "an id beyond the table": (last(np.full(samples, rows, np.int32)), ValueError),
        "a negative id": (last(np.full(samples, -1, np.int64)), ValueError),
        "ids that are floats": (last(np.zeros(samples, np.float32)), TypeError),
        "another number of samples": (last(np.zeros(2 * samples + 1, np.int32)), ValueError),
        "a tuple for a list": (lambda: embedding.enqueue(tuple(right)), TypeError),
        "one feature too many": (lambda: embedding.enqueue([*right, right[0]]), ValueError),
        "one weight too many": (
            lambda: embedding.enqueue(right, [None] * (len(right) + 1)),
            ValueError,
        ),
    }


@check("6.3", "6.4", "6.5", backend=True, effort=0.5)
def check_a_batch_that_cannot_be_looked_up_changes_nothing(subject: Subject, draw: Draw) -> None:
    """Wrong ids, sizes and structures: refused by their own error, and not in the queue."""
    setup = _setup(subject, draw, tables=2)
    before, step, after = draw(visible_steps(setup, 3, 3), "steps")
    with side_by_side(subject, setup) as pair:
        pair.do(before, Enqueue(step.batch))
        wrong = _wrong_batches(pair.engine.embedding, setup, step)
        what = draw(st.sampled_from(sorted(wrong)), "what is wrong")
        pair.refused(what, *wrong[what])
        pair.do(Dequeue(), Apply(step.gradients), after)


def _wrong_gradients(embedding: Any, step: Train) -> dict[str, Wrong]:
    right: list[Any] = list(step.gradients)

    def last(value: Any) -> Callable[[], Any]:
        return lambda: embedding.apply_gradients([*right[:-1], value])

    return {
        "a list, which is no array": (last(right[-1].tolist()), ValueError),
        "another shape": (last(right[-1][..., None]), ValueError),
        "integers": (last(np.asarray(right[-1], np.int64)), TypeError),
        "a tuple for a list": (lambda: embedding.apply_gradients(tuple(right)), TypeError),
        "one too few": (lambda: embedding.apply_gradients(right[:-1]), ValueError),
    }


@check("3.4", "6.3", "6.4", "6.5", backend=True, effort=0.5)
def check_gradients_of_another_kind_change_nothing(subject: Subject, draw: Draw) -> None:
    """Refused by their own error, whether a step waits or not; the right ones are still taken."""
    setup = _setup(subject, draw, tables=2)
    before, step, after = draw(visible_steps(setup, 3, 3), "steps")
    waits = draw(st.booleans(), "a step waits")
    with side_by_side(subject, setup) as pair:
        pair.do(before, Enqueue(step.batch), *([Dequeue()] if waits else []))
        wrong = _wrong_gradients(pair.engine.embedding, step)
        what = draw(st.sampled_from(sorted(wrong)), "what is wrong")
        pair.refused(f"gradients: {what}", *wrong[what])
        pair.do(*([] if waits else [Dequeue()]), Apply(step.gradients), after)


@check("6.3", "6.7", "10.13", backend=True, effort=0.2)
def check_a_closed_embedding_refuses_every_call(subject: Subject, draw: Draw) -> None:
    """A RuntimeError; closing twice is legal."""
    setup = _setup(subject, draw)
    (step,) = draw(visible_steps(setup, 1, 1), "step")
    pair = Pair(subject, Lockstep(subject, setup))
    pair.do(step)
    embedding = pair.engine.embedding
    pair.engine.close()
    embedding.close()
    for name in ("dequeue", "drain", "snapshot", "abandon"):
        pair.refused(f"{name} after close", getattr(embedding, name), RuntimeError)
    pair.refused("a table read", lambda: embedding.embedding_tables, RuntimeError)
    pair.refused("enqueue after close", lambda: embedding.enqueue(_inputs(step)), RuntimeError)


def _dequeue_as_many_as_may(pair: Pair, steps: Steps) -> list[Any]:
    """Enqueue all, dequeue until gradients are needed; what came back."""
    for each in steps:
        pair.do(Enqueue(each.batch))
    found: list[Any] = []
    while pair.both.queue and pair.law.version_read(pair.law.steps) <= pair.both.submitted:
        found.append(pair.dequeue())
    return found


def _abandon(pair: Pair) -> None:
    """On both sides: steps that wait are the queue's head again, and were not dequeued."""
    law, count = pair.law, pair.engine.embedding.abandon()
    if count != len(law.waiting):
        raise Difference(f"abandon() returned {count}; {len(law.waiting)} steps waited")
    pair.notes.append(f"abandon() of {count} steps was called before the last calls")
    pair.both.queue.extendleft((batch, True) for batch in reversed(law.waiting))
    law.steps, law.waiting = law.steps - count, []


@check("6.6", "10.1", backend=True, effort=0.5)
def check_abandoned_steps_return_the_activations_that_they_returned(
    subject: Subject, draw: Draw
) -> None:
    """Dequeued again, in the old order, whatever was looked up since; but anew after a drain."""
    can = subject.capabilities
    setup = _setup(subject, draw, schedule=stale_schedules(can))
    steps = draw(visible_steps(setup, 3, 6), "steps")
    done = draw(st.integers(0, len(steps) - 2), "steps before")
    with side_by_side(subject, setup) as pair:
        pair.do(*steps[:done])
        _dequeue_as_many_as_may(pair, steps[done:])
        _abandon(pair)
        between = draw(st.sampled_from(((), (Look(),), (Drain(),))), "between")
        pair.do(*between)
        for each in steps[done:]:
            pair.do(Dequeue(), Apply(each.gradients))


@check("10.11", backend=True, effort=0.4)
def check_activations_stay_what_they_were_when_they_were_returned(
    subject: Subject, draw: Draw
) -> None:
    """Neither later lookups nor later updates change the arrays of a dequeue."""
    can = subject.capabilities
    setup = _setup(subject, draw, schedule=stale_schedules(can))
    steps = draw(visible_steps(setup, 3, 5), "steps")
    with side_by_side(subject, setup) as pair:
        held = _dequeue_as_many_as_may(pair, steps)
        before = [[np.array(array) for array in activations] for activations in held]
        for each in steps:
            if not pair.law.waiting:
                held.append(pair.dequeue())
                before.append([np.array(array) for array in held[-1]])
            pair.do(Apply(each.gradients))
        for step, (now, then) in enumerate(zip(held, before, strict=True)):
            for number, (a, b) in enumerate(zip(now, then, strict=True)):
                what = f"activations of step {step}, feature {number}, held until the end"
                compare(what, np.asarray(a), b, "; 'the law' is what was returned", step=step)


@check("10.11", backend=True, effort=0.4)
def check_the_caller_may_overwrite_what_it_gave(subject: Subject, draw: Draw) -> None:
    """Ids, splits and gradients are the caller's again when the call has returned."""
    setup = _setup(subject, draw)
    with side_by_side(subject, setup) as pair:
        pair.notes.append("ids and gradients were overwritten after each call")
        for each in draw(visible_steps(setup, 1, 5), "steps"):
            inputs = _inputs(each)
            pair.engine.embedding.enqueue(inputs)
            for tensor in inputs:
                tensor.values[...] = 0
                tensor.row_splits[1:-1] = 0
            pair.both.queue.append((each.batch, True))
            pair.dequeue()
            given = [np.array(gradient) for gradient in each.gradients]
            pair.engine.embedding.apply_gradients(given)
            pair.law.apply_gradients(each.gradients)
            for gradient in given:
                gradient[...] = 1000.0


@check("7.1", "10.3", "10.4", backend=True, effort=0.5)
def check_several_steps_in_one_run_equal_several_runs(subject: Subject, draw: Draw) -> None:
    """Also where a lookup must see an update that the run still holds back; a run that raises has
    changed nothing.
    """
    setup = _setup(subject, draw)
    steps = draw(visible_steps(setup, 2, 6), "steps")
    done = draw(st.integers(0, len(steps) - 2), "steps before")
    with side_by_side(subject, setup) as pair:
        pair.do(*steps[:done])
        if draw(st.booleans(), "a run before, that raises"):
            pair.notes.append(f"after {done} steps a run of the rest raised at its end")
            raising = lambda: _in_one_run(pair, steps[done:], fails=True)  # noqa: E731
            pair.refused("the run", raising, ArithmeticError)
            pair.do(Look())
        pair.notes.append(f"the steps after the first {done} were made in one run")
        for each, found in zip(steps[done:], _in_one_run(pair, steps[done:]), strict=True):
            pair.both.queue.append((each.batch, True))
            pair.both.compare_activations(found)
            pair.law.apply_gradients(each.gradients)


def _in_one_run(pair: Pair, steps: Steps, *, fails: bool = False) -> list[list[np.ndarray]]:
    """Every replica makes all steps with its own samples; the global activations of each."""
    engine, setup = pair.engine, pair.both.setup
    size = setup.samples // setup.replicas
    parts: dict[int, list[Any]] = {}

    def body() -> None:
        context = get_replica_context()
        assert context is not None
        replica = context.replica_id_in_sync_group
        mine = slice(replica * size, (replica + 1) * size)
        for each in steps:
            own = Train([bags[mine] for bags in each.batch], [g[mine] for g in each.gradients])
            engine.embedding.enqueue(_inputs(own))
            parts.setdefault(replica, []).append(engine.embedding.dequeue())
            engine.embedding.apply_gradients(list(own.gradients))
        if fails:
            raise ArithmeticError("raised on purpose")

    engine.strategy.run(body)
    return [
        [np.concatenate(pieces) for pieces in zip(*of_step, strict=True)]
        for of_step in zip(*(parts[replica] for replica in sorted(parts)), strict=True)
    ]
