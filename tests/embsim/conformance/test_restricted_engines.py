"""Right engines that do less than embsim, or round otherwise, pass all that applies to them."""

from dataclasses import replace

import pytest

from embsim import FTRL, FeatureConfig, RowwiseAdagrad, TableConfig
from embsim.conformance import (
    BoundCheck,
    Check,
    Difference,
    Drain,
    EmbsimEngine,
    Program,
    Setup,
    Train,
    Values,
    check,
    replay,
    smallest,
    subject_of,
)
from embsim.conformance.checks import checkpoints, looks, replicas, schedule
from embsim.conformance.checks._counter import counter, unit_step
from embsim.conformance.mutants.controls import BoundsAllRules, BoundsRowwiseAdagrad
from embsim.conformance.strategies import Bucket, batches, gradients, regimes, setups, to_the_bit
from embsim.schedule import stale
from tests.embsim.conformance.restricted import RESTRICTED, AskedForMore, OneByOne
from tests.nightly import nightly

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


# --- bitwise, but for some rules

NUMBERS = [0.1, -0.3, 1 / 3, 3.0, -7.0, 1e-3, 11.0, 0.7]


class SaysNothing(BoundsRowwiseAdagrad):
    parity = replace(BoundsRowwiseAdagrad.parity, bounded=())


class SaysNothingOfAny(BoundsAllRules):
    parity = replace(BoundsAllRules.parity, bounded=())


class NamesAnother(BoundsRowwiseAdagrad):
    parity = replace(BoundsRowwiseAdagrad.parity, bounded=("FTRL", "power"))


@check("8.1", effort=6)
def check_of_some_steps(subject, draw):
    """As the kit's own checks draw them, of one wide table."""
    can = subject.capabilities
    regime = draw(regimes(can), "regime")
    wide = [Bucket(((8, 8),), ((0, 0),), 4)]
    setup = draw(setups(to_the_bit(can, regime), regime, shapes=wide), "setup")
    step = Train(draw(batches(setup, can, regime)), draw(gradients(setup, can, regime)))
    replay(subject, Program(setup, (step, step)))


@nightly
def test_a_rule_that_is_not_to_the_bit_is_declared_by_its_name():
    check_of_some_steps(BoundsRowwiseAdagrad())
    for wrong in (SaysNothing(), NamesAnother()):
        result = BoundCheck(check_of_some_steps, subject_of(wrong), shrink=False).result()
        assert isinstance(result.error, Difference)
        assert "name them in `bounded`" in str(result.error)


def test_random_programs_ask_for_nothing_that_is_bounded():
    to_the_bit = schedule.check_every_call_is_the_definition_s_to_the_bit_on_any_numbers
    BoundCheck(to_the_bit, subject_of(BoundsAllRules()))()
    undeclared = BoundCheck(to_the_bit, subject_of(SaysNothingOfAny()), shrink=False).result()
    assert isinstance(undeclared.error, Difference)


def test_the_sum_of_a_rule_is_compared_to_the_bit_in_a_program_of_one_s_own():
    table = TableConfig(1, 8, Values([[0.0] * 8]), RowwiseAdagrad(0.1), "sum", "t0")
    program = Program(Setup((FeatureConfig(table),)), (Train([[[0]]], [[NUMBERS]]),))
    replay(subject_of("reference"), program)
    for each in (BoundsRowwiseAdagrad(), SaysNothing()):
        with pytest.raises(Difference, match="slot 'accumulators'"):
            replay(subject_of(each), program)


def test_bags_keep_their_ids_where_a_program_asks_for_what_is_bounded(monkeypatch):
    seen = []
    monkeypatch.setattr(smallest, "shrunk", lambda *_, ids, **__: seen.append(ids))
    for optimizer in (RowwiseAdagrad(0.1), FTRL(0.1)):
        table = TableConfig(1, 1, Values([[0.0]]), optimizer, "sum", "t0")
        difference = Difference("to see")
        difference.program = Program(Setup((FeatureConfig(table),)), ())
        smallest.smallest(subject_of(BoundsRowwiseAdagrad()), difference)
    assert seen == [False, True]


def test_slots_are_not_asked_for_where_none_is_to_the_bit():
    class NoneOfThem(EmbsimEngine):
        capabilities = replace(
            EmbsimEngine.capabilities,
            bounded=("Adagrad", "RowwiseAdagrad", "AdagradMomentum", "Adam", "FTRL"),
            refuses={"a user's optimizer": "no"},
        )

    saved = checkpoints.check_slots_are_saved_with_their_tables_at_one_version
    assert not saved.applies_to(subject_of(NoneOfThem))
    assert saved.applies_to(subject_of(BoundsRowwiseAdagrad()))
    begun = checkpoints.check_tables_begin_with_their_initial_values
    BoundCheck(begun, subject_of(NoneOfThem), "quick")()
