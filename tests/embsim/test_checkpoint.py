"""Checkpoint with a stand-in for an embedding; what the directory survives is in test_numbered."""

import os
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from embsim.checkpoint import Checkpoint
from embsim.errors import CheckpointError, DeadlockError

NAMES = ["table", "a/b", "..", "__metadata", "é\n", "['x']"]


class Embedding:
    """Tables by name, a step, and one update that a drain makes visible."""

    def __init__(self, fill: float = 0.0, rows: int = 4) -> None:
        self.tables = {name: np.full((rows, 2), fill, np.float32) for name in NAMES}
        self.step = 0
        self.pending = 1.0
        self.waits = False

    @contextmanager
    def saving(self, drain):
        if self.waits:
            raise DeadlockError("save: step 3 waits for its gradients")
        if drain:
            for table in self.tables.values():
                table += self.pending
            self.pending = 0.0
        yield dict(self.tables), {"step": self.step, "pending": self.pending}

    def prepare_restore(self, arrays, meta):
        for name, table in self.tables.items():
            if arrays[name].shape != table.shape:
                raise ValueError(
                    f"table {name!r}: found {arrays[name].shape}, required {table.shape}"
                )
        assert not any(array.flags.writeable for array in arrays.values())

        def commit():
            for name, table in self.tables.items():
                table[...] = arrays[name]
            self.step, self.pending = meta["step"], meta["pending"]

        return commit

    def content(self):
        return self.step, self.pending, {name: t.tobytes() for name, t in self.tables.items()}


def test_embedding_model_and_optimizer_come_back(tmp_path):
    params = {"w": jnp.ones((2, 3)), "scale": jnp.bfloat16(1.5)}
    optimizer = optax.adam(0.1)
    _, state = optimizer.update(params, optimizer.init(params), params)
    saved = Embedding(fill=0.5)
    saved.step = 7
    path = Checkpoint(model=params, optimizer=state, embedding=saved, step=7).save(tmp_path)
    assert path == str(tmp_path / "000001")
    assert {file.name for file in (tmp_path / "000001").iterdir()} == {
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "embedding.safetensors",
        "step.safetensors",
    }
    fresh = Embedding()
    zeros = jax.tree.map(jnp.zeros_like, params)
    checkpoint = Checkpoint(model=zeros, optimizer=optimizer.init(zeros), embedding=fresh, step=0)
    for where in (tmp_path, str(tmp_path), path):
        found = checkpoint.restore(where)
        assert list(found) == ["model", "optimizer", "step"]
        assert fresh.content() == saved.content()
        assert found["step"] == 7
        assert jax.tree.structure(found["optimizer"]) == jax.tree.structure(state)
        for leaf, required in zip(
            jax.tree.leaves((found["model"], found["optimizer"])),
            jax.tree.leaves((params, state)),
            strict=True,
        ):
            assert isinstance(leaf, jax.Array)
            assert leaf.dtype == required.dtype
            np.testing.assert_array_equal(leaf, required)


def test_what_is_restored_is_independent_of_the_files(tmp_path):
    path = Checkpoint(model={"w": np.arange(5.0)}, embedding=Embedding(1.0)).save(tmp_path)
    fresh = Embedding()
    template = {"w": np.zeros(5)}
    found = Checkpoint(model=template, embedding=fresh).restore(tmp_path)
    for file in os.listdir(path):
        os.truncate(os.path.join(path, file), 0)
    found["model"]["w"] += 1
    assert found["model"]["w"].tolist() == [1, 2, 3, 4, 5]
    assert fresh.tables["a/b"].tolist() == [[1, 1]] * 4
    assert template["w"].tolist() == [0] * 5


def test_drain_is_passed_on(tmp_path):
    for drain, required in ((False, (0.0, 1.0)), (True, (1.0, 0.0))):
        saved, fresh = Embedding(), Embedding(9.0)
        Checkpoint(embedding=saved).save(tmp_path, drain=drain)
        Checkpoint(embedding=fresh).restore(tmp_path)
        assert (fresh.tables["table"][0, 0], fresh.pending) == required


def test_some_objects_of_a_checkpoint_can_be_restored(tmp_path):
    Checkpoint(model=np.ones(3), embedding=Embedding(2.0)).save(tmp_path)
    fresh = Embedding()
    assert Checkpoint(embedding=fresh).restore(tmp_path) == {}
    assert fresh.tables["table"][0, 0] == 2.0
    message = r"found \['embedding', 'model'\], required \['embedding', 'step'\].*no 'step'"
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(embedding=fresh, step=0).restore(tmp_path)


