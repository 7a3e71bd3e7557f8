"""TPUStrategy: replicas are threads that meet at every engine call and every all_reduce.

    replica 0   fn --- dequeue() ---+           +--- all_reduce('sum') ---+           +--- return
    replica 1   fn -- dequeue() ----+- combine -+----- all_reduce('sum') -+- combine -+-- return

`combine` runs once, on the values in replica order, so no result depends on which thread is fast.
Replicas that make different calls would hang a TPU: here all that wait get a DeadlockError.
"""

import contextvars
import copy
import functools
import math
import operator
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import numpy as np

from . import datasets
from .datasets import DistributedDataset, InputContext, InputOptions, PerReplica
from .errors import DeadlockError


class ReduceOp(Enum):
    """How the replicas' values become one. The strings 'sum', 'mean', 'max', 'min' serve too."""

    SUM = "sum"
    MEAN = "mean"
    MAX = "max"
    MIN = "min"


@runtime_checkable
class Participant(Protocol):
    """An object whose changes within a run are undone when the run fails. Only begin may raise."""

    def begin_run(self) -> None: ...
    def commit_run(self) -> None: ...
    def rollback_run(self) -> None: ...


class TPUStrategy:
    """`num_replicas` (an int >= 1) copies of the dense program over one embedding engine.

    `embedding` is the live TPUEmbedding, one per strategy; TPUEmbedding itself keeps it.

    >>> strategy = TPUStrategy(num_replicas=2)
    >>> def step(loss):
    ...     return loss / 2, strategy.all_reduce(loss, "sum")
    >>> strategy.run(step, args=(PerReplica((1.0, 3.0)),))
    (PerReplica(0: 0.5, 1: 1.5), PerReplica(0: 4.0, 1: 4.0))
    """

    def __init__(self, num_replicas: Any = 1) -> None:
        is_int = hasattr(type(num_replicas), "__index__") and not isinstance(num_replicas, bool)
        if not is_int or operator.index(num_replicas) < 1:
            raise ValueError(
                f"TPUStrategy: num_replicas is {num_replicas!r}; it must be an int >= 1"
            )
        self.num_replicas_in_sync = operator.index(num_replicas)
        self.embedding: Any = None
        self._participants: list[Participant] = []
        self._running = threading.Lock()

    def scope(self) -> "TPUStrategy":
        """`with strategy.scope():` what is made inside belongs to it. Scopes nest."""
        return self

    def __enter__(self) -> "TPUStrategy":
        _thread.scopes.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _thread.scopes.pop()

    def run(
        self,
        fn: Callable[..., Any],
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
        options: Any = None,
    ) -> Any:
        """Calls fn once per replica, each in a thread, and merges the results to PerReplica leaves.

        PerReplica leaves of args and kwargs are handed out; the rest is shared, as the same object.
        A single replica runs in the caller's thread and its result is returned as it is. None from
        all replicas is None; where results differ in structure, PerReplica holds them whole. Each
        replica has a copy of the caller's context variables, numpy.errstate among them; settings
        that JAX or Numba keep per thread are those of a new thread. `options` is ignored.

        If a replica raises, the others stop at their next collective call, all participants are
        rolled back, and the exception of the lowest replica that has one of its own is raised.
        Ctrl-C stops the replicas in the same way; a second Ctrl-C does not wait for them.

        Raises:
          DeadlockError: replicas made different calls, or one returned while others waited for it.
          RuntimeError: in a replica, under JAX tracing, or while another thread is in `run`.
        """
        refuse_tracing("strategy.run")
        if get_replica_context() is not None:
            raise RuntimeError("strategy.run: called inside a replica; runs cannot be nested")
        if not isinstance(args, tuple | list):
            raise TypeError(
                f"strategy.run: args is a {type(args).__name__}; it must be a tuple: args=(x,)"
            )
        with self._exclusive("strategy.run"):
            count = self.num_replicas_in_sync
            calls = [datasets.select_replica((args, kwargs or {}), i, count) for i in range(count)]
            with self._transaction():
                results = self._run_replicas([functools.partial(fn, *a, **k) for a, k in calls])
                return datasets.merge_replicas(results)

    def all_reduce(self, value: Any, op: str | ReduceOp = "sum") -> Any:
        """`embsim.all_reduce`, for replicas of this strategy."""
        context = get_replica_context()
        if context is not None and context.strategy is not self:
            raise RuntimeError("all_reduce: called in a replica of another strategy")
        return all_reduce(value, op)

    def reduce(self, op: str | ReduceOp, value: Any, axis: Any = None) -> Any:
        """The PerReplica leaves of `value` as one: v0 + v1 + ..., left to right; mean = sum / n.

        With `axis` (an int or several) also along it within each value; the mean is then that of
        all elements, even where replicas have unequal numbers of them. A plain leaf stands for the
        same value in all replicas: its sum is refused if there are several. None stays None.
        """
        kind = _checked_op(op, "strategy.reduce")

        def reduced(leaf: Any) -> Any:
            if leaf is None:
                return None
            if isinstance(leaf, PerReplica):
                return _reduced(kind, leaf.values, axis)
            if kind == "sum" and self.num_replicas_in_sync > 1:
                raise ValueError(
                    f"strategy.reduce: sum of a plain {type(leaf).__name__} over "
                    f"{self.num_replicas_in_sync} replicas; pass the PerReplica that run returned"
                )
            return _reduced(kind, (leaf,), axis)

        return datasets.map_structure(reduced, value)

    def experimental_local_results(self, value: Any) -> tuple[Any, ...]:
        """One entry per replica; (value,) if nothing in it is PerReplica."""
        count = self.num_replicas_in_sync
        results = tuple(datasets.select_replica(value, i, count) for i in range(count))
        return (value,) if results[0] is value else results

    def distribute_datasets_from_function(
        self,
        dataset_fn: Callable[[InputContext], Iterable[Any]],
        options: InputOptions | None = None,
    ) -> DistributedDataset:
        """Per-replica batches: each step takes the next num_replicas of dataset_fn(InputContext).

        dataset_fn is called once, here. An incomplete last group is dropped, with a warning.
        """
        source = dataset_fn(InputContext(num_replicas_in_sync=self.num_replicas_in_sync))
        return DistributedDataset(source, self.num_replicas_in_sync, datasets.take_group)

    def experimental_distribute_dataset(
        self, dataset: Any, options: InputOptions | None = None
    ) -> DistributedDataset:
        """Global batches: every leaf is split along axis 0 into num_replicas equal parts."""
        return DistributedDataset(dataset, self.num_replicas_in_sync, datasets.take_split)

    def add_participant(self, participant: Participant) -> None:
        """`participant` begins, and commits or rolls back, with every run from now on."""
        with self._exclusive("add_participant"):
            self._participants.append(participant)

    def remove_participant(self, participant: Participant) -> None:
        with self._exclusive("remove_participant"):
            self._participants = [other for other in self._participants if other is not participant]

    def _run_replicas(self, calls: list[Callable[[], Any]]) -> list[Any]:
        rendezvous = _Rendezvous(len(calls))
        contexts = [ReplicaContext(self, i, rendezvous) for i in range(len(calls))]

        def replica(index: int) -> Any:
            with self.scope(), _entered(contexts[index]):
                return calls[index]()

        return _results(replica, rendezvous)

    @contextmanager
    def _exclusive(self, call: str) -> Generator[None]:
        if not self._running.acquire(blocking=False):
            raise RuntimeError(f"{call}: this strategy is in a run; wait until run has returned")
        try:
            yield
        finally:
            self._running.release()

    @contextmanager
    def _transaction(self) -> Generator[None]:
        with ExitStack() as undo:
            for participant in self._participants:
                participant.begin_run()
                undo.callback(participant.rollback_run)
            yield
            undo.pop_all()
        for participant in self._participants:
            participant.commit_run()


