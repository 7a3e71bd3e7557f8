"""What the files of a checkpoint survive: damage, and the death of the process that writes them.

And tables that are read in another layout.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embsim
from embsim.errors import CheckpointError
from embsim_tpu import Embedding, Example, Pipeline, TrainState, _orbax
from embsim_tpu._mesh import Shards
from embsim_tpu.checkpoint import Checkpoints
from embsim_tpu.placement import Placement
from embsim_tpu.state import put_table
from tests.embsim_tpu.conftest import mesh_of

F = np.float32
ROOT = Path(__file__).parents[2]
ROWS, SAMPLES = 70, 2
STALE = embsim.stale(1)


def embedding():
    table = embsim.TableConfig(ROWS, 3, optimizer=embsim.Adagrad(0.1), name="t")
    return Embedding([embsim.FeatureConfig(table)])


def dense_step(carry, activations, inputs):
    return carry + 1, [activations[0] * 0.1], None


def saved_runs(path, steps):
    """A checkpoint after each of so many steps; what each holds."""
    run = embedding()
    pipeline = Pipeline(run, dense_step, TrainState(run.init(), np.zeros(5, F)), STALE)
    found = {}
    with Checkpoints(path, run, keep=2) as checkpoints:
        for step in range(1, steps + 1):
            pipeline.step(pipeline.planned(Example([[[step], [2, 3]]])))
            checkpoints.save(pipeline.state, {"step": step})
            found[step] = numbers(pipeline.state)
    return found


def test_extra_is_saved_as_it_was_when_it_was_given(tmp_path):
    run, extra = embedding(), {"rows": [1]}
    with Checkpoints(tmp_path, run) as checkpoints:
        checkpoints.save(TrainState(run.init(), np.zeros(5, F)), extra)
        extra["rows"].append(2)  # before the thread that writes comes to it
    _, found = Checkpoints(tmp_path, embedding()).restore(np.zeros(5, F))
    assert found == {"rows": [1]}


def restored(path):
    state, extra = Checkpoints(path, embedding()).restore(np.zeros(5, F))
    assert extra == {"step": state.step}
    return state.step, numbers(state)


def numbers(state):
    leaves = jax.tree.leaves((state.tables, state.carry, [e.gradients for e in state.pending]))
    plans = [e.planned.plans["t"] for e in state.pending]
    host = [array for plan in plans for array in (plan.splits, plan.row, plan.gain)]
    return [np.asarray(array).tobytes() for array in (*leaves, *host)]


def test_orbax_alone_takes_an_altered_file_for_good(tmp_path):
    """Why there is a manifest. Where this fails one day, it may go."""
    array = np.random.default_rng(0).normal(size=(100, 8)).astype(F)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(tmp_path / "new", args=ocp.args.PyTreeSave({"a": array}))
        data = max((tmp_path / "new").rglob("d/*"), key=lambda path: path.stat().st_size)
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
        found = writer.restore(tmp_path / "new", args=ocp.args.PyTreeRestore())["a"]
    assert (np.asarray(found) != array).any()


def test_an_altered_file_is_an_error(tmp_path):
    """Every file, every kind of damage: never other numbers."""
    (required,) = saved_runs(tmp_path, 1).values()
    files = [path for path in (tmp_path / "1").rglob("*") if path.is_file()]
    assert len(files) > 8
    rng, refused = random.Random(0), 0
    for path in files:
        content = path.read_bytes()
        place = rng.randrange(len(content))
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        for damaged in (bytes(flipped), content[:place], content + b"0", b"", None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            try:
                assert restored(tmp_path) == (1, required), f"{path}, altered, gave other numbers"
            except CheckpointError as error:
                refused += 1
                covered = "state" in path.parts and not path.name.startswith("commit")
                assert not covered or re.search(
                    "altered|found no file|required the file", str(error)
                )
            else:  # only what Orbax notes beside the arrays
                assert path.name.startswith(("commit", "_CHECKPOINT")), path
            path.write_bytes(content)
    assert refused >= 5 * (len(files) - 4)
    assert restored(tmp_path) == (1, required)


def test_the_manifest_of_another_checkpoint_is_an_error(tmp_path):
    saved_runs(tmp_path, 2)
    (tmp_path / "2/state/manifest.json").replace(tmp_path / "1/state/manifest.json")
    shutil.rmtree(tmp_path / "2")
    with pytest.raises(CheckpointError, match=r"altered|found no file"):
        restored(tmp_path)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"format": "embsim checkpoint", "version": 1}, "found format 'embsim checkpoint'"),
        ({"format": "embsim_tpu checkpoint", "version": 2}, "version 2; this embsim_tpu reads"),
        ({"format": "embsim_tpu checkpoint"}, "is malformed: KeyError"),
    ],
)
def test_a_manifest_of_another_version_is_an_error(tmp_path, monkeypatch, manifest, message):
    write = _orbax.write_sealed
    monkeypatch.setattr(_orbax, "write_sealed", lambda path, _: write(path, manifest))
    _orbax.write_manifest(tmp_path, None)
    with pytest.raises(CheckpointError, match=message):
        _orbax.read_manifest(tmp_path)


SAVER = """
import sys
from dataclasses import replace
from tests.embsim_tpu.test_orbax import *
run = embedding()
first = TrainState(run.init(), np.zeros(5, F))
with Checkpoints(sys.argv[1], run, keep=2) as checkpoints:
    start = checkpoints.latest or 0
    for step in range(start + 1, 100_000):
        carry = jax.numpy.full(5, step, F)
        state = replace(first, carry=carry, step=step, version=step, start=step)
        checkpoints.save(state, {"step": step})
        print(step, flush=True)
