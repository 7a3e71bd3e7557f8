"""What a checkpoint of an embedding holds, and what it refuses to be restored into."""

import threading

import numpy as np
import pytest

import embsim
from embsim import CheckpointError, FeatureConfig, TableConfig, TPUEmbedding


def features(rows: int = 6, dim: int = 2, names: tuple[str, ...] = ("a/b", "c")):
    return {name: FeatureConfig(TableConfig(rows, dim, name=name)) for name in names}


def trained(optimizer=None, steps: int = 3, schedule=None, config=None) -> TPUEmbedding:
    config = config or features()
    with embsim.TPUStrategy(1).scope():
        embedding = TPUEmbedding(
            config, optimizer or embsim.Adagrad(0.5), schedule=schedule or embsim.stale(2)
        )
    rng = np.random.default_rng(0)
    for _ in range(steps):
        embedding.enqueue({name: rng.integers(0, 6, 4) for name in config})
        activations = embedding.dequeue()
        embedding.apply_gradients({name: 1 + 0 * a for name, a in activations.items()})
    return embedding


def by_name(mapping) -> dict[str, np.ndarray]:
    return {config.name: table for config, table in mapping.items()}


def test_a_reader_without_optimizer_gets_the_tables_as_if_drained(tmp_path) -> None:
    embedding = trained()
    embedding.save(tmp_path)
    assert len(embedding._engine._store.pending) == 2
    reader = TPUEmbedding(features(), None)
    reader.restore(tmp_path)
    expected = by_name(embedding.embedding_tables)
    for name, table in by_name(reader.embedding_tables).items():
        np.testing.assert_array_equal(table, expected[name])
    assert all(not slots for slots in reader.slot_variables.values())
    assert reader.snapshot().step == 3


def test_a_reader_may_have_fewer_tables_and_a_trainer_may_not(tmp_path) -> None:
    embedding = trained()
    embedding.save(tmp_path)
    fewer = features(names=("c",))
    reader = TPUEmbedding(fewer, None)
    reader.restore(tmp_path)
    np.testing.assert_array_equal(
        by_name(reader.embedding_tables)["c"], by_name(embedding.embedding_tables)["c"]
    )
    for names in (("c",), ("a/b", "c", "d")):
        match = rf"holds the tables \['a/b', 'c'\], the embedding has {list(names)!r}".replace(
            "[", r"\["
        ).replace("]", r"\]")
        with pytest.raises(CheckpointError, match=match.replace(r"\\", "\\")):
            trained(config=features(names=names), steps=0).restore(tmp_path)


@pytest.mark.parametrize(("rows", "dim"), [(7, 2), (6, 3)])
def test_another_size_is_refused_with_both_sizes(rows: int, dim: int, tmp_path) -> None:
    trained().save(tmp_path)
    other = trained(config=features(rows, dim), steps=1)
    before = {name: table.copy() for name, table in by_name(other.embedding_tables).items()}
    match = rf"table 'a/b' has \(vocabulary_size, dim\) \(6, 2\) .* and \({rows}, {dim}\)"
    with pytest.raises(CheckpointError, match=match):
        other.restore(tmp_path)
    for name, table in by_name(other.embedding_tables).items():
        np.testing.assert_array_equal(table, before[name])
    assert other._engine.progress.submitted == 1


def test_other_slot_variables_are_refused_with_both_sets(tmp_path) -> None:
    trained().save(tmp_path)
    for optimizer in (embsim.Adam(), embsim.SGD(), embsim.RowwiseAdagrad()):
        match = rf"accumulators': 2.*of Adagrad in the checkpoint, {type(optimizer).__name__} needs"
        with pytest.raises(CheckpointError, match=match):
            trained(optimizer, steps=0).restore(tmp_path)


