"""Right backends and engines that do unusual things pass every check."""

import pytest

from embsim.conformance import all_checks, subject_of
from embsim.conformance.check import BoundCheck
from embsim.conformance.mutants.controls import CONTROLS

SUBJECTS = [subject_of(control) for control in CONTROLS]
BOUND = [
    BoundCheck(check, subject, "quick")
    for subject in SUBJECTS
    for check in all_checks()
    if check.applies_to(subject)
]


@pytest.mark.parametrize("bound", BOUND, ids=lambda bound: f"{bound.subject.name}-{bound}")
def test_a_control_passes(bound):
    bound()


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_a_control_is_held_to_something(subject):
    assert sum(bound.subject is subject for bound in BOUND) >= 5
