"""Initial tables and slot variables, and what users may say about them."""

import functools
from types import MappingProxyType

import numpy as np
import pytest

import embsim
from embsim import QuantizationConfig, Slot, TableConfig
from embsim.optimizers import FTRL, SGD, Adagrad, AdagradMomentum, Adam, RowwiseAdagrad
from embsim.state import State, TableSpec, initial_state

F = np.float32


def state_of(optimizer, rows=4, dim=3, seed=0, initializer=None):
    spec = TableSpec("t", rows, dim, optimizer)
    return initial_state([spec], [TableConfig(rows, dim, initializer)], seed)


def embedding_of(optimizer, replicas=1, initializer=None, **options):
    table = TableConfig(4, 3, initializer, optimizer, name="t")
    with embsim.TPUStrategy(replicas).scope():
        return embsim.TPUEmbedding(embsim.FeatureConfig(table), **options), table


class TestInitialValues:
    @pytest.mark.parametrize(
        "optimizer, expected",
        [
            (SGD(), {}),
            (Adagrad(initial_accumulator_value=0.3), {"accumulators": 0.3}),
            (AdagradMomentum(), {"accumulators": 0, "momenta": 0}),
            (Adam(), {"momenta": 0, "velocities": 0}),
            (FTRL(initial_accumulator_value=0.2), {"accumulators": 0.2, "linears": 0}),
        ],
    )
    def test_slots_start_at_the_optimizer_s_value(self, optimizer, expected):
        slots = state_of(optimizer).slots["t"]
        assert list(slots) == list(expected)
        for name, value in expected.items():
            assert np.array_equal(slots[name], np.full((4, 3), F(value)))

    def test_a_rowwise_slot_has_one_number_a_row(self):
        state = state_of(RowwiseAdagrad(initial_accumulator_value=0.5))
        assert state.slots["t"]["accumulators"].tolist() == [[0.5]] * 4
        assert state.specs["t"].slot_shape("accumulators", 7) == (7, 1)
        assert TableSpec("t", 4, 3, Adam()).slot_shape("momenta", 7) == (7, 3)

    def test_arrays_are_float32_contiguous_and_aligned(self):
        state = state_of(Adam(), rows=5, dim=7)
        for array in (state.weights["t"], *state.slots["t"].values()):
            assert array.dtype == np.float32
            assert array.flags.c_contiguous and array.flags.writeable
            assert array.ctypes.data % 64 == 0

    def test_without_an_optimizer_there_are_no_slots(self):
        assert state_of(None).slots == {"t": {}}
        assert TableSpec("t", 1, 1).slot_names == ()
        table = TableConfig(4, 3, name="t")
        embedding = embsim.TPUEmbedding(embsim.FeatureConfig(table))
        embedding.build()
        assert dict(embedding.slot_variables[table]) == {}
        with_slots, _ = embedding_of(Adam())
        expected = next(iter(with_slots.embedding_tables.values()))
        assert np.array_equal(embedding.embedding_tables[table], expected)

    def test_values_depend_on_seed_and_table_name_and_on_nothing_else(self):
        def tables(names, seed=0, replicas=1, optimizer=None):
            configs = [TableConfig(5, 3, name=name) for name in names]
            with embsim.TPUStrategy(replicas).scope():
                embedding = embsim.TPUEmbedding(
                    [embsim.FeatureConfig(config) for config in configs],
                    optimizer or SGD(),
                    seed=seed,
                )
            embedding.build(per_replica_batch_size=2)
            return {c.name: embedding.embedding_tables[c].tobytes() for c in configs}

        first = tables(["a", "b"])
        assert first["a"] != first["b"]
        for replicas in (2, 3, 4):
            assert tables(["a", "b"], replicas=replicas) == first
        assert tables(["b", "c", "a"], optimizer=Adam())["a"] == first["a"]
        assert tables(["a", "b"], seed=1)["a"] != first["a"]

    def test_the_user_s_initializer_is_called_once_with_shape_and_dtype(self):
        calls = []

        def initializer(*arguments):
            calls.append(arguments)
            return np.arange(12, dtype=np.float64).reshape(4, 3)

        embedding, table = embedding_of(Adam(), replicas=2, initializer=initializer)
        embedding.build(per_replica_batch_size=1)
        embedding.build(per_replica_batch_size=1)
        assert embedding.embedding_tables[table].tolist() == np.arange(12).reshape(4, 3).tolist()
        assert calls == [((4, 3), np.float32)]

    def test_a_table_is_made_when_it_is_first_needed(self):
        calls = []
        made = lambda shape, dtype: calls.append(1) or np.zeros(shape, dtype)  # noqa: E731
        embedding, table = embedding_of(SGD(), initializer=made)
        assert calls == []
        assert embedding.embedding_tables[table].tolist() == [[0] * 3] * 4
        embedding.enqueue(np.array([1]))
        assert calls == [1]


