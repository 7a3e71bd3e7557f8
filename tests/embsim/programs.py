"""An engine that runs a program in lockstep with the definition.

A `World` is what is trained and how: tables, features, schedule. A batch holds for each feature its
bags, as the definition reads them, and the form in which the engine is given them. `Pair` makes
every call on both and compares what comes back, to the bit.
"""

import hashlib
import shutil
import tempfile
import warnings
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import embsim
from embsim.definition import Definition

F = np.float32


@dataclass(frozen=True)
class Feature:
    """kind: plain, sequence, deep (sparse of rank 3), shaped (output_shape), shaped_sequence."""

    kind: str
    table: embsim.TableConfig
    length: int = 0  # of a sequence; ignored by the law where it has to be

    def config(self, samples):
        """`samples` per replica."""
        shape = (samples, 2) if self.kind.startswith("shaped") else None
        length = 2 if self.kind == "shaped_sequence" else self.length
        return embsim.FeatureConfig(self.table, max_sequence_length=length, output_shape=shape)

    @property
    def law_config(self):
        lengths = {"sequence": self.length, "shaped_sequence": 2}
        return embsim.FeatureConfig(self.table, max_sequence_length=lengths.get(self.kind, 0))

    def bags(self, samples):
        return samples * 2 if self.kind in ("deep", "shaped") else samples

    def shape(self, samples):
        """Of the activations of a global batch."""
        middle = {"plain": (), "sequence": (self.length,)}.get(self.kind, (2,))
        return (samples, *middle, self.table.dim)


@dataclass(frozen=True)
class World:
    features: tuple[Feature, ...]
    optimizer: object  # of the tables without one of their own
    samples: int  # in a global batch
    schedule: embsim.Schedule
    nest: str = "list"
    queue_capacity: int = 8

    @property
    def optimizers(self):
        tables = [feature.table for feature in self.features]
        return {table: table.optimizer or self.optimizer for table in tables}

    def pack(self, leaves):
        """The leaves, given in flattened order, as the structure of the feature configuration."""
        leaves = list(leaves)
        if self.nest == "list":
            return leaves
        if self.nest == "tuple":
            return tuple(leaves)
        if self.nest == "dict":
            return {f"f{i}": leaves[i] for i in reversed(range(len(leaves)))}
        return {"b": (leaves[-1],), "a": leaves[:-1]}

    def unpack(self, structure):
        if self.nest in ("list", "tuple"):
            assert type(structure) is {"list": list, "tuple": tuple}[self.nest]
            return list(structure)
        if self.nest == "dict":
            assert set(structure) == {f"f{i}" for i in range(len(self.features))}
            return [structure[f"f{i}"] for i in range(len(self.features))]
        return [*structure["a"], *structure["b"]]


