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

import builtins
import keyword
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..config import FeatureConfig, TableConfig
from ..initializers import initial_table
from ..schedule import Schedule
from .literal import literal

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
        return f"Values({literal(self.rows)})"


@dataclass(frozen=True)
class Rates:
    """A learning rate by training step: of step t, values[t % len(values)]."""

    values: tuple[float, ...]

    def __call__(self, step: int) -> float:
        return self.values[step % len(self.values)]


@dataclass(frozen=True, eq=False)
class Setup:
    """What is trained, and how. Every table has a name and an optimizer of its own, and an
    initializer that gives the same numbers whenever it is called.

    Args:
      features: one FeatureConfig per feature; they may share tables.
      schedule: which version each lookup reads.
      samples: bags of each feature in a global batch.
      replicas: parts in which a global batch arrives; they divide `samples`.
      queue_capacity: batches that may wait undequeued.

    Raises:
      ValueError: a table without name or optimizer, two of one name, or samples that the replicas
        do not divide.
    """

    features: tuple[FeatureConfig, ...]
    schedule: Schedule = field(default_factory=Schedule)
    samples: int = 1
    replicas: int = 1
    queue_capacity: int = 8

    def __post_init__(self) -> None:
        configs = list(dict.fromkeys(feature.table for feature in self.features))
        if None in [config.name for config in configs] or len(self.tables) < len(configs):
            names = [config.name for config in configs]
            raise ValueError(f"Setup: tables are named {names}; each must have a name of its own")
        for config in configs:
            if config.optimizer is None:
                raise ValueError(f"Setup: table {config.name!r} has no optimizer; give it one")
        if self.samples % self.replicas:
            raise ValueError(
                f"Setup: {self.replicas} replicas do not divide {self.samples} samples"
            )

    @property
    def tables(self) -> dict[str, TableConfig]:
        """By name, in the order in which the features first name them."""
        configs = dict.fromkeys(feature.table for feature in self.features)
        return {str(config.name): config for config in configs}

    def initial(self, table: str) -> np.ndarray:
        """float32 [vocabulary_size, dim]: the table before the first step."""
        config = self.tables[table]
        size = config.vocabulary_size, config.dim
        return initial_table(config.initializer, *size, seed=0, table_name=table)

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
    variables = _variables(setup)
    tables = [f"{name} = {_table(setup, config)}" for config, name in variables.items()]
    body = [f"    {literal(call)}," for call in calls]
    lines = [f"setup = {_setup(setup, variables)}", "program = Program(setup, (", *body, "))"]
    text = "\n".join([*tables, *lines])
    return "\n".join([*_imports(setup, text), text])


def _variables(setup: Setup) -> dict[TableConfig, str]:
    """What each table is called: its own name, if that is one in Python and free."""
    import embsim
    import embsim.conformance as kit

    taken = {"np", "setup", "program", *vars(builtins), *vars(embsim), *vars(kit)}
    found: dict[TableConfig, str] = {}
    for number, (name, config) in enumerate(setup.tables.items()):
        usable = name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
        made = name if usable and name not in taken else f"table_{number}"
        while made in taken:
            made += "_"
        taken.add(made)
        found[config] = made
    return found


def _imports(setup: Setup, text: str) -> Iterator[str]:
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
    yield from dict.fromkeys(_imports_of_a_user(setup))


def _imports_of_a_user(setup: Setup) -> Iterator[str]:
    for config in setup.tables.values():
        for made in (config.optimizer, config.optimizer.learning_rate):
            kind = made if hasattr(made, "__qualname__") else type(made)
            if kind.__module__.split(".")[0] not in ("embsim", "builtins", "numpy"):
                yield f"from {kind.__module__} import {kind.__qualname__.split('.')[0]}"


def _table(setup: Setup, config: TableConfig) -> str:
    values = config.initializer
    if not isinstance(values, Values):
        values = Values(setup.initial(str(config.name)))
    shown: list[Any] = [config.vocabulary_size, config.dim, values, config.optimizer]
    text = ", ".join(literal(each) for each in [*shown, config.combiner, config.name])
    quantization = config.quantization_config
    more = f", quantization_config={literal(quantization)}" if quantization else ""
    return f"TableConfig({text}{more})"


def _setup(setup: Setup, variables: dict[TableConfig, str]) -> str:
    features = "".join(
        f"FeatureConfig({variables[feature.table]}"
        + (f", {feature.max_sequence_length}" if feature.max_sequence_length else "")
        + "), "
        for feature in setup.features
    ).rstrip(" ")
    features = features[:-1] if len(setup.features) > 1 else features
    rest = [f"samples={setup.samples}"]
    rest += [f"replicas={setup.replicas}"] if setup.replicas != 1 else []
    rest += [f"queue_capacity={setup.queue_capacity}"] if setup.queue_capacity != 8 else []
    return f"Setup(({features}), {literal(setup.schedule)}, {', '.join(rest)})"
