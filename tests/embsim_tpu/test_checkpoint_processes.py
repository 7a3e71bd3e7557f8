"""Checkpoints that two processes write and read together, with updates in flight.

python -m tests.embsim_tpu.test_checkpoint_processes INDEX PORT FOLDER
"""

import os
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import numpy as np

from tests.embsim_tpu import processes_model as model
from tests.embsim_tpu import processes_worker as worker

ROOT = Path(__file__).parents[2]
DEVICES = 2  # of each process


@cache
def dense():
    """(carry, dense step), once: equal ones share compiled programs."""
    return model.dense("exact")


def stale():
    import embsim

    return embsim.stale(2)


def trained(mesh, state=None, steps=4):
    """(embedding, the state after so many steps, updates in flight), in whole numbers."""
    from embsim_tpu import Embedding, TrainState, train

    embedding = Embedding(model.features(True), mesh=mesh)
    carry, dense_step = dense()
    put = embedding.shards.put_replicated
    if state is None:
        state = TrainState(embedding.init(1), jax.tree.map(lambda x: put(np.array(x)), carry))
    own = embedding.shards.own
    data = [model.part(batch, own, model.SAMPLES // mesh.size) for batch in model.batches(True)][
        state.step :
    ]
    options = {"schedule": stale(), "steps": steps, "drain": False}
    return embedding, train(embedding, dense_step, data, state, **options)


def restored(mesh, folder, kind):
    from embsim_tpu import Embedding
    from embsim_tpu.checkpoint import Checkpoints, from_embsim

    embedding = Embedding(model.features(True), mesh=mesh)
    carry, _ = dense()
    checkpoints = Checkpoints(folder / "orbax", embedding)
    state, extra = checkpoints.restore(carry)
    assert extra == {"by": "all"}
    if kind == "embsim":
        return from_embsim(folder / "embsim", embedding, state.carry)
    return state


def numbers(mesh, state, name, folder):
    """Those at the end of the run that goes on from `state`."""
    embedding, state = trained(mesh, state)
    assert len(state.pending) > 1
    from embsim_tpu import Pipeline

    pipeline = Pipeline(embedding, dense()[1], state, stale())
    pipeline.drain()
    found = model.arrays_of(embedding.get(pipeline.state.tables)) | model.flat(state.carry)
    np.savez(folder / f"{name}.npz", **found)


def main(index, port, folder):
    worker.start(int(index), 2, DEVICES, port, 60)
    from embsim_tpu.checkpoint import Checkpoints, to_embsim

    mesh, folder = worker.mesh_of(2 * DEVICES), Path(folder)
    embedding, state = trained(mesh, steps=2)
    with Checkpoints(folder / "orbax", embedding) as checkpoints:
        checkpoints.save(state, {"by": "all"})
        to_embsim(folder / "embsim", embedding, state)
    numbers(mesh, state, f"uninterrupted {index}", folder)
    for kind in ("orbax", "embsim"):
        numbers(mesh, restored(mesh, folder, kind), f"{kind} {index}", folder)


def test_two_processes_save_and_one_or_two_go_on(tmp_path):
    """To the bit, in whole numbers: both formats, on the devices of both, and on two of one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    call = [sys.executable, "-m", "tests.embsim_tpu.test_checkpoint_processes"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    started = [
        subprocess.Popen(
            [*call, str(index), str(port), str(tmp_path)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        for process in started:
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output
    finally:
        for process in started:
            process.kill()
            process.wait()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), "x")
    numbers(mesh, trained(mesh, steps=0)[1], "alone", tmp_path)
    for kind in ("orbax", "embsim"):
        numbers(mesh, restored(mesh, tmp_path, kind), f"{kind} alone", tmp_path)
    found = {path.stem: dict(np.load(path)) for path in tmp_path.glob("*.npz")}
    assert len(found) == 9
    wanted = found["alone"]
    for name, arrays in found.items():
        assert arrays.keys() == wanted.keys()
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, wanted[key], f"{name}: {key}")


if __name__ == "__main__":
    main(*sys.argv[1:])
