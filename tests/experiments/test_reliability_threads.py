"""Three threads at once: nothing is wrong with the engine, and what is planted is found."""

import threading

import numpy as np
import pytest

from embsim import Engine, ReferenceBackend
from experiments.reliability import threads


def test_no_step_is_lost_doubled_or_seen_half_done():
    counts = threads.run(4000)
    assert not counts.wrong and counts.total >= 4000
    named = {
        "enqueue",
        "dequeue",
        "dequeue, look",
        "apply_gradients",
        "abandon",
        "snapshot",
        "drain",
    }
    assert named <= set(counts.done) and min(counts.done[name] for name in named) > 0
    assert counts.done["dequeue"] == counts.done["apply_gradients"] + counts.done["abandon"]
    assert "nothing lost" in threads.report(counts, 1.0)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_look_at_half_a_step_is_found(monkeypatch):
    """Without the wait for whole steps looks are refused; with views of one table they tear."""
    monkeypatch.setattr(Engine, "_is_whole", lambda self: True)
    assert "snapshot" in threads.run(4000).wrong[0]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_update_that_is_lost_is_found(monkeypatch):
    update, calls = ReferenceBackend.update, iter(range(10**9))

    def forgetful(self, state, *rest):
        return state if next(calls) % 50 == 49 else update(self, state, *rest)

    monkeypatch.setattr(ReferenceBackend, "update", forgetful)
    assert threads.run(4000).wrong


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_batch_that_is_lost_is_found(monkeypatch):
    enqueue, calls = Engine.enqueue, iter(range(10**9))

    def forgetful(self, *arguments, **options):
        if next(calls) != 200:
            enqueue(self, *arguments, **options)

    monkeypatch.setattr(Engine, "enqueue", forgetful)
    assert threads.run(4000).wrong


def test_threads_end():
    before = threading.active_count()
    threads.run(200)
    assert threading.active_count() <= before
    assert np.isfinite(before)
