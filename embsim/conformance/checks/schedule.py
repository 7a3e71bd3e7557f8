"""Which version a lookup reads, drains, and what a pipeline must never do."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...config import FeatureConfig, TableConfig
from ...optimizers import FTRL, SGD, AdagradMomentum, Adam
from ..adapter import Capabilities, asked_of_optimizer
from ..check import Draw, check
from ..lockstep import replay
from ..machine import programs
from ..program import Apply, Call, Dequeue, Drain, Enqueue, Program, Rates, Setup, Train, Values
from ..single import engine_steps
from ..strategies import MODEST, schedules, tables_of
from ..subject import Subject
from ._counter import ahead, arrivals, counter, unit_step
from ._visible import (
    in_order,
    pipelines,
    stale_schedules,
    visible_rules,
    visible_setups,
    visible_steps,
)

MEMORY = (  # optimizers that move a row, or their slots, where the gradient is zero
    Adam(0.5),
    FTRL(0.5, l1_regularization_strength=0.1),
    AdagradMomentum(0.5, momentum=0.9),
)


def _drains(can: Capabilities) -> bool:
    """Drains may come between any two steps."""
    return can.drain_points == "any"


def _with_memory(can: Capabilities) -> list[Any]:
    return [each for each in MEMORY if can.offers(*asked_of_optimizer(each))]


@check("5.1", "5.3", "6.1", effort=2)
def check_every_call_of_a_program_equals_the_definition(subject: Subject, draw: Draw) -> None:
    """Random programs of calls: activations, tables, slots and refusals after each of them."""
    replay(subject, draw(programs(subject.capabilities), "program"))


@check("8.1", "8.2", "8.3", when=lambda can: can.bitwise, effort=2)
def check_every_call_is_the_definition_s_to_the_bit_on_any_numbers(
    subject: Subject, draw: Draw
) -> None:
    """Random programs with numbers whose sums depend on their order, and every optimizer."""
    regime = draw(st.sampled_from(("real", "wild")), "regime")
    replay(subject, draw(programs(subject.capabilities.to_the_bit, regime), "program"))


@check("5.1", "5.2", "1.2")
def check_every_lookup_reads_the_version_of_its_schedule(subject: Subject, draw: Draw) -> None:
    """Step t reads version r(t): one row, gradient 1, rate 1, so that its activation is -r(t)."""
    can = subject.capabilities
    setup = counter(can, draw(schedules(can), "schedule"))
    steps = draw(st.integers(1, 9), "steps")
    replay(subject, Program(setup, (unit_step(setup),) * steps), watch=False)


@check("5.1", "5.6", when=_drains)
def check_drains_move_the_start_and_loops_begin_where_they_began(
    subject: Subject, draw: Draw
) -> None:
    """A drain makes all that was submitted visible; the loops' ends stay at multiples of their
    length.
    """
    can = subject.capabilities
    setup = counter(can, draw(schedules(can), "schedule"))
    kinds = draw(st.lists(st.sampled_from("tttd"), min_size=2, max_size=12), "train or drain")
    calls = [Drain() if kind == "d" else unit_step(setup) for kind in kinds]
    replay(subject, Program(setup, tuple(calls)), watch=False)


@check("1.3", when=in_order)
def check_staleness_is_exact_however_full_the_queue_is(subject: Subject, draw: Draw) -> None:
    """An engine that has nothing else to do applies no update early, and a busy one none late."""
    can = subject.capabilities
    schedule = stale_schedules(can) if pipelines(can) else schedules(can)
    setup = counter(can, draw(schedule, "schedule"))
    calls = draw(arrivals(setup, can, 8), "calls")
    replay(subject, Program(setup, calls), watch=False)


@check("1.3", "6.1")
def check_the_nth_dequeue_returns_the_activations_of_the_nth_batch(
    subject: Subject, draw: Draw
) -> None:
    """Outputs are not shifted beyond what is declared: every batch reads another row than its
    neighbours do, and no update moves a row.
    """
    can = subject.capabilities
    replicas = min(can.replicas)
    values = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]
    table = TableConfig(4, 2, Values(values), SGD(1.0), "sum", "t0")
    setup = Setup((FeatureConfig(table),), draw(schedules(can), "schedule"), replicas, replicas)
    first = draw(st.integers(0, 3), "first row")
    zero = np.zeros(setup.activation_shape(0), np.float32)
    calls: list[Call] = []
    queued, row = 0, first
    for more in draw(st.lists(st.integers(1, min(can.ahead, 4)), min_size=1, max_size=4), "bursts"):
        for _ in range(more - queued):
            calls.append(Enqueue([[[row % 4]] * replicas]))
            row, queued = row + 1, queued + 1
        calls += [Dequeue(), Apply([zero])]
        queued -= 1
    replay(subject, Program(setup, (*calls, *([Dequeue(), Apply([zero])] * queued))), watch=False)


@check("5.3", when=lambda can: in_order(can) and can.ahead > 1)
def check_enqueueing_far_ahead_gives_the_numbers_of_just_in_time(
    subject: Subject, draw: Draw
) -> None:
    """A lookup happens at its dequeue, whenever its batch was enqueued."""
    can = subject.capabilities
    setup = draw(visible_setups(can), "setup")
    steps = draw(visible_steps(setup, 2, min(can.ahead, 6)), "steps")
    before = draw(visible_steps(setup, 0, 2), "steps before")
    calls: list[Call] = [*before, *(Enqueue(each.batch) for each in steps)]
    for each in steps:
        calls += [Dequeue(), Apply(each.gradients)]
    replay(subject, Program(setup, (*before, *steps)), watch=False)
    replay(subject, Program(setup, tuple(calls)), watch=False)


@check("5.3", "5.1", when=lambda can: pipelines(can) and can.in_flight > 1)
def check_steps_dequeued_ahead_read_the_versions_that_they_always_read(
    subject: Subject, draw: Draw
) -> None:
    """Early dequeues, and gradients as late as may be, change no version."""
    can = subject.capabilities
    setup = counter(can, draw(stale_schedules(can), "schedule"))
    replay(subject, Program(setup, draw(ahead(setup, can, 8), "calls")), watch=False)


@check("5.3", "4.7", "1.2", needs=("a learning-rate callable",))
def check_a_delayed_update_keeps_the_learning_rate_of_its_own_step(
    subject: Subject, draw: Draw
) -> None:
    """Whenever it is applied, and also at a drain: each step's rate is another."""
    can = subject.capabilities
    first = draw(st.integers(0, 3), "first rate")
    rates = Rates(tuple(2.0 ** (1 - (first + k) % 4) for k in range(4)))
    setup = counter(can, draw(schedules(can), "schedule"), rates)
    drained = st.booleans() if _drains(can) else st.just(False)
    calls: list[Call] = []
    for drain in draw(st.lists(drained, min_size=2, max_size=7), "drained after each step"):
        calls += [unit_step(setup), *([Drain()] if drain else [])]
    replay(subject, Program(setup, tuple(calls)), watch=False)


