"""Checks of schedules and replicas: what a failure says."""

import pytest

from embsim.conformance import BoundCheck, Program, replay, subject_of
from embsim.conformance.checks import replicas
from embsim.conformance.checks._counter import counter, unit_step
from embsim.conformance.mutants import replicas as mutants_of_replicas
from embsim.conformance.mutants import schedule as mutants_of_schedules
from embsim.schedule import stale


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
