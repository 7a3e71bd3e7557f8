"""Per-replica values, structures and distributed datasets."""

import warnings
from collections import OrderedDict, defaultdict, namedtuple

import jax.numpy as jnp
import numpy as np
import pytest

from embsim.datasets import (
    InputContext,
    InputOptions,
    PerReplica,
    map_structure,
    merge_replicas,
    select_replica,
)
from embsim.ragged import RaggedTensor, SparseTensor
from embsim.strategy import TPUStrategy

Pair = namedtuple("Pair", "features labels")


def test_per_replica_is_a_frozen_sequence_and_no_array():
    value = PerReplica((1.5, 2.5))
    assert value.values == (1.5, 2.5) and value[1] == 2.5 and len(value) == 2
    assert repr(value) == "PerReplica(0: 1.5, 1: 2.5)"
    with pytest.raises(AttributeError):
        value.values = ()  # type: ignore[misc]
    for use in (np.asarray, np.add.reduce, jnp.asarray, lambda v: np.ones(2) + v, float):
        with pytest.raises(TypeError):
            use(value)
    with pytest.raises(TypeError, match=r"2 values, one for each replica; take \.values"):
        np.asarray(value)


@pytest.mark.parametrize(
    "structure",
    [
        {"b": (1, [2.0]), "a": None},
        OrderedDict(z=1, a=Pair(2, {"x": 3})),
        defaultdict(list, k=[1, 2]),
        (),
        7,
    ],
)
def test_merge_and_select_are_inverse(structure):
    shifted = map_structure(lambda leaf: leaf and leaf + 10, structure)
    merged = merge_replicas([structure, shifted])
    assert type(merged) is (PerReplica if structure == 7 else type(structure))
    for replica, expected in enumerate((structure, shifted)):
        selected = select_replica(merged, replica, 2)
        assert selected == expected and type(selected) is type(expected)
    if isinstance(structure, dict):
        assert list(merged) == list(structure)


def test_merge_keeps_values_whole_where_structures_differ():
    merged = merge_replicas([{"a": [1, 2], "b": 0}, {"a": [1], "b": 1}])
    assert merged["a"].values == ([1, 2], [1]) and merged["b"].values == (0, 1)
    assert merge_replicas([{"loss": 1}, None]).values == ({"loss": 1}, None)
    assert merge_replicas([None, None]) is None


def test_select_returns_what_holds_no_per_replica_itself():
    log: list[int] = []
    array = np.ones(2)
    selected = select_replica((log, {"x": array}, PerReplica((1, 2))), 1, 2)
    assert selected[0] is log and selected[1]["x"] is array and selected[2] == 2
    with pytest.raises(ValueError, match="found 2 values under 4 replicas"):
        select_replica([PerReplica((1, 2))], 0, 4)


def test_input_context_gives_the_per_replica_batch_size():
    assert InputContext(1, 0, 4).get_per_replica_batch_size(64) == 16
    with pytest.raises(ValueError, match="batch size 65 over 4 replicas; it must be a multiple"):
        InputContext(1, 0, 4).get_per_replica_batch_size(65)


@pytest.mark.parametrize("keep_on_host", [True, False])
def test_a_dataset_function_feeds_each_replica_consecutive_batches(keep_on_host):
    contexts = []

    def dataset_fn(context):
        contexts.append(context)
        size = context.get_per_replica_batch_size(4)
        return [({"ids": np.full(size, step), "w": None}, [step]) for step in range(4)]

    dataset = TPUStrategy(2).distribute_datasets_from_function(
        dataset_fn=dataset_fn,
        options=InputOptions(experimental_prefetch_to_device=not keep_on_host),
    )
    assert contexts == [InputContext(1, 0, 2)]
    for _ in range(2):  # a list can be read again
        iterator = iter(dataset)
        for step in range(2):
            features, data = next(iterator)
            assert features["w"] is None
            for replica in range(2):
                assert features["ids"][replica].tolist() == [2 * step + replica] * 2
                assert data[replica] == [2 * step + replica]
        with pytest.raises(StopIteration):
            iterator.get_next()


def test_one_replica_gets_the_batches_as_they_are():
    batches = [{"x": np.arange(3)}, {"x": np.arange(4)}]
    strategy = TPUStrategy(1)
    for dataset in (
        strategy.distribute_datasets_from_function(lambda _: iter(batches)),
        strategy.experimental_distribute_dataset(iter(batches)),
    ):
        assert [batch is given for batch, given in zip(dataset, batches, strict=True)] == [True] * 2
        assert list(dataset) == []  # a generator is read once


def test_an_incomplete_group_is_dropped_with_a_warning():
    dataset = TPUStrategy(4).distribute_datasets_from_function(lambda _: (i for i in range(6)))
    iterator = iter(dataset)
    assert next(iterator).values == (0, 1, 2, 3)
    with (
        pytest.warns(UserWarning, match="last 2 of the per-replica batches are dropped"),
        pytest.raises(StopIteration),
    ):
        next(iterator)


