"""Versions of the tables, looks that change nothing, and learning rates that travel with a step."""

import numpy as np
import pytest

import embsim
from embsim import Engine, FeatureConfig, ReferenceBackend, TableConfig
from embsim.optimizers import FTRL, SGD, Adagrad
from embsim.pending import PendingUpdate
from embsim.plan import LookupPlan
from embsim.state import initial_state
from embsim.store import Store
from embsim.tables import resolve_tables

F = np.float32


class Calls(ReferenceBackend):
    """The reference, with a list of what was asked of it."""

    def __init__(self):
        object.__setattr__(self, "made", [])

    def put_state(self, state):
        self.made.append("put_state")
        return super().put_state(state)

    def update(self, state, *arguments):
        self.made.append(f"update of version {state.version}")
        return super().update(state, *arguments)


def store_of(optimizer=None, initializer=None):
    """A store of one table of zeros, 3 rows of 1."""
    table = TableConfig(3, 1, initializer or embsim.constant(0.0), optimizer or SGD(1.0), name="t")
    tables = resolve_tables([FeatureConfig(table)], None, trains=True)
    return Store(tables, Calls(), seed=0)


def plans_of(rows):
    """Every row is a sample of its own."""
    splits = np.arange(len(rows) + 1)
    return {"t": LookupPlan("t", 3, splits, np.array(rows, np.int32), np.ones(len(rows), F))}


def submit(store, step, rows):
    """The update of a step with gradient 1 for each of `rows`."""
    plans = plans_of(rows)
    gradients = {"t": np.ones((len(rows), 1), F)}
    store.submit(PendingUpdate(step, plans, plans, gradients, store.coefficients(step)))


def row_two(store, version):
    plans = plans_of([2])
    return store.lookup(plans, plans, version)["t"].item()


