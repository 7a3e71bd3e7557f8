"""Names, optimizers and order of the tables that features use. Configs stay as they are."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import embsim
from embsim import FeatureConfig, QuantizationConfig, Slot, TableConfig
from embsim.optimizers import SGD, Adagrad, Adam
from embsim.tables import resolve_tables


def features(*tables):
    return [FeatureConfig(table) for table in tables]


def test_tables_stand_in_the_order_in_which_features_first_name_them():
    a, b, c = (TableConfig(n, 2, name=name) for n, name in ((3, "a"), (4, "b"), (5, "c")))
    tables = resolve_tables(features(b, a, b, c, a), SGD(), trains=True)
    assert tables.configs == (b, a, c)
    assert [spec.name for spec in tables.specs] == ["b", "a", "c"]
    assert [spec.vocabulary_size for spec in tables.specs] == [4, 3, 5]
    assert tables.of_feature == ("b", "a", "b", "c", "a")
    assert [tables.config_of(name) for name in "abc"] == [a, b, c]


def test_an_unnamed_table_is_named_by_its_position():
    named, first, second = TableConfig(2, 1, name="named"), TableConfig(2, 1), TableConfig(2, 1)
    tables = resolve_tables(features(first, named, second), SGD(), trains=True)
    assert [spec.name for spec in tables.specs] == ["table_0", "named", "table_2"]
    tables = resolve_tables(features(second, first), SGD(), trains=True)
    assert [spec.name for spec in tables.specs] == ["table_0", "table_1"]


@pytest.mark.parametrize(
    "names, found", [(["x", "x"], "0 and 1.*'x'"), ([None, "y", "table_0"], "0 and 2.*'table_0'")]
)
def test_two_tables_of_one_name_are_a_value_error(names, found):
    with pytest.raises(ValueError, match=f"tables {found}; every table"):
        resolve_tables(features(*(TableConfig(2, 1, name=n) for n in names)), SGD(), trains=True)


def test_equal_configs_are_two_tables():
    """Identity decides: they need two names."""
    one, other = TableConfig(2, 1), TableConfig(2, 1)
    assert resolve_tables(features(one, other, one), SGD(), trains=True).configs == (one, other)


def test_a_table_s_own_optimizer_goes_before_the_embedding_s():
    own = TableConfig(2, 1, optimizer=Adam(0.1), name="own")
    other = TableConfig(2, 1, name="other", quantization_config=QuantizationConfig(2, 0, 1))
    tables = resolve_tables(features(own, other), SGD(0.2), trains=True)
    assert [spec.optimizer for spec in tables.specs] == [Adam(0.1), SGD(0.2)]
    assert [spec.quantization for spec in tables.specs] == [None, QuantizationConfig(2, 0, 1)]


def test_no_optimizer_is_an_error_only_where_tables_are_trained():
    own = TableConfig(2, 1, optimizer=SGD(), name="own")
    with pytest.raises(ValueError, match="table 'table_1' has no optimizer; under a TPUStrategy"):
        resolve_tables(features(own, TableConfig(2, 1)), None, trains=True)
    tables = resolve_tables(features(own, TableConfig(2, 1)), None, trains=False)
    assert [spec.optimizer for spec in tables.specs] == [SGD(), None]


@dataclass(frozen=True)
class Own:
    """A user's optimizer, with options of TPUEmbedding's."""

    learning_rate: Any = 1.0
    clipvalue: Any = None
    updates_every_row: bool = False
    use_gradient_accumulation: bool = True
    slots = (Slot("steps", rowwise=True),)

    def coefficients(self, learning_rate):
        return {"lr": learning_rate}

    def rule(self, ops):
        return lambda w, g, slots, c: (w - c.lr * g, slots)


class WithoutRule:
    learning_rate, slots, coefficients = 0.1, (), None


def test_anything_with_the_four_things_is_an_optimizer():
    tables = resolve_tables(features(TableConfig(2, 1)), Own(), trains=True)
    assert tables.specs[0].optimizer == Own()
    assert tables.specs[0].slot_names == ("steps",)


@pytest.mark.parametrize("wrong", [SGD, Own, WithoutRule(), "adagrad", 0.1, lambda: None])
@pytest.mark.parametrize("trains", [True, False])
def test_an_unsupported_optimizer_is_a_value_error(wrong, trains):
    table = TableConfig(2, 1, optimizer=wrong, name="t")
    with pytest.raises(ValueError, match=r"table 't': .* is an unsupported optimizer class; use"):
        resolve_tables(features(table), SGD(), trains=trains)


@pytest.mark.parametrize(
    "options", [{"clipvalue": 1.0}, {"clipvalue": (None, 1.0)}, {"updates_every_row": True}]
)
def test_clipping_and_updates_of_every_row_need_the_accumulated_gradient(options):
    wrong = Own(use_gradient_accumulation=False, **options)
    with pytest.raises(ValueError, match="'table_0': Own has use_gradient_accumulation=False"):
        resolve_tables(features(TableConfig(2, 1)), wrong, trains=True)
    for right in (Own(**options), Own(use_gradient_accumulation=False, clipvalue=(None, None))):
        resolve_tables(features(TableConfig(2, 1)), right, trains=True)


def step(embedding):
    embedding.enqueue([[0, 1], [1]])
    embedding.dequeue()
    embedding.apply_gradients(np.ones((2, 1), np.float32))


def test_a_config_is_never_changed_and_serves_a_second_embedding_with_another_optimizer():
    table = TableConfig(2, 1, initializer=embsim.constant(1.0), combiner="sum")
    feature = FeatureConfig(table)
    before = (repr(table), dict(vars(table)), dict(vars(feature)))
    seen = []
    for optimizer in (SGD(0.5), Adagrad(1.0, initial_accumulator_value=3.0), SGD(0.5)):
        with embsim.TPUStrategy(1).scope():
            embedding = embsim.TPUEmbedding(feature, optimizer)
        step(embedding)
        seen.append(embedding.embedding_tables[table][0, 0].item())
        assert (repr(table), vars(table), vars(feature)) == before
    assert seen == [0.5, 0.5, 0.5]  # 1 - 0.5 and 1 - 1 / sqrt(3 + 1)


def test_an_embedding_needs_a_feature():
    with pytest.raises(ValueError, match="there are no features; an embedding needs at least one"):
        resolve_tables([], SGD(), trains=True)
