"""Saving and restoring in the midst of a pipelined run, initial values, and slot variables.

Saving writes files: these checks have few examples, and every one of them is telling.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...optimizers import FTRL, SGD, Adagrad, AdagradMomentum, Adam, RowwiseAdagrad
from ...schedule import Schedule
from ..adapter import OPTIMIZERS, Capabilities, asked_of_optimizer
from ..check import Draw, check
from ..difference import Difference, compare
from ..lockstep import Lockstep, replay
from ..program import Call, Drain, Evaluate, Look, Program, Rates, Restore, Save, Setup
from ..rules import Counting
from ..strategies import optimizers
from ..subject import Subject
from ._visible import (
    in_order,
    pipelines,
    stale_schedules,
    visible_rules,
    visible_setups,
    visible_steps,
)

NEEDS = ("checkpoints",)
RATES = Rates((1.0, 0.5, 2.0, 4.0, 0.25))


def rules(can: Capabilities) -> st.SearchStrategy[Any]:
    """With slots, if it may; where the subject is the law to the bit, any rule's."""
    exact = visible_rules(can, slots=True)
    return st.one_of(exact, optimizers(can.to_the_bit, "real")) if can.bitwise else exact


def _pipeline(subject: Subject, draw: Draw) -> Setup:
    can = subject.capabilities
    made = visible_setups(can, schedule=stale_schedules(can), rules=rules(can))
    return draw(made, "setup")


@check("7.4", needs=NEEDS, when=pipelines, effort=0.2)
def check_updates_in_flight_at_a_save_survive_the_restore(subject: Subject, draw: Draw) -> None:
    """Those that lookups did not see yet are in the checkpoint and become visible at their step."""
    setup = _pipeline(subject, draw)
    before = draw(visible_steps(setup, 1, 4), "before the save")
    forgotten = draw(visible_steps(setup, 0, 1, first=7), "forgotten")
    after = draw(visible_steps(setup, 4, 5, first=len(before)), "after the restore")
    watch = subject.capabilities.looks and draw(st.booleans(), "looks after each call")
    replay(
        subject,
        Program(
            setup,
            (
                *before,
                Save(),
                *forgotten,
                Restore(),
                *after,
            ),
        ),
        watch=watch,
    )


@check("7.4", needs=NEEDS, when=pipelines, effort=0.2)
def check_a_restore_forgets_what_came_after_the_save(subject: Subject, draw: Draw) -> None:
    """Tables, slots, and the updates that were in flight when the run was given up."""
    setup = _pipeline(subject, draw)
    before = draw(visible_steps(setup, 0, 3), "before the save")
    forgotten = draw(visible_steps(setup, 1, 5, first=7), "forgotten")
    after = draw(visible_steps(setup, 3, 4, first=len(before)), "after the restore")
    again: list[Call] = draw(st.sampled_from(([], [Restore(), *after[:2]])), "restored again")
    replay(
        subject,
        Program(
            setup,
            (
                *before,
                Save(),
                *forgotten,
                Restore(),
                *after,
                *again,
            ),
        ),
    )


@check("7.4", "5.5", needs=NEEDS, when=pipelines, effort=0.2)
def check_a_save_changes_nothing(subject: Subject, draw: Draw) -> None:
    """Updates that are in flight at a save stay in flight: it is no drain."""
    setup = _pipeline(subject, draw)
    calls: list[Call] = []
    for each in draw(visible_steps(setup, 3, 5), "steps"):
        calls += [each, *([Save()] if draw(st.booleans(), "save") else [])]
    watch = subject.capabilities.looks and draw(st.booleans(), "looks after each call")
    replay(
        subject,
        Program(
            setup,
            (
                Save(),
                *calls,
            ),
        ),
        watch=watch,
    )


@check("7.4", "5.6", needs=NEEDS, effort=0.2,
       when=lambda can: pipelines(can) and can.drain_points == "any")  # fmt: skip
def check_a_restore_brings_back_the_last_drain_before_the_save(
    subject: Subject, draw: Draw
) -> None:
    """Drains after the save are forgotten, and the restore is none itself: r(t) is as it was."""
    setup = _pipeline(subject, draw)
    before = draw(visible_steps(setup, 1, 3), "before the save")
    forgotten = draw(visible_steps(setup, 4, 6, first=7), "forgotten")
    after = draw(visible_steps(setup, 4, 5, first=len(before)), "after the restore")
    drained: list[Call] = draw(st.sampled_from(([], [Drain()])), "drain at the beginning")
    replay(
        subject,
        Program(
            setup,
            (
                *drained,
                *before,
                Save(),
                *forgotten,
                Drain(),
                Restore(),
                *after,
            ),
        ),
    )


@check("7.4", "4.7", needs=("checkpoints", "a learning-rate callable"), when=in_order, effort=0.2)
def check_the_learning_rate_goes_on_at_the_step_of_the_save(subject: Subject, draw: Draw) -> None:
    """Step t has its rate, whatever was done after the save; updates in flight keep theirs."""
    can = subject.capabilities
    kinds = [kind for kind in (Counting,) if can.offers(*asked_of_optimizer(kind()))]
    rule = st.sampled_from([kind(RATES) for kind in (*kinds, SGD)])
    setup = draw(visible_setups(can, rules=rule), "setup")
    before = draw(visible_steps(setup, 1, 4), "before the save")
    forgotten = draw(visible_steps(setup, 0, 2, first=7), "forgotten")
    after = draw(visible_steps(setup, 2, 4, first=len(before)), "after the restore")
    replay(subject, Program(setup, (*before, Save(), *forgotten, Restore(), *after)))


