from dataclasses import fields

import numpy as np
import pytest

from embsim.config import FeatureConfig, QuantizationConfig, TableConfig


def made(config_class, **arguments):
    """As a user makes it: without the tests' own check of annotations, which would come first."""
    config = object.__new__(config_class)
    for field in fields(config_class):
        object.__setattr__(config, field.name, arguments.get(field.name, field.default))
    config.__post_init__()
    return config


def test_equal_configurations_are_two_tables():
    one, other = TableConfig(8, 2, name="t"), TableConfig(8, 2, name="t")
    assert one != other and len({one, other}) == 2
    feature = FeatureConfig(one)
    assert feature == feature and feature != FeatureConfig(one)


def test_defaults_are_those_of_tensorflow():
    table = TableConfig(8, 2)
    assert (table.combiner, table.name, table.optimizer) == ("mean", None, None)
    feature = FeatureConfig(table)
    assert (feature.max_sequence_length, feature.output_shape) == (0, None)
    assert feature.validate_weights_and_indices is True


def test_configurations_are_frozen():
    with pytest.raises(AttributeError):
        TableConfig(8, 2).dim = 3  # type: ignore[misc]


def test_numpy_integers_become_ints():
    table = made(TableConfig, vocabulary_size=np.int64(8), dim=np.int32(2))
    assert type(table.vocabulary_size) is int and type(table.dim) is int


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocabulary_size": 0}, r"vocabulary_size is 0; it must be an int from 1 to 2147483647"),
        ({"vocabulary_size": 2**31}, r"vocabulary_size is 2147483648; .* to 2147483647"),
        ({"vocabulary_size": 8.0}, r"vocabulary_size is 8\.0; it must be an int"),
        ({"vocabulary_size": True}, r"vocabulary_size is True; it must be an int"),
        ({"dim": 0}, r"'items': dim is 0; it must be an int >= 1"),
        ({"combiner": "max"}, r"combiner is 'max'; it must be one of"),
        ({"initializer": 3}, r"initializer is 3; it must be None or a callable"),
        ({"quantization_config": 4}, r"quantization_config is 4; it must be a Quantization"),
    ],
)
def test_a_table_says_what_is_wrong_with_it(arguments, message):
    with pytest.raises(ValueError, match=message):
        made(TableConfig, **{"vocabulary_size": 8, "dim": 2, "name": "items", **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"table": "items"}, r"'clicks': table is 'items'; it must be a TableConfig"),
        ({"max_sequence_length": -1}, r"max_sequence_length is -1; it must be an int >= 0"),
        ({"max_sequence_length": 2.0}, r"max_sequence_length is 2\.0; it must be an int"),
        ({"validate_weights_and_indices": 1}, r"validate_weights_and_indices is 1; .* True or"),
        ({"output_shape": (2, 0)}, r"axis 1 of output_shape is 0; it must be an int >= 1"),
        ({"output_shape": ()}, r"output_shape is \(\); it must have at least one axis"),
    ],
)
def test_a_feature_says_what_is_wrong_with_it(arguments, message):
    with pytest.raises(ValueError, match=message):
        made(FeatureConfig, **{"table": TableConfig(8, 2), "name": "clicks", **arguments})


def test_an_int_is_an_output_shape():
    assert FeatureConfig(TableConfig(8, 2), output_shape=4).output_shape == (4,)
    assert FeatureConfig(TableConfig(8, 2), output_shape=[4, 3]).output_shape == (4, 3)


@pytest.mark.parametrize(
    ("buckets", "lower", "upper", "message"),
    [
        (1, 0.0, 1.0, "num_buckets is 1; it must be an int >= 2"),
        (2, 1.0, 1.0, "lower=1.0, upper=1.0; they must be finite and lower < upper"),
        (2, 0.0, float("inf"), "must be finite"),
    ],
)
def test_quantization_needs_buckets_and_an_interval(buckets, lower, upper, message):
    with pytest.raises(ValueError, match=message):
        QuantizationConfig(buckets, lower, upper)


def test_repr_shows_the_arguments():
    assert repr(TableConfig(8, 2, name="t")) == (
        "TableConfig(vocabulary_size=8, dim=2, initializer=None, optimizer=None, "
        "combiner='mean', name='t', quantization_config=None)"
    )
