"""Right engines that do less than embsim, or round otherwise, pass all that applies to them."""

from dataclasses import replace

import pytest

from embsim.conformance import BoundCheck, Check, Drain, EmbsimEngine, Program, replay, subject_of
from embsim.conformance.checks import looks, replicas, schedule
from embsim.conformance.checks._counter import counter, unit_step
from embsim.schedule import stale
from tests.embsim.conformance.restricted import RESTRICTED, AskedForMore, OneByOne

CHECKS = [
    each
    for module in (schedule, looks, replicas)
    for each in vars(module).values()
    if isinstance(each, Check)
]


@pytest.mark.parametrize("engine", RESTRICTED)
def test_right_engines_that_do_less_pass_all_that_applies(engine):
    subject = subject_of(engine)
    applying = [each for each in CHECKS if each.applies_to(subject)]
    assert len(applying) >= 8
    for each in applying:
        BoundCheck(each, subject, "quick")()


def test_an_engine_that_rounds_otherwise_is_not_asked_for_bits():
    class Otherwise(EmbsimEngine):
        capabilities = replace(EmbsimEngine.capabilities, bitwise=False)

    subject = subject_of(Otherwise)
    for each in (
        looks.check_looks_change_no_later_number,
        replicas.check_tables_of_one_step_are_independent,
    ):
        BoundCheck(each, subject, "quick")()


def test_restricted_engines_say_when_they_are_asked_for_more():
    setup = counter(OneByOne.capabilities, OneByOne.capabilities.schedules[0])
    engine = OneByOne(setup)
    engine.enqueue(unit_step(setup).batch)
    with pytest.raises(AskedForMore, match="2 batches ahead"):
        engine.enqueue(unit_step(setup).batch)
    engine.close()
    with pytest.raises(AskedForMore, match="staleness=3"):
        OneByOne(counter(OneByOne.capabilities, stale(3)))


@pytest.mark.parametrize("engine", RESTRICTED)
def test_a_program_of_steps_and_drains_is_made_on_every_engine(engine):
    subject = subject_of(engine)
    can = subject.capabilities
    setup = counter(can, (can.schedules or (stale(2),))[0])
    step = unit_step(setup)
    replay(subject, Program(setup, (step, step, Drain(), Drain(), step, step, step)))