def test_pending_updates_of_an_optimizer_with_other_coefficients_are_refused(tmp_path) -> None:
    embedding = trained()
    embedding.save(tmp_path / "pending")
    embedding.save(tmp_path / "drained", drain=True)
    clipped = embsim.Adagrad(0.5, clipvalue=1.0)
    with pytest.raises(CheckpointError, match="or save with drain=True"):
        trained(clipped, steps=0).restore(tmp_path / "pending")
    other = trained(clipped, steps=0)
    other.restore(tmp_path / "drained")
    expected = by_name(embedding.embedding_tables)
    for name, table in by_name(other.embedding_tables).items():
        np.testing.assert_array_equal(table, expected[name])


def test_saving_with_drain_stores_nothing_pending_and_saving_without_changes_nothing(
    tmp_path,
) -> None:
    embedding = trained()
    with embedding.saving() as (arrays, meta):
        pass
    assert meta["pending_steps"] == [1, 2]
    assert meta["progress"] == {"dequeued": 3, "submitted": 3, "start": 0}
    assert meta["version"] == 1
    assert embedding._engine._store.version == 1
    with embedding.saving(drain=True) as (arrays, meta):
        pass
    assert meta["pending_steps"] == []
    assert meta["progress"] == {"dequeued": 3, "submitted": 3, "start": 3}
    assert not [name for name in arrays if name.startswith(("pending", "patches"))]


def test_arrays_are_logical_float32_tables_and_slots() -> None:
    with trained(embsim.RowwiseAdagrad()).saving(drain=True) as (arrays, _):
        pass
    assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == {
        "weights/0": ((6, 2), np.float32),
        "slots/0/accumulators": ((6, 1), np.float32),
        "weights/1": ((6, 2), np.float32),
        "slots/1/accumulators": ((6, 1), np.float32),
    }


def test_another_kind_of_object_is_refused(tmp_path) -> None:
    embsim.Checkpoint(embedding={"w": np.zeros(3)}).save(tmp_path)
    with pytest.raises(CheckpointError):
        trained(steps=0).restore(tmp_path)


def values(mapping) -> dict[str, object]:
    found = by_name(mapping)
    return {k: v if isinstance(v, np.ndarray) else dict(v) for k, v in found.items()}


@pytest.mark.parametrize("optimizer", [embsim.Adam(0.1, lazy_adam=False), embsim.Adam(0.1)])
def test_restored_tables_equal_saved_ones_when_every_row_is_pending(optimizer, tmp_path) -> None:
    embedding = trained(optimizer)
    embedding.save(tmp_path)
    resumed = trained(optimizer, steps=0)
    resumed.restore(tmp_path)
    for mine, theirs in (
        (resumed.embedding_tables, embedding.embedding_tables),
        (resumed.slot_variables, embedding.slot_variables),
    ):
        np.testing.assert_equal(values(mine), values(theirs))


def test_other_threads_wait_while_a_save_writes() -> None:
    embedding = trained()
    embedding.enqueue({"a/b": np.zeros(4, int), "c": np.zeros(4, int)})
    with embedding.saving():
        step = threading.Thread(target=embedding.dequeue)
        step.start()
        step.join(0.05)
        assert step.is_alive()
    step.join()
    embedding.abandon()


def test_a_reader_of_which_one_table_has_an_optimizer_gets_complete_tables(tmp_path) -> None:
    embedding = trained()
    embedding.save(tmp_path)
    config = features(names=("c",))
    with_slots = TableConfig(6, 2, name="a/b", optimizer=embsim.Adagrad(0.5))
    reader = TPUEmbedding({**config, "a/b": FeatureConfig(with_slots)}, None)
    reader.restore(tmp_path)
    for mine, theirs in ((reader.embedding_tables, embedding.embedding_tables),):
        np.testing.assert_equal(by_name(mine), by_name(theirs))
    np.testing.assert_equal(
        dict(reader.slot_variables[with_slots]),
        dict(by_name(embedding.slot_variables)["a/b"]),
    )
