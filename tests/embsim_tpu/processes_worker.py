"""One of several processes that train together; test_processes.py starts them, and runs the same
in a process of its own.

    python -m tests.embsim_tpu.processes_worker INDEX COUNT DEVICES PORT FOLDER TASK ARGUMENTS...
"""

import os
import sys
from pathlib import Path

import numpy as np

from tests.embsim_tpu import processes_model as model

F = np.float32
SHUTDOWN_S = 3  # for which the task `raises` waits for the other process


def start(index, count, devices, port, shutdown_s):
    """Before any other use of JAX."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"127.0.0.1:{port}",
        count,
        index,
        coordinator_bind_address=f"127.0.0.1:{port}",
        shutdown_timeout_seconds=shutdown_s,
    )


def mesh_of(devices):
    """All devices, one of each process in turn: each has samples here and there in the batch."""
    import jax

    by_place = sorted(jax.devices()[:devices], key=lambda d: (d.id % 2048, d.process_index))
    return jax.sharding.Mesh(np.array(by_place), ("x",))


def task_train(mesh, folder, index, *names):
    """`names`: "REGIME SCHEDULE", or "class"."""
    import embsim_tpu

    for name in names:
        if name == "class":
            found = model.by_class(embsim_tpu.JaxBackend(mesh), "tpu_embedding_pipelined")
        else:
            found = model.trained(mesh, *name.split())
        np.savez(folder / f"{name} {index}.npz", **found)


GOOD = ([[[1, 2], [3], [4], []]],)


def small(mesh):
    """Arguments of `train` before the data, and the state."""
    import jax.numpy as jnp

    import embsim
    from embsim_tpu import Capacity, Embedding, TrainState

    table = embsim.TableConfig(20, 2, optimizer=embsim.SGD(0.5), name="t")
    embedding = Embedding([embsim.FeatureConfig(table)], mesh=mesh, capacity=Capacity(8, 8))

    def ones(carry, activations, inputs):
        return carry, [jnp.ones_like(activations[0])], activations[0].sum()

    return (embedding, ones), TrainState(embedding.init(), None)


def task_errors(mesh, folder, index):
    """What process 1 alone does wrong, and what is raised; then nothing is wrong."""
    from embsim_tpu import train

    def broken():
        yield GOOD
        raise OSError("the disk is full")

    cases = {
        "data": broken(),
        "capacity": [GOOD, ([[[1, 2, 3, 4, 5], [3, 6, 7, 8], [4], []]],)],
        "end": [GOOD, GOOD],
        "samples": [GOOD, ([[[1, 2], [3]]],)],
        "inputs": [GOOD, (*GOOD, np.zeros(2, F))],
        "uneven": [GOOD, ([[[1], [2], [3]]],)],
        "ids": [GOOD, ([[[1], [2], [3], [99]]],)],
        "nothing": [GOOD] * 3,
    }
    for name, of_process_1 in cases.items():
        arguments, state = small(mesh)
        try:
            state = train(*arguments, of_process_1 if index else [GOOD] * 3, state)
            print(f"{name}: trained {state.step} steps", flush=True)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)


def task_raises(mesh, folder, index):
    """An error in the training thread of process 1, which nobody is told of."""
    from embsim_tpu import train

    def look(step, total):
        print("step", step, float(total), flush=True)
        if index and step == 2:
            raise OSError("the disk is full")

    arguments, state = small(mesh)
    train(*arguments, [GOOD] * 1000, state, on_step=look)


def main(index, count, devices, port, folder, task, *arguments):
    start(int(index), int(count), int(devices), port, SHUTDOWN_S if task == "raises" else 300)
    mesh = mesh_of(int(count) * int(devices))
    globals()[f"task_{task}"](mesh, Path(folder), int(index), *arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
