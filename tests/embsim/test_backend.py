"""Backends by name and by instance; a backend of another distribution trains like the reference."""

import re
import sys
import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

import embsim
from embsim import FeatureConfig, QuantizationConfig, ReferenceBackend, TableConfig
from embsim.backend import GROUP, get_backend
from embsim.optimizers import FTRL, SGD, Adagrad, AdagradMomentum, Adam, RowwiseAdagrad
from tests.embsim.programs import F, assert_same

PLUGIN = Path(__file__).parents[1] / "example_plugin"


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The example plugin as an installer leaves it: its metadata and its code on the path."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    information = tmp_path / f"embsim_example-{project['version']}.dist-info"
    information.mkdir()
    names = f"Name: {project['name']}\nVersion: {project['version']}\n"
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\n{names}")
    (group,) = project["entry-points"]
    points = [f"{name} = {value}" for name, value in project["entry-points"][group].items()]
    (information / "entry_points.txt").write_text("\n".join([f"[{group}]", *points]))
    for path in (tmp_path, PLUGIN):
        monkeypatch.syspath_prepend(str(path))
    yield
    for module in [name for name in sys.modules if name.partition(".")[0] == "embsim_example"]:
        del sys.modules[module]


class TestTheExamplePlugin:
    @pytest.mark.usefixtures("example")
    def test_it_is_found_by_name_and_is_no_part_of_embsim(self):
        found = {entry.name: entry for entry in entry_points(group=GROUP)}
        assert found["example"].dist.name == "embsim-example"
        backend = get_backend("example")
        assert type(backend).__module__ == "embsim_example.backend"
        assert isinstance(backend, embsim.Backend)

    @pytest.mark.usefixtures("example")
    @pytest.mark.parametrize(
        "schedule, replicas",
        [(embsim.sequential(), 2), (embsim.stale(2), 1), (embsim.sparsecore_loop(3), 2)],
        ids=str,
    )
    def test_it_trains_like_the_reference_to_the_bit(self, schedule, replicas, tmp_path):
        seen = {}
        for backend in ("reference", "example"):
            seen[backend] = list(program(backend, schedule, replicas, tmp_path / backend))
        for (what, want), (same, got) in zip(seen["reference"], seen["example"], strict=True):
            assert what == same
            assert_same(what, got, want)

    @pytest.mark.usefixtures("example")
    def test_each_continues_the_other_s_checkpoint(self, tmp_path):
        seen = {}
        for backend, before in (("reference", "reference"), ("example", "reference")):
            first = embedding_of(backend=before, schedule=embsim.stale(2))
            rng = np.random.default_rng(0)
            for _ in range(4):
                list(step(first, rng))
            first.save(tmp_path / backend)
            second = embedding_of(backend=backend, schedule=embsim.stale(2))
            second.restore(tmp_path / backend)
            seen[backend] = [part for _ in range(4) for part in step(second, rng)]
            assert len(second._engine._store.pending) == 2
        for (what, want), (_, got) in zip(seen["reference"], seen["example"], strict=True):
            assert_same(what, got, want)

    @pytest.mark.usefixtures("example")
    def test_what_does_not_fit_its_buffers_is_refused_at_enqueue_and_changes_nothing(self):
        from embsim_example.backend import ExampleBackend

        table = TableConfig(4, 1, initializer=embsim.constant(0.0), combiner="sum", name="t")
        with embsim.TPUStrategy(1).scope():
            embedding = embsim.TPUEmbedding(
                FeatureConfig(table), SGD(1.0), backend=ExampleBackend(capacity=3)
            )
        embedding.enqueue([[0, 1], [2]])
        with pytest.raises(embsim.CapacityError, match="'t' has 4 lookups, capacity is 3; raise"):
            embedding.enqueue([[0, 1], [2, 3]])
        assert embedding.dequeue().tolist() == [[0], [0]]
        embedding.apply_gradients(np.ones((2, 1), F))
        assert embedding.embedding_tables[table].ravel().tolist() == [-1, -1, -1, 0]
        with pytest.raises(embsim.DeadlockError, match="nothing is enqueued"):
            embedding.dequeue()

    @pytest.mark.usefixtures("example")
    def test_what_it_cannot_train_is_refused_at_build_with_the_reason(self):
        table = TableConfig(4, 1, optimizer=SGD(use_gradient_accumulation=False), name="t")
        with embsim.TPUStrategy(1).scope():
            embedding = embsim.TPUEmbedding(FeatureConfig(table), backend="example")
        with pytest.raises(embsim.BackendError, match="'t' has use_gradient_accumulation=False"):
            embedding.build(1)