class TestVersions:
    def test_tables_are_made_once_when_they_are_first_needed(self):
        store = store_of()
        assert store.backend.made == []
        assert store.read().version == 0
        row_two(store, 0)
        assert store.backend.made == ["put_state"]

    def test_a_lookup_brings_the_tables_to_its_version_and_no_further(self):
        store = store_of()
        for step in range(4):
            submit(store, step, [2])
        assert [row_two(store, version) for version in (0, 1, 1, 3)] == [0, -1, -1, -3]
        assert store.version == 3
        assert [update.step for update in store.pending] == [3]
        assert store.backend.made[1:] == [f"update of version {v}" for v in range(3)]

    def test_looks_see_everything_and_change_nothing(self):
        store = store_of()
        for step in range(3):
            submit(store, step, [2, step])
        assert row_two(store, 1) == -1
        pending, state = list(store.pending), store.state
        for _ in range(2):
            plans = plans_of([0, 1, 2])
            assert store.look(plans, plans)["t"].tolist() == [[-1], [-1], [-4]]
            seen = store.read()
            assert seen.weights["t"].tolist() == [[-1], [-1], [-4]]
            assert seen.version == 3
        assert (store.pending, store.state, store.version) == (pending, state, 1)
        assert state.weights["t"].tolist() == [[-1], [0], [-1]]

    def test_patches_are_computed_once_for_each_set_of_pending_updates(self):
        store = store_of()
        submit(store, 0, [2])
        assert store.patches is store.patches
        before = store.patches
        submit(store, 1, [1])
        assert store.patches is not before
        assert store.patches["t"].rows.tolist() == [1, 2]
        store.apply(1)
        assert store.patches["t"].rows.tolist() == [1]
        store.apply(2)
        assert store.patches == {}

    def test_during_a_run_its_own_updates_are_seen_but_held_back(self):
        store = store_of()
        submit(store, 0, [2])
        store.may_apply = 1
        submit(store, 1, [2])
        submit(store, 2, [1])
        assert row_two(store, 2) == -2
        assert (store.version, len(store.pending)) == (1, 2)
        assert store.read().weights["t"].tolist() == [[0], [-1], [-2]]
        kept = store.pending[:1]
        store.forget_pending(kept)  # the run is undone
        store.may_apply = None
        assert store.pending == kept
        assert store.read().weights["t"].tolist() == [[0], [0], [-2]]

    def test_what_was_applied_meanwhile_stays_applied(self):
        store = store_of()
        for step in range(3):
            submit(store, step, [2])
        before = list(store.pending)
        store.apply(2)
        store.forget_pending(before)
        assert [update.step for update in store.pending] == [2]
        assert row_two(store, 2) == -2

    def test_a_checkpoint_s_tables_and_pending_updates_take_over(self):
        store, other = store_of(), store_of(initializer=embsim.row_id())
        submit(store, 0, [2])
        state = initial_state(other.tables.specs, other.tables.configs, 0)
        plans = plans_of([2])
        numbers = store.coefficients(7)
        update = PendingUpdate(7, plans, None, {"t": np.full((1, 1), 0.5, F)}, numbers)
        store.replace_with(embsim.State(state.specs, state.weights, state.slots, 7), [update])
        assert store.version == 7
        assert store.pending[0].device_plan is plans  # put to this backend
        assert store.read().weights["t"].tolist() == [[0], [1], [1.5]]
        assert row_two(store, 7) == 2
        assert row_two(store, 8) == 1.5

    def test_an_update_that_fails_half_way_is_never_taken_for_a_version(self):
        """Nobody can know which rows it changed: every later call says so, until a restore."""
        store = store_of()
        submit(store, 0, [2])
        submit(store, 1, [2])
        real, failing = ReferenceBackend.update, [OSError("the device is lost")]

        class Fails(Calls):
            def update(self, state, *arguments):
                if state.version == 1 and failing:
                    raise failing.pop()
                return real(self, state, *arguments)

        store.backend = Fails()
        with pytest.raises(OSError, match="the device is lost"):
            store.apply(2)
        assert (store.version, [update.step for update in store.pending]) == (1, [1])
        for call in (store.read, lambda: store.apply(2), lambda: store.state):
            with pytest.raises(RuntimeError, match=r"failed half-way, .* restore a checkpoint"):
                call()
        store.replace_with(store_of().read().copied(), [])
        assert store.version == 0
        assert row_two(store, 0) == 0


# --- learning rates


def embedding_of(optimizers, schedule=None):
    """A table of one zero for each optimizer."""
    tables = [
        TableConfig(1, 1, embsim.constant(0.0), optimizer, name=f"t{i}")
        for i, optimizer in enumerate(optimizers)
    ]
    with embsim.TPUStrategy(1).scope():
        embedding = embsim.TPUEmbedding([FeatureConfig(t) for t in tables], schedule=schedule)
    return embedding, tables


def train(embedding):
    """One step of gradient 1 everywhere; what the lookups saw."""
    count = len(embedding.embedding_tables)
    embedding.enqueue([np.array([0])] * count)
    seen = [activations.item() for activations in embedding.dequeue()]
    embedding.apply_gradients([np.ones((1, 1), F)] * count)
    return seen