@dataclass(frozen=True, eq=False)
class ReplicaContext:
    """Which replica this thread is. Of use in its own thread only, while fn runs."""

    strategy: TPUStrategy
    replica_id_in_sync_group: int
    _rendezvous: "_Rendezvous" = field(repr=False)

    @property
    def num_replicas_in_sync(self) -> int:
        return self.strategy.num_replicas_in_sync

    def all_reduce(self, op: str | ReduceOp, value: Any) -> Any:
        """`embsim.all_reduce` in TensorFlow's order of arguments."""
        refuse_tracing("all_reduce")
        call = f"all_reduce({_checked_op(op, 'all_reduce')!r})"

        def combine(values: list[Any]) -> list[Any]:
            total = self.strategy.reduce(op, datasets.merge_replicas(values, f"{call}: value"))
            return [copy.deepcopy(total) for _ in values]

        return self.collective(call, value, combine)

    def collective(self, name: str, value: Any, combine: Callable[[list[Any]], list[Any]]) -> Any:
        """Meets the other replicas at the call `name`; this replica's entry of combine(values).

        The last to arrive runs combine, once, on the values in replica order, outside any replica
        context and in context variables of the run's own. What it raises is raised in all replicas.
        """
        if get_replica_context() is not self:
            raise RuntimeError(f"{name}: called outside the replica's own thread, or after its run")

        def combine_outside(values: list[Any]) -> list[Any]:
            with _entered(None):
                return combine(values)

        return self._rendezvous.meet(self.replica_id_in_sync_group, name, value, combine_outside)


