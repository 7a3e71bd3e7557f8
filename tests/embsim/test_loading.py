"""A loader thread: in order, bounded, its errors where they belong, never a hang."""

import threading
import time

import numpy as np
import pytest

import embsim
from embsim import DeadlockError, FeatureConfig, Loader, TableConfig


def make(**options):
    table = TableConfig(64, 1, lambda s, d: np.zeros(s, d), name="t")
    with embsim.TPUStrategy(1).scope():
        embedding = embsim.TPUEmbedding(FeatureConfig(table), embsim.SGD(1.0), **options)
    return embedding, table


def train(embedding, loader):
    """Labels in the order in which their batches were trained on."""
    seen = []
    for label in loader:
        activations = embedding.dequeue()
        embedding.apply_gradients(-np.ones_like(activations))
        seen.append(label)
    return seen


def numbered(count):
    return ((np.array([i % 64]), i) for i in range(count))


@pytest.mark.parametrize("ahead", [1, 4, 20])
def test_every_batch_is_trained_once_in_order_with_what_came_with_it(ahead):
    """Also with more ahead than the queue holds."""
    embedding, table = make(schedule=embsim.stale(1))
    with Loader(embedding, numbered(150), ahead=ahead) as loader:
        assert train(embedding, loader) == list(range(150))
    expected = np.bincount(np.arange(150) % 64, minlength=64)
    embedding.drain()
    np.testing.assert_array_equal(embedding.embedding_tables[table][:, 0], expected)
    embedding.close()


def test_the_thread_is_no_further_ahead_than_it_may_be():
    embedding, _ = make()
    drawn = []

    def batches():
        for features, label in numbered(30):
            drawn.append(label)
            yield features, label

    with Loader(embedding, batches(), ahead=3) as loader:
        for label in loader:
            time.sleep(0.002)
            assert len(drawn) <= label + 1 + 3 + 1  # one more is in the thread's hand
            embedding.apply_gradients(np.ones_like(embedding.dequeue()))
    embedding.close()


def test_an_error_of_the_iterable_comes_where_its_batch_would_have():
    embedding, _ = make()

    def batches():
        yield from numbered(5)
        raise OSError("disk gone")

    seen = []
    with Loader(embedding, batches()) as loader, pytest.raises(OSError, match="disk gone") as info:
        for label in loader:
            embedding.apply_gradients(np.ones_like(embedding.dequeue()))
            seen.append(label)
    assert seen == [0, 1, 2, 3, 4]
    assert info.value.__notes__ == ["raised by the loader thread, after 5 batches"]
    embedding.close()


def test_a_batch_that_is_refused_raises_its_own_error():
    embedding, _ = make()
    batches = [(np.array([1]), 0), (np.array([64]), 1)]
    with Loader(embedding, batches) as loader, pytest.raises(ValueError, match="64"):
        train(embedding, loader)
    embedding.close()


def test_a_stalled_loader_is_an_error_that_says_where_it_is():
    embedding, _ = make()
    stalled = threading.Event()

    def batches():
        yield from numbered(2)
        stalled.wait(20)

    with Loader(embedding, batches(), timeout=0.3) as loader:
        with pytest.raises(
            DeadlockError, match=r"step 2 has waited 0.3 s for a batch, 2 came"
        ) as e:
            train(embedding, loader)
        assert "waits for the next batch of the iterable" in str(e.value)
        assert "threading.py" not in str(e.value) and __file__ in str(e.value)
        stalled.set()
    embedding.close()


def test_a_thread_that_hangs_is_left_behind_with_a_warning(monkeypatch):
    monkeypatch.setattr("embsim.loading.PATIENCE", 0.02)
    embedding, _ = make()
    release = threading.Event()

    def batches():
        release.wait(20)
        yield from numbered(1)

    warned = pytest.warns(UserWarning, match=r"its thread does not end: the loader thread waits")
    with warned, Loader(embedding, batches()):
        pass
    release.set()
    embedding.close()


def test_a_block_that_is_left_early_ends_the_thread_and_keeps_what_was_enqueued():
    embedding, _ = make()
    with Loader(embedding, numbered(1000), ahead=3) as loader:
        for label in loader:
            embedding.apply_gradients(np.ones_like(embedding.dequeue()))
            if label == 10:
                break
    assert not loader._thread.is_alive()
    assert 0 < embedding.discard() <= 4
    embedding.close()


def test_evaluation_batches_fit_between():
    embedding, _ = make(queue_capacity=4)
    with Loader(embedding, numbered(20), ahead=2) as loader:
        assert train(embedding, loader) == list(range(20))
    embedding.enqueue(np.array([1]), training=False)
    assert embedding.dequeue().shape == (1, 1)
    embedding.close()


def test_ahead_is_at_least_one():
    embedding, _ = make()
    with pytest.raises(ValueError, match="ahead"):
        Loader(embedding, numbered(1), ahead=0)
    embedding.close()
