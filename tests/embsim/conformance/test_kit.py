"""The kit as a whole: the reference passes every check, every wrong subject dies of the check that
it names, alone, and every check can fail.

Right subjects that are unusual are in test_controls.py and test_restricted_engines.py.
"""

from collections import Counter
from dataclasses import replace

import pytest

from embsim.conformance import all_checks, checks_for_backend, subject_of
from embsim.conformance.check import BoundCheck
from embsim.conformance.mutants import MUTANTS
from embsim.conformance.mutants.in_flight import (
    ADelayedUpdateTakesTheRateOfALaterStep,
    ALookupReadsHalfOfTheUpdateInFlight,
)
from embsim.conformance.mutants.precision import SumsAreTakenInFloat64
from embsim.conformance.mutants.schedule import TheLastUpdateIsLostAtTheDrain
from tests.embsim.conformance.test_planted_faults import PLANTED

CHECKS = {check.name: check for check in all_checks()}

# Checks of random programs have no mutant of their own: those of other checks must die of them too.
GENERAL = [
    ("check_every_call_of_a_program_equals_the_definition", ALookupReadsHalfOfTheUpdateInFlight),
    ("check_every_call_of_a_program_equals_the_definition", ADelayedUpdateTakesTheRateOfALaterStep),
    ("check_every_call_is_the_definition_s_to_the_bit_on_any_numbers", SumsAreTakenInFloat64),
]


def assert_fails(check, subject):
    """Alone, by an assertion that says what was seen."""
    bound = BoundCheck(CHECKS[check], subject_of(subject), shrink=False)
    # A mutant of embsim's engine has embsim's API, so that checks of backends can be run on it too.
    assert replace(bound.check, backend=False).why_not(bound.subject) is None
    result = bound.result()
    assert result.verdict == "failed", f"{result.verdict}: {result.error!r}"
    assert len(str(result.error)) > 40, "a failure must say what was seen"


@pytest.mark.parametrize("check", checks_for_backend("reference", "quick"), ids=str)
def test_the_reference_passes(check):
    check()


def test_every_check_applies_to_the_reference():
    assert len(checks_for_backend("reference")) == len(CHECKS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_dies_of_the_check_that_it_names(mutant):
    assert_fails(mutant.killed_by, mutant.subject)


@pytest.mark.parametrize(("check", "kind"), GENERAL)
def test_a_general_check_kills_mutants_of_others(check, kind):
    assert_fails(check, kind if hasattr(kind, "capabilities") else kind())


def test_every_check_can_fail():
    of_mutants = {mutant.killed_by for mutant in MUTANTS}
    able = of_mutants | {check for check, _ in GENERAL} | set(PLANTED)
    assert sorted(set(CHECKS) - able) == [], "these never failed: write mutants for them"
    assert sorted(able - set(CHECKS)) == [], "there are no such checks"


def test_every_mutant_says_its_fault_and_where_the_field_met_it():
    assert len(MUTANTS) >= 40
    for mutant in MUTANTS:
        assert mutant.fault.endswith("."), mutant.name
        assert len(mutant.origin) > 20, mutant.name
    twice = [name for name, count in Counter(m.name for m in MUTANTS).items() if count > 1]
    assert twice == []


def test_a_dropped_update_is_shown_by_a_program_of_at_most_eight_calls():
    check = CHECKS["check_every_call_of_a_program_equals_the_definition"]
    error = BoundCheck(check, subject_of(TheLastUpdateIsLostAtTheDrain)).result().error
    seen = {}
    exec(str(error).partition("subject: TheLastUpdateIsLostAtTheDrain\n")[2], seen)
    assert len(list(seen["program"].single_calls)) <= 8
