"""TPUEmbedding: TensorFlow's mid-level API over an Engine. Structures in, structures out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from .backend import Backend
from .batch import Batch, concatenate
from .border import Border
from .checkpoint import Checkpoint
from .config import TableConfig
from .engine import Engine
from .nest import flatten, flatten_up_to, pack
from .schedule import Schedule, tpu_embedding_pipelined
from .state import State
from .strategy import TPUStrategy, current_strategy, get_replica_context, refuse_tracing

Tables = Mapping[TableConfig, np.ndarray]
Slots = Mapping[TableConfig, Mapping[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Tables and slots after `step` training steps, in memory of their own."""

    step: int
    embedding_tables: Tables
    slot_variables: Slots


class TPUEmbedding:
    """Embedding tables that are looked up with enqueue and dequeue and trained with apply_gradients.

    Created in the scope of a TPUStrategy it trains. Created outside it only holds tables (TensorFlow's CPU mode): build,
    restore, embedding_tables, and lookups with embsim.serving_embedding_lookup.

    Args:
      feature_config: a FeatureConfig, or nested dicts, lists and tuples of them.
      optimizer: for tables without one of their own; may be None outside a strategy, then there are no slot variables.
      pipeline_execution_with_tensor_core: lookups are one step old, as they are when embedding and dense work overlap.
      schedule: any other schedule: embsim.sequential(), tpu_embedding_pipelined(), sparsecore_loop(n),
        semi_sync(start_batch), stale(k).
      backend: 'reference', another installed backend's name, or an instance.
      seed: of the default initial values.
      queue_capacity: batches that may wait undequeued.
      check_numerics: refuse weights and gradients that are not finite.
      batch_size: per replica; without it (and without build) the first enqueue decides.
      initialize_tpu_embedding: False makes a further object beside a live one, with tables of its own and without
        enqueue, dequeue and apply_gradients.

    Raises:
      ValueError: two tables of one name, an unsupported optimizer, a schedule that contradicts the flag.
      RuntimeError: a second live embedding under one strategy.
    """

    def __init__(
        self,
        feature_config: Any,
        optimizer: Any = None,
        pipeline_execution_with_tensor_core: bool = False,
        *,
        schedule: Schedule | None = None,
        backend: str | Backend = "reference",
        seed: int = 0,
        queue_capacity: int = 8,
        check_numerics: bool = False,
        batch_size: int | None = None,
        initialize_tpu_embedding: bool = True,
    ) -> None:
        schedule = _agreed(pipeline_execution_with_tensor_core, schedule)
        strategy = current_strategy()
        self._trains = strategy is not None and initialize_tpu_embedding
        if self._trains and strategy is not None:
            _check_only_one(strategy)
        self._feature_config = feature_config
        named = flatten(feature_config)
        configs = [config for _, config in named]
        names = [_feature_name(path, config, i) for i, (path, config) in enumerate(named)]
        self._engine = Engine(
            configs,
            optimizer,
            names=names,
            schedule=schedule,
            backend=backend,
            seed=seed,
            queue_capacity=queue_capacity,
            check_numerics=check_numerics,
            trains=strategy is not None,
        )
        self._strategy = strategy
        replicas = strategy.num_replicas_in_sync if strategy is not None else 1
        self._border = Border(feature_config, self._engine, replicas, batch_size)
        if self._trains and strategy is not None:
            strategy.add_participant(self._engine)
            strategy.embedding = self

    def build(self, per_replica_input_shapes: Any = None, per_replica_batch_size: int | None = None) -> None:
        """Fix the shapes of all batches and create the tables. Does nothing the second time.

        Args:
          per_replica_input_shapes: the structure of feature_config with the shape of each input; an int here is a
            batch size.
          per_replica_batch_size: samples per replica; training and evaluation use the same.

        Raises:
          ValueError: shapes that are not known or contradict output_shape; neither argument under a strategy.
        """
        self._check_outside_run("build")
        if self._trains and not self._border.is_built:
            self._border.build(per_replica_input_shapes, per_replica_batch_size)
        self._engine.create_tables()

    def enqueue(
        self,
        features: Any,
        weights: Any = None,
        training: bool = True,
        name: str | None = None,
        device: str | None = None,
        *,
        blocking: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Enqueue the ids of one batch.

        Outside strategy.run the global batch, or per-replica values; inside, each replica its own part.

        Args:
          features: the structure of feature_config; leaves are arrays, RaggedTensor, SparseTensor, lists, or any of the
            forms that embsim.convert takes. Or a TorchRec KeyedJaggedTensor.
          weights: None, or the same structure with weights or None at the leaves.
          training: apply_gradients will follow. False: a look that changes nothing.
          name: accepted for TensorFlow's sake.
          device: 'TPU:k': `features` is replica k's part; the batch is enqueued when all replicas have theirs.
          blocking, timeout: wait for room in the queue, at most so many seconds.

        Raises:
          ValueError, TypeError: a batch that breaks a rule of docs/semantics.md section 2.
          DeadlockError: the queue is full.
          RuntimeError: created outside a strategy; called under JAX tracing.
        """
        self._check_call("enqueue")
        if not isinstance(training, bool | np.bool_):
            raise TypeError(f"enqueue: training is {training!r}; it must be True or False")
        border, training = self._border, bool(training)
        ids, gains = border.flat_inputs(features, weights)
        if self._in_run("enqueue") and device is None:

            def enqueue_parts(parts: list[tuple[Batch, bool]]) -> list[None]:
                if len({kind for _, kind in parts}) > 1:
                    raise ValueError(f"enqueue: training is {[kind for _, kind in parts]} by replica; it must be the same")
                self._enqueue(concatenate([part for part, _ in parts]), training, blocking, timeout)
                return [None] * len(parts)

            self._meet("enqueue", (border.replica_batch(ids, gains), training), enqueue_parts)
            return
        batch = border.global_batch(ids, gains) if device is None else border.with_part(device, ids, gains)
        if batch is not None:
            self._enqueue(batch, training, blocking, timeout)

    def dequeue(self, name: str | None = None) -> Any:
        """Activations of the oldest enqueued batch: the structure of feature_config, float32 [*output shape, dim].

        The arrays are read-only. Inside strategy.run each replica gets its own part.

        Raises:
          DeadlockError: nothing is enqueued, or earlier gradients are missing.
          RuntimeError: created outside a strategy; not built yet; called under JAX tracing.
        """
        self._check_call("dequeue", needs_built=True)
        if not self._in_run("dequeue"):
            return pack(self._feature_config, self._engine.dequeue())
        mine = self._meet("dequeue", None, lambda _: self._border.by_replica(self._engine.dequeue()))
        return pack(self._feature_config, mine)

    def apply_gradients(self, gradients: Any, name: str | None = None) -> None:
        """Submit the update of the oldest dequeued training step: gradients are summed over replicas, never averaged.

        Args:
          gradients: the structure of feature_config; d loss / d activations, any float dtype, or None for zeros (the
            rows then count as touched).

        Raises:
          ValueError, TypeError: another structure, shape, kind or dtype.
          DeadlockError: no dequeued training step waits for gradients.
          RuntimeError: created outside a strategy; not built yet; called under JAX tracing.
        """
        self._check_call("apply_gradients", needs_built=True)
        leaves = flatten_up_to(self._feature_config, gradients, "gradients")
        if not self._in_run("apply_gradients"):
            self._engine.apply_gradients(self._border.global_gradients(leaves))
            return

        def apply_parts(parts: list[list[np.ndarray | None]]) -> list[None]:
            self._engine.apply_gradients(self._border.joined_gradients(parts))
            return [None] * len(parts)

        self._meet("apply_gradients", self._border.replica_gradients(leaves), apply_parts)

    @property
    def embedding_tables(self) -> Tables:
        """{TableConfig: read-only [vocabulary_size, dim]} with every submitted update in it. Looking changes nothing."""
        return self._by_config(self._read("embedding_tables").weights)

    @property
    def slot_variables(self) -> Slots:
        """{TableConfig: {slot name: read-only array}}, as embedding_tables."""
        slots = self._read("slot_variables").slots
        return self._by_config({name: MappingProxyType(dict(each)) for name, each in slots.items()})

    def snapshot(self) -> Snapshot:
        """Copies of tables and slots with every submitted update in them; training goes on as if it had not happened."""
        self._check_outside_run("snapshot")
        state = self._engine.snapshot()
        slots = {name: MappingProxyType(dict(each)) for name, each in state.slots.items()}
        return Snapshot(state.version, self._by_config(state.weights), self._by_config(slots))

    def drain(self) -> None:
        """Make every submitted update visible to the lookups that follow: a bubble in the pipeline."""
        self._check_outside_run("drain")
        self._engine.drain()

    def abandon(self) -> int:
        """Give up dequeued training steps that will get no gradients: they are the queue's head again.

        Returns how many. Dequeued again, they return the activations that they returned before.
        """
        self._check_outside_run("abandon")
        return self._engine.abandon()

    def save(self, path: Any, drain: bool = False) -> str:
        """Checkpoint(embedding=self).save(path): tables, slots, counts and pending updates; returns where."""
        return Checkpoint(embedding=self).save(path, drain=drain)

    def restore(self, path: Any) -> None:
        """Take over what `save` wrote, pending updates included: training goes on bit for bit."""
        Checkpoint(embedding=self).restore(path)

    def prepare_save(self, drain: bool = False) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """For embsim.Checkpoint: everything that it stores."""
        self._check_outside_run("save")
        return self._engine.prepare_save(drain)

    def prepare_restore(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Callable[[], None]:
        """For embsim.Checkpoint: check, and return the function that takes the arrays over."""
        self._check_outside_run("restore")
        return self._engine.prepare_restore(arrays, meta)

    def close(self) -> None:
        """End this object; its strategy may then hold another. Warns if work is lost, unless an error is on its way."""
        self._check_outside_run("close")
        self._engine.close()
        if self._strategy is not None and self._strategy.embedding is self:
            self._strategy.remove_participant(self._engine)
            self._strategy.embedding = None

    def _enqueue(self, batch: Batch, training: bool, blocking: bool, timeout: float | None) -> None:
        self._engine.enqueue(batch, training, blocking=blocking, timeout=timeout)
        self._border.accept(batch)

    def _read(self, call: str) -> State:
        refuse_tracing(call)
        if not self._in_run(call):
            return self._engine.read(call)
        return self._meet(call, None, lambda values: [self._engine.read(call)] * len(values))

    def _by_config(self, by_name: Mapping[str, Any]) -> Mapping[TableConfig, Any]:
        tables = self._engine.tables
        pairs = zip(tables.configs, tables.specs, strict=True)
        return MappingProxyType({config: by_name[spec.name] for config, spec in pairs})

    def _in_run(self, call: str) -> bool:
        context = get_replica_context()
        if context is None:
            return False
        if context.strategy is not self._strategy:
            raise RuntimeError(f"{call}: called in the run of another strategy than the one it was created under")
        return True

    def _meet(self, call: str, value: Any, combine: Callable[[list[Any]], list[Any]]) -> Any:
        context = get_replica_context()
        assert context is not None
        return context.collective(f"TPUEmbedding.{call}", value, combine)

    def _check_call(self, call: str, needs_built: bool = False) -> None:
        refuse_tracing(call)
        if not self._trains:
            why = (
                "with initialize_tpu_embedding=False" if self._strategy is not None else "outside the scope of a TPUStrategy"
            )
            raise RuntimeError(
                f"{call}: this embedding was created {why} and only holds tables; create it in "
                "`with strategy.scope():`, or look up with embsim.serving_embedding_lookup"
            )
        if needs_built and not self._border.is_built:
            raise RuntimeError(f"{call}: the embedding is not built; call build or enqueue first")

    def _check_outside_run(self, call: str) -> None:
        refuse_tracing(call)
        if get_replica_context() is not None:
            raise RuntimeError(f"{call}: called inside strategy.run; call it between runs, for all replicas at once")


def _agreed(pipelined: Any, schedule: Schedule | None) -> Schedule | None:
    if not isinstance(pipelined, bool):
        raise TypeError(f"pipeline_execution_with_tensor_core is {pipelined!r}; it must be True or False")
    if not pipelined:
        return schedule
    if isinstance(schedule, Schedule) and schedule.staleness != 1:
        raise ValueError(
            f"pipeline_execution_with_tensor_core=True reads tables one step old, but schedule is {schedule}; leave one of "
            "them out"
        )
    return schedule or tpu_embedding_pipelined()


def _check_only_one(strategy: TPUStrategy) -> None:
    if strategy.embedding is not None:
        raise RuntimeError(
            "TPUEmbedding: the strategy already holds a live embedding, and an engine can be initialized once; close it "
            "first (strategy.embedding.close()), or pass initialize_tpu_embedding=False"
        )


def _feature_name(path: str, config: Any, position: int) -> str:
    return path or getattr(config, "name", None) or f"feature_{position}"
