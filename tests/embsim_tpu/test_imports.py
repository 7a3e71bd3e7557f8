"""Files that TensorFlow and TorchRec wrote (files/make_*.py) against what these libraries read from
them."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from embsim import (
    FTRL,
    SGD,
    Adagrad,
    Adam,
    FeatureConfig,
    RowwiseAdagrad,
    TableConfig,
    TPUEmbedding,
)
from embsim.errors import CheckpointError
from embsim_tpu.imports import from_tensorflow, from_torchrec

FILES = Path(__file__).parent / "files"
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def assert_same(found, expected):
    """{table: {'weights' or slot: array}}"""
    arrays = {table: {"weights": rows.weights, **rows.slots} for table, rows in found.items()}
    assert {t: set(each) for t, each in arrays.items()} == {t: set(e) for t, e in expected.items()}
    for table, each in expected.items():
        for name, array in each.items():
            assert arrays[table][name].dtype == np.float32
            np.testing.assert_array_equal(arrays[table][name], array, err_msg=f"{table} {name}")
            assert np.unique(array).size > 3, "a file that any order of rows would satisfy"


def tensorflow_arrays(name):
    arrays = np.load(FILES / name / "expected.npz")
    return {key.removesuffix(SUFFIX): array for key, array in arrays.items()}


@pytest.mark.parametrize("name", ["one_host", "three_hosts"])
def test_tables_and_slots_of_a_tpu_embedding_beside_a_dense_layer(name):
    arrays = tensorflow_arrays(name)
    assert_same(
        from_tensorflow(FILES / name),
        {
            "item": {
                "weights": arrays["model/tables/item"],
                "accumulators": arrays["model/tables/item.Saccumulators"],
            },
            "user/age": {
                "weights": arrays["model/tables/user.Sage"],
                "momenta": arrays["model/tables/user.Sage.Smomenta"],
                "velocities": arrays["model/tables/user.Sage.Svelocities"],
            },
        },
    )


def test_tables_of_a_tpu_embedding_for_serving():
    arrays = tensorflow_arrays("serving")
    expected = {"item": {"weights": arrays["item"]}, "user/age": {"weights": arrays["user.Sage"]}}
    assert_same(from_tensorflow(FILES / "serving/model-1"), expected)


def test_a_keras_model_by_names():
    arrays = tensorflow_arrays("keras")
    names, slot = {"item": "item/_embeddings"}, "optimizer/_variables/2"
    expected = {"item": {"weights": arrays["item/_embeddings"]}}
    assert_same(from_tensorflow(FILES / "keras", names), expected)
    assert_same(from_tensorflow(FILES / "keras", {"item": "item/_embeddings" + SUFFIX}), expected)
    expected["item"]["accumulators"] = arrays[slot]
    assert_same(from_tensorflow(FILES / "keras", names, {"item": {"accumulators": slot}}), expected)


def test_a_partitioned_variable_by_name():
    expected = {"shop": {"weights": tensorflow_arrays("saver")["item"]}}
    assert_same(from_tensorflow(FILES / "saver", {"shop": "item"}), expected)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_floats_become_float32(dtype):
    found = from_tensorflow(FILES / "dtypes", {"t": dtype})["t"].weights
    assert found.dtype == np.float32
    assert found.tolist() == [[0.0, 1.0], [2.5, 77.0]]


@pytest.mark.parametrize(
    "name, names, message",
    [
        ("keras", None, r"no tables of a TPUEmbedding; say .*names=.* out of \['item/_embeddings'"),
        ("saver", None, r"no tables of a TPUEmbedding; .* out of \['item'\]"),
        ("two", None, r"found table '.*' in two TPUEmbedding objects; pass names="),
        ("keras", {"item": "items"}, "no variable 'items' for table 'item'; matrices are"),
        ("dtypes", {"t": "int32"}, r"'int32' is int32 of shape \(2, 2\); it must be floats"),
        ("dtypes", {"t": "scalar"}, r"'scalar' is float32 of shape \(\); it must be floats"),
        ("sparsecore", None, "'tables/' holds the tables of a TPUEmbeddingV2, padded, stacked"),
        ("sparsecore", {"t": "tables/item"}, "shuffled for SparseCores; restore it into a TPUEmb"),
    ],
)
def test_what_from_tensorflow_refuses(name, names, message):
    with pytest.raises(CheckpointError, match=message):
        from_tensorflow(FILES / name, names)


@pytest.mark.parametrize("file", ["model-1", "model-1.index", "model-1.data-00000-of-00001"])
def test_any_file_of_a_checkpoint_names_it(file):
    whole = from_tensorflow(FILES / "one_host")
    found = from_tensorflow(FILES / "one_host" / file)
    assert_same(found, {t: {"weights": rows.weights, **rows.slots} for t, rows in whole.items()})


@pytest.mark.parametrize("value", [None, 7, ["run/ckpt-7"]])
def test_what_is_no_path_or_mapping(value):
    with pytest.raises(TypeError, match=r"path is a .*; it must be that of a checkpoint, such as"):
        from_tensorflow(value)
    with pytest.raises(TypeError, match=r"state_dict is a .*; of a file, torch.load\(path\)"):
        from_torchrec(value)


def test_variables_beside_sparsecore_tables_are_read():
    expected = {"t": {"weights": tensorflow_arrays("sparsecore")["other"]}}
    assert_same(from_tensorflow(FILES / "sparsecore", {"t": "other"}), expected)


def test_slots_of_no_table_are_refused():
    with pytest.raises(ValueError, match="slots without names"):
        from_tensorflow(FILES / "keras", slots={"item": {}})
    with pytest.raises(ValueError, match=r"slots of \['items'\]; names has only \['item'\]"):
        from_tensorflow(FILES / "keras", {"item": "item/_embeddings"}, {"items": {}})


def torchrec_arrays(name):
    return dict(np.load(FILES / f"torchrec/{name}.npz"))


def torchrec_state(name, form):
    """(state_dict, the optimizer's): torch's tensors, as saved; or the same in NumPy arrays."""
    if form == "torch":
        torch = pytest.importorskip("torch")
        saved = torch.load(FILES / f"torchrec/{name}.pt", weights_only=True)
        return saved["model"], saved["optimizer"]
    model, optimizer = {}, {"state": {}, "param_groups": []}
    for key, array in torchrec_arrays(name).items():
        weight, _, slot = key.partition(" ")
        (optimizer["state"].setdefault(weight, {}) if slot else model)[slot or key] = array
    return model, optimizer


FORMS = pytest.mark.parametrize("form", ["numpy", "torch"])


@FORMS
def test_tables_of_all_collections_of_a_model(form):
    arrays = torchrec_arrays("collections")
    state, _ = torchrec_state("collections", form)
    bags = {t: arrays[f"sparse.embedding_bags.{t}.weight"] for t in ("item", "user_age", "shop")}
    tables = bags | {"seen": arrays["sequence.embeddings.seen.weight"]}
    assert_same(from_torchrec(state), {table: {"weights": w} for table, w in tables.items()})


@FORMS
def test_rowwise_adagrad_of_a_fused_collection(form):
    arrays = torchrec_arrays("fused")
    found = from_torchrec(*torchrec_state("fused", form))
    for table in ("item", "user_age"):
        rows = found[table]
        np.testing.assert_array_equal(rows.weights, arrays[f"embedding_bags.{table}.weight"])
        expected = arrays[f"{table}.weight {table}.weight.momentum_1"]
        np.testing.assert_array_equal(rows.slots["accumulators"], expected[:, None])
        touched = {"item": [1, 3], "user_age": [0, 4]}[table]
        assert np.flatnonzero(rows.slots["accumulators"]).tolist() == touched


@FORMS
def test_adagrad_of_a_gathered_parallel_model(form):
    arrays = torchrec_arrays("parallel")
    expected = {}
    for table in ("item", "user_age"):
        key = f"bags.embedding_bags.{table}.weight"
        slots = {"accumulators": arrays[f"{key} {table}.momentum1"]}
        expected[table] = {"weights": arrays[key], **slots}
    assert_same(from_torchrec(*torchrec_state("parallel", form)), expected)


@FORMS
def test_adam_of_a_keyed_optimizer(form):
    arrays = torchrec_arrays("keyed")
    expected = {}
    for table in ("item", "user_age"):
        key = f"bags.embedding_bags.{table}.weight"
        slots = {"momenta": arrays[f"{key} exp_avg"], "velocities": arrays[f"{key} exp_avg_sq"]}
        expected[table] = {"weights": arrays[key], **slots}
    assert_same(from_torchrec(*torchrec_state("keyed", form)), expected)


# TorchRec 1.8.0 names fused Adam's state so; it has none on a CPU that could write a file.
@pytest.mark.parametrize(
    "names", [("momentum1", "exp_avg_sq"), ("weight.momentum_1", "momentum_2")]
)
def test_fused_adam(names):
    m, v = np.float32([[1, 2]]), np.float32([[3, 4]])
    key = "embedding_bags.t.weight"
    state = {"state": {key: {f"t.{names[0]}": m, f"t.{names[1]}": v}}}
    found = from_torchrec({key: m + v}, state)["t"].slots
    assert {name: array.tolist() for name, array in found.items()} == {
        "momenta": [[1, 2]],
        "velocities": [[3, 4]],
    }


class ShardedTensor:
    def local_shards(self):
        return []


class DTensor:
    def to_local(self):
        return None


ONE = np.ones((2, 3), np.float32)
TABLE = {"bags.embedding_bags.t.weight": ONE}


@pytest.mark.parametrize(
    "state, optimizer, message",
    [
        ({"over.weight": ONE}, None, r"no key like .* among \['over.weight'\]"),
        ({**TABLE, "embeddings.t.weight": ONE}, None, "table 't' twice, .* 'embeddings.t.weight'"),
        ({"embeddings.t.weight": ONE[0]}, None, r"t.weight is float32 of shape \(3,\)"),
        ({"embeddings.t.weight": ONE.astype(np.uint8)}, None, "is uint8 of .* must be floats"),
        ({"embeddings.t.weight": [[1.0]]}, None, "t.weight is a list; it must be a tensor"),
        ({"epoch": 3, "state_dict": TABLE}, None, r"pass state_dict\['state_dict'\]"),
        ({"embeddings.t.weight": ShardedTensor()}, None, "a ShardedTensor, of which .* gather it"),
        ({"embeddings.t.weight": DTensor()}, None, "a DTensor, of which this process may hold"),
        (TABLE, {"t.weight": {}}, r"has the keys \['t.weight'\]; pass what .* with 'state'"),
        (TABLE, {"state": {0: {}}}, r"state of \[0\], and of none of the tables \['t'\]"),
        (TABLE, {"state": {"t.weight": {"t.prev_iter": ONE}}}, "state 'prev_iter' of 't.weight'"),
        (TABLE, {"state": {"t.weight": {"sum": np.ones(6)}}}, "has 6 rows, the table has 2"),
        (TABLE, {"state": {"t.weight": {"sum": ShardedTensor()}}}, "a ShardedTensor, of which"),
    ],
)  # fmt: skip
def test_what_from_torchrec_refuses(state, optimizer, message):
    with pytest.raises(CheckpointError, match=message):
        from_torchrec(state, optimizer)


@pytest.fixture
def sharded_tensors():
    """One of each of PyTorch's kinds, in a group of one process."""
    torch = pytest.importorskip("torch")
    from torch.distributed._shard import sharded_tensor, sharding_spec
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        spec = sharding_spec.ChunkShardingSpec(0, ["rank:0/cpu"])
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # to be removed
            sharded = sharded_tensor.ones(spec, 2, 3)
        mesh = init_device_mesh("cpu", (1,))
        yield sharded, distribute_tensor(torch.ones(2, 3), mesh, [Shard(0)])
    finally:
        torch.distributed.destroy_process_group()


def test_pytorchs_sharded_tensors_are_refused(sharded_tensors):
    for value, kind in zip(sharded_tensors, ("ShardedTensor", "DTensor"), strict=True):
        with pytest.raises(CheckpointError, match=f"is a {kind}, of which this process"):
            from_torchrec({"embeddings.t.weight": value})


def started_from(rows, name, optimizer):
    """An embedding and its one table, as the docstring of embsim_tpu.imports has it."""
    config = TableConfig(
        *rows.weights.shape, lambda *_: rows.weights, optimizer(lambda *_: rows.slots), name=name
    )
    embedding = TPUEmbedding({"f": FeatureConfig(config)}, backend="reference")
    embedding.build()
    return embedding, config


@pytest.mark.parametrize(
    "tables, name, optimizer",
    [
        (lambda: from_tensorflow(FILES / "three_hosts"), "item", Adagrad),
        (lambda: from_tensorflow(FILES / "one_host"), "user/age", Adam),
        (lambda: from_torchrec(*torchrec_state("fused", "numpy")), "item", RowwiseAdagrad),
        (lambda: from_torchrec(*torchrec_state("keyed", "numpy")), "user_age", Adam),
    ],
)
def test_an_embedding_starts_from_imported_tables_and_slots(tables, name, optimizer):
    rows = tables()[name]
    embedding, config = started_from(
        rows, name, lambda creation: optimizer(slot_variable_creation_fn=creation)
    )
    np.testing.assert_array_equal(embedding.embedding_tables[config], rows.weights)
    slots = embedding.slot_variables[config]
    assert set(slots) == set(rows.slots)
    for slot, array in rows.slots.items():
        np.testing.assert_array_equal(slots[slot], array)
    embedding.close()


def test_slots_of_another_optimizer_are_refused():
    rows = from_tensorflow(FILES / "one_host")["item"]
    with pytest.raises(ValueError, match="must return a dict with the slots"):
        started_from(rows, "item", lambda creation: FTRL(slot_variable_creation_fn=creation))
    embedding, config = started_from(rows, "item", lambda _: SGD())
    assert embedding.slot_variables[config] == {}
    embedding.close()