class TestLearningRates:
    def test_each_distinct_callable_is_called_once_per_apply(self):
        calls = []

        def of_step(step):
            calls.append(("of_step", step))
            return 1.0

        def without():
            calls.append(("without",))
            return 2.0

        class Optional:
            def __call__(self, step=5):
                calls.append(("optional", step))
                return 4.0

        optional = Optional()
        rates = [of_step, without, of_step, optional, 8.0, optional, without]
        embedding, tables = embedding_of([SGD(rate) for rate in rates])
        assert calls == []
        train(embedding)
        assert calls == [("of_step", 0), ("without",), ("optional", 5)]
        train(embedding)
        assert calls[3:] == [("of_step", 1), ("without",), ("optional", 5)]
        _ = embedding.embedding_tables, embedding.snapshot()
        assert len(calls) == 6
        after = [embedding.embedding_tables[table].item() for table in tables]
        assert after == [-2, -4, -2, -8, -16, -8, -4]

    def test_once_for_all_replicas_together(self):
        calls = []
        table = TableConfig(1, 1, optimizer=SGD(lambda step: calls.append(step) or 1.0))
        strategy = embsim.TPUStrategy(3)
        with strategy.scope():
            embedding = embsim.TPUEmbedding(FeatureConfig(table))

        def step():
            embedding.enqueue(np.array([0]))
            embedding.apply_gradients(embedding.dequeue())

        strategy.run(step)
        strategy.run(step)
        assert calls == [0, 1]

    @pytest.mark.parametrize("staleness", [0, 1, 3])
    def test_a_delayed_update_keeps_its_own_step_s_rate(self, staleness):
        now = [2.0]
        optimizers = [SGD(lambda step: 2.0**-step), SGD(lambda: now[0])]
        embedding, tables = embedding_of(optimizers, embsim.stale(staleness))
        seen = []
        for step in range(6):
            now[0] = 2.0 ** -(2 * step)
            seen.append(train(embedding))
            now[0] = 99.0  # too late for this step
        sums = [[-sum(2.0 ** -(k * s) for s in range(n)) for k in (1, 2)] for n in range(7)]
        assert seen == [sums[max(0, step - staleness)] for step in range(6)]
        assert [embedding.embedding_tables[table].item() for table in tables] == sums[6]

    def test_a_rate_that_is_made_anew_at_every_look_is_its_own_optimizer_s(self):
        """A method as learning rate: every access makes an object, and objects reuse identities."""

        class Own:
            slots = ()

            def __init__(self, scale):
                self.scale = scale

            def learning_rate(self, step):
                return self.scale

            def coefficients(self, learning_rate):
                return {"lr": learning_rate}

            def rule(self, ops):
                return lambda w, g, slots, c: (w - c.lr * g, slots)

        embedding, tables = embedding_of([Own(float(i)) for i in range(10)])
        train(embedding)
        assert [-embedding.embedding_tables[table].item() for table in tables] == list(range(10))

    @pytest.mark.parametrize(
        "make, error, message",
        [
            (lambda rate: SGD(rate), TypeError, r"rate of training step 2: .* returned None; it"),
            (
                lambda rate: FTRL(lambda step: 2.0 - step),
                ValueError,
                "FTRL: the learning rate is 0",
            ),
        ],
    )
    def test_a_rate_that_cannot_be_used_changes_nothing(self, make, error, message):
        rates = [1.0, 1.0, None]
        optimizers = [SGD(1.0), make(lambda step: rates[step])]
        embedding, tables = embedding_of(optimizers, embsim.stale(1))
        train(embedding), train(embedding)
        before = [embedding.embedding_tables[table].item() for table in tables]
        embedding.enqueue([np.array([0])] * 2)
        embedding.dequeue()
        gradients = [np.ones((1, 1), F)] * 2
        for _ in range(2):
            with pytest.raises(error, match=message):
                embedding.apply_gradients(gradients)
        assert embedding.abandon() == 1
        assert [embedding.embedding_tables[table].item() for table in tables] == before
        rates[2] = 1.0
        embedding.dequeue()
        if error is TypeError:
            embedding.apply_gradients(gradients)
            assert [embedding.embedding_tables[table].item() for table in tables] == [-3, -3]

    def test_equal_optimizers_of_other_rates_have_coefficients_of_their_own(self):
        table = TableConfig(1, 1, optimizer=Adagrad(0.5), name="a")
        other = TableConfig(1, 1, optimizer=Adagrad(0.25), name="b")
        engine = Engine([FeatureConfig(table), FeatureConfig(other)])
        numbers = engine._store.coefficients(0)
        assert numbers == {"a": {"lr": F(0.5)}, "b": {"lr": F(0.25)}}
