"""Checks of schedules, looks and replicas: right engines pass, each mutant dies of its check."""

from dataclasses import replace

import pytest

from embsim.conformance import BoundCheck, Check, Drain, EmbsimEngine, Program, replay, subject_of
from embsim.conformance.checks import looks, replicas, schedule
from embsim.conformance.checks._counter import counter, unit_step
from embsim.conformance.mutants import MUTANTS
from embsim.conformance.mutants import in_flight as mutants_in_flight
from embsim.conformance.mutants import looks as mutants_of_looks
from embsim.conformance.mutants import replicas as mutants_of_replicas
from embsim.conformance.mutants import schedule as mutants_of_schedules
from embsim.schedule import stale
from tests.embsim.conformance.restricted import RESTRICTED, AskedForMore, OneByOne

CHECKS = {
    name: each
    for module in (schedule, looks, replicas)
    for name, each in vars(module).items()
    if isinstance(each, Check)
}
HERE = (mutants_of_schedules, mutants_in_flight, mutants_of_looks, mutants_of_replicas)
OURS = [m for m in MUTANTS if getattr(m.subject, "__module__", "") in {h.__name__ for h in HERE}]


@pytest.mark.parametrize("name", CHECKS)
def test_the_reference_passes(name):
    BoundCheck(CHECKS[name], subject_of("reference"), "quick")()


@pytest.mark.parametrize("engine", RESTRICTED)
def test_right_engines_that_do_less_pass_all_that_applies(engine):
    subject = subject_of(engine)
    applying = [each for each in CHECKS.values() if each.applies_to(subject)]
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


@pytest.mark.parametrize("mutant", OURS, ids=lambda mutant: mutant.name)
def test_each_mutant_dies_of_its_check_alone(mutant):
    result = BoundCheck(
        CHECKS[mutant.killed_by], subject_of(mutant.subject), "default", shrink=False
    ).result()
    assert isinstance(result.error, AssertionError), (mutant.fault, result.error)
    assert result.error.args[0]


def test_every_check_of_one_decision_kills_a_mutant():
    general = {name for name in CHECKS if name.startswith("check_every_call_")}
    assert {mutant.killed_by for mutant in OURS} == set(CHECKS) - general
    assert len(OURS) >= 40


def test_the_message_names_the_version_that_was_read():
    subject = subject_of(mutants_of_schedules.StaleByTwoInsteadOfOne)
    setup = counter(subject.capabilities, stale(1))
    with pytest.raises(AssertionError, match="training step 2 read version 0, the law says 1"):
        replay(subject, Program(setup, (unit_step(setup),) * 4))


def test_the_message_names_the_samples_whose_gradients_were_added():
    subject = subject_of(mutants_of_replicas.OnlyTheFirstReplicaTrains)
    check = replicas.check_gradients_of_all_replicas_and_samples_are_added
    error = BoundCheck(check, subject, shrink=False).result().error
    assert "the gradients of samples [0, 1]; all 4 must be added" in str(error)


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
