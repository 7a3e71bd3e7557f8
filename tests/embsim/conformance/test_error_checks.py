"""The checks of errors and checkpoints pass on the reference, and each mutant dies in its check."""

import pytest

from embsim.conformance import BoundCheck, Check, subject_of
from embsim.conformance.checks import api, carried, checkpoints, errors
from embsim.conformance.mutants import MUTANTS
from embsim.conformance.mutants import checkpoints as checkpoint_mutants
from embsim.conformance.mutants import device_state as device_mutants
from embsim.conformance.mutants import errors as error_mutants

CHECKS = {
    each.name: each
    for module in (errors, api, checkpoints, carried)
    for each in vars(module).values()
    if isinstance(each, Check)
}
MODULES = {module.__name__ for module in (checkpoint_mutants, error_mutants, device_mutants)}


def module_of(mutant):
    subject = mutant.subject
    return (subject if isinstance(subject, type) else type(subject)).__module__


MINE = [mutant for mutant in MUTANTS if module_of(mutant) in MODULES]


@pytest.mark.parametrize("check", CHECKS.values(), ids=list(CHECKS))
def test_the_reference_passes(check) -> None:
    BoundCheck(check, subject_of("reference"), "quick")()


@pytest.mark.parametrize("mutant", MINE, ids=lambda mutant: mutant.name)
def test_a_mutant_dies_of_an_assertion_in_the_check_that_it_names(mutant) -> None:
    bound = BoundCheck(CHECKS[mutant.killed_by], subject_of(mutant.subject), shrink=False)
    assert bound.check.applies_to(bound.subject)
    with pytest.raises(AssertionError) as failure:
        bound()
    assert len(str(failure.value)) > 40, "a failure must say what was seen"


def test_every_mutant_says_its_fault_and_where_it_was_met() -> None:
    assert len(MINE) >= 30
    for mutant in MINE:
        assert mutant.fault.endswith("."), mutant.name
        assert len(mutant.origin) > 40, mutant.name
