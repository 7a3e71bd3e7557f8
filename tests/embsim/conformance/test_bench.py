"""The six functions, called directly."""

import numpy as np
import pytest

from embsim import SGD, Adagrad, FeatureConfig, ReferenceBackend, TableConfig, row_id
from embsim.conformance import EmbsimEngine, Rates, Setup, Values
from embsim.conformance.bench import Bench
from embsim.conformance.bisect import random_program


def setup_of(optimizer):
    users = TableConfig(6, 2, row_id(), optimizer, "sum", "users")
    items = TableConfig(4, 3, row_id(10), SGD(1.0), "mean", "items")
    features = (FeatureConfig(users), FeatureConfig(items), FeatureConfig(users, 2))
    return Setup(features, samples=2)


def test_a_lookup_and_an_update_are_those_of_the_engine():
    setup = setup_of(Adagrad(0.1))
    bench, engine = Bench(ReferenceBackend(), setup), EmbsimEngine(setup)
    for step, call in enumerate(random_program(setup, steps=4, weighted=True).calls):
        engine.enqueue(call.batch)
        for a, b in zip(bench.lookup(call.batch), engine.dequeue(), strict=True):
            assert np.array_equal(a, b)
        engine.apply_gradients(call.gradients)
        bench.update(call.batch, call.gradients, step)
        tables, slots = bench.read()
        for name in setup.tables:
            assert np.array_equal(tables[name], engine.tables()[name])
            assert slots[name].keys() == engine.slots()[name].keys()
            for slot, array in slots[name].items():
                assert np.array_equal(array, engine.slots()[name][slot])
    engine.close()


def test_tables_and_slots_of_one_s_choice_are_copied():
    setup = setup_of(Adagrad(1.0))
    table = np.full((6, 2), 5.0, np.float64)
    slots = {"users": {"accumulators": np.full((6, 2), 3.0, np.float32)}}
    bench = Bench(ReferenceBackend(), setup, {"users": table}, slots)
    bench.update([[[1], []], [[], []], [[], []]], [np.ones((2, 2)), None, None])
    tables, made = bench.read()
    assert tables["users"][1].tolist() == [4.5, 4.5]  # 5 - 1 / sqrt(3 + 1)
    assert made["users"]["accumulators"][1].tolist() == [4.0, 4.0]
    assert table.tolist() == [[5.0, 5.0]] * 6
    assert (slots["users"]["accumulators"] == 3.0).all()


def test_what_is_read_stays_as_it_was():
    bench = Bench(ReferenceBackend(), setup_of(SGD(1.0)))
    before, _ = bench.read()
    bench.update([[[1], [2]], [[], []], [[], []]], [np.ones((2, 2)), None, None])
    assert before["users"][1].tolist() == [1.0, 1.0]
    assert bench.read()[0]["users"][1].tolist() == [0.0, 0.0]


def test_none_is_zero_and_coefficients_are_those_of_the_step():
    table = TableConfig(2, 1, Values([[0.0], [0.0]]), SGD(Rates((1.0, 0.5))), "sum", "t")
    bench = Bench(ReferenceBackend(), Setup((FeatureConfig(table),)))
    bench.update([[[0]]], [None])
    bench.update([[[0]]], [np.ones((1, 1))], step=1)
    assert bench.read()[0]["t"].tolist() == [[-0.5], [0.0]]


def test_gradients_of_a_wrong_shape_are_an_error():
    bench = Bench(ReferenceBackend(), setup_of(SGD(1.0)))
    with pytest.raises(ValueError, match="reshape"):
        bench.update([[[1], [2]], [[], []], [[], []]], [np.ones((2, 3)), None, None])
