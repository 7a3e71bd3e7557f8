"""Ctrl-C waits for the end of a block, and of an update of all tables."""

import signal
import threading

import numpy as np
import pytest

import embsim
from embsim import Engine, FeatureConfig, ReferenceBackend, TableConfig
from embsim._signals import ctrl_c_waits


def test_ctrl_c_comes_after_the_block() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), ctrl_c_waits():
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_exception_of_the_block_leaves_the_handler_as_it_was() -> None:
    with pytest.raises(KeyError), ctrl_c_waits():
        raise KeyError("its own")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_are_left_alone() -> None:
    seen = []

    def body() -> None:
        with ctrl_c_waits():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


class Interrupted(ReferenceBackend):
    """Ctrl-C is pressed in the middle of every update."""

    def update(self, *arguments):
        state = super().update(*arguments)
        signal.raise_signal(signal.SIGINT)
        return state


@pytest.mark.parametrize("schedule", [embsim.sequential(), embsim.stale(1)], ids=str)
def test_an_update_is_whole_and_done_once_when_ctrl_c_is_pressed(schedule) -> None:
    tables = [TableConfig(2, 1, lambda s, d: np.zeros(s, d), name=name) for name in "ab"]
    features = [FeatureConfig(table) for table in tables]
    engine = Engine(features, embsim.SGD(1.0), schedule=schedule, backend=Interrupted())
    ones, interrupts = np.ones((1, 1), np.float32), 0
    for _ in range(3):
        engine.enqueue(engine.make_batch([[1], [1]]))
        try:
            engine.dequeue()
        except KeyboardInterrupt:
            interrupts += 1
        assert engine.progress.dequeued == engine.progress.submitted + 1
        try:
            engine.apply_gradients([ones, ones])
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts == 3 - schedule.staleness
    engine._store.backend = ReferenceBackend()
    assert {name: w.tolist() for name, w in engine.read().weights.items()} == {
        "a": [[0], [-3]],
        "b": [[0], [-3]],
    }