"""


def test_a_killed_save_leaves_the_newest_complete_one(tmp_path):
    """A new process goes on where the killed one stopped."""
    rng, newest = random.Random(1), 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
        ) as saver:
            lines = [int(saver.stdout.readline()) for _ in range(rng.randrange(3, 12))]
            saver.send_signal(signal.SIGKILL)
        assert lines[0] == newest + 1, "save number n returns when n - 1 is complete"
        state, extra = Checkpoints(tmp_path, embedding()).restore(np.zeros(5, F))
        newest = state.step
        assert newest >= lines[-1] - 1
        assert extra == {"step": newest}
        assert (np.asarray(state.carry) == newest).all()


def test_leftovers_of_killed_saves_go_with_the_next_one(tmp_path):
    leftover = tmp_path / "7.orbax-checkpoint-tmp"
    leftover.mkdir()
    assert Checkpoints(tmp_path, embedding()).latest is None
    assert leftover.exists(), "who only reads removes nothing: another process may be saving"
    saved_runs(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["1"]


def test_other_directories_are_no_checkpoints(tmp_path):
    for name in ("logs", "000009", "run_8", "12"):
        (tmp_path / name).mkdir()
    checkpoints = Checkpoints(tmp_path, embedding())
    assert checkpoints.steps == []
    with pytest.raises(CheckpointError, match=r"of the steps \[\] in"):
        checkpoints.restore()


@settings(max_examples=25)
@given(
    rows=st.sampled_from((1, 2, 7, 8, 9, 40, 1000)),
    width=st.sampled_from((1, 3)),
    saved=st.sampled_from((1, 2, 3, 8)),
    new=st.sampled_from((1, 2, 3, 6, 8)),
    chunk=st.sampled_from((1024, 2**26)),
)
def test_a_table_is_read_in_another_layout(tmp_path_factory, rows, width, saved, new, chunk):
    """As if it had been put there; padding is zero again."""
    path = tmp_path_factory.mktemp("table") / "state"
    table = np.random.default_rng(rows).normal(size=(rows, width)).astype(F)
    before, after = Shards(mesh_of(saved)), Shards(mesh_of(new))
    spoiled = np.array(put_table(table.copy(), before))
    placement = Placement(rows, saved)
    padding = np.setdiff1d(np.arange(len(spoiled)), placement.physical_row(np.arange(rows)))
    spoiled[padding] = np.nan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_orbax, "CHUNK_BYTES", chunk)
        write_arrays(path, {"weights/0": before.put(spoiled)})
    found = _orbax.read_table(path, "weights/0", placement, width, after)
    required = put_table(table, after)
    assert found.sharding == required.sharding
    assert np.asarray(found).tobytes() == np.asarray(required).tobytes()


def test_arrays_without_items(tmp_path):
    """Orbax refuses them."""
    arrays = {"a": np.zeros((0, 3), F), "b": np.arange(3)}
    write_arrays(tmp_path / "new", arrays)
    wanted = {key: jax.ShapeDtypeStruct(a.shape, a.dtype) for key, a in arrays.items()}
    found = _orbax.read_arrays(tmp_path / "new", wanted)
    for key, array in arrays.items():
        assert (found[key].dtype, found[key].tolist()) == (array.dtype, array.tolist())
        assert found[key].shape == array.shape


def write_arrays(path, arrays):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(path, args=_orbax.save_args(arrays)[_orbax.ITEM])
