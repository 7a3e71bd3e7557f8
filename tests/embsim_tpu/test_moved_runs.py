"""Runs that are moved to another mesh or another backend, updates in flight, and go on bit for bit
where sums are exact."""

import json
import tempfile

import jax
import numpy as np
import pytest

import embsim
from embsim.checkpoint import load_arrays
from embsim.conformance import all_checks, checks_for_engine
from embsim.conformance.rules import Counting
from embsim_tpu import Embedding, Example, JaxBackend, Pipeline, TrainState
from embsim_tpu.checkpoint import Checkpoints, from_embsim, to_embsim
from embsim_tpu.conformance import PipelineEngine
from tests.embsim.programs import assert_same

F = np.float32
SAMPLES = 8
ITEMS, USERS = 40, 9
SCHEDULES = (embsim.stale(2), embsim.tpu_embedding_pipelined(), embsim.sparsecore_loop(5))
OPTIMIZERS = {
    "sums": (embsim.SGD(0.5), Counting()),
    "roots": (
        embsim.Adagrad(0.5, initial_accumulator_value=9.0),
        embsim.Adam(0.5, beta_1=0.5, beta_2=0.0, epsilon=2.0**-30),
    ),
}
ROOTS = {
    "items": (4, -12, 84, 3612, *[0] * 99),  # 9 and the squares of the first n sum to a square
    "users": (1, -2, 4, 2, -1) * 20,
}


def initial(shape, dtype=F):
    return (np.arange(np.prod(shape)).reshape(shape) % 7 - 3).astype(dtype)


def features(rules, items=ITEMS, dim=4):
    """`seen` and `order`, a sequence, share a table."""
    item = embsim.TableConfig(items, dim, initial, rules[0], name="the.items/1")
    user = embsim.TableConfig(USERS, 3, initial, rules[1], name="users")
    return {
        "seen": embsim.FeatureConfig(item, name="seen"),
        "order": embsim.FeatureConfig(item, max_sequence_length=2, name="order"),
        "user": embsim.FeatureConfig(user, name="user"),
    }


def steps(kind, count):
    """(ids, gradients) of each step, whose results are the same in any order of sums.

    "roots": a row is in one sample of a step, and its n-th gradient is ROOTS[table][n].
    """
    rng, made = np.random.default_rng(5), []
    touched = {"items": np.zeros(ITEMS, int), "users": np.zeros(USERS, int)}
    for k in range(count):
        items, users = rng.permutation(ITEMS), rng.permutation(USERS)
        if kind == "sums":
            items, users = rng.integers(0, 30, ITEMS), rng.integers(0, 3, USERS)
        ids = {
            "seen": [[i] for i in items[:SAMPLES]],
            "order": [list(items[8 + 2 * s : 10 + 2 * s]) for s in range(SAMPLES)],
            "user": [[i] for i in users[:SAMPLES]],
        }
        gradients = {}
        for name, table, shape in (
            ("seen", "items", (SAMPLES, 4)),
            ("order", "items", (SAMPLES, 2, 4)),
            ("user", "users", (SAMPLES, 3)),
        ):
            if kind == "sums":
                gradients[name] = rng.integers(-2, 3, shape).astype(F)
                ids[name][k % SAMPLES] = []
            else:
                rows = np.concatenate(ids[name])
                sizes = np.array(ROOTS[table], F)[touched[table][rows]]
                touched[table][rows] += 1
                gradients[name] = sizes.reshape(*shape[:-1], 1) * initial((shape[-1],)).clip(-1, 1)
        if kind == "sums" and k % 3 == 2:
            gradients["seen"] = None
        made.append((ids, gradients))
    return made


class OnHost:
    """TPUEmbedding over a backend."""

    def __init__(self, rules, schedule, backend):
        self.strategy = embsim.TPUStrategy()
        with self.strategy.scope():
            self.embedding = embsim.TPUEmbedding(
                features(rules), schedule=schedule, backend=backend
            )
        self.embedding.build(per_replica_batch_size=SAMPLES)

    def step(self, ids, gradients):
        self.embedding.enqueue(ids)
        activations = self.embedding.dequeue()
        self.embedding.apply_gradients(gradients)
        return activations

    def save(self, path):
        self.embedding.save(path)

    def restore(self, path):
        self.embedding.restore(path)

    def end(self):
        self.embedding.drain()
        found = self.embedding.snapshot()
        weights = {config.name: array for config, array in found.embedding_tables.items()}
        return weights, {config.name: dict(s) for config, s in found.slot_variables.items()}


class OnPipeline:
    """A Pipeline on so many devices; 0: without a mesh."""

    def __init__(self, rules, schedule, devices, names=("seen", "order", "user")):
        config, self.schedule = features(rules), schedule
        self.embedding = Embedding({name: config[name] for name in names}, mesh=spread(devices))
        state = TrainState(self.embedding.init(), None)
        self.pipeline = Pipeline(self.embedding, look_and_take, state, schedule)

    def step(self, ids, gradients):
        return self.pipeline.step(self.pipeline.planned(Example(ids, gradients)))

    def save(self, path):
        to_embsim(path, self.embedding, self.pipeline.state)

    def restore(self, path):
        self.pipeline.restore(from_embsim(path, self.embedding))

    def end(self):
        self.pipeline.drain()
        found = self.embedding.get(self.pipeline.state.tables)
        return found.weights, found.slots


