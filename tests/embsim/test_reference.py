"""The reference backend against the definition, call by call, on states and plans of its own."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embsim
from embsim import Engine, FeatureConfig, QuantizationConfig, ReferenceBackend, Slot, TableConfig
from embsim.definition import Definition
from embsim.optimizers import SGD, Adagrad, Adam, coefficients
from embsim.plan import build_plans
from embsim.state import State, initial_state
from embsim.update import CHUNK
from tests.embsim.programs import F, assert_same

NUMBERS = [0.0, 1.0, -1.0, 0.3, -2.5, 1 / 3, 1e-3, 1e-40, 2.0**24]
# Kernels of test_update.py: nothing new is compiled.
OPTIMIZERS = [
    Adagrad(0.3),
    Adam(0.3),
    SGD(0.3, clipvalue=(-0.5, None), weight_decay_factor=0.3, clip_weight_max=1.0),
    Adam(0.3, lazy_adam=False, sum_inside_sqrt=False, clipvalue=1.0, clip_weight_max=1.0),
]


class Subject:
    """A state of the backend beside the definition. Features are plain; batches are of bags."""

    def __init__(self, *features):
        self.engine = Engine(features, OPTIMIZERS[0])
        self.backend = ReferenceBackend()
        specs, configs = self.engine.tables.specs, self.engine.tables.configs
        state = initial_state(specs, configs, seed=0)
        optimizers = {c: s.optimizer for c, s in zip(configs, specs, strict=True)}
        weights = {c: state.weights[s.name].copy() for c, s in zip(configs, specs, strict=True)}
        self.law = Definition(features, optimizers, weights)
        self.state = self.backend.put_state(state)

    def step(self, batch, gradients):
        """`batch`: per feature, bags of (row, weight). Lookup and update; both are compared."""
        ids = [[[row for row, _ in bag] for bag in bags] for bags in batch]
        weights = [[[weight for _, weight in bag] for bag in bags] for bags in batch]
        made = self.engine.make_batch(ids, weights)
        tables = self.engine.tables
        sizes = [(spec.name, spec.vocabulary_size) for spec in tables.specs]
        plans, outputs = build_plans(made, sizes, tables.of_feature)
        plan = self.backend.put_plan(plans)
        found = self.backend.lookup(self.state, plan)
        for i, (output, want) in enumerate(zip(outputs, self.law.dequeue(batch), strict=True)):
            assert_same(f"feature {i}", found[output.table][output.lo : output.hi], want)
        stacked = {name: np.zeros_like(activations) for name, activations in found.items()}
        for output, gradient in zip(outputs, gradients, strict=True):
            stacked[output.table][output.lo : output.hi] = gradient
        numbers = {spec.name: coefficients(spec.optimizer, 0.3) for spec in tables.specs}
        self.state = self.backend.update(self.state, plan, stacked, numbers)
        self.law.apply_gradients(gradients)
        state = self.backend.get_state(self.state)
        assert state.version == len(self.law.versions) - 1
        pairs = zip(tables.specs, self.law.versions[-1].values(), strict=True)
        for spec, (table, *slots) in pairs:
            assert_same(spec.name, state.weights[spec.name], table)
            for (name, got), want in zip(state.slots[spec.name].items(), slots, strict=True):
                assert_same(f"{name} of {spec.name}", got, want)


@settings(max_examples=50)
@given(st.data())
def test_steps_on_shared_tables_equal_the_definition(data):
    def one_of(*values):
        return data.draw(st.sampled_from(values))

    tables = [
        TableConfig(
            data.draw(st.integers(1, 4), label="rows"),
            one_of(1, 3),
            optimizer=one_of(*OPTIMIZERS),
            combiner=one_of("sum", "mean", "sqrtn"),
            quantization_config=one_of(None, QuantizationConfig(5, -0.5, 1.0)),
        )
        for _ in range(data.draw(st.integers(1, 3), label="tables"))
    ]
    features = [FeatureConfig(table) for table in tables]
    features += [FeatureConfig(one_of(*tables)) for _ in range(one_of(0, 2))]
    subject, samples = Subject(*features), data.draw(st.integers(1, 3), label="samples")
    for _ in range(2):
        batch = []
        for feature in features:
            item = st.tuples(
                st.integers(0, feature.table.vocabulary_size - 1), st.sampled_from(NUMBERS)
            )
            bags = st.lists(st.lists(item, max_size=4), min_size=samples, max_size=samples)
            batch.append(data.draw(bags, label="bags"))
        seed = data.draw(st.integers(0, 99), label="seed of the gradients")
        rng = np.random.default_rng(seed)
        gradients = [rng.choice(F(NUMBERS), (samples, f.table.dim)) for f in features]
        subject.step(batch, gradients)


def test_a_step_without_any_lookup_is_a_version_all_the_same():
    lazy, every = (
        TableConfig(2, 2, optimizer=OPTIMIZERS[0]),
        TableConfig(2, 2, optimizer=OPTIMIZERS[3]),
    )
    subject = Subject(FeatureConfig(lazy), FeatureConfig(every))
    for _ in range(3):
        subject.step([[[], []]] * 2, [np.ones((2, 2), F)] * 2)
    assert subject.state.version == 3


@dataclass(frozen=True)
class Swap:
    """A rule may return what it was given, in any place."""

    learning_rate: float = 1.0
    slots = (Slot("a", 1.0), Slot("b", 2.0), Slot("previous"))

    def coefficients(self, learning_rate):
        return {"lr": learning_rate}

    def rule(self, ops):
        return lambda w, g, slots, c: (w - c.lr * g, (slots[1], slots[0], w))


def test_a_rule_may_return_what_it_was_given_on_the_definition():
    table = TableConfig(1, 2)
    law = Definition([FeatureConfig(table)], {table: Swap()}, {table: [[5, 7]]})
    law.dequeue([[[0]]])
    law.apply_gradients([F([[1, 1]])])
    w, a, b, previous = law.versions[-1][table]
    assert (w.tolist(), previous.tolist()) == ([[4, 6]], [[5, 7]])
    assert (a.tolist(), b.tolist()) == ([[2, 2]], [[1, 1]])


def test_a_rule_may_return_what_it_was_given_on_the_reference():
    table = TableConfig(1, 2, initializer=lambda shape, dtype: F([[5, 7]]), optimizer=Swap())
    with embsim.TPUStrategy(1).scope():
        embedding = embsim.TPUEmbedding(FeatureConfig(table))
    embedding.enqueue(np.array([0]))
    embedding.dequeue()
    embedding.apply_gradients(F([[1, 1]]))
    slots = embedding.slot_variables[table]
    assert embedding.embedding_tables[table].tolist() == [[4, 6]]
    assert slots["previous"].tolist() == [[5, 7]]
    assert (slots["a"].tolist(), slots["b"].tolist()) == ([[2, 2]], [[1, 1]])


class TestOwnership:
    """The reference works in place; what it has handed out stays."""

    def made(self):
        table = TableConfig(3, 2, initializer=embsim.row_id(1), combiner="sum")
        engine = Engine([FeatureConfig(table)], Adagrad(0.3))
        state = initial_state(engine.tables.specs, engine.tables.configs, 0)
        backend, batch = ReferenceBackend(), engine.make_batch([[[2, 0], [2]]])
        plans, _ = build_plans(batch, [("table_0", 3)], engine.tables.of_feature)
        return backend, backend.put_state(state), backend.put_plan(plans)

    def test_activations_and_rows_are_not_reached_by_a_later_update(self):
        backend, state, plan = self.made()
        activations = backend.lookup(state, plan)["table_0"]
        rows = backend.read_rows(state, "table_0", np.array([0, 2], np.int32))
        before = [activations.copy(), rows.weights.copy(), rows.slots["accumulators"].copy()]
        numbers = {"table_0": coefficients(Adagrad(0.3), 0.3)}
        after = backend.update(state, plan, {"table_0": np.ones((2, 2), F)}, numbers)
        assert backend.read_rows(after, "table_0", np.array([2], np.int32)).weights[0, 0] != 3
        assert activations.tolist() == before[0].tolist() == [[4, 4], [3, 3]]
        assert rows.weights.tolist() == before[1].tolist() == [[1, 1], [3, 3]]
        assert rows.slots["accumulators"].tolist() == before[2].tolist()

    def test_rows_may_be_written_to(self):
        backend, state, _ = self.made()
        rows = backend.read_rows(state, "table_0", np.array([1], np.int32))
        rows.weights[:] = 9
        rows.slots["accumulators"][:] = 9
        assert backend.get_state(state).weights["table_0"][1].tolist() == [2, 2]

    def test_tables_are_updated_where_they_are(self):
        backend, state, plan = self.made()
        numbers = {"table_0": coefficients(Adagrad(0.3), 0.3)}
        after = backend.update(state, plan, {"table_0": np.ones((2, 2), F)}, numbers)
        assert after.weights["table_0"] is state.weights["table_0"]
        assert (state.version, after.version) == (0, 1)


def test_threads_over_several_tables_change_no_bit():
    """The tables of a step share one round of threads."""
    before, seen = embsim.num_threads(), set()
    features = [
        FeatureConfig(TableConfig(2 * CHUNK // dim, dim, optimizer=optimizer))
        for optimizer, dim in zip(OPTIMIZERS, (1, 16, 31, 64), strict=True)
    ]
    for count in (1, 2, 3):
        embsim.set_num_threads(count)
        try:
            engine = Engine(features, seed=1)
            rng, program = np.random.default_rng(0), []
            for _ in range(2):
                ids = [rng.integers(0, f.table.vocabulary_size, 2000) for f in features]
                engine.enqueue(engine.make_batch(ids))
                program += engine.dequeue()
                engine.apply_gradients([np.sin(activations) for activations in program[-4:]])
            state: State = engine.read()
        finally:
            embsim.set_num_threads(before)
        program += [*state.weights.values(), *(a for s in state.slots.values() for a in s.values())]
        seen.add(tuple(array.tobytes() for array in program))
    assert len(seen) == 1


def test_a_table_without_optimizer_is_only_looked_up():
    engine = Engine([FeatureConfig(TableConfig(3, 1, initializer=embsim.row_id()))], trains=False)
    backend = ReferenceBackend()
    state = backend.put_state(initial_state(engine.tables.specs, engine.tables.configs, 0))
    batch = engine.make_batch([[[2, 1], []]])
    plans, _ = build_plans(batch, [("table_0", 3)], engine.tables.of_feature)
    assert backend.lookup(state, plans)["table_0"].tolist() == [[1.5], [0]]
    assert backend.read_rows(state, "table_0", np.array([1], np.int32)).slots == {}
    with pytest.raises(AssertionError, match="is only looked up"):
        backend.update(state, plans, {"table_0": np.ones((2, 1), F)}, {"table_0": {}})


class TestThreads:
    """Through the public API, with several tasks a table, and rows that many of them ask for."""

    SAMPLES, POOLING, ROWS, DIM = 512, 12, 400, 96

    @pytest.fixture(autouse=True)
    def restored_threads(self):
        before = embsim.num_threads()
        yield
        embsim.set_num_threads(before)

    def steps(self):
        """Two steps of (ids of a feature, gradients of a feature), Zipf's law in the ids."""
        draw = np.random.default_rng(0)
        for _ in range(2):
            ids = (draw.zipf(1.2, (2, self.SAMPLES, self.POOLING)) - 1) % self.ROWS
            yield list(ids.astype(np.int32)), list(draw.normal(size=(2, self.SAMPLES, self.DIM)))

    def engine(self, optimizer):
        draw = np.random.default_rng(1)
        self.initial = [draw.normal(size=(self.ROWS, self.DIM)).astype(F) for _ in range(2)]
        features = [
            FeatureConfig(TableConfig(self.ROWS, self.DIM, lambda *_, w=w: w, combiner=combiner))
            for w, combiner in zip(self.initial, ("sum", "mean"), strict=True)
        ]
        return Engine(features, optimizer)

    def trained(self, optimizer, threads):
        """Every activation, then every table and slot."""
        embsim.set_num_threads(threads)
        engine, found = self.engine(optimizer), []
        splits = np.arange(self.SAMPLES + 1) * self.POOLING
        for ids, gradients in self.steps():
            batch = [embsim.RaggedTensor(each.ravel(), splits) for each in ids]
            engine.enqueue(engine.make_batch(batch))
            found += engine.dequeue()
            engine.apply_gradients([g.astype(F) for g in gradients])
        state = engine.read()
        for name, weights in state.weights.items():
            found += [weights, *state.slots[name].values()]
        return engine, found

    def by_definition(self, engine, optimizer):
        tables = [feature.table for feature in engine.features]
        initial = dict(zip(tables, self.initial, strict=True))
        law, found = Definition(engine.features, dict.fromkeys(tables, optimizer), initial), []
        for ids, gradients in self.steps():
            found += law.dequeue([each.tolist() for each in ids])
            law.apply_gradients([g.astype(F) for g in gradients])
        return found + [array for table in tables for array in law.versions[-1][table]]

    @pytest.mark.parametrize("optimizer", [OPTIMIZERS[0], OPTIMIZERS[3]], ids=["lazy", "every row"])
    def test_one_two_and_three_threads_give_the_bits_of_the_definition(self, optimizer):
        assert self.SAMPLES * self.POOLING * self.DIM > 2 * CHUNK, "several tasks a table"
        want = None
        for threads in (1, 2, 3):
            engine, found = self.trained(optimizer, threads)
            want = want or self.by_definition(engine, optimizer)
            for i, (mine, law) in enumerate(zip(found, want, strict=True)):
                assert_same(f"array {i} with {threads} threads", mine, law)
