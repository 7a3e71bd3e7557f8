"""Tables and their slot variables at one version, as host arrays: what goes into a backend and
comes out of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from ._memory import aligned_empty
from .config import QuantizationConfig, TableConfig
from .initializers import initial_table
from .optimizers import Optimizer


@dataclass(frozen=True, eq=False)
class TableSpec:
    """What a backend must know of a table: its size, its rule, and how its rows are quantized when
    looked up.

    `optimizer` None: the table is only looked up, and has no slot variables.
    """

    name: str
    vocabulary_size: int
    dim: int
    optimizer: Optimizer | None = None
    quantization: QuantizationConfig | None = None

    def slot_shape(self, slot: str, rows: int) -> tuple[int, int]:
        """[rows, dim], or [rows, 1] for a slot with one number a row."""
        assert self.optimizer is not None
        (found,) = (s for s in self.optimizer.slots if s.name == slot)
        return rows, 1 if found.rowwise else self.dim

    @property
    def slot_names(self) -> tuple[str, ...]:
        return () if self.optimizer is None else tuple(slot.name for slot in self.optimizer.slots)


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one table and of its slot variables, in the order of the rows that were asked for."""

    weights: Float32[np.ndarray, "rows dim"]
    slots: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class State:
    """All tables and slots at one version.

    `version` is the number of updates. `weights` by table name, [vocabulary_size, dim]; `slots` by
    table and slot name. Logical rows only, never padding.
    """

    specs: Mapping[str, TableSpec]
    weights: Mapping[str, np.ndarray]
    slots: Mapping[str, Mapping[str, np.ndarray]]
    version: int = 0

    def copied(self) -> "State":
        """The same in read-only memory of its own."""
        weights = {name: _frozen_copy(array) for name, array in self.weights.items()}
        slots = {
            name: {slot: _frozen_copy(array) for slot, array in each.items()}
            for name, each in self.slots.items()
        }
        return State(self.specs, weights, slots, self.version)


def initial_state(specs: Sequence[TableSpec], configs: Sequence[TableConfig], seed: int) -> State:
    """Every table from its initializer and every slot from its initial value.

    Contiguous, aligned to 64 bytes.

    Raises:
      ValueError: an initializer, or a slot_variable_creation_fn, that returns another shape or
        other slots.
    """
    weights = {
        spec.name: initial_table(
            config.initializer, spec.vocabulary_size, spec.dim, seed, spec.name
        )
        for spec, config in zip(specs, configs, strict=True)
    }
    slots = {spec.name: _initial_slots(spec, weights[spec.name]) for spec in specs}
    return State({spec.name: spec for spec in specs}, weights, slots)


def _initial_slots(spec: TableSpec, table: np.ndarray) -> dict[str, np.ndarray]:
    if spec.optimizer is None:
        return {}
    slots: dict[str, np.ndarray] = {}
    for slot in spec.optimizer.slots:
        slots[slot.name] = aligned_empty(spec.slot_shape(slot.name, len(table)), np.float32)
        slots[slot.name][...] = slot.initial
    creation = getattr(spec.optimizer, "slot_variable_creation_fn", None)
    if creation is not None and slots:
        _fill_from_user(spec, table, slots, creation)
    return slots


def _fill_from_user(
    spec: TableSpec, table: np.ndarray, slots: dict[str, np.ndarray], creation: Any
) -> None:
    """creation(table, slot names, slot initializers) -> {slot name: array, or a callable that
    returns one}.
    """
    assert spec.optimizer is not None
    initializers = [_constant(slot.initial) for slot in spec.optimizer.slots]
    view = table.view()
    view.flags.writeable = False
    made = creation(view, list(slots), initializers)
    if not isinstance(made, Mapping) or set(made) != set(slots):
        found = sorted(made, key=repr) if isinstance(made, Mapping) else made
        raise ValueError(
            f"slot_variable_creation_fn of table {spec.name!r} returned {found!r}; it must return "
            f"a dict with the slots {sorted(slots)}"
        )
    for name, array in slots.items():
        value = made[name]() if callable(made[name]) else made[name]
        value = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
        if value.dtype.kind not in "fiub":
            raise ValueError(
                f"slot_variable_creation_fn of table {spec.name!r}: slot {name!r} has dtype "
                f"{value.dtype}; it must be real numbers"
            )
        if value.shape != array.shape:
            raise ValueError(
                f"slot_variable_creation_fn of table {spec.name!r}: slot {name!r} has shape "
                f"{value.shape}; it must be {array.shape}"
            )
        array[...] = value


def _constant(value: float) -> Any:
    def initializer(shape: Any, dtype: Any = np.float32) -> np.ndarray:
        return np.full(shape, value, dtype)

    return initializer


def _frozen_copy(array: np.ndarray) -> np.ndarray:
    copy = np.array(array)
    copy.flags.writeable = False
    return copy
