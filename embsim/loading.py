"""A thread that enqueues batches ahead of the training, and never leaves it waiting in vain.

with embsim.Loader(embedding, batches) as loader:      batches: (features, labels) pairs
    for labels in loader:
        activations = embedding.dequeue()
        ...
        embedding.apply_gradients(gradients)
"""

import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

from .config import integer
from .errors import DeadlockError
from .tpu_embedding import TPUEmbedding

T = TypeVar("T")
PATIENCE = 1.0  # seconds until the thread looks whether it is still wanted
ITERATES = "waits for the next batch of the iterable"


class Loader(Generic[T]):
    """Enqueues every batch of an iterable in a thread of its own, up to `ahead` batches early.

    Iterating gives what came with each batch as soon as the batch can be dequeued. An error of the
    iterable, or of its batch, is raised where that batch would have come, after all before it. When
    the block is left early, what was enqueued and not dequeued stays (`embedding.discard()`).

    Args:
      embedding: whose queue is filled.
      batches: (features, anything) pairs; the thread iterates over it.
      ahead: batches that may wait; below the embedding's queue_capacity, others have room as well.
      training: as for `enqueue`.
      timeout: seconds that the training waits for one batch; None is for ever.

    Raises, from the iteration:
      DeadlockError: no batch came in time; the message says where the thread is.
    """

    def __init__(
        self,
        embedding: TPUEmbedding,
        batches: Iterable[tuple[Any, T]],
        *,
        ahead: int = 4,
        training: bool = True,
        timeout: float | None = 60.0,
    ) -> None:
        self._ahead = integer("ahead", ahead, minimum=1)
        self._embedding, self._batches = embedding, batches
        self._training, self._timeout = training, timeout
        self._changed = threading.Condition()
        self._ready: deque[T] = deque()
        self._enqueued = 0
        self._ended = self._stopped = False
        self._error: BaseException | None = None
        self._doing, self._since = "has not begun", time.monotonic()
        self._thread = threading.Thread(target=self._run, name="embsim loader", daemon=True)

    def __enter__(self) -> "Loader[T]":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the thread; one that hangs in the iterable is left behind, with a warning."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(5 * PATIENCE)
        if self._thread.is_alive():
            warnings.warn(f"Loader: its thread does not end: {self._where()}", stacklevel=2)

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                here = f"step {self._enqueued - len(self._ready)}"
                if not self._changed.wait_for(lambda: self._ready or self._ended, self._timeout):
                    raise DeadlockError(
                        f"Loader: {here} has waited {self._timeout:g} s for a batch, "
                        f"{self._enqueued} came before; {self._where()}; required: a batch in "
                        "time, or a larger timeout"
                    )
                if not self._ready:
                    break
                item = self._ready.popleft()
                self._changed.notify_all()
            yield item
        if self._error is not None:
            self._error.add_note(f"raised by the loader thread, after {self._enqueued} batches")
            raise self._error

    def _run(self) -> None:
        try:
            self._enqueue_all()
        except BaseException as error:
            self._error = error
        with self._changed:
            self._ended = True
            self._now("has ended")
            self._changed.notify_all()

    def _enqueue_all(self) -> None:
        self._now(ITERATES)
        for features, item in self._batches:
            self._now("enqueues, or waits for room in the queue (missing call: dequeue)")
            if not self._put(features):
                return
            with self._changed:
                self._enqueued += 1
                self._ready.append(item)
                self._changed.notify_all()
            self._now(ITERATES)

    def _put(self, features: Any) -> bool:
        """Whether the batch is enqueued; not if it is no longer wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._ready) < self._ahead)
        while not self._stopped:
            try:  # to be full is what it may be by batches of others; anything else is an error
                self._embedding.enqueue(
                    features, training=self._training, blocking=True, timeout=PATIENCE
                )
                return True
            except DeadlockError:
                continue
        return False

    def _now(self, doing: str) -> None:
        self._doing, self._since = doing, time.monotonic()

    def _where(self) -> str:
        """What the thread does, since when, and at which line."""
        seconds = time.monotonic() - self._since
        frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
        frame = frames.get(self._thread.ident or 0)
        stack = traceback.extract_stack(frame) if frame is not None else []
        outside = [each for each in stack if each.filename not in (__file__, threading.__file__)]
        at = f", at {outside[-1].filename}:{outside[-1].lineno}" if outside else ""
        return f"the loader thread {self._doing} for {seconds:.1f} s{at}"
