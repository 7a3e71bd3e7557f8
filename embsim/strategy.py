"""TPUStrategy: replicas are threads that meet at every engine call and every all_reduce.

    replica 0   fn --- dequeue() ---+           +--- all_reduce('sum') ---+           +--- return
    replica 1   fn -- dequeue() ----+- combine -+----- all_reduce('sum') -+- combine -+-- return

`combine` runs once, on the values in replica order, so no result depends on which thread is fast.
Replicas that make different calls would hang a TPU: here all that wait get a DeadlockError.
"""

import copy
import functools
import operator
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from . import datasets
from ._signals import ctrl_c_waits
from .datasets import DistributedDataset, InputContext, InputOptions, PerReplica
from .reduction import ReduceOp, checked_op, reduced
from .rendezvous import Rendezvous, run_replicas


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
        kind = checked_op(op, "strategy.reduce")

        def of_leaf(leaf: Any) -> Any:
            if leaf is None:
                return None
            if isinstance(leaf, PerReplica):
                return reduced(kind, leaf.values, axis)
            if kind == "sum" and self.num_replicas_in_sync > 1:
                raise ValueError(
                    f"strategy.reduce: sum of a plain {type(leaf).__name__} over "
                    f"{self.num_replicas_in_sync} replicas; pass the PerReplica that run returned"
                )
            return reduced(kind, (leaf,), axis)

        return datasets.map_structure(of_leaf, value)

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
        rendezvous = Rendezvous(len(calls))
        contexts = [ReplicaContext(self, i, rendezvous) for i in range(len(calls))]

        def replica(index: int) -> Any:
            with self.scope(), _entered(contexts[index]):
                return calls[index]()

        return run_replicas(replica, rendezvous)

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
            with ctrl_c_waits():
                undo.pop_all()
                for participant in self._participants:
                    participant.commit_run()


@dataclass(frozen=True, eq=False)
class ReplicaContext:
    """Which replica this thread is. Of use in its own thread only, while fn runs."""

    strategy: TPUStrategy
    replica_id_in_sync_group: int
    _rendezvous: Rendezvous = field(repr=False)

    @property
    def num_replicas_in_sync(self) -> int:
        return self.strategy.num_replicas_in_sync

    def all_reduce(self, op: str | ReduceOp, value: Any) -> Any:
        """`embsim.all_reduce` in TensorFlow's order of arguments."""
        refuse_tracing("all_reduce")
        call = f"all_reduce({checked_op(op, 'all_reduce')!r})"

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
