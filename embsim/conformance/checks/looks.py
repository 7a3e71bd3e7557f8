"""Evaluation and tables that are read: they see every submitted update and change nothing."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from ..adapter import Capabilities
from ..check import Draw, check
from ..difference import Difference, compare
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
    Save,
    Setup,
    Train,
)
from ..strategies import batches, gradients, regimes, schedules, setups, to_the_bit
from ..subject import Subject
from ._counter import counter, unit_step
from ._visible import (
    in_order,
    pipelines,
    side_by_side,
    stale_schedules,
    visible_rules,
    visible_setups,
    visible_steps,
)


def _looks(can: Capabilities) -> bool:
    """Looks are offered at any time."""
    return can.looks and in_order(can)


def _stale(can: Capabilities) -> st.SearchStrategy[Any]:
    """Schedules with updates in flight, where the subject has one."""
    return stale_schedules(can) if pipelines(can) else schedules(can)


def _some_looks(draw: Draw, can: Capabilities, batch: Any) -> list[Call]:
    kinds: list[Call] = [Look()]
    kinds += [Evaluate(batch)] if can.offers("inference") else []
    kinds += [Save()] if can.offers("checkpoints") and draw(st.integers(0, 9), "save") == 0 else []
    return draw(st.lists(st.sampled_from(kinds), max_size=2), "looks")


@check("5.5", needs=("inference",), when=_looks)
def check_an_evaluation_sees_every_submitted_update(subject: Subject, draw: Draw) -> None:
    """Also those that training lookups do not see yet: after n updates its activation is -n."""
    can = subject.capabilities
    setup = counter(can, draw(_stale(can), "schedule"))
    step = unit_step(setup)
    calls: list[Call] = []
    for often in draw(st.lists(st.integers(0, 2), min_size=1, max_size=6), "evaluations"):
        calls += [step, *[Evaluate(step.batch)] * often]
    replay(subject, Program(setup, tuple(calls)), watch=False)


@check("5.5", when=_looks)
def check_tables_and_slots_show_every_submitted_update(subject: Subject, draw: Draw) -> None:
    """Read between any two steps, with updates in flight."""
    can = subject.capabilities
    rules = visible_rules(can, slots=True)
    setup = draw(visible_setups(can, schedule=_stale(can), rules=rules), "setup")
    calls: list[Call] = []
    for each in draw(visible_steps(setup, 1, 5), "steps"):
        calls += [each, *([Look()] if draw(st.booleans(), "look") else [])]
    replay(subject, Program(setup, tuple(calls)), watch=False)


@check("5.5", "5.3", when=_looks, effort=0.5)
def check_looks_change_no_later_number(subject: Subject, draw: Draw) -> None:
    """The same steps with looks between them, and without: the same activations, the same tables
    and slots at the end. On a subject that is bitwise, of every optimizer and any numbers.
    """
    can = subject.capabilities
    regime = draw(regimes(can), "regime")
    setup: Setup = draw(setups(to_the_bit(can, regime), regime, schedule=_stale(can)), "setup")
    steps: list[Call] = []
    looked: list[Call] = []
    for _ in range(draw(st.integers(2, 5), "steps")):
        step = Train(
            draw(batches(setup, can, regime), "batch"),
            draw(gradients(setup, can, regime), "gradients"),
        )
        steps.append(step)
        looked += [step, *_some_looks(draw, can, step.batch)]
    replay(subject, Program(setup, tuple(steps)), watch=False)
    _with_looks(subject, Program(setup, tuple(looked)))


def _with_looks(subject: Subject, program: Program) -> None:
    """`program`, of which it is known that it equals the law without its looks."""
    try:
        replay(subject, program, watch=False)
    except Difference as difference:
        what = "without its looks this program equals the law; with them"
        difference.args = (f"{what}: {difference}",)
        raise


@check("5.5", needs=("inference",), when=_looks)
def check_evaluation_does_not_drain(subject: Subject, draw: Draw) -> None:
    """Training lookups after it are as old as without it: one row, gradient 1, rate 1."""
    can = subject.capabilities
    setup = counter(can, draw(_stale(can), "schedule"))
    step = unit_step(setup)
    count = draw(st.integers(2, 7), "steps")
    place = draw(st.integers(0, count - 1), "the step after which it evaluates")
    calls = [step] * (place + 1) + [Evaluate(step.batch)] + [step] * (count - place - 1)
    replay(subject, Program(setup, (step,) * count), watch=False)
    _with_looks(subject, Program(setup, tuple(calls)))


@check("5.5", "1.2", needs=("inference",), when=_looks)
def check_evaluation_counts_no_step_of_a_loop_or_a_warm_up(subject: Subject, draw: Draw) -> None:
    """Training steps keep their numbers, whatever is evaluated between or before them."""
    can = subject.capabilities
    setup = counter(can, draw(schedules(can), "schedule"))
    step = unit_step(setup)
    calls: list[Call] = []
    for evaluated in draw(st.lists(st.booleans(), min_size=2, max_size=7), "evaluate before"):
        calls += [*([Evaluate(step.batch)] if evaluated else []), step]
    replay(subject, Program(setup, tuple(calls)), watch=False)


@check("5.5", "6.1", needs=("inference",), when=lambda can: _looks(can) and can.ahead > 1)
def check_an_evaluation_batch_keeps_its_place_between_training_batches(
    subject: Subject, draw: Draw
) -> None:
    """It is looked up when its turn comes: it sees the updates of the steps before it in the queue,
    and of none behind it.
    """
    can = subject.capabilities
    setup = counter(can, draw(schedules(can), "schedule"))
    step = unit_step(setup)
    most = min(can.ahead, 6)
    kinds = draw(st.lists(st.booleans(), min_size=2, max_size=most), "training")
    calls: list[Call] = [Enqueue(step.batch, kind) for kind in kinds]
    for training in kinds:
        calls += [Dequeue(), *([Apply(step.gradients)] if training else [])]
    replay(subject, Program(setup, (step, *calls, step)), watch=False)


@check("5.7", "5.6", when=lambda can: _looks(can) and can.drain_points == "any")
def check_tables_are_read_as_if_drained(subject: Subject, draw: Draw) -> None:
    """Tables and slots right before a drain are those right after it, of all optimizers."""
    can = subject.capabilities
    regime = draw(regimes(can), "regime")
    setup: Setup = draw(setups(to_the_bit(can, regime), regime, schedule=_stale(can)), "setup")
    steps: list[Call] = []
    for _ in range(draw(st.integers(1, 3), "steps")):
        batch = draw(batches(setup, can, regime), "batch")
        steps.append(Train(batch, draw(gradients(setup, can, regime), "gradients")))
    replay(subject, Program(setup, (*steps, Look(), Drain(), Look())), watch=False)


@check("5.7", "5.5", backend=True, when=_looks, effort=0.5)
def check_a_snapshot_is_a_copy(subject: Subject, draw: Draw) -> None:
    """Later training does not change it, and writing into it changes no table. What
    embedding_tables and slot_variables give cannot be written into.
    """
    can = subject.capabilities
    rules = visible_rules(can, slots=True)
    setup = draw(visible_setups(can, schedule=_stale(can), rules=rules), "setup")
    before = draw(visible_steps(setup, 0, 3), "steps before")
    after = draw(visible_steps(setup, 1, 3, len(before)), "steps after")
    with side_by_side(subject, setup) as pair:
        pair.do(*before)
        embedding = pair.engine.embedding
        pair.notes.append(f"snapshot() was called after {len(before)} steps, and later written to")
        held = _arrays(embedding.snapshot())
        wanted = {what: array.copy() for what, array in held.items()}
        for array in _read(embedding):
            if array.flags.writeable:
                raise Difference("embedding_tables or slot_variables can be written into")
        pair.do(*after)
        for what, array in held.items():
            compare(f"snapshot of {what}, after later steps", np.asarray(array), wanted[what])
            if array.flags.writeable:
                array[...] = 1000.0
        pair.do(Look(), *after)


def _arrays(snapshot: Any) -> dict[str, Any]:
    found = {f"table {config.name!r}": array for config, array in snapshot.embedding_tables.items()}
    for config, slots in snapshot.slot_variables.items():
        found |= {f"slot {name!r} of {config.name!r}": array for name, array in slots.items()}
    return found


def _read(embedding: Any) -> list[Any]:
    slots = embedding.slot_variables.values()
    return [*embedding.embedding_tables.values(), *(each for one in slots for each in one.values())]