def embedding_of(backend, schedule, replicas=1):
    """Every optimizer; shared tables, sequences, a quantized table."""
    optimizers = {
        "plain": SGD(lambda step: 0.5 / (step + 1), clipvalue=0.7),
        "ftrl": FTRL(0.3, l1_regularization_strength=0.01, weight_decay_factor=0.1),
        "dense": Adam(0.1, lazy_adam=False, clip_weight_max=0.5),
        "rowwise": RowwiseAdagrad(lambda: 0.3),
        "momentum": AdagradMomentum(0.2, momentum=0.9, exponent=3),
    }
    tables = {
        name: TableConfig(5, dim, optimizer=optimizer, combiner=combiner, name=name)
        for (name, optimizer), dim, combiner in zip(
            optimizers.items(),
            (1, 3, 2, 5, 2),
            ("sum", "mean", "sqrtn", "mean", "sum"),
            strict=True,
        )
    }
    levels = QuantizationConfig(7, -0.4, 0.6)
    tables["levels"] = TableConfig(3, 2, optimizer=Adagrad(0.1), quantization_config=levels)
    features = {name: FeatureConfig(table) for name, table in tables.items()}
    features["rowwise too"] = FeatureConfig(tables["rowwise"])
    features["sequence"] = FeatureConfig(tables["ftrl"], max_sequence_length=2)
    with embsim.TPUStrategy(replicas).scope():
        embedding = embsim.TPUEmbedding(features, schedule=schedule, backend=backend, seed=3)
    embedding.build(per_replica_batch_size=4 // replicas)
    return embedding


def batch_of(rng):
    """Few rows and long bags: ids repeat in bags, between samples and between features."""
    features, weights = {}, {}
    for name in ("plain", "ftrl", "dense", "rowwise", "momentum", "rowwise too", "sequence"):
        features[name] = [rng.integers(0, 5, n).tolist() for n in rng.integers(0, 4, 4)]
        drawn = [rng.choice([0.0, 1.0, -0.5, 0.3], len(bag)).tolist() for bag in features[name]]
        weights[name] = None if name == "sequence" else drawn
    features["levels"], weights["levels"] = rng.integers(0, 3, 4), None
    return features, weights


def step(embedding, rng, training=True):
    """(what, array) of everything that one step shows."""
    embedding.enqueue(*batch_of(rng), training=training)
    activations = embedding.dequeue()
    yield from activations.items()
    if training:
        gradients = {name: np.sin(a + rng.normal(size=a.shape)) for name, a in activations.items()}
        gradients[rng.choice(list(gradients))] = None
        embedding.apply_gradients(gradients)


def program(backend, schedule, replicas, folder):
    """(what, array) of all that is seen, in order."""
    embedding, rng = embedding_of(backend, schedule, replicas), np.random.default_rng(1)
    for number in range(12):
        for what, array in step(embedding, rng):
            yield f"step {number}, {what}", array
        if number % 3 == 1:
            for what, array in step(embedding, rng, training=False):
                yield f"look after step {number}, {what}", array
        if number == 4:
            embedding.drain()
        if number == 7:
            embedding.save(folder)
        for config, array in embedding.embedding_tables.items():
            yield f"table {config.name} after step {number}", array.copy()  # it may be a view
    for config, slots in embedding.slot_variables.items():
        for name, array in slots.items():
            yield f"slot {name} of {config.name}", array


# --- by name and by instance


@pytest.fixture
def as_users_run_it():
    """Without the check of embsim's annotations, which would come before its own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_the_reference_is_registered_as_any_backend_is():
    assert isinstance(get_backend("reference"), ReferenceBackend)
    found = {entry.name: entry.value for entry in entry_points(group=GROUP)}
    assert found["reference"] == "embsim.reference:ReferenceBackend"


def test_an_instance_is_taken_as_it_is():
    backend = ReferenceBackend()
    assert get_backend(backend) is backend


class FiveFunctions:
    put_state = get_state = read_rows = put_plan = lookup = None


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    "wrong",
    [ReferenceBackend, None, 3, FiveFunctions()],
    ids=lambda x: getattr(x, "__name__", type(x).__name__),
)
def test_an_object_without_the_six_functions_is_a_type_error(wrong):
    message = f"backend is {re.escape(repr(wrong))}; .* instance with the six functions"
    with pytest.raises(TypeError, match=message):
        get_backend(wrong)


def test_an_unknown_name_is_an_error_that_lists_those_that_are_installed():
    message = r"'tpu' is not installed; installed are \[.*'reference'.*\]; .* 'embsim.backends'"
    with pytest.raises(embsim.BackendError, match=message):
        embsim.TPUEmbedding(FeatureConfig(TableConfig(2, 2)), SGD(), backend="tpu")


@pytest.mark.parametrize(
    "code, error, message",
    [
        ("import no_such_module", embsim.BackendError, "No module .*; pip install no_such"),
        ("from no_such.part import x", embsim.BackendError, "pip install no_such"),
        ("raise ImportError('no driver')", embsim.BackendError, "imported: no driver; pip install"),
        ("def Broken(): return 3", embsim.BackendError, r"\(broken_backend:Broken\) lacks some"),
        ("def Broken(): raise OSError('no TPU')", OSError, "no TPU"),
    ],
)
def test_a_backend_that_cannot_be_loaded_says_what_to_do(
    code, error, message, tmp_path, monkeypatch
):
    (tmp_path / "broken_backend.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_backend", raising=False)
    entry = EntryPoint("broken", "broken_backend:Broken", GROUP)
    monkeypatch.setattr("embsim.backend.entry_points", lambda group: [entry])
    with pytest.raises(error, match=message):
        get_backend("broken")
    sys.modules.pop("broken_backend", None)