@dataclass(frozen=True)
class FeatureBatch:
    """form: dense, column, flat, lists, ragged, or sparse with `stride` columns from id to id."""

    bags: list
    form: str
    weighted: bool = False
    id_type: str = "i4"
    weight_type: str = "f4"
    stride: int = 1

    def part(self, replica, replicas):
        size = len(self.bags) // replicas
        return self.bags[replica * size : (replica + 1) * size]

    def ids(self, bags, deep):
        plain = [[item[0] if self.weighted else item for item in bag] for bag in bags]
        return self._input(plain, self.id_type, deep)

    def weights(self, bags, deep):
        if not self.weighted:
            return None
        return self._input([[w for _, w in bag] for bag in bags], self.weight_type, deep)

    def _input(self, bags, dtype, deep):
        if self.form in ("dense", "column", "flat"):
            flat = [bag[0] for bag in bags]
            if self.form == "flat":
                return flat
            array = np.array(flat, dtype)
            return array if self.form == "dense" else array[:, None]
        if self.form == "lists":
            return bags
        if self.form == "ragged":
            return embsim.RaggedTensor.from_lists(bags, dtype)
        places = [
            ((bag // 2, bag % 2, column * self.stride) if deep else (bag, column * self.stride), x)
            for bag, items in enumerate(bags)
            for column, x in enumerate(items)
            if x is not None
        ]
        rank, rows = (3, (len(bags) // 2, 2)) if deep else (2, (len(bags),))
        indices = np.array([place for place, _ in places], "i8").reshape(-1, rank)
        width = int(indices[:, -1].max(initial=0)) + 1
        return embsim.SparseTensor(indices, np.array([x for _, x in places], dtype), (*rows, width))


def same_bits(got, want):
    """Equal bits, or both NaN, or both zeros."""
    return got.dtype == want.dtype == np.float32 and np.array_equal(got, want, equal_nan=True)


def assert_same(what, got, want):
    assert got.shape == want.shape, f"{what}: {got.shape}, law {want.shape}"
    assert same_bits(got, want), f"{what}:\n{got!r}\nlaw:\n{want!r}"


class Pair:
    """An embedding and the definition. Every method is legal or raises, on both."""

    def __init__(self, world, replicas=1, build=True):
        self.world = world
        self.folder = Path(tempfile.mkdtemp(prefix="embsim_"))
        self.queue = deque()  # (batch, training)
        self.waiting = []  # (batch, activations) of dequeued training steps
        self.saves = []  # (path, the law as it was)
        self.open(replicas, build)
        schedule = world.schedule
        self.law = Definition(
            [feature.law_config for feature in world.features],
            world.optimizers,
            {table: self.embedding.embedding_tables[table] for table in world.optimizers},
            staleness=schedule.staleness,
            drain_every=schedule.drain_every,
            warmup_steps=schedule.warmup_steps,
        )

    def open(self, replicas, build=True):
        world = self.world
        self.replicas = replicas
        self.strategy = embsim.TPUStrategy(num_replicas=replicas)
        per_replica = world.samples // replicas
        with self.strategy.scope():
            self.embedding = embsim.TPUEmbedding(
                world.pack(feature.config(per_replica) for feature in world.features),
                world.optimizer,
                schedule=world.schedule,
                queue_capacity=world.queue_capacity,
            )
        self.built = build and not any(feature.kind == "deep" for feature in world.features)
        if self.built:
            self.embedding.build(per_replica_batch_size=per_replica)

    def close(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # updates may be pending
            self.embedding.close()

    def end(self):
        try:
            self.abandon()
            self.check_state()
        finally:
            self.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def refusal(self):
        return embsim.DeadlockError if self.built else RuntimeError

    # --- calls

    def enqueue(self, batch, training=True):
        if len(self.queue) >= self.world.queue_capacity:
            with pytest.raises(embsim.DeadlockError, match="enqueue"):
                self.embedding.enqueue(*self.inputs(batch), training=training)
            return
        self.embedding.enqueue(*self.inputs(batch), training=training)
        self.built = True
        self.queue.append((batch, training))

    def can_dequeue(self):
        if not self.queue:
            return False
        if not self.queue[0][1]:
            return not self.waiting
        return self.law.version_read(self.law.steps) <= len(self.law.versions) - 1

    def dequeue(self):
        if not self.can_dequeue():
            with pytest.raises(self.refusal, match="dequeue"):
                self.embedding.dequeue()
            return
        self.check_activations(self.embedding.dequeue(), self.law_dequeue())

    def law_dequeue(self):
        batch, training = self.queue.popleft()
        activations = self.law.dequeue([f.bags for f in batch], training)
        if training:
            self.waiting.append((batch, activations))
        return activations

    def apply_gradients(self, gradients):
        structure = self.world.pack(gradients)
        if not self.waiting:
            with pytest.raises(self.refusal, match="apply_gradients"):
                self.embedding.apply_gradients(structure)
            return
        self.embedding.apply_gradients(structure)
        self.law_apply(gradients)

    def law_apply(self, gradients):
        _, activations = self.waiting.pop(0)
        shaped = zip(gradients, activations, strict=True)
        self.law.apply_gradients([None if g is None else g.reshape(a.shape) for g, a in shaped])

    def run(self, batch, gradients, training, enqueue_inside, fail=False):
        """One step in strategy.run, each replica with its own part of the batch."""
        world, n = self.world, self.replicas

        def step():
            replica = embsim.get_replica_context().replica_id_in_sync_group
            if enqueue_inside:
                self.embedding.enqueue(*self.inputs(batch, replica), training=training)
            activations = self.embedding.dequeue()
            if training:
                parts = [None if g is None else np.split(g, n)[replica] for g in gradients]
                self.embedding.apply_gradients(world.pack(parts))
            if fail and replica == n - 1:
                raise KeyError("planned")
            return activations

        if fail:
            with pytest.raises(KeyError, match="planned"):
                self.strategy.run(step)
            return
        parts = self.strategy.experimental_local_results(self.strategy.run(step))
        if enqueue_inside:
            self.built = True
            self.queue.append((batch, training))
        leaves = zip(*(world.unpack(part) for part in parts), strict=True)
        self.check_activations(
            world.pack(np.concatenate(leaf) for leaf in leaves), self.law_dequeue()
        )
        if training:
            self.law_apply(gradients)

    def idle_call(self, name, call):
        """`call`, which is legal only while no dequeued training step waits for gradients."""
        if self.waiting:
            with pytest.raises(embsim.DeadlockError, match=name):
                call()
            return False
        call()
        return True

    def drain(self):
        if self.idle_call("drain", self.embedding.drain):
            self.law.drain()

    def abandon(self):
        """The steps are the queue's head again; unless a drain comes first, they read the same."""
        assert self.embedding.abandon() == len(self.waiting)
        self.queue.extendleft((batch, True) for batch, _ in reversed(self.waiting))
        self.law.steps -= len(self.waiting)
        self.law.waiting.clear()
        self.waiting = []

    def save(self, drain=False):
        path = self.folder / str(len(self.saves))
        if self.idle_call("save", lambda: self.embedding.save(path, drain=drain)):
            if drain:
                self.law.drain()
            self.saves.append((path, self.law_state()))

    def restore(self, number):
        path, state = self.saves[number]
        if self.queue and not self.waiting:
            with pytest.raises((RuntimeError, ValueError), match=r"restore.*\d"):
                self.embedding.restore(path)
        elif self.idle_call("restore", lambda: self.embedding.restore(path)):
            self.set_law_state(state)

    def reopen(self, replicas):
        """Save, and go on in another object, with another number of replicas."""
        if self.waiting or self.queue:
            return
        self.save()
        path, _ = self.saves[-1]
        self.close()
        self.open(replicas)
        self.embedding.restore(path)

    def law_state(self):
        return self.law.start, self.law.steps, list(self.law.versions)

    def set_law_state(self, state):
        self.law.start, self.law.steps, versions = state
        self.law.versions = list(versions)

    # --- comparisons

    def check_activations(self, structure, law):
        shapes = [feature.shape(self.world.samples) for feature in self.world.features]
        got = self.world.unpack(structure)
        for i, (a, want, shape) in enumerate(zip(got, law, shapes, strict=True)):
            assert_same(f"activations of feature {i}", a, want.reshape(shape))

    def check_state(self):
        """Tables and slots; while a dequeued step waits for gradients reading is refused."""
        embedding = self.embedding
        self.idle_call("embedding_tables", lambda: self.check_tables(embedding.embedding_tables))
        self.idle_call("slot_variables", lambda: self.check_slots(embedding.slot_variables))

    def check_snapshot(self):
        snapshots = []
        if self.idle_call("snapshot", lambda: snapshots.append(self.embedding.snapshot())):
            assert snapshots[0].step == self.law.steps
            self.check_tables(snapshots[0].embedding_tables)
            self.check_slots(snapshots[0].slot_variables)

    def check_tables(self, tables):
        assert set(tables) == set(self.world.optimizers)
        for i, (table, (want, *_)) in enumerate(self.law.versions[-1].items()):
            assert_same(f"table {i}", tables[table], want)

    def check_slots(self, slots):
        for i, (table, (_, *want)) in enumerate(self.law.versions[-1].items()):
            names = [slot.name for slot in self.world.optimizers[table].slots]
            assert list(slots[table]) == names
            for name, values in zip(names, want, strict=True):
                assert_same(f"slot {name} of table {i}", slots[table][name], values)

    # --- inputs

    def inputs(self, batch, replica=None):
        """features and weights for enqueue: of the global batch, or of one replica."""
        ids, weights = [], []
        for feature, each in zip(self.world.features, batch, strict=True):
            bags = each.bags if replica is None else each.part(replica, self.replicas)
            ids.append(each.ids(bags, feature.kind == "deep"))
            weights.append(each.weights(bags, feature.kind == "deep"))
        if all(w is None for w in weights):
            return self.world.pack(ids), None
        return self.world.pack(ids), self.world.pack(weights)


# --- one fixed program, large enough that kernels use all the threads they may


def fixed_world():
    """Three tables with shared features, all combiners, and updates of every kind of loop."""
    optimizers = (
        embsim.Adam(0.01, lazy_adam=False),
        embsim.Adagrad(lambda step: 0.1 / (1 + step), use_gradient_accumulation=False),
        embsim.FTRL(0.05, l1_regularization_strength=0.01, clipvalue=0.1),
    )
    combiners = ("mean", "sqrtn", "sum")
    tables = [
        embsim.TableConfig(rows, 384, combiner=combiner, optimizer=optimizer, name=combiner)
        for rows, combiner, optimizer in zip((900, 5000, 700), combiners, optimizers, strict=True)
    ]
    features = (
        Feature("plain", tables[0]),
        Feature("plain", tables[1]),
        Feature("sequence", tables[2], 3),
        Feature("plain", tables[1]),
    )
    return World(features, embsim.SGD(), samples=256, schedule=embsim.stale(1))


def fixed_batch(world, step):
    """Popular and rare ids, duplicates, empty bags; weights for the second feature."""
    draw = np.random.default_rng(step)
    batch = []
    for i, feature in enumerate(world.features):
        rows = feature.table.vocabulary_size
        lengths = draw.integers(0, 10, world.samples)
        ids = [
            [*draw.integers(0, rows, n).tolist(), *(draw.zipf(1.3, n // 2) % rows).tolist()]
            for n in lengths
        ]
        if i == 1:
            ids = [[(row, float(F(draw.normal()))) for row in bag] for bag in ids]
        batch.append(FeatureBatch(ids, "ragged", weighted=i == 1))
    return batch


def fixed_gradients(activations, step):
    """A dense model of sorts: gradients that depend on the activations."""
    draw = np.random.default_rng(1000 + step)
    return [a * F(0.1) + draw.normal(size=a.shape).astype(F) for a in activations]


FIXED_STEPS = 4


def fixed_digest(numbers):
    """SHA-256 of arrays; a zero has no sign."""
    digest = hashlib.sha256()
    for array in numbers:
        digest.update(np.ascontiguousarray(array + F(0)).tobytes())
    return digest.hexdigest()


def engine_digest():
    world, seen = fixed_world(), []
    with embsim.TPUStrategy(num_replicas=2).scope():
        embedding = embsim.TPUEmbedding(
            [f.config(world.samples // 2) for f in world.features],
            embsim.SGD(),
            schedule=world.schedule,
        )
    for step in range(FIXED_STEPS):
        batch = fixed_batch(world, step)
        ids = [each.ids(each.bags, deep=False) for each in batch]
        embedding.enqueue(ids, [each.weights(each.bags, deep=False) for each in batch])
        activations = embedding.dequeue()
        embedding.apply_gradients(fixed_gradients(activations, step))
        seen += activations
    for table in world.optimizers:
        seen += [embedding.embedding_tables[table], *embedding.slot_variables[table].values()]
    digest = fixed_digest(seen)
    embedding.drain()
    embedding.close()
    return digest


def law_digest():
    world, seen = fixed_world(), []
    with embsim.TPUStrategy().scope():
        embedding = embsim.TPUEmbedding([f.config(1) for f in world.features], embsim.SGD())
    law = Definition(
        [feature.law_config for feature in world.features],
        world.optimizers,
        embedding.embedding_tables,
        staleness=1,
    )
    embedding.close()
    for step in range(FIXED_STEPS):
        activations = law.dequeue([each.bags for each in fixed_batch(world, step)])
        law.apply_gradients(fixed_gradients(activations, step))
        seen += activations
    for table in world.optimizers:
        seen += law.versions[-1][table]
    return fixed_digest(seen)


if __name__ == "__main__":
    print(embsim.num_threads(), engine_digest())