@check("1.3", "5.3")
def check_the_rows_of_a_lookup_are_all_of_one_version(subject: Subject, draw: Draw) -> None:
    """Rows that an update in flight also touches are read before it or after it, none in between:
    each batch reads and moves some rows of the batch before it.
    """
    can = subject.capabilities
    samples = 4 if 4 % min(can.replicas) == 0 else min(can.replicas)
    values = np.arange(64).reshape(8, 8)
    table = TableConfig(8, 8, Values(values), SGD(1.0), "sum", "t0")
    features, schedule = (FeatureConfig(table),), draw(schedules(can), "schedule")
    setup = Setup(features, schedule, samples, min(can.replicas))
    rows = [draw(st.permutations(range(8)), "rows of the first batch")]
    for _ in range(draw(st.integers(1, 4), "more batches")):
        keep = draw(st.integers(1, 4), "rows that stay")
        rows.append([*rows[-1][:keep], *reversed(rows[-1][keep:])])
    steps: list[Train] = []
    for number, each in enumerate(rows):
        gradient = np.full(setup.activation_shape(0), 1.0 + number, np.float32)
        steps.append(
            Train([[[each[i % 8], each[(i + 4) % 8]] for i in range(samples)]], [gradient])
        )
    replay(subject, Program(setup, tuple(steps)), watch=False)


