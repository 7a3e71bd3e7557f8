"""Threads that load, train and look: nobody is starved, every look is of whole steps."""

import threading
import time

import numpy as np
import pytest

import embsim
from embsim import DeadlockError, Engine, FeatureConfig, TableConfig
from embsim._turns import Turns


def engine(**options):
    tables = [TableConfig(4, 1, lambda s, d: np.zeros(s, d), name=name) for name in "ab"]
    features = [FeatureConfig(table) for table in tables]
    return Engine(features, embsim.SGD(1.0), **options)


def step(made):
    made.enqueue(made.make_batch([[0, 1], [2, 3]]))
    made.dequeue()
    made.apply_gradients([-np.ones((2, 1), np.float32)] * 2)


def test_a_look_waits_for_the_end_of_the_step():
    made = engine()
    made.enqueue(made.make_batch([[0, 1], [2, 3]]))
    made.dequeue()
    found = []
    looker = threading.Thread(target=lambda: found.append(made.snapshot(blocking=True, timeout=30)))
    looker.start()
    time.sleep(0.2)
    assert looker.is_alive() and not found
    made.apply_gradients([-np.ones((2, 1), np.float32)] * 2)
    looker.join(30)
    assert found[0].weights["a"].tolist() == [[1], [1], [0], [0]]


def test_a_look_that_waited_too_long_says_for_what():
    made = engine()
    made.enqueue(made.make_batch([[0, 1], [2, 3]]))
    made.dequeue()
    with pytest.raises(DeadlockError, match=r"waited 0.05 s .*dequeued 1.*apply_gradients or aban"):
        made.snapshot(blocking=True, timeout=0.05)
    with pytest.raises(DeadlockError, match=r"snapshot: .*apply_gradients"):
        made.snapshot()
    made.apply_gradients([None, None])
    made._changed.give_way(lambda: True)  # it waits no longer
    made.snapshot()


def test_a_loop_that_never_pauses_starves_no_look():
    """Each look is of whole steps of both tables, and later ones are of later steps."""
    made, stop, errors = engine(schedule=embsim.stale(2)), threading.Event(), []

    def train():
        try:
            while not stop.is_set():
                step(made)
        except BaseException as error:
            errors.append(error)

    trainer = threading.Thread(target=train)
    trainer.start()
    seen, end = [0.0], time.monotonic() + 60
    while (len(seen) < 20 or seen[-1] < 5) and time.monotonic() < end:
        weights = made.snapshot(blocking=True, timeout=30).weights
        assert weights["a"][0] == weights["a"][1] == weights["b"][2] == weights["b"][3]
        seen.append(float(weights["a"][0, 0]))
    stop.set()
    trainer.join(30)
    assert not errors and not trainer.is_alive()
    assert seen == sorted(seen) and seen[-1] >= 5


def test_a_look_waits_for_the_end_of_a_run():
    """What a run has submitted may be undone, so it is not seen."""
    strategy = embsim.TPUStrategy(num_replicas=1)
    table = TableConfig(4, 1, lambda s, d: np.zeros(s, d), name="a")
    with strategy.scope():
        embedding = embsim.TPUEmbedding(FeatureConfig(table), embsim.SGD(1.0))
    embedding.enqueue(np.array([0, 1]))
    submitted, go_on, found = threading.Event(), threading.Event(), []

    def look():
        submitted.wait(30)
        with pytest.raises(RuntimeError, match=r"a strategy.run is in progress"):
            embedding.snapshot()
        looking.set()
        found.append(embedding.snapshot(blocking=True, timeout=30).embedding_tables[table].tolist())

    def fails():
        embedding.dequeue()
        embedding.apply_gradients(np.ones((2, 1), np.float32))
        submitted.set()
        looking.wait(30)
        go_on.wait(0.2)
        raise KeyError("undo")

    looking = threading.Event()
    looker = threading.Thread(target=look)
    looker.start()
    with pytest.raises(KeyError):
        strategy.run(fails)
    looker.join(30)
    assert found == [[[0], [0], [0], [0]]]
    embedding.discard()
    embedding.close()


def test_who_waits_is_let_go_when_the_engine_is_closed():
    made = engine()
    made.enqueue(made.make_batch([[0, 1], [2, 3]]))
    made.dequeue()
    errors = []

    def look():
        try:
            made.snapshot(blocking=True)
        except RuntimeError as error:
            errors.append(str(error))

    looker = threading.Thread(target=look)
    looker.start()
    time.sleep(0.1)
    with pytest.warns(UserWarning, match=r"work is given up"):
        made.close()
    looker.join(30)
    assert errors == ["snapshot: this embedding was closed; make a new one"]


def test_without_lookers_nobody_gives_way():
    turns = Turns()
    with turns:
        turns.give_way(lambda: True)