class TestSlotVariableCreation:
    def test_it_is_given_the_table_the_names_and_the_initializers(self):
        seen = []

        def creation(*arguments):
            seen.append(arguments)
            return {"velocities": np.ones((4, 3)), "momenta": np.full((4, 3), 2, np.int64)}

        slots = state_of(Adam(slot_variable_creation_fn=creation), initializer=embsim.row_id())
        assert slots.slots["t"]["velocities"].tolist() == [[1] * 3] * 4
        assert slots.slots["t"]["momenta"].tolist() == [[2] * 3] * 4
        assert list(slots.slots["t"]) == ["momenta", "velocities"]
        ((table, names, initializers),) = seen
        assert names == ["momenta", "velocities"]
        assert table.tolist() == [[row] * 3 for row in range(4)]
        assert not table.flags.writeable
        assert initializers[0](shape=(2, 1)).tolist() == [[0], [0]]
        assert initializers[1]((1, 2), np.float64).dtype == np.float64

    def test_callables_without_arguments_are_called(self):
        """TensorFlow's usual form: a partial of the initializer it was given."""

        class Tensor:
            def numpy(self):
                return np.full((4, 1), 7, F)

        def creation(table, names, initializers):
            return MappingProxyType(
                {names[0]: functools.partial(initializers[0], (len(table), 3), np.float32)}
            )

        optimizer = Adagrad(initial_accumulator_value=0.3, slot_variable_creation_fn=creation)
        slots = state_of(optimizer).slots["t"]
        assert np.array_equal(slots["accumulators"], np.full((4, 3), F(0.3)))
        rowwise = RowwiseAdagrad(slot_variable_creation_fn=lambda *_: {"accumulators": Tensor})
        assert state_of(rowwise).slots["t"]["accumulators"].tolist() == [[7]] * 4

    def test_what_was_returned_may_be_changed_afterwards(self):
        mine = np.ones((4, 3), F)
        optimizer = Adagrad(slot_variable_creation_fn=lambda *_: {"accumulators": mine})
        state = state_of(optimizer)
        mine[:] = 5
        assert state.slots["t"]["accumulators"].tolist() == [[1] * 3] * 4

    @pytest.mark.parametrize(
        "made, message",
        [
            ({}, r"of table 't' returned \[\]; it must return a dict with the slots \['mom"),
            (None, "returned None; it must return a dict"),
            ([1, 2], r"returned \[1, 2\]; it must"),
            ({"momenta": 1}, r"returned \['momenta'\]; .*\['momenta', 'velocities'\]"),
            ({"momenta": 1, "velocities": 1, "m": 1}, r"returned \['m', 'momenta', 'velocities'\]"),
            ({"momenta": 1, 2: 1}, r"returned .*2.*; it must return a dict with the slots"),
            (
                {"momenta": np.ones((4, 3)), "velocities": np.ones((4, 1))},
                r"slot 'velocities' has shape \(4, 1\); it must be \(4, 3\)",
            ),
            (
                {"momenta": lambda: np.ones(3), "velocities": np.ones((4, 3))},
                r"slot 'momenta' has shape \(3,\); it must be \(4, 3\)",
            ),
        ],
        ids=[
            "none",
            "None",
            "a list",
            "one missing",
            "one too many",
            "another name",
            "another shape",
            "a callable of another shape",
        ],
    )
    def test_other_slots_or_shapes_are_a_value_error_at_build_and_at_enqueue(self, made, message):
        optimizer = Adam(slot_variable_creation_fn=lambda *_: made)
        embedding, _ = embedding_of(optimizer)
        for call in (lambda: embedding.build(1), lambda: embedding.enqueue(np.array([0]))):
            with pytest.raises(ValueError, match=message):
                call()

    def test_a_user_s_own_optimizer_may_have_one_too(self):
        class Own:
            learning_rate, slots = 0.1, (Slot("seen", 4.0, rowwise=True),)

            def coefficients(self, learning_rate):
                return {}

            def rule(self, ops):
                return lambda w, g, slots, c: (w, slots)

            def slot_variable_creation_fn(self, table, names, initializers):
                return {"seen": initializers[0]((len(table), 1)) + table[:, :1]}

        state = state_of(Own(), initializer=embsim.row_id())
        assert state.slots["t"]["seen"].tolist() == [[4], [5], [6], [7]]


def test_a_failed_first_build_can_be_repeated_with_another_batch_size():
    failures = [OSError("the disk is away")]

    def initializer(shape, dtype):
        if failures:
            raise failures.pop()
        return np.zeros(shape, dtype)

    embedding, _ = embedding_of(SGD(1.0), initializer=initializer)
    with pytest.raises(OSError, match="the disk is away"):
        embedding.build(2)
    embedding.build(3)
    embedding.enqueue(np.array([0, 1, 2]))
    assert embedding.dequeue().shape == (3, 3)


def test_a_copied_state_is_read_only_memory_of_its_own():
    state = state_of(Adam(), initializer=embsim.row_id())
    copy = state.copied()
    state.weights["t"][:] = 9
    state.slots["t"]["momenta"][:] = 9
    assert copy.weights["t"][2].tolist() == [2, 2, 2]
    assert copy.slots["t"]["momenta"].tolist() == [[0] * 3] * 4
    assert (copy.version, copy.specs) == (state.version, state.specs)
    for array in (copy.weights["t"], *copy.slots["t"].values()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_a_state_is_data():
    spec = TableSpec("t", 1, 1, quantization=QuantizationConfig(2, 0, 1))
    state = State({"t": spec}, {"t": np.zeros((1, 1), F)}, {"t": {}}, version=3)
    assert (state.version, spec.optimizer, spec.quantization.upper) == (3, None, 1)
