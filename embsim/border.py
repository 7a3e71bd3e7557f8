"""Between the caller's structures, global or per replica, and the engine's flat global batches."""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from . import shapes
from .batch import Batch, concatenate, make_batch, per_replica_shapes
from .config import FeatureConfig
from .convert import keyed_jagged
from .datasets import PerReplica
from .engine import Engine
from .gradients import as_gradient
from .nest import flatten, flatten_up_to
from .strategy import TPUStrategy, get_replica_context, refuse_tracing

Leaves = list[Any]


def named_features(feature_config: Any) -> tuple[list[FeatureConfig], list[str]]:
    """The features of a structure, flattened, and what messages call them: their paths.

    Raises:
      ValueError: a leaf that is no FeatureConfig.
    """
    named = flatten(feature_config)
    for path, config in named:
        if not isinstance(config, FeatureConfig):
            raise ValueError(
                f"feature_config: {path or 'the leaf'!r} is {config!r}; every leaf must be a "
                "FeatureConfig"
            )
    names = [path or config.name or f"feature_{i}" for i, (path, config) in enumerate(named)]
    return [config for _, config in named], names


def in_run(strategy: TPUStrategy | None, call: str) -> bool:
    """Whether this thread is a replica of `strategy`. Raises RuntimeError in the run of another."""
    context = get_replica_context()
    if context is None:
        return False
    if context.strategy is not strategy:
        raise RuntimeError(
            f"{call}: called in the run of another strategy than the one it was created under"
        )
    return True


def meet(call: str, value: Any, combine: Callable[[list[Any]], list[Any]]) -> Any:
    """All replicas make this call; `combine` makes their results of their values, in order."""
    context = get_replica_context()
    assert context is not None, "only replicas meet"
    return context.collective(f"TPUEmbedding.{call}", value, combine)


def refuse_in_run(call: str) -> None:
    """Raises RuntimeError inside strategy.run and under JAX tracing."""
    refuse_tracing(call)
    if get_replica_context() is not None:
        raise RuntimeError(
            f"{call}: called inside strategy.run; call it between runs, for all replicas at once"
        )


