"""Checks of lookups, gradients and backends: each mutant dies in the check that it names."""

import pytest

from embsim.conformance.check import BoundCheck, Check
from embsim.conformance.checks import backend as of_backend
from embsim.conformance.checks import (
    gradients,
    inputs,
    invariance,
    lookup,
    plans,
    refusals,
)
from embsim.conformance.mutants import backend, ids
from embsim.conformance.mutants import gradients as of_gradients
from embsim.conformance.mutants import lookup as of_lookup
from embsim.conformance.mutants import plans as of_plans
from embsim.conformance.mutants.mutant import MUTANTS
from embsim.conformance.subject import subject_of

MODULES = (lookup, gradients, invariance, inputs, of_backend, plans, refusals)
CHECKS = {
    each.name: each for module in MODULES for each in vars(module).values() if type(each) is Check
}
FAULTS = {module.__name__ for module in (of_lookup, ids, of_gradients, backend, of_plans)}


def _module(mutant):
    subject = mutant.subject
    return (subject if isinstance(subject, type) else type(subject)).__module__


OURS = [mutant for mutant in MUTANTS if _module(mutant) in FAULTS]


@pytest.mark.parametrize("name", CHECKS)
def test_the_reference_passes(name):
    check = CHECKS[name]
    subject = subject_of("reference")
    assert check.applies_to(subject)
    BoundCheck(check, subject, "quick")()


@pytest.mark.parametrize("mutant", OURS, ids=lambda mutant: mutant.name)
def test_a_mutant_dies_in_the_check_that_it_names(mutant):
    bound = BoundCheck(CHECKS[mutant.killed_by], subject_of(mutant.subject), shrink=False)
    with pytest.raises(AssertionError):
        bound()


def test_there_are_many_and_each_says_its_fault_and_origin():
    assert len(OURS) >= 20
    for mutant in OURS:
        assert mutant.fault and mutant.origin, mutant.name


def test_nearly_every_check_kills_a_mutant_of_its_own():
    """The others are held by mutants of other files, or say a law that others break with them."""
    killers = {mutant.killed_by for mutant in OURS}
    assert killers <= set(CHECKS)
    assert len(set(CHECKS) - killers) <= 4, set(CHECKS) - killers
