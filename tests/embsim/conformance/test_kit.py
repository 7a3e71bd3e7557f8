"""The kit as a whole: right subjects pass every check, and every wrong one dies of the check that
it names, alone.
"""

from collections import Counter

import pytest

from embsim.conformance import all_checks, checks_for_backend, subject_of
from embsim.conformance.check import BoundCheck
from embsim.conformance.mutants import MUTANTS

CHECKS = {check.name: check for check in all_checks()}


@pytest.mark.parametrize("check", checks_for_backend("reference", "quick"), ids=str)
def test_the_reference_passes(check):
    check()


def test_every_check_applies_to_the_reference():
    assert len(checks_for_backend("reference")) == len(CHECKS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_dies_of_the_check_that_it_names(mutant):
    subject = subject_of(mutant.subject)
    result = BoundCheck(CHECKS[mutant.killed_by], subject, shrink=False).result()
    assert result.verdict == "failed", f"{result.verdict}: {result.error!r}"


def test_every_mutant_says_its_fault_and_where_the_field_met_it():
    assert len(MUTANTS) >= 40
    for mutant in MUTANTS:
        assert mutant.fault.endswith("."), mutant.name
        assert len(mutant.origin) > 20, mutant.name
    twice = [name for name, count in Counter(m.name for m in MUTANTS).items() if count > 1]
    assert twice == []