@pytest.mark.parametrize(
    "others, error, message",
    [
        ({"second": Embedding(rows=5)}, ValueError, r"found \(4, 2\), required \(5, 2\)"),
        (
            {"model": {"w": np.zeros(4)}},
            CheckpointError,
            r"restore 'model' at \['w'\]: found float64",
        ),
        (
            {"model": {"v": np.zeros(3)}},
            CheckpointError,
            r"restore 'model': found dict with keys 'w'",
        ),
        ({"model": Embedding()}, CheckpointError, "'model' was saved as a pytree, .* is an object"),
        ({"second": [1]}, CheckpointError, "'second' was saved as an object, .* is a pytree"),
        ({"third": 1}, CheckpointError, "there is no 'third'"),
    ],
)
def test_a_failing_restore_changes_nothing(tmp_path, others, error, message):
    objects = {"first": Embedding(1.0), "second": Embedding(2.0), "model": {"w": np.ones(3)}}
    Checkpoint(**objects).save(tmp_path)
    first = Embedding(5.0)
    before = first.content()
    with pytest.raises(error, match=message):
        Checkpoint(first=first, **others).restore(tmp_path)
    assert first.content() == before


@pytest.mark.parametrize("file", ["model.safetensors", "embedding.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "extend"])
def test_a_damaged_file_is_refused_and_changes_nothing(tmp_path, file, damage):
    path = tmp_path / os.path.basename(
        Checkpoint(model=np.ones(300), embedding=Embedding(1.0)).save(tmp_path)
    )
    content = (path / file).read_bytes()
    middle = len(content) // 2
    if damage == "flip":
        content = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
    elif damage == "truncate":
        content = content[:middle]
    elif damage == "extend":
        content += b"\0"
    (path / file).write_bytes(content)
    if damage == "remove":
        (path / file).unlink()
    fresh = Embedding(5.0)
    before = fresh.content()
    for where in (path, tmp_path):
        if file == "manifest.json" and damage == "remove":
            message = "no checkpoint in" if where == path else "'manifest.json': found no such file"
        else:
            message = rf"checkpoint '.*000001': file '{file}': found .*required"
        with pytest.raises(CheckpointError, match=message):
            Checkpoint(model=np.ones(300), embedding=fresh).restore(where)
    assert fresh.content() == before


@pytest.mark.parametrize(
    "objects, error, message",
    [
        ({"model": {"w": "text"}}, TypeError, r"save 'model' at \['w'\]: found str; leaves must"),
        ({"model": print}, TypeError, "save 'model': found builtin_function_or_method"),
        ({"model": Embedding}, TypeError, "save 'model': found type"),
        ({"model": np.zeros(2, complex)}, TypeError, "save 'model': found dtype complex128"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_anything_happens(tmp_path, objects, error, message):
    embedding = Embedding()
    before = embedding.content()
    with pytest.raises(error, match=message):
        Checkpoint(embedding=embedding, **objects).save(tmp_path / "new", drain=True)
    assert embedding.content() == before
    assert not (tmp_path / "new").exists()


def test_an_embedding_that_waits_writes_nothing(tmp_path):
    embedding = Embedding()
    embedding.waits = True
    with pytest.raises(DeadlockError, match="step 3 waits for its gradients"):
        Checkpoint(embedding=embedding).save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_keep_is_passed_on(tmp_path):
    checkpoint = Checkpoint(keep=2, model=1.0)
    for _ in range(4):
        checkpoint.save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["000003", "000004", "LATEST"]


def test_any_name_of_an_object_will_do(tmp_path):
    objects = {name: np.float32(i) for i, name in enumerate(["self", "path", "a/b", "..", "", "é"])}
    Checkpoint(**objects).save(tmp_path)
    assert Checkpoint(**objects).restore(tmp_path) == objects


@pytest.mark.parametrize("keep", [0, -1, True])
def test_wrong_arguments_are_refused(keep):
    with pytest.raises(ValueError, match=f"keep is {keep}; it must be an int >= 1, or None"):
        Checkpoint(keep=keep, model=1)
    with pytest.raises(ValueError, match="found no objects; name at least one"):
        Checkpoint()


def test_no_file_needs_pickle(tmp_path):
    path = Checkpoint(model={"w": np.ones(3)}, embedding=Embedding()).save(tmp_path)
    for name in os.listdir(path):
        with open(os.path.join(path, name), "rb") as file:
            first = file.read(16)
        assert first[:1] == b"{" or first[8:9] == b"{"  # JSON, or a length and JSON
