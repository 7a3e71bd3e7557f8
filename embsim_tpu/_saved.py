"""A TrainState <-> named arrays and JSON: what a checkpoint of it holds.

    weights/<t>  slots/<t>/<name>                   rows in the shards' layout, padding included
    carry/<i>                                       the leaves of the carry, in their order
    pending/<k>/<t>/splits row gain coefficients    as embsim has them, of all samples
    gradients/<k>/<f>                               of each feature that has some

<t> is the table's position, <f> the feature's. The JSON is embsim's for the same tables, steps and
pending updates (embsim/_saved.py), and under "run" the mesh, the carry and the features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from embsim._saved import (
    _check_tables,  # pyright: ignore[reportPrivateUsage]
    _load_update,  # pyright: ignore[reportPrivateUsage]
    saved_state,
)
from embsim.errors import CheckpointError
from embsim.nest import flatten_up_to, pack
from embsim.pending import PendingUpdate
from embsim.plan import Output
from embsim.schedule import Progress, Schedule, checked
from embsim.state import State as HostState

from ._carry import Leaf, carry_leaves, placed, restored
from ._pending import planned_again, stacked, to_devices, whole_plans
from .embedding import Embedding
from .placement import Placement
from .state import State
from .train_state import Pending, TrainState

Arrays = Mapping[str, Any]
Wanted = dict[str, jax.ShapeDtypeStruct]  # without sharding: on the host


def saved_run(embedding: Embedding, state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays (the state's own) and meta. Of several processes all call it.

    Raises:
      ValueError: a state whose next lookup has happened.
      TypeError: no TrainState; a leaf of the carry that is no array.
    """
    schedule = between_steps("save", state)
    leaves = carry_leaves(state.carry, "save")
    arrays: dict[str, Any] = {f"carry/{i}": leaf.stored for i, leaf in enumerate(leaves)}
    tables = embedding.plain(state.tables)
    for i, name in enumerate(embedding.specs):
        arrays[f"weights/{i}"] = tables.weights[name]
        arrays |= {f"slots/{i}/{slot}": a for slot, a in tables.slots[name].items()}
    plans, meta, features = _saved_pending(embedding, state, schedule)
    for k, each in enumerate(state.pending):
        gradients = flatten_up_to(embedding.feature_config, each.gradients, "gradients")
        features[k]["gradients"] = [None if g is None else str(g.dtype) for g in gradients]
        arrays |= {f"gradients/{k}/{f}": g for f, g in enumerate(gradients) if g is not None}
    mesh = embedding.shards.mesh
    meta["run"] = {
        "shards": embedding.shards.size,
        "mesh": None if mesh is None else dict(mesh.shape),
        "carry": [leaf.described(mesh) for leaf in leaves],
        "pending": features,
        "plans": {key: [str(array.dtype), list(array.shape)] for key, array in plans.items()},
    }
    return arrays | plans, meta


def between_steps(call: str, state: TrainState) -> Schedule:
    """Its schedule.

    Raises:
      TypeError: no TrainState.
      ValueError: a state whose next lookup has happened.
    """
    if not isinstance(state, TrainState):
        raise TypeError(f"{call}: found a {type(state).__name__}; it must be a TrainState")
    schedule = checked(state.schedule)
    reads = schedule.version_read(state.step, state.start)
    steps = [each.step for each in state.pending]
    if steps != list(range(state.version, state.step)) or state.version > reads:
        raise ValueError(
            f"{call}: after {state.step} training steps the tables are at version {state.version} "
            f"and the updates {steps} are pending, but the next lookup reads version {reads} under "
            f"{schedule}; give a state between two steps: in on_pause of train, or after "
            "Pipeline.step without `following`"
        )
    return schedule


