"""Work on the next items in another thread, a bounded number of them ahead."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetched(items: Iterable[T], work: Callable[[T], R], ahead: int) -> Generator[R, None, None]:
    """work(item) of every item in turn, computed up to `ahead` items early in one thread.

    An exception of `items` or `work` is raised where its result would have come. The thread ends
    with the generator: when it is exhausted, closed, or raises. `ahead` 0: no thread.
    """
    if ahead < 1:
        yield from map(work, items)
        return
    ready: queue.Queue[tuple[str, R | BaseException | None]] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(kind: str, value: R | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        try:
            for item in items:
                if stopped.is_set() or not put("result", work(item)):
                    return
        except BaseException as error:
            put("error", error)
        else:
            put("end", None)

    thread = threading.Thread(target=run, name="embsim prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if isinstance(value, BaseException) and kind == "error":
                raise value
            yield value  # pyright: ignore[reportReturnType]
    finally:
        stopped.set()
        thread.join()
