"""The engine equals the definition, bit for bit, after every legal call of a random program.

An illegal call must raise and change nothing: whatever it changed, a later comparison finds.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import embsim
from embsim.conformance.rules import REAL_OPTIMIZERS
from embsim.optimizers import FTRL, SGD, Adagrad, Adam
from tests.embsim.programs import F, Feature, FeatureBatch, Pair, World, law_digest

# Sums of these depend on their order; 1e-30 squared is 0, so that denominators vanish.
NUMBERS = [0.0, 1.0, -1.0, 0.5, 2.0, 0.1, -0.3, 3.0, 1 / 3, 1e-3, -70.0, 1e4, 2.0**24, 1e-30]
WILD = [*NUMBERS, float("nan"), float("inf"), -3e38]
RATES = [0.1, 1.0, 0.0, 2.0**-3, lambda: 0.3, lambda step: 0.5 / (1 + step)]
POSITIVE = [rate for rate in RATES if rate != 0.0]  # FTRL divides by its rate


QUANTIZATIONS = (
    embsim.QuantizationConfig(256, -1.0, 1.0),
    embsim.QuantizationConfig(100, -0.3, 0.7),
    embsim.QuantizationConfig(7, 0.1, 11.3),
    embsim.QuantizationConfig(2, -1e-3, 1e3),
)


def one_of(*values):
    return st.sampled_from(values)


@st.composite
def optimizers(draw):
    kind, options = draw(st.sampled_from(REAL_OPTIMIZERS))
    rate = draw(st.sampled_from(POSITIVE if kind is FTRL else RATES))
    options = dict(options)
    if "weight_decay_factor" in options:
        options["multiply_weight_decay_factor_by_learning_rate"] = draw(one_of(None, False, True))
    return kind(rate, **options)


def arrays(shape, numbers=NUMBERS):
    element = st.sampled_from(numbers)
    return hnp.arrays(np.float32, shape, elements=element.map(F), fill=element.map(F))


@st.composite
def tables(draw):
    rows, dim = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    values = draw(st.none() | arrays((rows, dim)))
    quantization = draw(st.none() | st.sampled_from(QUANTIZATIONS))
    return embsim.TableConfig(
        rows,
        dim,
        initializer=None if values is None else lambda shape, dtype: values,
        optimizer=draw(st.none() | optimizers()),
        combiner=draw(one_of("mean", "sum", "sqrtn")),
        quantization_config=quantization,
    )


@st.composite
def worlds(draw):
    configs = draw(st.lists(tables(), min_size=1, max_size=2))
    kinds = one_of("plain", "plain", "sequence", "deep", "shaped", "shaped_sequence")
    features = []
    for _ in range(draw(st.integers(len(configs), 3))):
        kind = draw(kinds)
        length = draw(st.integers(1 if kind == "sequence" else 0, 3)) if kind != "plain" else 0
        features.append(Feature(kind, draw(st.sampled_from(configs)), length))
    schedule = embsim.Schedule(
        staleness=draw(st.integers(0, 3)),
        drain_every=draw(one_of(None, None, 1, 2, 3, 4)),
        warmup_steps=draw(one_of(0, 0, 1, 2, 3)),
    )
    nests = ("list", "tuple", "dict") if len(features) == 1 else ("list", "tuple", "dict", "nested")
    return World(
        tuple(features),
        draw(optimizers()),
        samples=draw(st.integers(1, 4)),
        schedule=schedule,
        nest=draw(st.sampled_from(nests)),
        queue_capacity=draw(one_of(8, 1, 2, 5)),
    )


def divisors(samples):
    return [n for n in (1, 2, 4) if samples % n == 0]


@st.composite
def feature_batches(draw, feature, samples, wild):
    ids = st.integers(0, feature.table.vocabulary_size - 1)
    count = feature.bags(samples)
    forms = {"deep": ("sparse",), "plain": ("ragged", "sparse", "lists", "dense", "column", "flat")}
    forms = forms.get(feature.kind, ("ragged", "sparse", "lists"))
    forms = ("ragged", "lists") if feature.kind.startswith("shaped") else forms
    form, id_type = draw(st.sampled_from(forms)), draw(one_of("i4", "i8", "u1"))
    if form in ("dense", "column", "flat"):
        bags = [[i] for i in draw(st.lists(ids, min_size=count, max_size=count))]
        return FeatureBatch(bags, form, id_type=id_type)
    weighted = "sequence" not in feature.kind and draw(st.booleans())
    items = ids
    if weighted:
        numbers = WILD if wild else NUMBERS
        items = st.tuples(ids, st.sampled_from(numbers).map(lambda x: float(F(x))))
    elif feature.kind == "sequence" and form == "sparse":
        items = ids | st.none()
    bags = draw(st.lists(st.lists(items, max_size=4), min_size=count, max_size=count))
    stride = draw(st.integers(1, 2)) if form == "sparse" and "sequence" not in feature.kind else 1
    weight_type = "f4" if form == "lists" else draw(one_of("f4", "f8"))
    return FeatureBatch(bags, form, weighted, id_type, weight_type, stride)


def batches(world, wild):
    return st.tuples(*(feature_batches(f, world.samples, wild) for f in world.features))


@st.composite
def gradients(draw, world, wild):
    leaves = []
    for feature in world.features:
        values = draw(st.none() | arrays(feature.shape(world.samples), WILD if wild else NUMBERS))
        kind = draw(one_of("f4", "f4", "f8", ml_dtypes.bfloat16))
        if values is not None and kind != "f4":
            values = (np.float64(values) * (1 + 2.0**-9)).astype(kind)  # float32 must round it
        leaves.append(values)
    return leaves


class Programs(RuleBasedStateMachine):
    """Calls in any order. `watched`: tables and slots are compared after every one of them."""

    @initialize(world=worlds(), data=st.data(), watched=st.booleans(), build=st.booleans())
    def open(self, world, data, watched, build):
        self.world, self.watched = world, watched
        self.wild = data.draw(one_of(False, False, True), label="with NaN and infinities")
        replicas = data.draw(st.sampled_from(divisors(world.samples)), label="replicas")
        self.pair = Pair(world, replicas, build)

    def batch(self, data):
        return data.draw(batches(self.world, self.wild), label="batch")

    def gradients(self, data):
        return data.draw(gradients(self.world, self.wild), label="gradients")

    @rule(data=st.data(), training=one_of(True, True, False))
    def enqueue(self, data, training):
        self.pair.enqueue(self.batch(data), training)

    @rule()
    def dequeue(self):
        self.pair.dequeue()

    @rule(data=st.data())
    def apply_gradients(self, data):
        self.pair.apply_gradients(self.gradients(data))

    @rule(data=st.data())
    def train(self, data):
        """One step of a loop that keeps whatever is in flight in flight."""
        self.pair.enqueue(self.batch(data))
        while not self.pair.can_dequeue() and self.pair.waiting:
            self.pair.apply_gradients(self.gradients(data))
        self.pair.dequeue()

    @precondition(lambda self: not self.pair.queue and not self.pair.waiting)
    @rule(data=st.data(), training=one_of(True, True, False))
    def run_with_enqueue(self, data, training):
        self.pair.run(self.batch(data), self.gradients(data), training, enqueue_inside=True)

    @precondition(lambda self: self.pair.queue and not self.pair.waiting)
    @rule(data=st.data(), fail=one_of(False, False, True))
    def run(self, data, fail):
        training = self.pair.queue[0][1]
        self.pair.run(None, self.gradients(data), training, enqueue_inside=False, fail=fail)

    @rule()
    def drain(self):
        self.pair.drain()

    @rule()
    def abandon(self):
        self.pair.abandon()

    @rule()
    def look(self):
        self.pair.check_state()

    @rule()
    def snapshot(self):
        self.pair.check_snapshot()

    @rule(drain=one_of(False, False, True))
    def save(self, drain):
        self.pair.save(drain)

    @precondition(lambda self: self.pair.saves)
    @rule(data=st.data())
    def restore(self, data):
        self.pair.restore(data.draw(st.integers(0, len(self.pair.saves) - 1), label="save"))

    @rule(data=st.data())
    def reopen(self, data):
        replicas = data.draw(st.sampled_from(divisors(self.world.samples)), label="replicas")
        self.pair.reopen(replicas)

    @rule(data=st.data())
    def enqueue_an_id_that_is_too_large(self, data):
        (first, *rest) = self.batch(data)
        size = self.world.features[0].table.vocabulary_size
        item = (size, 1.0) if first.weighted else size
        bad = FeatureBatch([[item], *first.bags[1:]], first.form, first.weighted)
        with pytest.raises(embsim.BatchError, match=rf"\b{size}\b"):
            self.pair.embedding.enqueue(*self.pair.inputs((bad, *rest)))

    @rule(data=st.data())
    def enqueue_half_a_batch(self, data):
        batch = self.batch(data)
        ids, weights = self.pair.inputs(batch)
        leaves = self.world.unpack(ids)
        with pytest.raises((ValueError, TypeError)):
            self.pair.embedding.enqueue(
                self.world.pack([*leaves[:-1], np.zeros((0,), "i4")]), weights
            )

    @rule(data=st.data())
    def apply_gradients_of_another_shape(self, data):
        leaves = self.gradients(data)
        shape = self.world.features[-1].shape(self.world.samples)
        leaves[-1] = np.zeros((*shape[:-1], shape[-1] + 1), np.float32)
        if self.pair.waiting:
            with pytest.raises(ValueError, match=r"apply_gradients|gradient"):
                self.pair.embedding.apply_gradients(self.world.pack(leaves))

    @invariant()
    def state_is_the_definition_s(self):
        if getattr(self, "watched", False):
            self.pair.check_state()

    def teardown(self):
        if hasattr(self, "pair"):
            self.pair.end()


def test_random_programs():
    examples = settings.default.max_examples * 4
    run_state_machine_as_test(
        Programs,
        settings=settings(
            max_examples=examples, stateful_step_count=25, report_multiple_bugs=False
        ),
    )


@pytest.mark.parametrize("config", QUANTIZATIONS, ids=repr)
def test_quantization_of_numbers_near_its_ties(config):
    q = (config.upper - config.lower) / (config.num_buckets - 1)
    ties = config.lower + (np.arange(-2, 3000) + 0.5) * q
    near = ties.astype(np.float32)
    values = np.stack([near, np.nextafter(near, F(np.inf)), np.nextafter(near, F(-np.inf))], axis=1)
    table = embsim.TableConfig(
        len(values), 3, initializer=lambda *_: values, quantization_config=config
    )
    world = World((Feature("plain", table),), SGD(), len(values), embsim.sequential())
    pair = Pair(world)
    ids = [[row] for row in range(len(values))]
    pair.enqueue([FeatureBatch(ids, "dense")], training=False)
    pair.dequeue()
    pair.end()


@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize(
    "schedule, seen",
    [
        (embsim.sequential(), [0, -1, -2, -3, -4]),
        (embsim.tpu_embedding_pipelined(), [0, 0, -1, -2, -3]),
        (embsim.sparsecore_loop(2), [0, 0, -2, -2, -4]),
    ],
    ids=["sequential", "pipelined", "loop of two"],
)
def test_the_unit_gradient_example(schedule, seen, replicas):
    """One row, SGD with rate 1; over all replicas the gradients of a step add up to 1."""
    table = embsim.TableConfig(1, 1, initializer=lambda *_: np.zeros((1, 1), "f4"), combiner="sum")
    with embsim.TPUStrategy(num_replicas=replicas).scope():
        embedding = embsim.TPUEmbedding(embsim.FeatureConfig(table), SGD(1.0), schedule=schedule)
    activations = []
    for _ in range(5):
        embedding.enqueue(np.zeros(replicas, np.int32))
        activations.append(embedding.dequeue())
        embedding.apply_gradients(np.full((replicas, 1), 1 / replicas, np.float32))
    assert [a.tolist() for a in activations] == [[[x]] * replicas for x in seen]
    assert embedding.embedding_tables[table].item() == -5
    embedding.drain()
    embedding.close()


def test_the_number_of_threads_never_changes_a_bit():
    """One program in three processes, against the definition."""
    law = law_digest()
    for threads in ("1", "2", "3"):
        environment = {**os.environ, "EMBSIM_NUM_THREADS": threads}
        command = [sys.executable, "-m", "tests.embsim.programs"]
        root = Path(__file__).parents[2]
        result = subprocess.run(
            command, env=environment, cwd=root, capture_output=True, text=True, check=True
        )
        assert result.stdout.split() == [threads, law]


def save(embedding):
    with tempfile.TemporaryDirectory() as folder:
        embedding.save(folder)


def evaluate(embedding):
    embedding.enqueue([np.array([1, 2])], training=False)
    embedding.dequeue()


LOOKS = {
    "nothing": lambda embedding: None,
    "evaluation": evaluate,
    "embedding_tables": lambda embedding: embedding.embedding_tables,
    "slot_variables": lambda embedding: embedding.slot_variables,
    "snapshot": lambda embedding: embedding.snapshot(),
    "drain": lambda embedding: embedding.drain(),
    "save": save,
}
SCHEDULES = (
    embsim.sequential(),
    embsim.tpu_embedding_pipelined(),
    embsim.sparsecore_loop(2),
    embsim.semi_sync(2),
    embsim.stale(3),
    embsim.Schedule(staleness=2, drain_every=5, warmup_steps=1),
)


def steps_with_a_look(schedule, optimizer, look, gap, steps=7):
    """All activations, tables and slots of a program that looks after `gap` steps, or never."""
    values = np.arange(12, dtype=np.float32).reshape(4, 3) / 7
    table = embsim.TableConfig(4, 3, initializer=lambda *_: values)
    with embsim.TPUStrategy().scope():
        embedding = embsim.TPUEmbedding([embsim.FeatureConfig(table)], optimizer, schedule=schedule)
    seen = []
    for step in range(steps):
        embedding.enqueue([np.array([0, step % 3])])
        activations = embedding.dequeue()
        embedding.apply_gradients([a * 0.5 + 1 for a in activations])
        seen += activations
        if step == gap:
            LOOKS[look](embedding)
    seen += [embedding.embedding_tables[table], *embedding.slot_variables[table].values()]
    seen = [array.copy() for array in seen]
    embedding.drain()
    embedding.close()
    return seen


def test_a_drain_is_no_look():
    undisturbed = steps_with_a_look(embsim.stale(1), SGD(0.1), "nothing", None)
    drained = steps_with_a_look(embsim.stale(1), SGD(0.1), "drain", 2)
    assert not np.array_equal(undisturbed[3], drained[3])


@pytest.mark.parametrize(
    "optimizer", [Adagrad(0.1), Adam(0.1, lazy_adam=False)], ids=["lazy", "all"]
)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_look_between_any_two_steps_changes_no_later_bit(schedule, optimizer):
    undisturbed = steps_with_a_look(schedule, optimizer, "nothing", None)
    for look in set(LOOKS) - {"nothing", "drain"}:
        for gap in range(6):
            disturbed = steps_with_a_look(schedule, optimizer, look, gap)
            for a, b in zip(undisturbed, disturbed, strict=True):
                assert a.tobytes() == b.tobytes(), f"{look} after step {gap}"