class WithOrbax(OnPipeline):
    def save(self, path):
        with Checkpoints(path, self.embedding) as checkpoints:
            checkpoints.save(self.pipeline.state)

    def restore(self, path):
        state, _ = Checkpoints(path, self.embedding).restore()
        self.pipeline.restore(state)


def look_and_take(carry, activations, inputs):
    return carry, inputs, activations


def spread(devices):
    return None if devices == 0 else jax.sharding.Mesh(np.array(jax.devices()[:devices]), "x")


def host(rules, schedule):
    return OnHost(rules, schedule, "reference")


def host_on_8(rules, schedule):
    return OnHost(rules, schedule, JaxBackend(spread(8)))


def pipeline(devices, kind=OnPipeline):
    return lambda rules, schedule: kind(rules, schedule, devices)


def check_moved(tmp_path, kind, schedule, legs, each=4):
    """A run of `each` steps on each of `legs`, against one that never moved."""
    rules, data = OPTIMIZERS[kind], steps(kind, each * len(legs))
    never = host(rules, schedule)
    required = [never.step(*step) for step in data]
    run, pending = None, []
    for number, made in enumerate(legs):
        last, run = run, made(rules, schedule)
        if last is not None:
            last.save(tmp_path / str(number))
            run.restore(tmp_path / str(number))
            pending.append(pending_in(tmp_path / str(number)))
        for k in range(each * number, each * (number + 1)):
            check_same(f"activations of step {k}", run.step(*data[k]), required[k])
    check_same("at the end", run.end(), never.end())
    assert all(pending), "this schedule has updates in flight at each move"


def check_same(what, got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        assert_same(f"{what}: {jax.tree_util.keystr(path)}", np.asarray(one), np.asarray(other))


def pending_in(path):
    """The steps whose updates a checkpoint of either format holds."""
    if (path / "LATEST").exists():
        return load_arrays(path)["embedding"].meta["object"]["pending_steps"]
    (manifest,) = path.glob("*/state/manifest.json")
    return json.loads(manifest.read_text())["manifest"]["meta"]["pending_steps"]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_run_moved_between_backends_goes_on_bit_for_bit(tmp_path, schedule, kind):
    """reference -> jax on 8 devices -> reference, by TPUEmbedding and by Pipeline."""
    check_moved(tmp_path, kind, schedule, [host, host_on_8, host, pipeline(8), host])


def test_a_run_moved_between_meshes_goes_on_bit_for_bit(tmp_path):
    legs = [pipeline(n, WithOrbax) for n in (8, 1, 8, 2, 0, 4, 8)]
    check_moved(tmp_path, "roots", embsim.stale(2), legs, each=2)


def test_pending_samples_that_cannot_be_split_as_they_were(tmp_path):
    """8 samples, saved in either format, on 3 devices; and a model without the feature `order`."""
    rules, schedule, data = OPTIMIZERS["sums"], embsim.stale(2), steps("sums", 4)
    never, run = host(rules, schedule), WithOrbax(rules, schedule, 8)
    for step in data:
        never.step(*step)
        run.step(*step)
    run.save(tmp_path / "orbax")
    OnPipeline.save(run, tmp_path / "embsim")
    required = never.end()
    for devices, names in ((3, ["seen", "order", "user"]), (2, ["user", "seen"])):
        for kind, name in ((WithOrbax, "orbax"), (OnPipeline, "embsim")):
            other = kind(rules, schedule, devices, names)
            other.restore(tmp_path / name)
            assert other.pipeline.state.pending
            check_same(name, other.end(), required)


def test_a_reader_without_optimizer_gets_every_update(tmp_path):
    run = OnPipeline(OPTIMIZERS["roots"], embsim.stale(2), 8)
    for step in steps("roots", 4):
        run.step(*step)
    run.save(tmp_path)
    assert pending_in(tmp_path)
    reader = embsim.TPUEmbedding(features((None, None)))
    reader.restore(tmp_path)
    found = {config.name: np.asarray(a) for config, a in reader.embedding_tables.items()}
    check_same("tables", found, run.end()[0])


# --- by the conformance kit: what is saved and restored is on the disk ---------------------------


class OnDisk(PipelineEngine):
    """Saves by Orbax."""

    def save(self):
        folder = tempfile.mkdtemp(prefix="embsim_")
        with self.checkpoints(folder, asynchronous=False) as checkpoints:
            checkpoints.save(self.settled())
        return folder

    def restore(self, saved):
        self.go_on(self.checkpoints(saved).restore()[0])

    def checkpoints(self, folder, **options):
        return Checkpoints(folder, self.pipeline.embedding, **options)

    def settled(self):
        self._settle()
        return self.pipeline.state

    def go_on(self, state):
        self.pipeline.restore(state)
        self._dequeued = self._gradients = None


class Converted(OnDisk):
    """Saves in embsim's format."""

    def save(self):
        folder = tempfile.mkdtemp(prefix="embsim_")
        to_embsim(folder, self.pipeline.embedding, self.settled())
        return folder

    def restore(self, saved):
        self.go_on(from_embsim(saved, self.pipeline.embedding))


NAMES = [c.name for c in all_checks() if c.body.__module__.endswith("checks.checkpoints")]


@pytest.mark.parametrize("check", checks_for_engine(OnDisk, "quick", NAMES), ids=str)
def test_the_kit_saves_by_orbax(check, folders):
    check()


@pytest.mark.parametrize("check", checks_for_engine(Converted, "quick", NAMES), ids=str)
def test_the_kit_saves_in_the_format_of_embsim(check, folders):
    check()


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
