"""The processes of a run, and what they tell each other while they plan, by JAX's coordination
service."""

import itertools
import json
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import jax

from embsim import errors
from embsim.errors import BackendError, BatchError

T = TypeVar("T")
R = TypeVar("R")
WAIT_MS = 1000  # after which a process that waits for another looks whether it still has to


class Processes:
    """What the processes of a mesh tell each other of each batch, on the host, turn by turn.

    All take the same turns in the same order, from one thread at a time. The key-value store of
    jax.distributed carries them, not the devices: one thread plans while another trains, and
    collectives that two threads launch in one order here and in another there wait for each other
    for ever. One process has nothing to say.

    As a context: at its end, what still waits fails, so that a thread can be joined.

    Args:
      indices: of the processes, ascending.
      name: unique, and the same in all of them.
    """

    def __init__(self, indices: Sequence[int], name: str) -> None:
        self.indices, self.name = tuple(indices), name
        self.closed = False
        self._turns, self._branches = itertools.count(), itertools.count()
        self._read: list[str] = []  # answers that all have read when the next turn is complete

    def branch(self) -> "Processes":
        """For turns that another thread takes meanwhile."""
        return Processes(self.indices, f"{self.name}.{next(self._branches)}")

    def turn(self) -> "Turn":
        return Turn(self, next(self._turns))

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *error: Any) -> None:
        self.closed = True

    def together(
        self, items: Iterable[T], work: Callable[[T, "Turn"], R]
    ) -> Generator[R, None, None]:
        """work(item, turn) of every item in turn; their end, or an error, is that of all
        processes."""
        left = iter(items)
        while True:
            with self.turn() as turn:
                for item in left:
                    made = work(item, turn)
                    break
                else:
                    turn.end()
                    return
            yield made

    def exchanged(self, turn: int, mine: Any, wait: bool = True) -> list[Any]:
        """What each process says in this turn, in their order. The first collects it.

        wait: False is to leave at once, without the answer.
        """
        if len(self.indices) == 1:
            return [mine]
        from jax._src import distributed  # the store has no public name

        client, here = distributed.global_state.client, jax.process_index()
        assert client is not None, "several processes without jax.distributed"
        key, (first, *others) = f"embsim/{self.name}/{turn}", self.indices
        if here != first:
            client.key_value_set(f"{key}/{here}", json.dumps(mine))
            return json.loads(self._awaited(client, f"{key}/all")) if wait else []
        said = [mine]
        if wait:
            said += [json.loads(self._awaited(client, f"{key}/{each}")) for each in others]
            while self._read:
                client.key_value_delete(self._read.pop())  # and what is under it
        client.key_value_set(f"{key}/all", json.dumps(said))
        self._read.append(key)
        return said

    def _awaited(self, client: Any, key: str) -> str:
        while not self.closed:
            try:
                return client.blocking_key_value_get(key, WAIT_MS)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise BackendError(
                        f"process {jax.process_index()} waited for the other processes of the "
                        f"mesh, and jax.distributed failed: {error}"
                    ) from error
        raise BackendError(f"process {jax.process_index()} stopped waiting for the others: closed")


class Turn:
    """As a context: an error inside is told to the other processes, which raise it too: as the same
    class where it is one of embsim.errors, else as a BackendError. So none waits for one that
    failed.
    """

    def __init__(self, processes: Processes, number: int) -> None:
        self._processes, self._number, self._said = processes, number, False
        self.same: list[str] = []  # what must be the same in all processes, in words

    def __enter__(self) -> "Turn":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and not self._said:
            with suppress(jax.errors.JaxRuntimeError):  # the error itself is what matters
                self._say({"error": [type(error).__name__, str(error)]}, wait=False)

    def agree(self, mine: Any) -> list[Any]:
        """What each process says: JSON, `mine` of this one.

        Raises:
          BatchError: processes that did not put the same into `same`, or have no more batches.
        """
        said = self._say({"of": mine, "same": self.same})
        for each in said:
            if each["same"] != self.same:
                theirs, ours = "; ".join(each["same"]), "; ".join(self.same)
                raise BatchError(
                    f"plan: each device of process {each['process']} has {theirs}, each of process "
                    f"{jax.process_index()} {ours}; all must have the same shapes"
                )
        return [each["of"] for each in said]

    def end(self) -> None:
        """This process has no more batches."""
        self._say({"end": True})

    def _say(self, message: dict[str, Any], wait: bool = True) -> list[dict[str, Any]]:
        self._said = True
        message["process"] = jax.process_index()
        said = self._processes.exchanged(self._number, message, wait)
        for each in said:
            if "error" in each and wait:
                kind, text = each["error"]
                where = f"process {each['process']}: "
                if hasattr(errors, kind):
                    raise getattr(errors, kind)(where + text)
                raise BackendError(f"{where}{kind}: {text}")
        ended = [each["process"] for each in said if "end" in each]
        others = [each["process"] for each in said if "end" not in each]
        if wait and ended and others:
            raise BatchError(
                f"train: the data of process {ended[0]} ended after {self._number} batches, that "
                f"of process {others[0]} did not; all must have the same number"
            )
        return said
