"""Construction, build, CPU mode, inputs that carry structure, and reads of TPUEmbedding."""

import numpy as np
import pytest

import embsim
from embsim import FeatureConfig, RaggedTensor, TableConfig, TPUEmbedding


def under_strategy(feature_config, optimizer=None, replicas: int = 1, **options):
    strategy = embsim.TPUStrategy(replicas)
    with strategy.scope():
        return strategy, TPUEmbedding(feature_config, optimizer or embsim.SGD(1.0), **options)


def test_construction_never_changes_a_table_config() -> None:
    table = TableConfig(4, 2)
    before = repr(table)
    _, first = under_strategy(FeatureConfig(table), embsim.SGD(1.0))
    _, second = under_strategy(FeatureConfig(table), embsim.Adagrad(1.0))
    assert repr(table) == before
    assert table.name is None and table.optimizer is None
    assert list(first.slot_variables[table]) == []
    assert list(second.slot_variables[table]) == ["accumulators"]


def test_the_tables_own_optimizer_wins() -> None:
    own = TableConfig(4, 2, optimizer=embsim.Adam())
    other = TableConfig(4, 2)
    _, embedding = under_strategy([FeatureConfig(own), FeatureConfig(other)], embsim.FTRL())
    names = {config: list(slots) for config, slots in embedding.slot_variables.items()}
    assert names == {own: ["momenta", "velocities"], other: ["accumulators", "linears"]}


def test_default_initial_values_depend_on_seed_and_name_alone() -> None:
    def table_of(**options):
        table = TableConfig(50, 4, name=options.pop("name", "t"))
        _, embedding = under_strategy(FeatureConfig(table), **options)
        return embedding.embedding_tables[table]

    reference = table_of()
    np.testing.assert_array_equal(table_of(replicas=4), reference)
    np.testing.assert_array_equal(table_of(optimizer=embsim.Adam()), reference)
    assert (table_of(seed=1) != reference).any()
    assert (table_of(name="u") != reference).any()
    assert np.abs(reference).max() <= 2 / np.sqrt(4)


def test_cpu_mode_holds_tables_and_builds_without_a_batch_size() -> None:
    table = TableConfig(4, 2)
    embedding = TPUEmbedding(FeatureConfig(table), None, batch_size=1024)
    embedding.build()
    assert embedding.embedding_tables[table].shape == (4, 2)
    assert embedding.slot_variables[table] == {}
    with_slots = TPUEmbedding(FeatureConfig(table), embsim.Adagrad())
    assert list(with_slots.slot_variables[table]) == ["accumulators"]


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        ({"per_replica_batch_size": 3}, (6, 4, 2)),
        ({"per_replica_input_shapes": 3}, (6, 4, 2)),
        ({"per_replica_input_shapes": {"s": (3, 7)}}, (6, 4, 2)),
    ],
)
def test_build_fixes_the_shape_of_a_sequence_feature(build, shape) -> None:
    config = {"s": FeatureConfig(TableConfig(9, 2), max_sequence_length=4)}
    _, embedding = under_strategy(config, replicas=2)
    embedding.build(**build)
    embedding.build(per_replica_batch_size=99)  # the second time nothing happens
    embedding.enqueue({"s": [[1, 2], [], [3], [4, 5, 6, 7, 8], [0], [1]]})
    activations = embedding.dequeue()["s"]
    assert activations.shape == shape
    assert (activations[0, 2:] == 0).all() and (activations[1] == 0).all()
    with pytest.raises(ValueError, match=r"\(4, 4\).*\(6, 4\)"):
        embedding.enqueue({"s": [[1]] * 4})


def test_output_shape_is_per_replica() -> None:
    table = TableConfig(9, 2, combiner="sum", initializer=lambda s, d: np.ones(s, d))
    config = FeatureConfig(table, output_shape=[2, 2])
    _, embedding = under_strategy(config, replicas=2)
    embedding.enqueue(RaggedTensor.from_lists([[0], [1, 2], [], [3], [4], [5], [6], [7, 7, 7]]))
    assert embedding.dequeue()[..., 0].tolist() == [[1, 2], [0, 1], [1, 1], [1, 3]]


def test_a_keyed_jagged_tensor_is_a_top_level_dict() -> None:
    class Jagged:
        def __init__(self, values, lengths, weights):
            self._parts = (values, lengths, weights)

        def values(self):
            return self._parts[0]

        def lengths(self):
            return self._parts[1]

        def offsets(self):
            return np.concatenate([[0], np.cumsum(self._parts[1])])

        def weights_or_none(self):
            return self._parts[2]

    class Keyed:
        def __init__(self, parts):
            self._parts = parts

        def keys(self):
            return list(self._parts)

        def to_dict(self):
            return self._parts

        def weights_or_none(self):
            return None

    table = TableConfig(5, 1, combiner="sum", initializer=lambda s, d: np.ones(s, d))
    _, embedding = under_strategy({"b": FeatureConfig(table), "a": FeatureConfig(table)})
    jagged = Jagged(np.array([1, 2, 3]), np.array([2, 1]), np.array([0.5, 1, 2], np.float32))
    plain = Jagged(np.array([4]), np.array([0, 1]), None)
    embedding.enqueue(Keyed({"a": jagged, "b": plain}))
    activations = embedding.dequeue()
    assert list(activations) == ["b", "a"]
    assert activations["a"].tolist() == [[1.5], [2.0]]
    assert activations["b"].tolist() == [[0.0], [1.0]]


def test_tables_may_be_read_inside_a_run_by_all_replicas_together() -> None:
    table = TableConfig(4, 1, initializer=lambda s, d: np.zeros(s, d))
    strategy, embedding = under_strategy(FeatureConfig(table), replicas=2)

    def body():
        embedding.enqueue(np.array([1]))
        embedding.dequeue()
        embedding.apply_gradients(np.ones((1, 1), np.float32))
        return embedding.embedding_tables[table][1, 0], len(embedding.slot_variables[table])

    first, second = strategy.run(body)
    assert first.values == (-2, -2)  # the update of this very run is in what is read
    assert second.values == (0, 0)
    assert embedding.embedding_tables[table][1, 0] == -2


def test_names_of_features_in_messages_are_paths() -> None:
    table = TableConfig(4, 1)
    _, embedding = under_strategy({"user": {"liked": [FeatureConfig(table)]}})
    with pytest.raises(ValueError, match=r"feature 'user/liked/0': id 4 .*rows 0..3"):
        embedding.enqueue({"user": {"liked": [np.array([1, 4])]}})


def test_activations_keep_the_containers_of_the_configuration() -> None:
    table = TableConfig(4, 1)
    _, embedding = under_strategy(({"x": FeatureConfig(table)}, [FeatureConfig(table)]))
    embedding.enqueue(({"x": np.array([1])}, [np.array([2])]))
    activations = embedding.dequeue()
    assert isinstance(activations, tuple) and isinstance(activations[1], list)
    assert activations[0]["x"].shape == (1, 1)


def test_a_leaf_that_is_no_feature_config_is_refused() -> None:
    with pytest.raises(ValueError, match="every leaf must be a FeatureConfig"):
        TPUEmbedding({"x": TableConfig(4, 1)}, embsim.SGD())
    with pytest.raises(ValueError, match="needs at least one FeatureConfig"):
        TPUEmbedding({}, embsim.SGD())