def test_per_replica_batches_must_have_one_structure():
    batches = [({"a": 1}, 0), ({"b": 1}, 0), ({"a": 1}, 0), ({"a": 2}, 0)]
    iterator = iter(TPUStrategy(2).distribute_datasets_from_function(lambda _: batches))
    with pytest.raises(ValueError, match=r"batch\[0\] is a dict with the keys 'a' in replica 0 "):
        next(iterator)
    assert next(iterator)[0]["a"].values == (1, 2)  # the iterator goes on behind the bad step


@pytest.mark.parametrize("num_replicas", [2, 4])
def test_global_batches_are_split_along_axis_0(num_replicas):
    rows = [[3, 7], [], [3], [1, 1, 2]]
    dense = np.zeros((4, 3), np.int64)
    dense[[0, 0, 2, 3], [0, 2, 1, 2]] = [5, 6, 7, 8]
    indices = np.argwhere(dense)
    batch = {
        "dense": np.arange(8).reshape(4, 2),
        "jax": (jnp.arange(4.0),),
        "ragged": RaggedTensor.from_lists(rows, np.int32),
        "sparse": SparseTensor(indices, dense[dense > 0], (4, 3)),
        "lists": rows,
        "flat": [9, 8, 7, 6],
        "none": None,
    }
    (step,) = TPUStrategy(num_replicas).experimental_distribute_dataset([batch])
    size = 4 // num_replicas
    assert step["none"] is None
    for replica in range(num_replicas):
        mine = slice(replica * size, (replica + 1) * size)
        part = select_replica(step, replica, num_replicas)
        assert part["dense"].tolist() == batch["dense"][mine].tolist()
        assert part["jax"][0].tolist() == np.arange(4.0)[mine].tolist()
        assert type(part["jax"][0]) is type(batch["jax"][0])
        assert part["ragged"].to_list() == rows[mine] and part["ragged"].dtype == np.int32
        assert part["lists"] == rows[mine] and part["flat"] == [9, 8, 7, 6][mine]
        assert part["sparse"].dense_shape == (size, 3)
        back = np.zeros((size, 3), np.int64)
        back[tuple(part["sparse"].indices.T)] = part["sparse"].values
        assert back.tolist() == dense[mine].tolist()
    assert indices.tolist() == np.argwhere(dense).tolist()


def test_a_list_of_arrays_is_structure():
    (step,) = TPUStrategy(2).experimental_distribute_dataset([[np.arange(2), np.arange(4)]])
    assert step[0][1].tolist() == [1] and step[1][1].tolist() == [2, 3]


def test_splits_of_no_samples_and_of_bad_coordinates_lose_nothing():
    ragged = RaggedTensor.from_lists([])
    bad = SparseTensor(np.array([[-1, 0], [9, 0]]), np.array([1, 2]), (4, 1))
    (step,) = TPUStrategy(2).experimental_distribute_dataset([(ragged, np.zeros((0, 3)), bad)])
    assert [len(part) for part in step[0].values] == [0, 0]
    assert [part.shape for part in step[1].values] == [(0, 3), (0, 3)]
    assert [part.indices.tolist() for part in step[2].values] == [[[-1, 0]], [[7, 0]]]


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ({"x": np.zeros(7)}, ValueError, r"batch\['x'\] has 7 samples for 2 replicas; it must be"),
        ((RaggedTensor.from_lists([[1]]),), ValueError, r"batch\[0\] has 1 samples for 2 replicas"),
        ({"x": 3.0}, ValueError, r"batch\['x'\] is a float without a first axis"),
        ({"x": np.float32(3)}, ValueError, "float32 without a first axis"),
        ({"x": "label"}, ValueError, "str without a first axis"),
        ({"x": {1, 2}}, TypeError, "is a set, which cannot be sliced"),
    ],
)
def test_what_cannot_be_split_is_an_error_that_names_it(batch, error, message):
    iterator = iter(TPUStrategy(2).experimental_distribute_dataset([batch, [np.arange(2)]]))
    with pytest.raises(error, match=message):
        next(iterator)
    assert next(iterator)[0].values == (0, 1)


@pytest.mark.parametrize("source", [{"x": [1]}, "text", 5])
def test_a_dataset_is_an_iterable_of_batches(source):
    with pytest.raises(TypeError, match=f"found {type(source).__name__}; a dataset is an iterable"):
        TPUStrategy(2).experimental_distribute_dataset(source)


def test_full_groups_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps = list(TPUStrategy(2).distribute_datasets_from_function(lambda _: range(4)))
    assert [step.values for step in steps] == [(0, 1), (2, 3)]
