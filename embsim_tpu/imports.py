"""Tables of other libraries' checkpoints, as arrays: what a training run can start from.

    tables = from_tensorflow("run/ckpt-7")                            # or from_torchrec(state_dict)
    item = tables["item"]
    config = TableConfig(*item.weights.shape, initializer=lambda *_: item.weights, name="item")

and with the optimizer's slot variables too:

    optimizer = Adagrad(0.1, slot_variable_creation_fn=lambda *_: item.slots)
    config = TableConfig(*item.weights.shape, lambda *_: item.weights, optimizer, name="item")

Neither function needs the library that wrote the checkpoint.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from embsim.convert import as_array
from embsim.errors import CheckpointError
from embsim.state import Rows

from ._tensor_bundle import Bundle, messages, open_bundle, proto_fields

_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_SPARSECORE = "_sparse_core_table_layouts"
_SLOTS = {  # state of torch.optim and of FBGEMM -> slot variable; momentum1 is said below
    "sum": "accumulators",
    "exp_avg": "momenta",
    "exp_avg_sq": "velocities",
    "momentum2": "velocities",
    "momentum_2": "velocities",
}


def from_tensorflow(
    path: Any,
    names: Mapping[str, str] | None = None,
    slots: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Rows]:
    """{table name: weights and slots} of a TensorFlow checkpoint, in float32. Row = id.

    Without `names`, the tables of the checkpoint's TPUEmbedding or TPUEmbeddingForServing, as
    tf.train.Checkpoint(model=model).save(...) writes them, from one host or from many; their slot
    variables have the same names in embsim.

    Args:
      path: a prefix ('run/ckpt-7'), a directory of checkpoints (the newest), or a SavedModel's.
      names: the variable that is each table, for checkpoints of any other model; slots are then
        those of `slots` only. A tf.train.Checkpoint calls it by its path from the saved object,
        'model/embedding/embeddings'; a tf.compat.v1.train.Saver by the variable's name.
      slots: with `names`: {table name: {embsim's slot name: the variable}}.

    Raises:
      TypeError: no path.
      CheckpointError: no checkpoint there; a damaged one; one without TPUEmbedding, a variable that
        it does not hold or that is no float matrix; tables in the layout of SparseCores.

    >>> tables = from_tensorflow("tests/embsim_tpu/files/one_host/model-1")
    >>> tables["item"].weights.shape, sorted(tables["user/age"].slots)
    ((13, 4), ['momenta', 'velocities'])
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"from_tensorflow: path is a {type(path).__name__}; it must be that of a checkpoint, "
            "such as 'run/ckpt-7'"
        )
    bundle = open_bundle(path)
    if names is None:
        if slots is not None:
            raise ValueError("from_tensorflow: slots without names; pass names={table: variable}")
        keys = dict(_tpu_embedding_keys(bundle))
    else:
        extra = sorted(set(slots or {}) - set(names))
        if extra:
            raise ValueError(f"from_tensorflow: slots of {extra}; names has only {sorted(names)}")
        keys = {table: (name, (slots or {}).get(table, {})) for table, name in names.items()}
    return {
        table: Rows(
            _tensor(bundle, table, key),
            {slot: _tensor(bundle, table, k) for slot, k in slot_keys.items()},
        )
        for table, (key, slot_keys) in keys.items()
    }


def from_torchrec(
    state_dict: Mapping[str, Any], optimizer_state_dict: Mapping[str, Any] | None = None
) -> dict[str, Rows]:
    """{table name: weights and slots} of a TorchRec model, in float32.

    Tables are the entries 'embedding_bags.<table>.weight' of an EmbeddingBagCollection and
    'embeddings.<table>.weight' of an EmbeddingCollection, after any prefix: of a model, fused or
    not, in DistributedModelParallel or not. Every other entry is left. The arrays may be the
    tensors' own memory.

    Args:
      state_dict: model.state_dict(), or what torch.load makes of a saved one.
      optimizer_state_dict: of the fused or keyed optimizer, for slots: Adagrad and rowwise Adagrad
        have accumulators (rowwise: [rows, 1]), Adam has momenta and velocities. TorchRec's
        'momentum1' without a second state is taken for Adagrad's. The count of steps is left out:
        embsim's Adam has no bias correction.

    Raises:
      TypeError: no mapping.
      CheckpointError: no table; two of one name; sharded, quantized or other tensors that are no
        whole float matrix; state of another optimizer.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"from_torchrec: state_dict is a {type(state_dict).__name__}; it must be the mapping "
            "that model.state_dict() returns; of a file, torch.load(path)"
        )
    weights: dict[str, np.ndarray] = {}
    for key, table in _torchrec_tables(state_dict):
        if table in weights:
            raise CheckpointError(
                f"from_torchrec: found table {table!r} twice, the second time as {key!r}; pass the "
                "state_dict of one collection at a time"
            )
        weights[table] = _matrix(_host(state_dict[key], key), key)
    if not weights:
        raise CheckpointError(
            "from_torchrec: found no key like 'embedding_bags.<table>.weight' or "
            f"'embeddings.<table>.weight' among {list(state_dict)}{_nested(state_dict)}"
        )
    slots = _torchrec_slots(optimizer_state_dict, weights)
    return {table: Rows(array, slots.get(table, {})) for table, array in weights.items()}


def _tpu_embedding_keys(bundle: Bundle) -> Iterator[tuple[str, tuple[str, dict[str, str]]]]:
    """(table, (key, {slot: key})), read from the graph of the saved objects.

    There TPUEmbedding has a child _variables, that one a child for each table, and that one the
    children `parameters` and one for each slot; a variable names its key.
    """
    _refuse_sparsecore(bundle, list(bundle.entries))
    seen: set[str] = set()
    nodes = _object_graph(bundle) if _GRAPH in bundle.entries else []
    for children, _ in nodes:
        if not {"_variables", "_table_config"} <= set(children):
            continue
        tables, _ = nodes[children["_variables"]]
        for table, number in tables.items():
            if table in seen:
                raise CheckpointError(
                    f"{bundle.prefix}: found table {table!r} in two TPUEmbedding objects; pass "
                    "names={table: variable}"
                )
            seen.add(table)
            keys = {name: nodes[node][1] for name, node in nodes[number][0].items()}
            yield table, (keys.pop("parameters"), keys)
    if not seen:
        raise CheckpointError(
            f"{bundle.prefix}: found no tables of a TPUEmbedding; say which variables are tables, "
            f"names={{table: variable}}, out of {_matrices(bundle)}"
        )


def _object_graph(bundle: Bundle) -> list[tuple[dict[str, int], str]]:
    """The saved objects: (numbers of the children by name, key of the value or '') of each."""
    nodes = []
    for node in messages(proto_fields(bundle.read_string(_GRAPH)), 1):
        children = {each[2][0].decode(): each.get(1, [0])[0] for each in messages(node, 1)}
        values = [each for each in messages(node, 2) if each[1] == [b"VARIABLE_VALUE"]]
        nodes.append((children, values[0][3][0].decode() if values else ""))
    return nodes


def _tensor(bundle: Bundle, table: str, key: str) -> np.ndarray:
    full = key if key in bundle.entries else key + _SUFFIX
    if full not in bundle.entries:
        raise CheckpointError(
            f"{bundle.prefix}: found no variable {key!r} for table {table!r}; matrices are "
            f"{_matrices(bundle)}"
        )
    _refuse_sparsecore(bundle, [full])
    return _matrix(bundle.read(full), f"{bundle.prefix}: variable {key!r}")


def _matrices(bundle: Bundle) -> list[str]:
    keys = (key for key, entry in bundle.entries.items() if len(entry.shape) == 2)
    return sorted(key.removesuffix(_SUFFIX) for key in keys)


def _refuse_sparsecore(bundle: Bundle, keys: list[str]) -> None:
    for layouts in (key for key in bundle.entries if _SPARSECORE in key):
        owner = layouts[: layouts.index(_SPARSECORE)]
        if any(key.startswith(owner) for key in keys):
            raise CheckpointError(
                f"{bundle.prefix}: {owner!r} holds the tables of a TPUEmbeddingV2, padded, stacked "
                "and shuffled for SparseCores; restore it into a TPUEmbeddingForServing, save its "
                "embedding_tables as variables, and pass names= for these"
            )


def _torchrec_tables(state_dict: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    for key in state_dict:
        found = re.fullmatch(r"(?:.+\.)?(?:embedding_bags|embeddings)\.([^.]+)\.weight", str(key))
        if found:
            yield key, found[1]


def _nested(state_dict: Mapping[Any, Any]) -> str:
    for key, value in state_dict.items():
        if isinstance(value, Mapping) and next(_torchrec_tables(value), None):
            return f"; those in {key!r} have it: pass state_dict[{key!r}]"
    return ""


def _torchrec_slots(
    optimizer_state_dict: Mapping[str, Any] | None, weights: Mapping[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """{table: {slot: array}}. State is kept by the weight's key, or by '<table>.weight' alone."""
    if optimizer_state_dict is None:
        return {}
    if "state" not in optimizer_state_dict:
        raise CheckpointError(
            f"from_torchrec: optimizer_state_dict has the keys {list(optimizer_state_dict)}; pass "
            "what the optimizer's state_dict() returned, with 'state' in it"
        )
    state: Mapping[Any, Any] = optimizer_state_dict["state"]
    key_of = {f"{table}.weight": table for table in weights}
    found = {key_of[key]: key for key in state if key in key_of}
    found |= {table: key for key, table in _torchrec_tables(state) if table in weights}
    if state and not found:
        raise CheckpointError(
            f"from_torchrec: optimizer_state_dict has state of {list(state)}, and of none of the "
            f"tables {list(weights)}; pass the state_dict of a fused or keyed optimizer"
        )
    return {table: _slots_of(key, state[key], len(weights[table])) for table, key in found.items()}


def _slots_of(key: str, state: Mapping[str, Any], rows: int) -> dict[str, np.ndarray]:
    """TorchRec calls an optimizer's first state momentum1 (or momentum_1), whatever it is."""
    values = {name.rpartition(".")[2]: value for name, value in state.items()}
    values.pop("step", None)
    adam = {"exp_avg_sq", "momentum2", "momentum_2"} & set(values)
    first = "momenta" if adam else "accumulators"
    slot_of = _SLOTS | {"momentum1": first, "momentum_1": first}
    slots: dict[str, np.ndarray] = {}
    for name, value in values.items():
        what = f"optimizer state {name!r} of {key!r}"
        if name not in slot_of:
            raise CheckpointError(
                f"from_torchrec: found {what}; known are {sorted(slot_of)}, of Adagrad, rowwise "
                "Adagrad and Adam; import the tables alone, without optimizer_state_dict"
            )
        array = _host(value, what)
        slots[slot_of[name]] = _matrix(array[:, None] if array.ndim == 1 else array, what)
        if len(array) != rows:
            raise CheckpointError(
                f"from_torchrec: {what} has {len(array)} rows, the table has {rows} (of a table "
                "sharded by columns, each shard has rowwise state of its own)"
            )
    return slots


def _host(value: Any, what: str) -> np.ndarray:
    if hasattr(value, "local_shards") or hasattr(value, "to_local"):  # ShardedTensor, DTensor
        raise CheckpointError(
            f"from_torchrec: {what} is a {type(value).__name__}, of which this process may hold "
            "only a part; gather it on all ranks before you save it: "
            "ShardedTensor.gather(dst=0, out=tensor), or DTensor.full_tensor()"
        )
    if not hasattr(value, "shape"):
        raise CheckpointError(
            f"from_torchrec: {what} is a {type(value).__name__}; it must be a tensor of floats "
            "[rows, dim]"
        )
    return as_array(value, what)


def _matrix(array: np.ndarray, what: str) -> np.ndarray:
    if array.ndim != 2 or array.dtype.kind != "f":
        raise CheckpointError(
            f"{what} is {array.dtype} of shape {array.shape}; it must be floats [rows, dim]"
        )
    return array.astype(np.float32, copy=False)