class Border:
    """Knows the structure of the features, the number of replicas and, once built, every feature's
    shape per replica.
    """

    def __init__(
        self, feature_config: Any, engine: Engine, num_replicas: int, batch_size: int | None
    ) -> None:
        self._nest = feature_config
        self._engine = engine
        self._replicas = num_replicas
        self._shapes: list[tuple[int, ...] | None]
        self._shapes = shapes.resolve(engine.features, engine.names, None, batch_size)
        self._parts: dict[int, tuple[Batch, bool]] = {}
        self._before_run: tuple[Any, Any] | None = None
        self._lock = threading.Lock()

    def settling(self, device: str | None) -> AbstractContextManager[Any]:
        """One thread at a time while a first batch fixes the shapes, or parts become a batch."""
        return nullcontext() if device is None and self.is_built else self._lock

    def begin_run(self) -> None:
        self._before_run = (self._shapes, self._parts)

    def commit_run(self) -> None:
        self._before_run = None

    def rollback_run(self) -> None:
        """Undo the run: a batch size that it fixed is open again."""
        assert self._before_run is not None
        self._shapes, self._parts = self._before_run
        self._before_run = None

    @property
    def is_built(self) -> bool:
        return all(shape is not None for shape in self._shapes)

    def built_shapes(
        self, per_replica_input_shapes: Any, per_replica_batch_size: int | None
    ) -> list[tuple[int, ...] | None]:
        """All shapes, as TPUEmbedding.build fixes them; those that are fixed already stay."""
        if self.is_built:
            return self._shapes
        flat = per_replica_input_shapes
        if flat is not None and not isinstance(flat, int | np.integer):
            flat = flatten_up_to(self._nest, flat, "per_replica_input_shapes")
        found = shapes.resolve(
            self._engine.features, self._engine.names, flat, per_replica_batch_size
        )
        known = [new if old is None else old for new, old in zip(found, self._shapes, strict=True)]
        if any(shape is None for shape in known):
            raise ValueError(
                "build: no batch size is known; under a TPUStrategy pass per_replica_input_shapes "
                "or per_replica_batch_size, or let the first enqueue decide"
            )
        return known

    def fix(self, per_replica: Sequence[tuple[int, ...] | None]) -> None:
        """From now on batches must have these shapes."""
        self._shapes = list(per_replica)

    def accept(self, batch: Batch) -> None:
        """Later batches must have the shapes of this one."""
        self._shapes = list(per_replica_shapes(batch, self._replicas))
        self._parts = {}

    def flat_inputs(self, features: Any, weights: Any) -> tuple[Leaves, Leaves | None]:
        """Ids and weights, one leaf per feature; weights None where there are none at all."""
        keyed = keyed_jagged(features)
        if keyed is not None:
            features, carried = keyed
            if carried is not None and weights is None:
                weights = {key: carried.get(key) for key in features}
        ids = flatten_up_to(self._nest, features, "features")
        return ids, None if weights is None else flatten_up_to(self._nest, weights, "weights")

    def global_batch(self, ids: Leaves, weights: Leaves | None) -> Batch:
        """From global arrays, or from per-replica values if any leaf is one."""
        if not any(isinstance(leaf, PerReplica) for leaf in ids):
            return self._batch(ids, weights, self._replicas)
        parts = []
        for replica in range(self._replicas):
            mine = [self._of_replica(leaf, replica, "features") for leaf in ids]
            gains = (
                None
                if weights is None
                else [self._of_replica(w, replica, "weights") for w in weights]
            )
            parts.append(self.replica_batch(mine, gains))
        return concatenate(parts)

    def replica_batch(self, ids: Leaves, weights: Leaves | None) -> Batch:
        """One replica's part of a batch."""
        return self._batch(ids, weights, 1)

    def whole_batch(
        self, ids: Leaves, weights: Leaves | None, training: bool, device: str | None
    ) -> Batch | None:
        """The global batch; with a `device`, None until every replica has given its part."""
        if device is not None:
            return self._with_part(device, self.replica_batch(ids, weights), training)
        self._check_no_parts()
        return self.global_batch(ids, weights)

    def joined_batch(self, parts: Sequence[tuple[Batch, bool]]) -> tuple[Batch, bool]:
        """The global batch of the replicas' own, and whether it trains."""
        self._check_no_parts()
        kinds = [training for _, training in parts]
        if len(set(kinds)) > 1:
            raise ValueError(f"enqueue: training is {kinds} by replica; it must be the same")
        return concatenate([part for part, _ in parts]), kinds[0]

    def _with_part(self, device: str, batch: Batch, training: bool) -> Batch | None:
        kind, _, number = str(device).rpartition(":")
        replica = int(number) if number.isdecimal() else self._replicas
        if not kind.upper().endswith("TPU") or replica >= self._replicas:
            raise ValueError(
                f"enqueue: device is {device!r}; it must name one of the {self._replicas} "
                f"replicas, 'TPU:0' to 'TPU:{self._replicas - 1}'"
            )
        if replica in self._parts:
            raise ValueError(
                f"enqueue: {device!r} already has its part of this batch; the parts of replicas "
                f"{self._missing()} are missing"
            )
        if any(kind != training for _, kind in self._parts.values()):
            raise ValueError(
                f"enqueue: training is {training} for {device!r} and {not training} for the parts "
                "before it; it must be the same"
            )
        parts = {**self._parts, replica: (batch, training)}
        if len(parts) < self._replicas:
            self._parts = parts
            return None
        return concatenate([parts[r][0] for r in range(self._replicas)])

    def _check_no_parts(self) -> None:
        if self._parts:
            raise ValueError(
                f"enqueue: replicas {sorted(self._parts)} have enqueued their part of a batch by "
                f"device; enqueue the parts of replicas {self._missing()} first"
            )

    def _missing(self) -> list[int]:
        return sorted(set(range(self._replicas)) - set(self._parts))

    def discard(self) -> None:
        """Forget parts that were enqueued by device."""
        self._parts = {}

    def by_replica(self, activations: Sequence[np.ndarray]) -> list[Leaves]:
        """Each replica's part of global activations, in replica order."""
        split = [np.split(array, self._replicas) for array in activations]
        return [[parts[replica] for parts in split] for replica in range(self._replicas)]

    def global_gradients(self, leaves: Leaves) -> Leaves:
        """Global arrays: as they are, or put together from per-replica values."""
        if not any(isinstance(leaf, PerReplica) for leaf in leaves):
            return leaves
        replicas = range(self._replicas)
        mine = [
            [None if x is None else self._of_replica(x, r, "gradients") for x in leaves]
            for r in replicas
        ]
        return self.joined_gradients([self.replica_gradients(part) for part in mine])

    def replica_gradients(self, leaves: Leaves) -> list[np.ndarray | None]:
        """One replica's gradients, checked against its part of the activations."""
        checked: list[np.ndarray | None] = []
        for leaf, name, feature, shape in zip(
            leaves, self._engine.names, self._engine.features, self._shapes, strict=True
        ):
            assert shape is not None, "checked by the caller: built"
            wanted = (*shape, feature.table.dim)
            checked.append(None if leaf is None else as_gradient(leaf, name, wanted))
        return checked

    def joined_gradients(self, parts: Sequence[Sequence[np.ndarray | None]]) -> Leaves:
        """The global gradients of per-replica ones, in replica order; None where no replica has
        one.
        """
        joined: Leaves = []
        for feature in zip(*parts, strict=True):
            given = [part for part in feature if part is not None]
            if not given:
                joined.append(None)
                continue
            zeros = np.zeros_like(given[0])
            joined.append(np.concatenate([zeros if part is None else part for part in feature]))
        return joined

    def _batch(self, ids: Leaves, weights: Leaves | None, replicas: int) -> Batch:
        engine = self._engine
        return make_batch(
            ids,
            weights,
            engine.features,
            engine.names,
            self._shapes,
            replicas,
            engine.check_numerics,
        )

    def _of_replica(self, leaf: Any, replica: int, what: str) -> Any:
        if leaf is None:
            return None
        if not isinstance(leaf, PerReplica) or len(leaf.values) != self._replicas:
            raise ValueError(
                f"{what}: {type(leaf).__name__} stands beside per-replica values; every leaf must "
                f"be a PerReplica of {self._replicas} values"
            )
        return leaf.values[replica]
