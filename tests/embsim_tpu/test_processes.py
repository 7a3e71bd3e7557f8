"""Several processes of jax.distributed, over gloo on the loopback, against one process.

Each pair of processes serves one test: starting it and compiling are what these tests cost.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.embsim_tpu import processes_model as model
from tests.embsim_tpu.conftest import mesh_of
from tests.nightly import nightly

ROOT = Path(__file__).parents[2]
WORKER = "tests.embsim_tpu.processes_worker"
PIPELINED = "tpu_embedding_pipelined"


def run(folder, devices, task, *arguments, seconds=300):
    """[(exit status, output)] of two processes, ended in any case: none outlives the test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    files = [folder / f"{task} {devices} output {index}.txt" for index in range(2)]
    started = []
    try:
        for index, file in enumerate(files):
            call = [sys.executable, "-m", WORKER, *map(str, (index, 2, devices, port))]
            with file.open("w") as out:
                started.append(
                    subprocess.Popen(
                        [*call, str(folder), task, *arguments],
                        cwd=ROOT,
                        env=environment,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                    )
                )
        until = time.monotonic() + seconds
        codes = [process.wait(max(0.1, until - time.monotonic())) for process in started]
    except subprocess.TimeoutExpired:
        outputs = "\n\n".join(file.read_text() for file in files)
        pytest.fail(f"two processes did not end within {seconds} s:\n{outputs}")
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [(code, file.read_text()) for code, file in zip(codes, files, strict=True)]


def joined(folder, name, devices):
    """What the processes found: activations in the order of the global batch; all else must be
    whole, and the same, in every process."""
    parts = [dict(np.load(folder / f"{name} {index}.npz")) for index in range(2)]
    found = {}
    for key, array in parts[0].items():
        if key.startswith("activations") and name != "class":
            # device j of process i is at place 2 j + i of the mesh
            by_device = [p[key].reshape(devices, -1, *array.shape[1:]) for p in parts]
            found[key] = np.stack(by_device, axis=1).reshape(-1, *array.shape[1:])
        else:
            np.testing.assert_array_equal(parts[1][key], array, key)
            found[key] = array
    return found


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for key, array in wanted.items():
        np.testing.assert_array_equal(found[key], array, key)


@pytest.mark.parametrize(
    "devices, names",
    [
        (1, ["exact sequential", "exact stale(2)", "real sequential", "class"]),
        pytest.param(2, [f"exact {PIPELINED}", "frozen sequential"], marks=nightly),
    ],
    ids=["2 processes of 1 device", "2 processes of 2 devices"],
)
def test_two_processes_compute_the_numbers_of_one(devices, names, tmp_path):
    """Exact regime: those of the reference, and so of one process, to the bit. Real numbers: to the
    bit, too, but for sums over the batch in the dense step, which XLA adds in another order; two
    terms have only one.
    """
    for code, output in run(tmp_path, devices, "train", *names):
        assert code == 0, output
    for name in names:
        regime, schedule = name.split() if name != "class" else ("class", PIPELINED)
        found = joined(tmp_path, name, devices)
        if regime in ("exact", "class"):
            assert_equal(found, model.by_class("reference", schedule))
            continue
        wanted = model.trained(mesh_of(2 * devices), regime, schedule)
        if regime == "frozen":
            assert_slopes_within_their_bound(found, wanted, devices=2 * devices)
            found, wanted = without_sums(found), without_sums(wanted)
        assert_equal(found, wanted)


def without_sums(found):
    return {key: a for key, a in found.items() if not key.startswith(("dense", "slopes"))}


def assert_slopes_within_their_bound(found, wanted, devices):
    """Of equal partial sums of the devices, in two orders."""
    ids, labels, _ = next(model.batches(False))
    activations = {name: wanted[f"activations 0 {name}"] for name in ids}
    of_samples = jax.vmap(jax.grad(model.loss), in_axes=(None, 0, 0))(
        model.initial_parameters(), activations, labels
    )
    gamma = devices * 2.0**-24 / (1 - devices * 2.0**-24)
    for name, terms in of_samples.items():
        key = f"slopes ['{name}']"
        size = np.abs(np.asarray(terms, np.float64)).mean(axis=0)
        difference = np.abs(found[key].astype(np.float64) - wanted[key])
        assert np.all(difference <= 2 * gamma * size), name


def test_an_error_of_one_process_is_raised_in_both(tmp_path):
    (code, first), (other_code, second) = run(tmp_path, 2, "errors")
    assert (code, other_code) == (0, 0), first + second
    told, own = (
        dict(line.split(": ", 1) for line in output.splitlines() if line[:1].islower())
        for output in (first, second)
    )
    assert own["data"] == "OSError: the disk is full"
    assert told["data"] == "BackendError: process 1: OSError: the disk is full"
    for name, what in (
        ("capacity", "CapacityError: plan: table 't': the batch has 9 ids on one device"),
        ("uneven", "BatchError: plan: the features have [3] samples"),
        ("ids", "BatchError: feature '0': id 99 in sample 3"),
    ):
        kind, _, text = what.partition(": ")
        assert own[name].startswith(what)
        assert told[name].startswith(f"{kind}: process 1: {text}")
    for name, what in (
        ("samples", "features [(1,)]"),
        ("inputs", "inputs float32[1]"),
        ("end", "the data of process 1 ended after 2 batches, that of process 0 did not"),
    ):
        for raised in (told[name], own[name]):
            assert raised.startswith("BatchError")
            assert what in raised
    assert told["nothing"] == own["nothing"] == "trained 3 steps"


def test_a_process_that_ends_in_an_error_ends_the_other(tmp_path):
    """It waits for the other at its exit for jax.distributed's shutdown_timeout_seconds; then JAX
    ends both, whatever they wait for."""
    (code, _), (other_code, second) = run(tmp_path, 1, "raises", seconds=120)
    assert "OSError: the disk is full" in second
    assert code != 0
    assert other_code != 0