@dataclass(frozen=True, eq=False)
class SavedRun:
    """What the JSON of a checkpoint says, checked against what will go on from it.

    Args:
      carry: structure, shapes and dtypes of the carry: arrays or jax.ShapeDtypeStructs.

    Raises:
      CheckpointError: tables, slots or carry are others.
    """

    meta: Mapping[str, Any]
    embedding: Embedding
    carry: Any

    def __post_init__(self) -> None:
        _check_tables(self._positions, self.embedding.specs)
        _check_carry(self._run["carry"], self._leaves)

    def tables(self) -> dict[str, tuple[Placement, int]]:
        """The layout in which the rows of tables and slots were saved, and their width."""
        found: dict[str, tuple[Placement, int]] = {}
        for i, table in self._positions.values():
            rows = Placement(table["vocabulary_size"], self._run["shards"])
            found[f"weights/{i}"] = rows, table["dim"]
            found |= {f"slots/{i}/{slot}": (rows, n) for slot, n in table["slots"].items()}
        return found

    def wanted(self) -> Wanted:
        """The arrays as they shall be read; tables and slots only if their layout stays."""
        run, shards, wanted = self._run, self.embedding.shards, Wanted()
        for key, (rows, width) in self.tables().items() if run["shards"] == shards.size else ():
            shape = (rows.num_shards * rows.local_rows, width)
            wanted[key] = jax.ShapeDtypeStruct(shape, np.float32, sharding=shards.split)
        for i, (saved, leaf) in enumerate(zip(run["carry"], self._leaves, strict=True)):
            wanted[f"carry/{i}"] = placed(saved, leaf, run["mesh"], shards)
        for key, (dtype, shape) in run["plans"].items():
            wanted[key] = jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))
        for k, each in enumerate(run["pending"]):
            outputs = _outputs(each)
            sharding = shards.split if self._by_feature(outputs) else None
            for f, (output, dtype) in enumerate(zip(outputs, each["gradients"], strict=True)):
                if dtype is not None:
                    shape = (*output.shape, self.embedding.specs[output.table].dim)
                    wanted[f"gradients/{k}/{f}"] = jax.ShapeDtypeStruct(
                        shape, jnp.dtype(dtype), sharding=sharding
                    )
        return wanted

    def state(self, arrays: Arrays) -> TrainState:
        """The run, of all arrays. The plans that are pending are made again for these devices."""
        progress = Progress(**self.meta["progress"])
        weights, slots = {}, {}
        for name, spec in self.embedding.specs.items():
            i, _ = self._positions[name]
            weights[name] = arrays[f"weights/{i}"]
            slots[name] = {slot: arrays[f"slots/{i}/{slot}"] for slot in spec.slot_names}
        carry = [restored(arrays[f"carry/{i}"], e) for i, e in enumerate(self._run["carry"])]
        return TrainState(
            self.embedding.stored(State(weights, slots)),
            jax.tree.unflatten(jax.tree.structure(self.carry), carry),
            progress.dequeued,
            self.meta["version"],
            progress.start,
            tuple(self._pending(k, arrays) for k in range(len(self._run["pending"]))),
            Schedule(**self.meta["schedule"]),
        )

    def _pending(self, k: int, arrays: Arrays) -> Pending:
        embedding, outputs = self.embedding, _outputs(self._run["pending"][k])
        leaves = [arrays.get(f"gradients/{k}/{f}") for f in range(len(outputs))]
        by_feature = self._by_feature(outputs)
        by_table = stacked(embedding, outputs, [None] * len(leaves) if by_feature else leaves)
        parts = {key: arrays[key] for key in self._run["plans"]}
        parts |= {f"pending/{k}/{self._positions[n][0]}/gradients": g for n, g in by_table.items()}
        step = self.meta["pending_steps"][k]
        update = _load_update(parts, k, step, self._positions, embedding.specs)
        if not by_feature:
            return to_devices(embedding, update)
        planned = planned_again(embedding, update.plans, outputs)
        gradients = pack(embedding.feature_config, leaves)
        return Pending(update.step, planned, gradients, update.coefficients)

    def _by_feature(self, outputs: Sequence[Output]) -> bool:
        """Whether the features are the same, and the devices can share their samples evenly."""
        same = [output.table for output in outputs] == list(self.embedding.tables.of_feature)
        return same and all(o.shape[0] % self.embedding.shards.size == 0 for o in outputs)

    @property
    def _run(self) -> Mapping[str, Any]:
        return self.meta["run"]

    @property
    def _positions(self) -> dict[str, tuple[int, Any]]:
        return {table["name"]: (i, table) for i, table in enumerate(self.meta["tables"])}

    @property
    def _leaves(self) -> list[Leaf]:
        return carry_leaves(self.carry, "restore")


def _saved_pending(
    embedding: Embedding, state: TrainState, schedule: Schedule
) -> tuple[dict[str, np.ndarray], dict[str, Any], list[dict[str, Any]]]:
    """The plans and coefficients that are pending, and meta, as embsim writes them; and of each
    update where the features' activations stand."""
    specs, features = embedding.specs, list[dict[str, Any]]()
    nothing = {name: np.zeros((0, spec.dim), np.float32) for name, spec in specs.items()}
    pending: list[PendingUpdate] = []
    for each in state.pending:
        plans, outputs = whole_plans(embedding, each.planned)
        features.append({"outputs": [[o.table, o.lo, o.hi, list(o.shape)] for o in outputs]})
        pending.append(PendingUpdate(each.step, plans, None, nothing, each.coefficients))
    tables = HostState(specs, nothing, {name: {} for name in specs}, state.version)
    progress = Progress(state.step, state.step, state.start)
    arrays, meta = saved_state(tables, schedule, progress, pending, {})
    parts = ("splits", "row", "gain", "coefficients")
    return {k: a for k, a in arrays.items() if k.endswith(parts)}, meta, features


def _outputs(saved: Mapping[str, Any]) -> tuple[Output, ...]:
    return tuple(Output(table, lo, hi, tuple(shape)) for table, lo, hi, shape in saved["outputs"])


def _check_carry(saved: Sequence[Mapping[str, Any]], leaves: Sequence[Leaf]) -> None:
    found = {each["path"]: f"{each['dtype']} {each['shape']}" for each in saved}
    required = {leaf.path: f"{leaf.dtype} {list(leaf.shape)}" for leaf in leaves}
    for path in [*required, *found]:
        if found.get(path) != required.get(path):
            raise CheckpointError(
                f"restore: the carry has {found.get(path, 'nothing')} at {path or 'its top'} in "
                f"the checkpoint and {required.get(path, 'nothing')} in the one that was given; "
                "they must be equal"
            )
