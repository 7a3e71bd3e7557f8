"""What a subject is asked to do, as data: a Setup, and the calls of a Program on it.

Its source is Python: a failure prints the program that shows it.

>>> from embsim import FeatureConfig, SGD, TableConfig, stale
>>> table = TableConfig(1, 1, Values([[0.0]]), SGD(1.0), "sum", "t0")
>>> setup = Setup((FeatureConfig(table),), stale(1), samples=1)
>>> print(source(Program(setup, (Train([[[0]]], [[[1.0]]]), Drain(), Look()))))
from embsim import SGD, FeatureConfig, Schedule, TableConfig
from embsim.conformance import Drain, Look, Program, Setup, Train, Values
t0 = TableConfig(1, 1, Values([[0.0]]), SGD(1.0), 'sum', 't0')
setup = Setup((FeatureConfig(t0),), Schedule(staleness=1), samples=1)
program = Program(setup, (
    Train([[[0]]], [[[1.0]]]),
    Drain(),
    Look(),
))
"""

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np

from ..config import FeatureConfig, TableConfig
from ..schedule import Schedule

Bag = Sequence[Any]  # of ids, or of (id, weight)
Batch = Sequence[Sequence[Bag]]  # for each feature, for each sample, a bag
Gradients = Sequence[Any]  # for each feature an array of its activations' shape, or None


class Values:
    """An initializer: these numbers, [vocabulary_size, dim], as float32."""

    def __init__(self, rows: Any) -> None:
        self.rows = np.array(rows, np.float32)

    def __call__(self, shape: Any, dtype: Any = np.float32) -> np.ndarray:
        assert tuple(shape) == self.rows.shape, f"{self.rows.shape} numbers for a table of {shape}"
        return self.rows.copy()

    def __repr__(self) -> str:
        return f"Values({_literal(self.rows)})"


@dataclass(frozen=True)
class Rates:
    """A learning rate by training step: of step t, values[t % len(values)]."""

    values: tuple[float, ...]

    def __call__(self, step: int) -> float:
        return self.values[step % len(self.values)]


@dataclass(frozen=True, eq=False)
class Setup:
    """What is trained, and how. Every table has a name, an optimizer and an initializer of its own.

    Args:
      features: one FeatureConfig per feature; they may share tables.
      schedule: which version each lookup reads.
      samples: bags of each feature in a global batch.
      replicas: parts in which a global batch arrives; they divide `samples`.
      queue_capacity: batches that may wait undequeued.
    """

    features: tuple[FeatureConfig, ...]
    schedule: Schedule = field(default_factory=Schedule)
    samples: int = 1
    replicas: int = 1
    queue_capacity: int = 8

    @property
    def tables(self) -> dict[str, TableConfig]:
        """By name, in the order in which the features first name them."""
        configs = dict.fromkeys(feature.table for feature in self.features)
        return {str(config.name): config for config in configs}

    def initial(self, table: str) -> np.ndarray:
        """float32 [vocabulary_size, dim]: the table before the first step."""
        config = self.tables[table]
        assert config.initializer is not None
        shape = (config.vocabulary_size, config.dim)
        return np.asarray(config.initializer(shape, np.float32), np.float32)

    def activation_shape(self, feature: int) -> tuple[int, ...]:
        """Of a global batch: [samples, dim], or [samples, max_sequence_length, dim]."""
        config = self.features[feature]
        middle = (config.max_sequence_length,) if config.max_sequence_length else ()
        return (self.samples, *middle, config.table.dim)


@dataclass(frozen=True, eq=False)
class Enqueue:
    """A global batch; `training` False: an inference step, which makes no version."""

    batch: Batch
    training: bool = True


@dataclass(frozen=True, eq=False)
class Dequeue:
    """The activations of the oldest batch."""


@dataclass(frozen=True, eq=False)
class Apply:
    """Gradients of the oldest dequeued training step that has none."""

    gradients: Gradients


@dataclass(frozen=True, eq=False)
class Train:
    """Enqueue, Dequeue, Apply."""

    batch: Batch
    gradients: Gradients


@dataclass(frozen=True, eq=False)
class Evaluate:
    """Enqueue of an inference step, Dequeue."""

    batch: Batch


@dataclass(frozen=True, eq=False)
class Drain:
    """Lookups after it see every update before it."""


@dataclass(frozen=True, eq=False)
class Look:
    """Read all tables and slots; changes nothing."""


@dataclass(frozen=True, eq=False)
class Save:
    """A checkpoint; changes nothing."""


