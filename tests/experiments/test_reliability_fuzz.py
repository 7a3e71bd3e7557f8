"""The fuzzer: it finds what is planted, and 2,000 cases of it find nothing in embsim."""

import os
import subprocess
import sys

import numpy as np
import pytest

import embsim
from experiments.reliability import fuzz


def test_two_thousand_cases():
    """In a process without the run-time type checker, which would refuse first."""
    command = [sys.executable, "-m", "experiments.reliability", "fuzz", "--cases", "2000"]
    done = subprocess.run(
        command,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert "2,000 cases in" in done.stdout
    for kind in ("ValueError", "TypeError", "CheckpointError", "BatchError", "accepted"):
        assert kind in done.stdout


def planted(monkeypatch, call):
    monkeypatch.setattr(fuzz, "call", call)
    return lambda: fuzz.case(b"")


def test_an_error_that_is_not_documented_is_found(monkeypatch):
    def call(made, draw, scratch):
        raise KeyError("x")

    with pytest.raises(AssertionError, match="KeyError"):
        planted(monkeypatch, call)()


def test_an_error_in_words_that_are_not_ours_is_found(monkeypatch):
    def call(made, draw, scratch):
        np.zeros(2).reshape(3)

    with pytest.raises(AssertionError, match=r"ValueError of .*cannot reshape"):
        planted(monkeypatch, call)()


def test_a_refused_call_that_changed_something_is_found(monkeypatch):
    def call(made, draw, scratch):
        made.apply_gradients({name: np.full((2, 2), 3, np.float32) for name in "ab"})
        made.abandon()
        embsim.stale(-1)

    with pytest.raises(AssertionError, match="the embedding has changed"):
        planted(monkeypatch, call)()


def test_an_altered_checkpoint_that_is_accepted_is_found(monkeypatch, tmp_path):
    restore = embsim.TPUEmbedding.restore
    monkeypatch.setattr(embsim.TPUEmbedding, "restore", lambda self, path: None)
    with pytest.raises(AssertionError, match="restored to other numbers"):
        for first in range(256):
            fuzz._checkpoint(fuzz.Bytes(bytes([first, 9, 9, 1])), tmp_path)
    monkeypatch.setattr(embsim.TPUEmbedding, "restore", restore)
    with pytest.raises(embsim.CheckpointError):
        fuzz._checkpoint(fuzz.Bytes(bytes([0, 0, 0, 3])), tmp_path)


def test_a_case_is_its_bytes():
    missing_file = bytes([23, 0, 0, 0, 3])
    assert fuzz.case(missing_file) == fuzz.case(missing_file) == "CheckpointError"
    draw = fuzz.Bytes(b"\x07")
    assert [draw.below(5), draw.below(5)] == [2, 0]
