"""What an engine declares, and in which words."""

import numpy as np
import pytest

from embsim import (
    FTRL,
    SGD,
    Adagrad,
    AdagradMomentum,
    Adam,
    FeatureConfig,
    QuantizationConfig,
    RowwiseAdagrad,
    TableConfig,
)
from embsim.conformance import Capabilities, Counting, Rates, Setup, arrays
from embsim.conformance.adapter import ALL, REFUSABLE, asked_for, asked_of_optimizer
from embsim.conformance.rules import EXACT_OPTIMIZERS, REAL_OPTIMIZERS
from embsim.conformance.tolerance import IEEE, Accuracy


def asked(optimizer=None, *, length=0, features=1, tables=1, **options):
    optimizer = SGD(1.0) if optimizer is None else optimizer
    options = {"combiner": "sum"} | options
    made = [TableConfig(2, 1, None, optimizer, name=f"t{i}", **options) for i in range(tables)]
    return asked_for(Setup(tuple(FeatureConfig(t, length) for t in made for _ in range(features))))


@pytest.mark.parametrize(
    "optimizer, names",
    [
        (SGD(1.0), set()),
        (Adagrad(), {"Adagrad"}),
        (RowwiseAdagrad(), {"RowwiseAdagrad"}),
        (AdagradMomentum(momentum=0.5), {"AdagradMomentum"}),
        (AdagradMomentum(momentum=0.5, exponent=3), {"AdagradMomentum", "power"}),
        (Adam(), {"Adam"}),
        (Adam(lazy_adam=False), {"Adam", "lazy_adam=False"}),
        (FTRL(), {"FTRL"}),
        (FTRL(learning_rate_power=-0.25), {"FTRL", "power"}),
        (Counting(), {"a user's optimizer", "power"}),
        (SGD(1.0, clipvalue=1.0), {"clipvalue"}),
        (SGD(1.0, clipvalue=(None, 1.0)), {"clipvalue"}),
        (SGD(1.0, clip_weight_min=-1.0), {"clip_weight"}),
        (SGD(1.0, clip_weight_max=0.0), {"clip_weight"}),
        (SGD(1.0, weight_decay_factor=0.1), {"weight_decay_factor"}),
        (SGD(1.0, use_gradient_accumulation=False), {"use_gradient_accumulation=False"}),
        (SGD(Rates((1.0,))), {"a learning-rate callable"}),
    ],
)
def test_what_an_optimizer_asks_for(optimizer, names):
    assert asked_of_optimizer(optimizer) == asked(optimizer) == names


def test_what_tables_and_features_ask_for():
    assert asked(combiner="mean") == {"combiner='mean'"}
    assert asked(combiner="sqrtn") == {"combiner='sqrtn'"}
    assert asked(length=2) == {"max_sequence_length"}
    assert asked(features=2) == {"shared tables"}
    assert asked(tables=2) == {"several tables"}
    assert asked(quantization_config=QuantizationConfig(3, 0.0, 1.0)) == {"quantization_config"}


def test_every_name_that_is_asked_for_can_be_refused():
    for kind, options in (*EXACT_OPTIMIZERS, *REAL_OPTIMIZERS):
        assert asked_of_optimizer(kind(0.5, **options)) <= set(REFUSABLE)


def test_names_that_nothing_asks_for_are_refused():
    with pytest.raises(ValueError, match=r"refuses names \['adam'\], which no setup asks for"):
        Capabilities(refuses={"adam": "a slip"})
    with pytest.raises(ValueError, match="drain_points is 'never'"):
        Capabilities(drain_points="never")


def test_what_is_bounded_is_named_as_what_is_refused():
    assert Capabilities(bounded=("RowwiseAdagrad", "power")).bounded == ("RowwiseAdagrad", "power")
    with pytest.raises(ValueError, match=r"bounded names \['adam'\], which no setup asks for"):
        Capabilities(bounded=("FTRL", "adam"))
    for of_a_batch in ("weights", "gradients of None", "inference", "checkpoints"):
        assert of_a_batch in REFUSABLE
        with pytest.raises(ValueError, match="which no setup asks for"):
            Capabilities(bounded=(of_a_batch,))
    with pytest.raises(TypeError, match="bounded"):
        Capabilities(bounded="power")


def test_what_is_bounded_is_not_asked_for_to_the_bit():
    can = Capabilities(bitwise=True, bounded=("FTRL",), refuses={"Adam": "no"})
    assert can.offers("FTRL")
    assert not can.to_the_bit.offers("FTRL") and not can.to_the_bit.offers("Adam")
    assert can.to_the_bit.offers("Adagrad") and can.to_the_bit.bitwise
    assert ALL.to_the_bit is ALL


def test_the_accuracy_is_that_of_the_bounds():
    assert ALL.accuracy == IEEE
    assert Capabilities(ulps=2.0, subnormals=False).accuracy == Accuracy(2.0, False)


def test_offers():
    can = Capabilities(refuses={"Adam": "no", "FTRL": "no"})
    assert can.offers() and can.offers("Adagrad", "weights")
    assert not can.offers("Adagrad", "FTRL")
    assert ALL.offers(*REFUSABLE)


def test_arrays_of_a_batch():
    (ids, splits, weights), plain = arrays([[[(3, 0.5), 1], [], [(2, 2.0)]], [[], [7], []]])
    assert (ids.tolist(), splits.tolist(), weights.tolist()) == (
        *([3, 1, 2], [0, 2, 2, 3]),
        [0.5, 1.0, 2.0],
    )
    assert (plain[0].tolist(), plain[1].tolist(), plain[2]) == ([7], [0, 0, 1, 1], None)
    assert (ids.dtype, splits.dtype, weights.dtype) == (np.int32, np.int64, np.float32)


def test_arrays_of_a_batch_without_ids():
    ((ids, splits, weights),) = arrays([[[], []]])
    assert (ids.dtype, ids.size, splits.tolist(), weights) == (np.int32, 0, [0, 0, 0], None)