@dataclass(frozen=True, eq=False)
class Restore:
    """Go back to the newest checkpoint."""


Call = Enqueue | Dequeue | Apply | Train | Evaluate | Drain | Look | Save | Restore


@dataclass(frozen=True, eq=False)
class Program:
    """Calls on one setup, in order."""

    setup: Setup
    calls: tuple[Call, ...]

    @property
    def single_calls(self) -> Iterator[tuple[int, Call]]:
        """Train and Evaluate taken apart, each with the index of the call that it comes from."""
        for index, call in enumerate(self.calls):
            if isinstance(call, Train):
                yield index, Enqueue(call.batch)
                yield index, Dequeue()
                yield index, Apply(call.gradients)
            elif isinstance(call, Evaluate):
                yield index, Enqueue(call.batch, training=False)
                yield index, Dequeue()
            else:
                yield index, call


def source(program: Program, upto: int | None = None) -> str:
    """Python that makes `program`, or the program of its calls 0 .. upto."""
    calls = program.calls if upto is None else program.calls[: upto + 1]
    setup = program.setup
    tables = [f"{name} = {_table(config)}" for name, config in setup.tables.items()]
    body = [f"    {_literal(call)}," for call in calls]
    lines = [f"setup = {_setup(setup)}", "program = Program(setup, (", *body, "))"]
    text = "\n".join([*tables, *lines])
    return "\n".join([*_imports(text), text])


def _imports(text: str) -> Iterator[str]:
    import embsim
    import embsim.conformance as kit

    def used(module: Any) -> list[str]:
        names = [name for name in vars(module) if name[0].isupper() and f"{name}(" in text]
        return sorted(names, key=lambda name: (not name.isupper(), name))

    if "np." in text:
        yield "import numpy as np"
    known = used(embsim)
    for module, names in (
        ("embsim", known),
        ("embsim.conformance", [name for name in used(kit) if name not in known]),
    ):
        if names:
            yield f"from {module} import {', '.join(names)}"


def _table(config: TableConfig) -> str:
    shown: list[Any] = [config.vocabulary_size, config.dim, config.initializer, config.optimizer]
    text = ", ".join(_literal(each) for each in [*shown, config.combiner, config.name])
    quantization = config.quantization_config
    more = f", quantization_config={_literal(quantization)}" if quantization else ""
    return f"TableConfig({text}{more})"


def _setup(setup: Setup) -> str:
    features = "".join(
        f"FeatureConfig({feature.table.name}"
        + (f", {feature.max_sequence_length}" if feature.max_sequence_length else "")
        + "), "
        for feature in setup.features
    ).rstrip(" ")
    features = features[:-1] if len(setup.features) > 1 else features
    rest = [f"samples={setup.samples}"]
    rest += [f"replicas={setup.replicas}"] if setup.replicas != 1 else []
    rest += [f"queue_capacity={setup.queue_capacity}"] if setup.queue_capacity != 8 else []
    return f"Setup(({features}), {_literal(setup.schedule)}, {', '.join(rest)})"


# What is usually given by position.
_POSITIONAL = {"learning_rate", "batch", "gradients", "values", "num_buckets", "lower", "upper"}


def _literal(value: Any) -> str:
    """Python that makes `value`: floats in the fewest digits that are the same float32."""
    if isinstance(value, np.ndarray):
        if value.size > 1 and np.all(value == value.flat[0]):
            shape = value.shape[0] if value.ndim == 1 else value.shape
            number = _literal(value.flat[0])
            return f"np.zeros({shape})" if number == "0.0" else f"np.full({shape}, {number})"
        return _literal(value.tolist()) if value.dtype.kind != "f" else _literal(list(value))
    if isinstance(value, np.floating):
        return str(value) if np.isfinite(value) else f"float('{value}')"
    if isinstance(value, list | tuple):
        inner = ", ".join(_literal(item) for item in value)
        if isinstance(value, list):
            return f"[{inner}]"
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if is_dataclass(value):
        return f"{type(value).__name__}({', '.join(_arguments(value))})"
    return repr(value)


def _arguments(value: Any) -> Iterator[str]:
    """Of a dataclass, those that are not the default."""
    for each in fields(value):
        found, default = getattr(value, each.name), each.default
        if each.default_factory is not MISSING:
            default = each.default_factory()
        if each.init and (default is MISSING or (found is not default and found != default)):
            yield ("" if each.name in _POSITIONAL else f"{each.name}=") + _literal(found)
