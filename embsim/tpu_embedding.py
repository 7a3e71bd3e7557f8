"""TPUEmbedding: TensorFlow's mid-level API over an Engine. Structures in, structures out."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from ._saved import Saved
from .backend import Backend
from .batch import Batch
from .border import Border, in_run, meet, named_features, refuse_in_run
from .checkpoint import Checkpoint
from .engine import Engine
from .nest import flatten_up_to, pack
from .schedule import Schedule, agreed
from .state import State
from .strategy import TPUStrategy, current_strategy, refuse_tracing
from .views import Slots, Snapshot, Tables, by_config, slots_by_config, snapshot_of


class TPUEmbedding:
    """Embedding tables, looked up with enqueue and dequeue, trained with apply_gradients.

    Created in the scope of a TPUStrategy it trains. Created outside it only holds tables
    (TensorFlow's CPU mode): build, restore, embedding_tables, and lookups with
    embsim.serving_embedding_lookup.

    Args:
      feature_config: a FeatureConfig, or nested dicts, lists and tuples of them.
      optimizer: for tables without one of their own; may be None outside a strategy, then there
        are no slot variables.
      pipeline_execution_with_tensor_core: lookups are one step old, as they are when embedding and
        dense work overlap.
      schedule: any other schedule: embsim.sequential(), tpu_embedding_pipelined(),
        sparsecore_loop(n), semi_sync(start_batch), stale(k).
      backend: 'reference', another installed backend's name, or an instance.
      seed: of the default initial values.
      queue_capacity: batches that may wait undequeued.
      check_numerics: refuse weights and gradients that are not finite.
      batch_size: per replica; without it (and without build) the first enqueue decides.
      initialize_tpu_embedding: False makes a further object beside a live one, with tables of its
        own and without enqueue, dequeue and apply_gradients.

    Raises:
      ValueError: two tables of one name, an unsupported optimizer, a schedule that contradicts the
        flag.
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
        schedule = agreed(pipeline_execution_with_tensor_core, schedule)
        strategy = current_strategy()
        self._trains = strategy is not None and initialize_tpu_embedding
        if self._trains and strategy is not None:
            _check_only_one(strategy)
        configs, names = named_features(feature_config)
        self._feature_config = pack(feature_config, configs)  # containers of its own
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
        self._border = Border(self._feature_config, self._engine, replicas, batch_size)
        if self._trains and strategy is not None:
            strategy.add_participant(self._engine)
            strategy.add_participant(self._border)
            strategy.embedding = self

    def build(
        self, per_replica_input_shapes: Any = None, per_replica_batch_size: int | None = None
    ) -> None:
        """Fix the shapes of all batches and create the tables. Does nothing the second time.

        Args:
          per_replica_input_shapes: each input's shape, in the structure of feature_config.
          per_replica_batch_size: samples per replica. An int in first place is one too.

        Raises:
          ValueError: shapes that are not known, or contradict output_shape.
        """
        refuse_in_run("build")
        if not self._trains:
            return self._engine.create_tables()
        shapes = self._border.built_shapes(per_replica_input_shapes, per_replica_batch_size)
        self._engine.create_tables()
        self._border.fix(shapes)

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
        """Enqueue the ids of one batch: all replicas', or inside strategy.run this replica's part.

        Args:
          features: the structure of feature_config; leaves are arrays, RaggedTensor, SparseTensor,
            lists, or any of the forms that embsim.convert takes. Or a TorchRec KeyedJaggedTensor.
          weights: None, or the same structure with weights or None at the leaves.
          training: apply_gradients will follow. False: a look that changes nothing.
          device: 'TPU:k' for replica k's part; the batch is enqueued with the last replica's.
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
        if not in_run(self._strategy, "enqueue"):
            with border.settling(device):
                batch = border.whole_batch(ids, gains, training, device)
                if batch is not None:
                    self._enqueue(batch, training, blocking=blocking, timeout=timeout)
            return
        if device is not None:
            found = f"device is {device!r} inside strategy.run"
            raise ValueError(f"enqueue: {found}, where each replica enqueues its own part")

        def enqueue_parts(parts: list[tuple[Batch, bool]]) -> list[None]:
            batch, kind = border.joined_batch(parts)
            self._enqueue(batch, kind, blocking=blocking, timeout=timeout, in_run=True)
            return [None] * len(parts)

        meet("enqueue", (border.replica_batch(ids, gains), training), enqueue_parts)

    def dequeue(self, name: str | None = None) -> Any:
        """Activations of the oldest enqueued batch, in the structure of feature_config.

        Read-only float32 [*output shape, dim]; inside strategy.run, this replica's part.

        Raises:
          DeadlockError: nothing is enqueued, or earlier gradients are missing.
          RuntimeError: created outside a strategy; not built yet; called under JAX tracing.
        """
        self._check_call("dequeue", needs_built=True)
        if not in_run(self._strategy, "dequeue"):
            return pack(self._feature_config, self._engine.dequeue())
        mine = meet("dequeue", None, lambda _: self._border.by_replica(self._engine.dequeue()))
        return pack(self._feature_config, mine)

    def apply_gradients(self, gradients: Any, name: str | None = None) -> None:
        """Submit the update of the oldest dequeued training step.

        Gradients are summed over replicas, never averaged.

        Args:
          gradients: the structure of feature_config; d loss / d activations, any float dtype, or
            None for zeros (the rows then count as touched).

        Raises:
          ValueError, TypeError: another structure, shape, kind or dtype.
          DeadlockError: no dequeued training step waits for gradients.
          RuntimeError: created outside a strategy; not built yet; called under JAX tracing.
        """
        self._check_call("apply_gradients", needs_built=True)
        leaves = flatten_up_to(self._feature_config, gradients, "gradients")
        if not in_run(self._strategy, "apply_gradients"):
            self._engine.apply_gradients(self._border.global_gradients(leaves))
            return

        def apply_parts(parts: list[list[np.ndarray | None]]) -> list[None]:
            self._engine.apply_gradients(self._border.joined_gradients(parts))
            return [None] * len(parts)

        meet("apply_gradients", self._border.replica_gradients(leaves), apply_parts)

    @property
    def embedding_tables(self) -> Tables:
        """{TableConfig: read-only [vocabulary_size, dim]} with every submitted update in it.

        Looking changes nothing.
        """
        return by_config(self._engine.tables, self._read("embedding_tables").weights)

    @property
    def slot_variables(self) -> Slots:
        """{TableConfig: {slot name: read-only array}}, as embedding_tables."""
        return slots_by_config(self._engine.tables, self._read("slot_variables").slots)

    def snapshot(self, *, blocking: bool = False, timeout: float | None = None) -> Snapshot:
        """Copies of tables and slots with every submitted update. `blocking`: see Engine."""
        refuse_in_run("snapshot")
        engine = self._engine
        return snapshot_of(engine.tables, engine.snapshot(blocking=blocking, timeout=timeout))

    def drain(self) -> None:
        """Make every submitted update visible to the lookups that follow: a pipeline bubble."""
        refuse_in_run("drain")
        self._engine.drain()

    def abandon(self) -> int:
        """Give up dequeued steps that will get no gradients: they are the queue's head again.

        Returns how many. Dequeued again, they return the activations that they returned before.
        """
        refuse_in_run("abandon")
        return self._engine.abandon()

    def discard(self) -> int:
        """Drop all batches that are enqueued and not dequeued. Returns how many there were."""
        refuse_in_run("discard")
        self._border.discard()
        return self._engine.discard()

    def save(self, path: Any, drain: bool = False) -> str:
        """Checkpoint(embedding=self).save(path): tables, slots, counts, pending updates."""
        refuse_in_run("save")
        return Checkpoint(embedding=self).save(path, drain=drain)

    def restore(self, path: Any) -> None:
        """Take over what `save` wrote, pending updates included: training goes on bit for bit."""
        refuse_in_run("restore")
        Checkpoint(embedding=self).restore(path)

    def saving(self, drain: bool = False) -> AbstractContextManager[Saved]:
        """For embsim.Checkpoint: everything that it stores; other threads' calls wait meanwhile."""
        refuse_in_run("save")
        return self._engine.saving(drain)

    def prepare_restore(
        self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]
    ) -> Callable[[], None]:
        """For embsim.Checkpoint: check, and return the function that takes the arrays over."""
        refuse_in_run("restore")
        return self._engine.prepare_restore(arrays, meta)

    def close(self) -> None:
        """End this object. Warns if work is lost, unless an error is on its way."""
        refuse_in_run("close")
        self._engine.close()
        if self._strategy is not None and self._strategy.embedding is self:
            self._strategy.remove_participant(self._engine)
            self._strategy.remove_participant(self._border)
            self._strategy.embedding = None

    def _enqueue(self, batch: Batch, training: bool, **options: Any) -> None:
        self._engine.enqueue(batch, training, **options)
        self._border.accept(batch)

    def _read(self, call: str) -> State:
        refuse_tracing(call)
        if not in_run(self._strategy, call):
            return self._engine.read(call)
        return meet(call, None, lambda values: [self._engine.read(call)] * len(values))

    def _check_call(self, call: str, needs_built: bool = False) -> None:
        refuse_tracing(call)
        if not self._trains:
            why = (
                "with initialize_tpu_embedding=False"
                if self._strategy is not None
                else "outside the scope of a TPUStrategy"
            )
            raise RuntimeError(
                f"{call}: this embedding was created {why} and only holds tables; create it in "
                "`with strategy.scope():`, or look up with embsim.serving_embedding_lookup"
            )
        if needs_built and not self._border.is_built:
            raise RuntimeError(f"{call}: the embedding is not built; call build or enqueue first")


def _check_only_one(strategy: TPUStrategy) -> None:
    if strategy.embedding is not None:
        raise RuntimeError(
            "TPUEmbedding: the strategy already holds a live embedding, and an engine can be "
            "initialized once; close it first (strategy.embedding.close()), or pass "
            "initialize_tpu_embedding=False"
        )
