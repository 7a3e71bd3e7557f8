"""Work ahead of its time, in a thread that ends with its reader."""

import itertools
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embsim_tpu._prefetch import prefetched


def threads():
    return [each for each in threading.enumerate() if each.name == "embsim prefetch"]


def waited(condition):
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


@settings(max_examples=30)
@given(st.lists(st.integers(), max_size=8), st.integers(0, 10))
def test_results_come_in_turn(items, ahead):
    assert list(prefetched(items, lambda x: 2 * x, ahead)) == [2 * x for x in items]
    assert not threads()


@pytest.mark.parametrize("ahead", [1, 3])
def test_at_most_so_many_are_ahead(ahead):
    """In the queue, and one that waits for its place there."""
    begun = []
    reader = prefetched(itertools.count(), begun.append, ahead)
    assert begun == []
    next(reader)
    assert waited(lambda: len(begun) == 1 + ahead + 1)
    time.sleep(0.05)
    assert begun == list(range(1 + ahead + 1))
    reader.close()
    assert not threads()


def test_without_a_thread_nothing_is_ahead():
    begun = []
    reader = prefetched(itertools.count(), begun.append, 0)
    next(reader)
    assert begun == [0]
    assert not threads()


@pytest.mark.parametrize("ahead", [0, 1, 5])
@pytest.mark.parametrize("of_work", [False, True])
def test_an_error_comes_where_its_result_would_have(ahead, of_work):
    def items():
        yield from (0, 1)
        if not of_work:
            raise KeyError("planned")
        yield 2

    def work(item):
        if item == 2:
            raise KeyError("planned")
        return item

    reader = prefetched(items(), work, ahead)
    assert [next(reader), next(reader)] == [0, 1]
    with pytest.raises(KeyError, match="planned"):
        next(reader)
    assert list(reader) == []
    assert not threads()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_error_that_is_no_exception_passes_too(error):
    def work(item):
        raise error

    with pytest.raises(error):
        next(prefetched([1], work, 2))
    assert not threads()


def test_an_error_may_be_a_result():
    made = [KeyError("a result"), None]
    assert list(prefetched(made, lambda x: x, 1)) == made


@pytest.mark.parametrize("taken", [1, 3])
def test_a_reader_that_stops_ends_the_thread(taken):
    reader = prefetched(itertools.count(), lambda x: x, 2)
    assert list(itertools.islice(reader, taken)) == list(range(taken))
    assert threads()
    reader.close()
    assert not threads()


def test_a_reader_that_was_never_read_starts_none():
    reader = prefetched(itertools.count(), lambda x: x, 2)
    assert not threads()
    reader.close()


def test_an_error_of_the_reader_ends_the_thread():
    from contextlib import closing

    with (
        pytest.raises(KeyError, match="of the reader"),
        closing(prefetched(itertools.count(), lambda x: x, 2)) as reader,
    ):
        next(reader)
        raise KeyError("of the reader")
    assert not threads()
