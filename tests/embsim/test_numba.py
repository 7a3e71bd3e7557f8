"""How kernels are compiled; the same bits without a compiler; installs that are read-only."""

import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

import embsim
from embsim._codegen import update_kernel
from embsim._numba import kernel, uncached_kernel
from embsim.optimizers import SGD

ROOT = Path(__file__).parents[2]
compiled = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="there is no compiler")


def kernels():
    """Every kernel of the package, and a generated one."""
    modules = [
        importlib.import_module(f"embsim.{info.name}")
        for info in pkgutil.iter_modules(embsim.__path__)
    ]
    found = {
        f"{module.__name__}.{name}": value
        for module in modules
        for name, value in vars(module).items()
        if hasattr(value, "py_func")
    }
    return {**found, "update of SGD": update_kernel(SGD())}


@compiled
def test_every_kernel_is_ieee_releases_the_gil_and_is_kept_on_disk():
    found = kernels()
    assert {"embsim.lookup._sum_bags", "embsim.plan._group"} <= set(found)
    for name, function in found.items():
        options = function.targetoptions
        assert options["nogil"] and options["nopython"], name
        assert options["error_model"] == "numpy", name
        assert not options.get("fastmath") and not options.get("parallel"), name
        assert type(function._cache).__name__ == "FunctionCache", name


def fused(a, b, c, out):
    for i in range(len(out)):
        out[i] = a[i] * b[i] + c[i]


@pytest.mark.parametrize("compiler", [kernel, uncached_kernel])
def test_products_are_rounded_before_they_are_added(compiler):
    x, out = np.float32([1 + 2**-12] * 100), np.empty(100, np.float32)
    compiler(fused)(x, x, np.full(100, -1, np.float32), out)
    assert set(out.tolist()) == {2**-11}


@pytest.mark.parametrize("compiler", [kernel, uncached_kernel])
def test_a_division_by_zero_is_no_error(compiler):
    def divided(a, b, out):
        out[0] = a[0] / b[0]

    out = np.empty(1, np.float32)
    with np.errstate(all="ignore"):
        compiler(divided)(np.ones(1, np.float32), np.zeros(1, np.float32), out)
    assert out[0] == np.inf


PROGRAM = """
import hashlib
import numpy as np
import embsim
from embsim.optimizers import FTRL, SGD, Adagrad, AdagradMomentum, Adam, RowwiseAdagrad
optimizers = [
    SGD(0.3, clipvalue=0.5, weight_decay_factor=0.1), Adagrad(0.3), RowwiseAdagrad(0.3),
    AdagradMomentum(0.3, momentum=0.9, exponent=3), Adam(0.3, lazy_adam=False),
    FTRL(0.3, l1_regularization_strength=0.01), Adagrad(0.3, use_gradient_accumulation=False),
]
combiners = ["sum", "mean", "sqrtn"]
quantization = [None, embsim.QuantizationConfig(9, -0.5, 0.5)]
tables = [
    embsim.TableConfig(5, 1 + i % 3, None, o, combiners[i % 3], f"t{i}", quantization[i % 2])
    for i, o in enumerate(optimizers)
]
with embsim.TPUStrategy(1).scope():
    embedding = embsim.TPUEmbedding(
        [embsim.FeatureConfig(t) for t in tables], schedule=embsim.stale(2)
    )
rng, seen = np.random.default_rng(0), []
for step in range(6):
    ids = [[rng.integers(0, 5, n).tolist() for n in rng.integers(0, 4, 5)] for _ in tables]
    weights = [[rng.normal(size=len(bag)).tolist() for bag in bags] for bags in ids]
    embedding.enqueue(ids, weights)
    activations = embedding.dequeue()
    embedding.apply_gradients([np.sin(8 * a).astype(np.float32) for a in activations])
    seen += activations
seen += [embedding.embedding_tables[t] for t in tables]
seen += [a for t in tables for a in embedding.slot_variables[t].values()]
assert all(np.isfinite(array).all() for array in seen)
print(hashlib.sha256(b"".join((array + 0).tobytes() for array in seen)).hexdigest())
"""


def run(code, folder=ROOT, **environment):
    found = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_without_the_compiler_the_bits_are_the_same():
    assert run(PROGRAM, NUMBA_DISABLE_JIT="1") == run(PROGRAM, NUMBA_DISABLE_JIT="0")


def test_an_install_that_cannot_be_written_works_without_a_home(tmp_path):
    """A package in a read-only image, run by a user without a home: Numba can keep nothing."""
    shutil.copytree(ROOT / "embsim", tmp_path / "embsim", ignore=lambda *_: ["__pycache__"])
    for folder in (tmp_path / "embsim", tmp_path / "embsim" / "optimizers"):
        (folder / "__pycache__").touch()
    nowhere = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "EMBSIM_CACHE_DIR"), os.devnull)
    code = (
        "import numpy as np, embsim.combiner;"
        "print(embsim.combiner.gains(np.float32([1, 3]), np.array([0, 2]), 'mean').tolist())"
    )
    assert run(code, tmp_path, **nowhere, NUMBA_CACHE_DIR="") == "[0.25, 0.75]"
