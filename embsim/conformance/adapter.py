"""How the kit reaches an engine that has its own queues: an EngineAdapter, and what it can do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..config import integer
from ..optimizers import accumulates_gradients, updates_every_row
from ..optimizers.base import clip_values
from ..schedule import Schedule
from .program import Batch, Setup
from .tolerance import Accuracy

OPTIMIZERS = ("SGD", "Adagrad", "RowwiseAdagrad", "AdagradMomentum", "Adam", "FTRL")

# What a backend may refuse, in the words of the configuration that asks for it.
REFUSABLE_BY_BACKENDS = (
    *OPTIMIZERS[1:],
    "a user's optimizer",
    "power",
    "quantization_config",
    "clipvalue",
    "clip_weight",
    "weight_decay_factor",
    "use_gradient_accumulation=False",
    "lazy_adam=False",
)

# What a subject may refuse: a whole engine more than a backend, of which embsim's engine asks less.
REFUSABLE = (
    *REFUSABLE_BY_BACKENDS,
    "combiner='mean'",
    "combiner='sqrtn'",
    "weights",
    "max_sequence_length",
    "shared tables",
    "several tables",
    "a learning-rate callable",
    "gradients of None",
    "inference",
    "checkpoints",
)

# Of these a setup does not tell: batches, gradients and calls do.
NOT_OF_A_SETUP = ("weights", "gradients of None", "inference", "checkpoints")
BOUNDABLE = tuple(name for name in REFUSABLE if name not in NOT_OF_A_SETUP)


@dataclass(frozen=True)
class Capabilities:
    """What an engine does, as its author declares it. The kit asks for nothing else, and holds the
    engine to all of it.

    Args:
      bitwise: it does every operation as the law writes it, rounded, in the law's order. If not,
        numbers chosen so that all orders are exact must still agree to the bit, and others within
        bounds that are computed from the operands.
      ulps: of sqrt and division, in units in the last place; 0.5 is IEEE.
      subnormals: operations keep numbers below 2^-126. If not, each may take such operands for
        zero, and return zero for such a result.
      bounded: names of REFUSABLE. A setup that asks for one of them (`asked_for`) is held to the
        bounds, as if the engine were not bitwise.
      refuses: {what: why}, by the names of REFUSABLE.
      schedules: those that it can be started with; None: any Schedule.
      output_shift: dequeues of a loop that return None before the first activations; the n-th
        batch's activations come from dequeue n + output_shift.
      ahead: batches that may be enqueued before the first is dequeued; 1: none ahead.
      in_flight: training steps that may be dequeued before the oldest gets its gradients.
      drain_points: 'any': drain() between any two steps; 'end': only once, after the last step.
      looks: tables(), slots() and inference at any time see every submitted update and change
        nothing. If not, they are asked for after drain() alone.
      errors: calls that could never be served raise a RuntimeError, ids outside their table a
        ValueError, gradients of a wrong shape a ValueError or TypeError, and all of them change
        nothing. If not, the kit never makes such calls.
      replicas: numbers of replicas that it can be started with.
    """

    bitwise: bool = False
    ulps: float = 0.5
    subnormals: bool = True
    bounded: tuple[str, ...] = ()
    refuses: Mapping[str, str] = field(default_factory=dict[str, str])
    schedules: tuple[Schedule, ...] | None = None
    output_shift: int = 0
    ahead: int = 8
    in_flight: int = 8
    drain_points: str = "any"
    looks: bool = True
    errors: bool = True
    replicas: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        if not isinstance(self.refuses, Mapping):
            raise TypeError(f"refuses is {self.refuses!r}; it must be a mapping {{what: why}}")
        unknown = sorted(set(self.refuses) - set(REFUSABLE))
        if unknown:
            raise ValueError(
                f"refuses names {unknown}, which no setup asks for; the names are {REFUSABLE} "
                "(SGD and combiner='sum' cannot be refused)"
            )
        if not isinstance(self.bounded, tuple):
            raise TypeError(f"bounded is {self.bounded!r}; it must be a tuple of names")
        unknown = sorted(set(self.bounded) - set(BOUNDABLE))
        if unknown:
            raise ValueError(
                f"bounded names {unknown}, which no setup asks for; the names are {BOUNDABLE}"
            )
        if self.drain_points not in ("any", "end"):
            raise ValueError(f"drain_points is {self.drain_points!r}; it must be 'any' or 'end'")
        for name, least in (("output_shift", 0), ("ahead", 1), ("in_flight", 1)):
            integer(f"Capabilities: {name}", getattr(self, name), minimum=least)
        if not self.replicas or any(n < 1 for n in self.replicas):
            raise ValueError(f"replicas is {self.replicas}; it must be numbers of at least 1")
        if not self.ulps >= 0.5:
            raise ValueError(f"ulps is {self.ulps}; it must be at least 0.5, which is IEEE")
        if self.schedules is not None and not self.schedules:
            raise ValueError("schedules is empty; name one, or None for any Schedule")

    @property
    def to_the_bit(self) -> "Capabilities":
        """Of a bitwise engine, what it does to the bit: what is `bounded` counts as refused."""
        kept = dict.fromkeys(self.bounded, "it is held to bounds")
        return replace(self, refuses={**self.refuses, **kept}) if kept else self

    @property
    def accuracy(self) -> Accuracy:
        """That of single operations."""
        return Accuracy(self.ulps, self.subnormals)

    def offers(self, *names: str) -> bool:
        """Whether none of these is refused."""
        return not set(names) & set(self.refuses)


ALL = Capabilities(bitwise=True, replicas=(1, 2, 4))  # nothing is refused


@runtime_checkable
class EngineAdapter(Protocol):
    """One engine in training, started on a Setup; the kit makes one for each program.

    enqueue          a global batch: for each feature, for each sample, a bag of ids, or of
                     (id, weight) pairs. `training` False is an inference step.
    dequeue          activations of the oldest batch, one array per feature: float32
                     [samples, dim], or [samples, max_sequence_length, dim].
    apply_gradients  one array per feature, of its activations' shape, or None for zeros: of the
                     oldest dequeued training step that has none.
    drain            lookups that follow see every update before it.
    tables, slots    {table: [vocabulary_size, dim]}, {table: {slot: [vocabulary_size, dim or 1]}}:
                     all submitted updates, as if drained.
    close            the end; what is left in flight is given up.

    An adapter that offers "checkpoints" also has save() -> anything, and restore(anything).
    """

    def enqueue(self, batch: Batch, training: bool = True) -> None: ...

    def dequeue(self) -> Sequence[Any] | None: ...

    def apply_gradients(self, gradients: Sequence[Any]) -> None: ...

    def drain(self) -> None: ...

    def tables(self) -> Mapping[str, Any]: ...

    def slots(self) -> Mapping[str, Mapping[str, Any]]: ...

    def close(self) -> None: ...


@runtime_checkable
class AdapterFactory(Protocol):
    """What `checks_for_engine` takes: usually the adapter's class, with its capabilities."""

    capabilities: Capabilities

    def __call__(self, setup: Setup, /) -> EngineAdapter: ...


