"""Threads that meet: every collective call waits for all replicas, and none waits in vain."""

import contextvars
import copy
import threading
from collections.abc import Callable
from typing import Any

from .errors import DeadlockError


class _Aborted(BaseException):
    """Ends a replica whose run failed elsewhere. No Exception, so that user code lets it pass."""


class _Meeting:
    """One collective call: who came with what, and then what each replica gets."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.values: dict[int, Any] = {}
        self.outcomes: dict[int, tuple[Any, BaseException | None]] = {}


class Rendezvous:
    """Where the replicas of one run meet.

    Nothing is decided before every replica has arrived, returned or failed; so what a run does,
    its errors included, does not depend on timing. And nothing waits for anything else: no hang.
    """

    def __init__(self, num_replicas: int) -> None:
        self.num_replicas = num_replicas
        self.context = contextvars.copy_context()
        self.changed = threading.Condition()
        self.meeting = _Meeting()
        self.ended: dict[int, BaseException | None] = {}
        self.deadlock: str | None = None
        self.stopped = False

    def meet(self, replica: int, name: str, value: Any, combine: Callable[..., Any]) -> Any:
        with self.changed:
            if self.stopped:
                raise _Aborted
            meeting = self.meeting
            meeting.names[replica], meeting.values[replica] = name, value
            complete = self._settle()
        if complete:
            outcomes = self._combined(meeting, combine)
            with self.changed:
                meeting.outcomes, self.meeting = outcomes, _Meeting()
                self.changed.notify_all()
        with self.changed:
            self.changed.wait_for(lambda: meeting.outcomes or self.stopped)
            if not meeting.outcomes:
                raise _Aborted
        result, error = meeting.outcomes[replica]
        if error is not None:
            raise error
        return result

    def end(self, replica: int, error: BaseException | None) -> None:
        with self.changed:
            self.ended[replica] = error
            self.stopped = self.stopped or error is not None
            self._settle()
            self.changed.notify_all()

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def wait_until_ended(self, count: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: len(self.ended) >= count)

    def raise_error(self) -> None:
        """The error of the lowest replica that has one of its own, if any."""
        for replica in range(self.num_replicas):
            error = self.ended[replica]
            if error is not None and not _is_abort(error):
                raise error
        if self.deadlock is not None:
            raise DeadlockError(self.deadlock)

    def _settle(self) -> bool:
        """Whether all replicas are at the same call. If they can never be, the deadlock."""
        names = self.meeting.names
        if self.stopped or not names or len(names) + len(self.ended) < self.num_replicas:
            return False
        if not self.ended and len(set(names.values())) == 1:
            return True
        self.deadlock = _deadlock_message(names, self.num_replicas)
        self.meeting.outcomes = {i: (None, DeadlockError(self.deadlock)) for i in names}
        self.stopped = True
        self.changed.notify_all()
        return False

    def _combined(self, meeting: _Meeting, combine: Callable[..., Any]) -> dict[int, Any]:
        replicas = range(self.num_replicas)
        try:
            results = self.context.run(combine, [meeting.values[i] for i in replicas])
            assert len(results) == self.num_replicas, "combine returns one result for each replica"
            return {i: (results[i], None) for i in replicas}
        except BaseException as error:
            return {i: (None, _twin(error) if i else error) for i in replicas}


def run_replicas(replica: Callable[[int], Any], rendezvous: Rendezvous) -> list[Any]:
    """[replica(0), replica(1), ...], each in a thread; a lone one in this thread."""
    results: list[Any] = [None] * rendezvous.num_replicas

    def body(index: int) -> None:
        failure = None
        try:
            results[index] = replica(index)
        except BaseException as error:
            failure = error
        rendezvous.end(index, failure)

    if len(results) == 1:
        contextvars.copy_context().run(body, 0)
    else:
        _run_threads(body, rendezvous)
    rendezvous.raise_error()
    return results


def _run_threads(body: Callable[[int], None], rendezvous: Rendezvous) -> None:
    threads: list[threading.Thread] = []
    for i in range(rendezvous.num_replicas):
        run, name = contextvars.copy_context().run, f"replica-{i}"
        threads.append(threading.Thread(target=run, args=(body, i), name=name, daemon=True))
    try:
        for thread in threads:
            thread.start()
        # Not join: Ctrl-C within a join makes Python 3.11 take the thread for ended.
        rendezvous.wait_until_ended(len(threads))
    except BaseException:
        rendezvous.stop()
        rendezvous.wait_until_ended(sum(thread.ident is not None for thread in threads))
        raise
    for thread in threads:
        thread.join()


def _deadlock_message(names: dict[int, str], num_replicas: int) -> str:
    groups: dict[str, list[int]] = {}
    for replica in range(num_replicas):
        groups.setdefault(names.get(replica, ""), []).append(replica)
    parts: list[str] = []
    for name, replicas in groups.items():
        one = len(replicas) == 1
        who = f"replica{'' if one else 's'} {', '.join(map(str, replicas))}"
        call = name if "(" in name else f"{name}()"
        did = f"call{'s' if one else ''} {call}" if name else f"{'has' if one else 'have'} returned"
        parts.append(f"{who} {did}")
    return (
        f"strategy.run: {' while '.join(parts)}; "
        "all replicas must make the same engine calls in the same order"
    )


def _is_abort(error: BaseException | None) -> bool:
    """Whether the abort is why the replica failed: it, or what was raised while it passed."""
    while error is not None and not isinstance(error, _Aborted):
        error = error.__context__
    return error is not None


def _twin(error: BaseException) -> BaseException:
    """A copy for another thread, since raising an exception writes its traceback."""
    try:
        twin = copy.copy(error)
    except Exception:
        return error
    if type(twin) is not type(error):
        return error
    twin.__cause__, twin.__context__ = error.__cause__, error.__context__
    return twin.with_traceback(error.__traceback__)
