"""Errors are also the built-in ones that TensorFlow raises, so `except` clauses stay."""

import pytest

import embsim
from embsim import errors

BUILT_IN = {
    "BatchError": ValueError,
    "CapacityError": ValueError,
    "CheckpointError": ValueError,
    "DeadlockError": RuntimeError,
    "BackendError": RuntimeError,
}


def test_every_error_has_its_built_in_kind():
    found = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert found == set(BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_an_error_is_exported_and_says_what_it_is_for(name):
    error = getattr(embsim, name)
    assert error is getattr(errors, name)
    assert error.__bases__ == (BUILT_IN[name],)
    assert error.__doc__
    with pytest.raises(BUILT_IN[name], match="512 in sample 3"):
        raise error("id 512 in sample 3")