@check("5.4", "5.6", when=lambda can: pipelines(can) and _drains(can))
def check_a_lookup_made_ahead_of_a_drain_is_made_again(subject: Subject, draw: Draw) -> None:
    """A batch that was enqueued before a drain and is dequeued after it reads what the drain made
    visible.
    """
    can = subject.capabilities
    setup = draw(visible_setups(can, schedule=stale_schedules(can)), "setup")
    before = draw(visible_steps(setup, 1, 4), "steps before the drain")
    queued = draw(visible_steps(setup, 1, min(can.ahead, 3), len(before)), "batches in the queue")
    after = draw(visible_steps(setup, 0, 2, len(before) + len(queued)), "steps after")
    calls: list[Call] = [*before, *(Enqueue(each.batch) for each in queued), Drain()]
    for each in queued:
        calls += [Dequeue(), Apply(each.gradients)]
    replay(subject, Program(setup, (*calls, *after)), watch=False)


@check("5.4", "4.11")
def check_filling_and_draining_a_pipeline_updates_no_row(subject: Subject, draw: Draw) -> None:
    """Slots that count the updates of each row count the training steps that named it, and no
    bubbles.
    """
    can = subject.capabilities
    rules = visible_rules(can, slots=True)
    setup = draw(visible_setups(can, rules=rules), "setup")
    steps = draw(visible_steps(setup, 1, 6), "steps")
    drained = st.booleans() if _drains(can) else st.just(False)
    calls: list[Call] = []
    for each in steps:
        calls += [*([Drain()] if draw(drained, "drain before the step") else []), each]
    replay(subject, Program(setup, tuple(calls)))


@check("5.4", "4.11", when=lambda can: in_order(can) and _drains(can) and bool(_with_memory(can)))
def check_no_bubble_goes_through_an_optimizer_as_a_gradient_of_zero(
    subject: Subject, draw: Draw
) -> None:
    """A zero gradient moves a row under Adam, FTRL and AdagradMomentum: one step and a drain are
    one update of them, within the bounds of one.
    """
    can = subject.capabilities
    samples = 2 if 2 % min(can.replicas) == 0 else min(can.replicas)
    rule = draw(st.sampled_from(_with_memory(can)), "optimizer")
    values = draw(tables_of((4, 2), [x for x in MODEST if x]), "table")
    table = TableConfig(4, 2, Values(values), rule, "sum", "t0")
    schedule = draw(stale_schedules(can) if pipelines(can) else schedules(can), "schedule")
    setup = Setup((FeatureConfig(table),), schedule, samples, min(can.replicas))
    steps: list[tuple[Any, Any]] = []
    for row in draw(st.lists(st.integers(0, 3), min_size=1, max_size=4), "row of each step"):
        gradient = draw(tables_of((samples, 2), MODEST), "gradient")
        steps.append(([[[row], *[[(row + 1) % 4]] * (samples - 1)]], [gradient]))
    engine_steps(subject, setup, steps)


@check("5.6", when=_drains, effort=0.5)
def check_a_drain_of_nothing_changes_nothing(subject: Subject, draw: Draw) -> None:
    """Before the first step, and again after a drain; the first one shows every update."""
    can = subject.capabilities
    rules = visible_rules(can, slots=True)
    setup = draw(visible_setups(can, rules=rules), "setup")
    steps = draw(visible_steps(setup, 2, 7), "steps")
    middle = draw(st.integers(1, len(steps)), "steps before the drains")
    many = draw(st.integers(1, 3), "drains")
    calls = [Drain(), *steps[:middle], *[Drain()] * many, *steps[middle:], Drain(), Drain()]
    replay(subject, Program(setup, tuple(calls)))


@check("1.2", "5.1", effort=0.7)
def check_a_step_of_empty_bags_is_a_step(subject: Subject, draw: Draw) -> None:
    """It updates no row, and has its version, its place in a loop and its learning rate."""
    can = subject.capabilities
    setup = draw(visible_setups(can), "setup")
    steps = draw(visible_steps(setup, 2, 7), "steps")
    empty = [[[]] * setup.samples for _ in setup.features]
    calls = [
        Train(empty, each.gradients) if draw(st.booleans(), "empty") else each for each in steps
    ]
    replay(subject, Program(setup, (*calls, *steps[:2])), watch=False)