@check("7.4", needs=NEEDS, effort=0.3,
       when=lambda can: in_order(can) and can.schedules is None)  # fmt: skip
def check_warm_up_and_loops_are_counted_from_the_first_step_of_the_run(
    subject: Subject, draw: Draw
) -> None:
    """After a restore the schedule goes on at the step of the save: neither a warm-up nor a loop
    begins again.
    """
    phases = (Schedule(1, None, 2), Schedule(2, None, 3), Schedule(2, 3), Schedule(3, 5, 1))
    can = subject.capabilities
    setup = draw(visible_setups(can, schedule=st.sampled_from(phases)), "setup")
    before = draw(visible_steps(setup, 1, 4), "before the save")
    forgotten = draw(visible_steps(setup, 0, 2, first=7), "forgotten")
    after = draw(visible_steps(setup, 4, 5, first=len(before)), "after the restore")
    replay(subject, Program(setup, (*before, Save(), *forgotten, Restore(), *after)))


def _may_have_slots(can: Capabilities) -> bool:
    exact = can.offers(*asked_of_optimizer(Counting()))
    real = can.bitwise and any(map(can.to_the_bit.offers, OPTIMIZERS[1:]))
    return in_order(can) and (exact or real)


@check("7.4", "7.6", needs=NEEDS, when=_may_have_slots, effort=0.3)
def check_slots_are_saved_with_their_tables_at_one_version(subject: Subject, draw: Draw) -> None:
    """Slot variables come back, and of the very updates that are in the tables."""
    can = subject.capabilities
    with_slots = rules(can).filter(lambda rule: bool(rule.slots))
    stale = stale_schedules(can) if pipelines(can) else None
    setup = draw(visible_setups(can, schedule=stale, rules=with_slots), "setup")
    before = draw(visible_steps(setup, 1, 4), "before the save")
    forgotten = draw(visible_steps(setup, 1, 3, first=7), "forgotten")
    after = draw(visible_steps(setup, 1, 3, first=len(before)), "after the restore")
    replay(
        subject,
        Program(
            setup,
            (
                *before,
                Save(),
                *forgotten,
                Restore(),
                Look(),
                *after,
            ),
        ),
    )


@check("1.2", "4.7", needs=("inference", "a learning-rate callable"), effort=0.3,
       when=lambda can: in_order(can) and can.looks)  # fmt: skip
def check_inference_steps_do_not_advance_the_learning_rate(subject: Subject, draw: Draw) -> None:
    """An inference step has no number: neither rates, warm-ups nor loops count it."""
    setup = draw(visible_setups(subject.capabilities, rules=st.just(SGD(RATES))), "setup")
    calls: list[Call] = []
    for each in draw(visible_steps(setup, 2, 5), "steps"):
        calls += [Evaluate(each.batch), each]
    replay(subject, Program(setup, tuple(calls)))


# --- before the first step


@check("7.5", "7.6", effort=0.2)
def check_tables_begin_with_their_initial_values(subject: Subject, draw: Draw) -> None:
    """Before the first step tables are what their initializers say, row by row, and slots too."""
    can = subject.capabilities
    setup = draw(visible_setups(can, rules=rules(can), tables=2), "setup")
    replay(subject, Program(setup, (Look(),)))


# (class, arguments, {slot: (width 1, initial value)}): TensorFlow's names, not the classes' word.
SLOTS: tuple[tuple[type, dict[str, float], dict[str, tuple[bool, float]]], ...] = (
    (SGD, {}, {}),
    (Adagrad, {}, {"accumulators": (False, 0.1)}),
    (Adagrad, {"initial_accumulator_value": 2.0}, {"accumulators": (False, 2.0)}),
    (RowwiseAdagrad, {}, {"accumulators": (True, 0.0)}),
    (RowwiseAdagrad, {"initial_accumulator_value": 0.5}, {"accumulators": (True, 0.5)}),
    (AdagradMomentum, {"momentum": 0.9}, {"accumulators": (False, 0.0), "momenta": (False, 0.0)}),
    (Adam, {}, {"momenta": (False, 0.0), "velocities": (False, 0.0)}),
    (FTRL, {}, {"accumulators": (False, 0.1), "linears": (False, 0.0)}),
)


@check("7.6", effort=0.05)
def check_slots_have_tensorflow_s_names_and_their_initial_values(
    subject: Subject, draw: Draw
) -> None:
    """accumulators; momenta, velocities; linears: by optimizer, in the table's shape or one number
    a row, with the initial value that was asked for.
    """
    can = subject.capabilities
    for kind, options, wanted in SLOTS:
        optimizer = kind(0.5, **options)
        if not can.offers(*asked_of_optimizer(optimizer)):
            continue
        setup = draw(visible_setups(can, rules=st.just(optimizer)), f"under {kind.__name__}")
        pair = Lockstep(subject, setup)
        try:
            _compare_slots(setup, kind.__name__, wanted, pair.engine.slots())
        finally:
            pair.engine.close()


def _compare_slots(
    setup: Setup, kind: str, wanted: dict[str, tuple[bool, float]], found: Mapping[str, Any]
) -> None:
    for name, config in setup.tables.items():
        slots = found.get(name, {})
        if sorted(slots) != sorted(wanted):
            what = f"table {name!r} under {kind} has the slots {sorted(slots)}"
            raise Difference(f"{what}; they must be {sorted(wanted)}", table=name)
        for slot, (rowwise, initial) in wanted.items():
            shape = (config.vocabulary_size, 1 if rowwise else config.dim)
            what = f"slot {slot!r} of table {name!r} under {kind} before the first step"
            values = np.full(shape, initial, np.float32)
            compare(what, np.asarray(slots[slot]), values, table=name, slot=slot)
