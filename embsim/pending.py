"""Submitted updates that the law does not let lookups see yet, and the tables as they would be with
them applied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .backend import Backend
from .optimizers import updates_every_row
from .plan import LookupPlan
from .state import Rows, State, TableSpec


@dataclass(frozen=True, eq=False)
class PendingUpdate:
    """Everything that the update of one training step needs, its own step's learning rates
    included.
    """

    step: int
    plans: Mapping[str, LookupPlan]
    device_plan: Any
    gradients: Mapping[str, np.ndarray]  # by table: [samples, dim], the engine's own copy
    coefficients: Mapping[str, Mapping[str, np.float32]]


@dataclass(frozen=True, eq=False)
class Patch:
    """Rows of one table that pending updates change, with the values that they will have."""

    rows: np.ndarray  # ascending
    values: Rows


def drained_rows(
    backend: Backend, state: Any, specs: Mapping[str, TableSpec], pending: Sequence[PendingUpdate]
) -> dict[str, Patch]:
    """By table, the rows that `pending` touches, as if all of it were applied.

    `state` stays as it is.

    The same backend computes them, on tables that hold those rows alone: O(rows of the pending
    plans), or O(table) where the optimizer updates every row.
    """
    if not pending:
        return {}
    rows = {
        name: _touched(spec, [update.plans[name] for update in pending])
        for name, spec in specs.items()
    }
    small = compact_state(backend, state, specs, rows)
    if not small.specs:
        return {}
    device = backend.put_state(small)
    for update in pending:
        plans = {
            name: plan.with_rows(rows[name])
            for name, plan in update.plans.items()
            if name in small.specs
        }
        gradients = {name: update.gradients[name] for name in plans}
        coefficients = {name: update.coefficients[name] for name in plans}
        device = backend.update(device, backend.put_plan(plans), gradients, coefficients)
    small = backend.get_state(device)
    return {
        name: Patch(rows[name], Rows(small.weights[name], small.slots[name]))
        for name in small.specs
    }


def compact_state(
    backend: Backend, state: Any, specs: Mapping[str, TableSpec], rows: Mapping[str, np.ndarray]
) -> State:
    """A State of tables that hold only `rows` of those in `state`; tables of which no row is wanted
    are left out.
    """
    small: dict[str, TableSpec] = {}
    read: dict[str, Rows] = {}
    for name, wanted in rows.items():
        if len(wanted):
            spec = specs[name]
            small[name] = TableSpec(name, len(wanted), spec.dim, spec.optimizer, spec.quantization)
            found = backend.read_rows(state, name, wanted)
            own = {slot: _writable(array) for slot, array in found.slots.items()}
            read[name] = Rows(_writable(found.weights), own)
    weights = {name: value.weights for name, value in read.items()}
    return State(small, weights, {name: value.slots for name, value in read.items()})


def _writable(array: np.ndarray) -> np.ndarray:
    return np.require(array, requirements=["C_CONTIGUOUS", "WRITEABLE"])


def drained_lookup(
    backend: Backend,
    state: Any,
    specs: Mapping[str, TableSpec],
    plans: Mapping[str, LookupPlan],
    patches: Mapping[str, Patch],
) -> dict[str, np.ndarray]:
    """The lookup of `plans` in the tables as patched, computed by the backend on the rows that it
    reads alone.
    """
    rows = {name: plan.unique for name, plan in plans.items()}
    small = compact_state(backend, state, specs, rows)
    for name in small.specs:
        if name in patches:
            overlay(small.weights[name], rows[name], patches[name])
    wanted = {name: plans[name].with_rows(rows[name]) for name in small.specs}
    found = backend.lookup(backend.put_state(small), backend.put_plan(wanted)) if wanted else {}
    return {
        name: found[name]
        if name in found
        else np.zeros((plan.samples, specs[name].dim), np.float32)
        for name, plan in plans.items()
    }


def overlay(weights: np.ndarray, rows: np.ndarray, patch: Patch) -> None:
    """Write the patch into `weights`, which holds the ascending `rows` of the table."""
    place = np.searchsorted(patch.rows, rows)
    place[place == len(patch.rows)] = 0
    hit = patch.rows[place] == rows
    weights[hit] = patch.values.weights[place[hit]]


def _touched(spec: TableSpec, plans: Sequence[LookupPlan]) -> np.ndarray:
    if updates_every_row(spec.optimizer):
        return np.arange(spec.vocabulary_size, dtype=np.int32)
    touched = [plan.unique for plan in plans]
    merged = np.sort(np.concatenate(touched))
    return merged[np.concatenate([[True], merged[1:] != merged[:-1]])] if len(merged) else merged


def drained_state(state: State, patches: Mapping[str, Patch], version: int) -> State:
    """`state` with the patches written in, read-only: views of the tables without a patch, copies
    of the others.
    """
    weights = {name: _patched(array, name, patches, None) for name, array in state.weights.items()}
    slots = {
        name: {slot: _patched(array, name, patches, slot) for slot, array in each.items()}
        for name, each in state.slots.items()
    }
    return State(state.specs, weights, slots, version)


def _patched(
    array: np.ndarray, table: str, patches: Mapping[str, Patch], slot: str | None
) -> np.ndarray:
    out = array.view()
    if table in patches:
        patch = patches[table]
        out = array.copy()
        out[patch.rows] = patch.values.weights if slot is None else patch.values.slots[slot]
    out.flags.writeable = False
    return out
