"""How kernels are compiled and kept; the same bits without a compiler; read-only installs."""

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
    assert {"embsim._sums.weighted_sums", "embsim.plan._group"} <= set(found)
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


def run(*arguments, folder=ROOT, **environment):
    defaults = {"PYTHONPATH": str(folder), "NUMBA_DISABLE_JIT": "0", "NUMBA_CACHE_DIR": ""}
    found = subprocess.run(
        [sys.executable, "-B", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **defaults, **environment},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_without_the_compiler_the_bits_are_the_same():
    assert run("-c", PROGRAM, NUMBA_DISABLE_JIT="1") == run("-c", PROGRAM)


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
    assert run("-c", code, folder=tmp_path, **nowhere) == "[0.25, 0.75]"


# --- the cache on disk

RULE = """
import numpy as np, embsim
class Own:
    learning_rate, slots = 1.0, ()
    def coefficients(self, learning_rate):
        return {"lr": learning_rate}
    def rule(self, ops):
        return lambda w, g, slots, c: (w SIGN c.lr * g, slots)
table = embsim.TableConfig(2, 1, initializer=embsim.constant(0.0), optimizer=Own())
with embsim.TPUStrategy(1).scope():
    embedding = embsim.TPUEmbedding(embsim.FeatureConfig(table))
embedding.enqueue(np.array([1]))
embedding.dequeue()
embedding.apply_gradients(np.ones((1, 1), np.float32))
print(embedding.embedding_tables[table].ravel().tolist())
"""


def test_a_rule_that_was_changed_in_its_file_is_never_served_stale(tmp_path):
    script, cache = tmp_path / "model.py", tmp_path / "cache"

    def result(sign):
        script.write_text(RULE.replace("SIGN", sign))
        os.utime(script, (0, 0))  # neither its date nor its size tells
        return run(script, EMBSIM_CACHE_DIR=str(cache))

    assert result("-") == "[0.0, -1.0]"
    assert result("+") == "[0.0, 1.0]"
    compiled = {path: path.stat().st_mtime_ns for path in cache.glob("__pycache__/*.nbc")}
    assert len(compiled) == 2
    assert result("-") == "[0.0, -1.0]"
    assert {path: path.stat().st_mtime_ns for path in compiled} == compiled  # it was used

    first, second = cache.glob("update_*.py")
    first.write_text("def update(*_): raise AssertionError('someone else wrote this')")
    second.write_text("")
    assert result("-") == "[0.0, -1.0]"


def test_a_cache_directory_that_cannot_be_written_is_done_without(tmp_path):
    script = tmp_path / "model.py"
    script.write_text(RULE.replace("SIGN", "-"))
    (tmp_path / "file").touch()
    assert run(script, EMBSIM_CACHE_DIR=str(tmp_path / "file" / "below")) == "[0.0, -1.0]"


def test_a_cache_that_can_only_be_read_is_used(tmp_path):
    """The text of the kernel is there, but Numba has nowhere to keep its compiled form."""
    script, cache = tmp_path / "model.py", tmp_path / "cache"
    script.write_text(RULE.replace("SIGN", "-"))
    environment = {"EMBSIM_CACHE_DIR": str(cache), "NUMBA_DISABLE_JIT": "1"}
    assert run(script, **environment) == "[0.0, -1.0]"
    assert len(list(cache.glob("update_*.py"))) == 1
    shutil.rmtree(cache / "__pycache__", ignore_errors=True)
    (cache / "__pycache__").touch()
    environment = {"EMBSIM_CACHE_DIR": str(cache), "HOME": os.devnull, "XDG_CACHE_HOME": os.devnull}
    assert run(script, **environment) == "[0.0, -1.0]"