def asked_for(setup: Setup) -> frozenset[str]:
    """The names of REFUSABLE that a setup uses, as far as its configuration says."""
    names: set[str] = set()
    tables = [feature.table for feature in setup.features]
    if len(set(tables)) < len(tables):
        names.add("shared tables")
    if len(set(tables)) > 1:
        names.add("several tables")
    if any(feature.max_sequence_length for feature in setup.features):
        names.add("max_sequence_length")
    for config in setup.tables.values():
        names |= {f"combiner={config.combiner!r}"} & set(REFUSABLE)
        if config.quantization_config is not None:
            names.add("quantization_config")
        names |= asked_of_optimizer(config.optimizer)
    return frozenset(names)


def asked_of_optimizer(optimizer: Any) -> set[str]:
    """The names of REFUSABLE that an optimizer uses."""
    kind = type(optimizer).__name__
    names = {kind if kind in OPTIMIZERS else "a user's optimizer"} - {"SGD"}
    exponents = (getattr(optimizer, "exponent", 2), getattr(optimizer, "learning_rate_power", -0.5))
    given = {
        "power": exponents != (2, -0.5) or kind not in OPTIMIZERS,
        "clipvalue": clip_values(optimizer) != (None, None),
        "clip_weight": any(
            getattr(optimizer, f"clip_weight_{end}", None) is not None for end in ("min", "max")
        ),
        "weight_decay_factor": bool(getattr(optimizer, "weight_decay_factor", None)),
        "use_gradient_accumulation=False": not accumulates_gradients(optimizer),
        "lazy_adam=False": updates_every_row(optimizer),
        "a learning-rate callable": callable(optimizer.learning_rate),
    }
    return names | {name for name, used in given.items() if used}


def arrays(batch: Batch) -> list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """For adapters: per feature (ids int32 [nnz], splits int64 [samples + 1], weights float32 [nnz]
    or None where no bag of the feature has any).
    """
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = []
    for bags in batch:
        items = [item for bag in bags for item in bag]
        pairs = [item if isinstance(item, tuple) else (item, 1.0) for item in items]
        weighted = any(isinstance(item, tuple) for item in items)
        ids = np.array([row for row, _ in pairs], np.int32)
        weights = np.array([w for _, w in pairs], np.float32) if weighted else None
        splits = np.cumsum([0, *(len(bag) for bag in bags)], dtype=np.int64)
        found.append((ids, splits, weights))
    return found