def get_replica_context() -> ReplicaContext | None:
    """The replica that this thread is, or None outside of run."""
    return _thread.replica


def current_strategy() -> TPUStrategy | None:
    """The strategy whose scope this thread is in, or None. A replica is in its strategy's scope."""
    return _thread.scopes[-1] if _thread.scopes else None


def all_reduce(value: Any, op: str | ReduceOp = "sum") -> Any:
    """Every leaf of `value` reduced over the replicas, as by strategy.reduce. In run only.

    Lists, tuples and mappings are structure. Each replica gets arrays of its own.
    """
    context = get_replica_context()
    if context is None:
        raise RuntimeError(
            "all_reduce: called outside of strategy.run; only replicas can reduce their values"
        )
    return context.all_reduce(op, value)


def refuse_tracing(call: str) -> None:
    """A RuntimeError if JAX is tracing: `call` would take effect once, not at every execution."""
    core = sys.modules.get("jax._src.core")
    if core is not None and not getattr(core, "trace_state_clean", lambda: True)():
        raise RuntimeError(
            f"{call}: called while JAX traces a function; embsim's calls have effects: make them "
            "outside of jax.jit, grad and vmap, and pass the activations in"
        )


class _Thread(threading.local):
    def __init__(self) -> None:
        self.scopes: list[TPUStrategy] = []
        self.replica: ReplicaContext | None = None


_thread = _Thread()


@contextmanager
def _entered(replica: ReplicaContext | None) -> Generator[None]:
    outer, _thread.replica = _thread.replica, replica
    try:
        yield
    finally:
        _thread.replica = outer


def _checked_op(op: str | ReduceOp, call: str) -> str:
    name = op.value if isinstance(op, ReduceOp) else op.lower() if isinstance(op, str) else ""
    if name not in _BINARY:
        raise ValueError(f"{call}: op is {op!r}; it must be one of {', '.join(map(repr, _BINARY))}")
    return name


def _reduced(op: str, values: Sequence[Any], axis: Any) -> Any:
    count = len(values)
    if axis is not None:
        axes = tuple(axis) if isinstance(axis, tuple | list) else (axis,)
        arrays = [value if hasattr(value, "shape") else np.asarray(value) for value in values]
        count = sum(math.prod(array.shape[k] for k in axes) for array in arrays)
        values = [getattr(array, "sum" if op == "mean" else op)(axis=axes) for array in arrays]
    shapes = ["None" if value is None else str(np.shape(value)) for value in values]
    if len(set(shapes)) > 1:
        raise ValueError(f"{op} over replicas: shapes are {', '.join(shapes)}; they must be equal")
    dtypes = [getattr(value, "dtype", type(value)) for value in values]
    if op in ("sum", "mean") and any(dtype in (bool, np.bool_) for dtype in dtypes):
        raise TypeError(f"{op} over replicas: values are bool; cast them to a number first")
    total = functools.reduce(_BINARY[op], values)
    return total / count if op == "mean" else total


def _elementwise(name: str) -> Callable[[Any, Any], Any]:
    def function(a: Any, b: Any) -> Any:
        namespace = a.__array_namespace__() if hasattr(a, "__array_namespace__") else np
        return getattr(namespace, name)(a, b)

    return function


_BINARY = {
    "sum": operator.add,
    "mean": operator.add,
    "max": _elementwise("maximum"),
    "min": _elementwise("minimum"),
}


# The rendezvous. It knows threads and calls, nothing of strategies.


class _Aborted(BaseException):
    """Ends a replica whose run failed elsewhere. No Exception, so that user code lets it pass."""


class _Meeting:
    """One collective call: who came with what, and then what each replica gets."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.values: dict[int, Any] = {}
        self.outcomes: dict[int, tuple[Any, BaseException | None]] = {}


class _Rendezvous:
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


def _results(replica: Callable[[int], Any], rendezvous: _Rendezvous) -> list[Any]:
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


def _run_threads(body: Callable[[int], None], rendezvous: _Rendezvous) -> None:
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
