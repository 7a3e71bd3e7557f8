"""The engine's lock: threads that load, train and look at the tables take turns."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

from .errors import DeadlockError


class Turns(threading.Condition):
    """A lock that one thread may take again. Whoever changes what others wait for notifies all.

    A thread that looks at whole steps waits until none is half done. Training begins no other step
    before those have looked that wait by then: else a fast loop would let them wait for ever. It
    does not wait for those that come later: else fast looks would let it wait for ever.
    """

    def __init__(self) -> None:
        super().__init__(threading.RLock())
        self._asked = self._looked = 0

    @contextmanager
    def look(
        self, is_whole: Callable[[], bool] | None, timeout: float | None, found: Callable[[], str]
    ) -> Generator[None]:
        """Hold the lock while no step is half done; without `is_whole`, at once.

        Raises:
          DeadlockError: one still was after `timeout` seconds.
        """
        with self:
            self._asked += 1
            try:
                if is_whole is not None and not self.wait_for(is_whole, timeout):
                    raise DeadlockError(
                        f"snapshot: waited {timeout:g} s for the end of a step ({found()}); "
                        "missing call, of another thread: apply_gradients or abandon"
                    )
                yield
            finally:
                self._looked += 1
                self.notify_all()

    def give_way(self, is_whole: Callable[[], bool]) -> None:
        """Called with the lock, before a step begins: those who wait to look go first."""
        before = self._asked
        self.wait_for(lambda: self._looked >= before or not is_whole())
