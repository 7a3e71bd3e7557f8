"""An engine's tables, slots, counts and pending updates <-> named arrays and JSON: what a
checkpoint of it holds.

    weights/<t>  slots/<t>/<name>                   logical rows at `version`
    patches/<t>/rows, .../weights, .../slots/<n>    rows that pending updates touch, as if drained
    pending/<i>/<t>/splits row gain gradients coefficients

A reader without optimizer writes the patches over the tables and has all of them.
<t> is the table's position; its name is in the JSON, so any name will do.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ._codegen import update_source
from ._memory import aligned_empty
from .errors import CheckpointError
from .optimizers import Optimizer
from .pending import Patch, PendingUpdate
from .plan import LookupPlan
from .schedule import Progress, Schedule
from .state import State, TableSpec

KIND = "embsim.TPUEmbedding"
Arrays = Mapping[str, np.ndarray]
Saved = tuple[dict[str, np.ndarray], dict[str, Any]]


def saved_state(
    state: State,
    schedule: Schedule,
    progress: Progress,
    pending: Sequence[PendingUpdate],
    patches: Mapping[str, Patch],
) -> Saved:
    """Arrays (views where they can be) and meta."""
    arrays: dict[str, np.ndarray] = {}
    tables: list[dict[str, Any]] = []
    for i, (name, spec) in enumerate(state.specs.items()):
        tables.append(
            {
                "name": name,
                "vocabulary_size": spec.vocabulary_size,
                "dim": spec.dim,
                "slots": {slot: spec.slot_shape(slot, 1)[1] for slot in spec.slot_names},
                "optimizer": type(spec.optimizer).__name__ if spec.optimizer is not None else None,
                "form": _form(spec.optimizer),
                "coefficients": list(pending[0].coefficients[name]) if pending else [],
                "patched": name in patches,
            }
        )
        arrays[f"weights/{i}"] = state.weights[name]
        arrays |= {f"slots/{i}/{slot}": array for slot, array in state.slots[name].items()}
        if name in patches:
            patch = patches[name]
            arrays[f"patches/{i}/rows"] = patch.rows
            arrays[f"patches/{i}/weights"] = patch.values.weights
            arrays |= {
                f"patches/{i}/slots/{slot}": array for slot, array in patch.values.slots.items()
            }
        for k, update in enumerate(pending):
            plan = update.plans[name]
            arrays[f"pending/{k}/{i}/splits"] = plan.splits
            arrays[f"pending/{k}/{i}/row"] = plan.row
            arrays[f"pending/{k}/{i}/gain"] = plan.gain
            arrays[f"pending/{k}/{i}/gradients"] = update.gradients[name]
            arrays[f"pending/{k}/{i}/coefficients"] = np.array(
                list(update.coefficients[name].values()), np.float32
            )
    meta = {
        "kind": KIND,
        "tables": tables,
        "schedule": asdict(schedule),
        "progress": asdict(progress),
        "version": state.version,
        "pending_steps": [update.step for update in pending],
    }
    return arrays, meta


def load_state(
    arrays: Arrays, meta: Mapping[str, Any], specs: Mapping[str, TableSpec], schedule: Schedule
) -> tuple[State, Progress, list[PendingUpdate]]:
    """The inverse, for an engine with the tables `specs`.

    Everything is checked; nothing of the engine is touched.

    Under another schedule than the saved one the run goes on as after a drain. A reader without
    optimizers takes the tables as if drained.

    Raises:
      CheckpointError: another kind of object, a missing table or slot, another size.
    """
    if meta.get("kind") != KIND:
        raise CheckpointError(
            f"restore: the checkpoint holds {meta.get('kind')!r} here; an embedding needs {KIND!r}"
        )
    try:
        return _load(arrays, meta, specs, schedule)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"restore: the checkpoint lacks or garbles a part of the embedding: {error!r}; restore "
            "an earlier checkpoint"
        ) from error


def _load(
    arrays: Arrays, meta: Mapping[str, Any], specs: Mapping[str, TableSpec], schedule: Schedule
) -> tuple[State, Progress, list[PendingUpdate]]:
    saved = {table["name"]: (i, table) for i, table in enumerate(meta["tables"])}
    _check_tables(saved, specs)
    reader = _only_reads(specs)
    weights, slots = {}, {}
    for name, spec in specs.items():
        i, table = saved[name]
        weights[name] = _array(arrays, f"weights/{i}", (spec.vocabulary_size, spec.dim))
        slots[name] = {
            slot: _array(arrays, f"slots/{i}/{slot}", spec.slot_shape(slot, spec.vocabulary_size))
            for slot in spec.slot_names
        }
        if reader and table["patched"]:
            rows = arrays[f"patches/{i}/rows"]
            weights[name][rows] = arrays[f"patches/{i}/weights"]
            for slot, array in slots[name].items():
                array[rows] = arrays[f"patches/{i}/slots/{slot}"]
    progress = Progress(**meta["progress"])
    if reader:
        steps = progress.submitted
        return State(specs, weights, slots, steps), Progress(steps, steps, steps), []
    if Schedule(**meta["schedule"]) != schedule:
        progress = Progress(progress.dequeued, progress.submitted, start=progress.dequeued)
    pending = [
        _load_update(arrays, k, step, saved, specs) for k, step in enumerate(meta["pending_steps"])
    ]
    return State(specs, weights, slots, meta["version"]), progress, pending


def _load_update(
    arrays: Arrays, k: int, step: int, saved: Mapping[str, Any], specs: Mapping[str, TableSpec]
) -> PendingUpdate:
    plans, gradients, coefficients = {}, {}, {}
    for name, spec in specs.items():
        i, table = saved[name]
        part = {
            key: np.array(arrays[f"pending/{k}/{i}/{key}"])
            for key in ("splits", "row", "gain", "gradients", "coefficients")
        }
        plans[name] = LookupPlan(
            name, spec.vocabulary_size, part["splits"], part["row"], part["gain"]
        )
        gradients[name] = part["gradients"]
        coefficients[name] = dict(zip(table["coefficients"], part["coefficients"], strict=True))
        if table["form"] != _form(spec.optimizer):
            raise CheckpointError(
                f"restore: the updates that are pending for table {name!r} are of another rule "
                f"than the embedding's optimizer: {table['optimizer']} with the coefficients "
                f"{table['coefficients']}; restore with the optimizer that was saved, or save with "
                "drain=True"
            )
    return PendingUpdate(step, plans, None, gradients, coefficients)


def _check_tables(saved: Mapping[str, Any], specs: Mapping[str, TableSpec]) -> None:
    trains = not _only_reads(specs)
    if not set(specs) <= set(saved) or (trains and set(specs) != set(saved)):
        raise CheckpointError(
            f"restore: the checkpoint holds the tables {sorted(saved)}, the embedding has "
            f"{sorted(specs)}; they must be the same (a reader without optimizer may have fewer)"
        )
    for name, spec in specs.items():
        table = saved[name][1]
        found, required = (table["vocabulary_size"], table["dim"]), (spec.vocabulary_size, spec.dim)
        if found != required:
            raise CheckpointError(
                f"restore: table {name!r} has (vocabulary_size, dim) {found} in the checkpoint "
                f"and {required} in the embedding; they must be equal"
            )
        slots = {slot: spec.slot_shape(slot, 1)[1] for slot in spec.slot_names}
        if spec.optimizer is not None and table["slots"] != slots:
            raise CheckpointError(
                f"restore: table {name!r} has the slot variables {table['slots']} (name: width) of "
                f"{table['optimizer']} in the checkpoint, {type(spec.optimizer).__name__} needs "
                f"{slots}; use the optimizer of the checkpoint, or optimizer=None to read the "
                "tables alone"
            )


def _form(optimizer: Optimizer | None) -> str | None:
    """Names the rule, its options and its coefficients, but not their values."""
    if optimizer is None:
        return None
    return hashlib.sha256(update_source(optimizer).encode()).hexdigest()


def _only_reads(specs: Mapping[str, TableSpec]) -> bool:
    """An embedding that cannot train: a table of it has no optimizer."""
    return any(spec.optimizer is None for spec in specs.values())


def _array(arrays: Arrays, key: str, shape: tuple[int, ...]) -> np.ndarray:
    if key not in arrays or arrays[key].shape != shape:
        found = arrays[key].shape if key in arrays else "nothing"
        raise CheckpointError(
            f"restore: the checkpoint holds {found} as {key!r}; it must be an array {shape}"
        )
    own = aligned_empty(shape, np.float32)
    own[...] = arrays[key]
    return own
