"""A program's source makes the same program."""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embsim
from embsim import FTRL, SGD, Adagrad, FeatureConfig, QuantizationConfig, Schedule, TableConfig
from embsim.conformance import (
    Apply,
    Counting,
    Dequeue,
    Drain,
    Enqueue,
    Evaluate,
    EveryOperation,
    Look,
    Program,
    Rates,
    Restore,
    Save,
    Setup,
    Train,
    Values,
    source,
)
from embsim.conformance.machine import programs


def executed(text):
    names = {}
    exec(text, names)
    return names["program"]


def numbers(batch):
    """As every subject reads them: ids, and weights as bits."""
    return [
        [
            [
                (int(i[0]), np.float32(i[1]).tobytes()) if isinstance(i, tuple) else int(i)
                for i in bag
            ]
            for bag in bags
        ]
        for bags in batch
    ]


def described(program):
    """Everything that a subject can see of a program."""
    setup = program.setup
    options = [
        (repr(t.optimizer), t.combiner, t.quantization_config) for t in setup.tables.values()
    ]
    initial = [(name, setup.initial(name)) for name in setup.tables]
    tables = [options, [(name, array.shape, array.tobytes()) for name, array in initial]]
    order = list(setup.tables.values())
    features = [(order.index(f.table), f.max_sequence_length) for f in setup.features]
    calls = []
    for call in program.calls:
        shown = [type(call).__name__, getattr(call, "training", None)]
        shown += [numbers(call.batch)] if hasattr(call, "batch") else []
        for g in getattr(call, "gradients", ()):
            array = None if g is None else np.asarray(g, np.float32)
            shown.append(None if array is None else (array.shape, array.tobytes()))
        calls.append(shown)
    rest = (setup.schedule, setup.samples, setup.replicas, setup.queue_capacity)
    return tables, features, rest, calls


@settings(max_examples=300)
@given(data=st.data())
def test_source_makes_the_same_program(data):
    program = data.draw(programs(regime=data.draw(st.sampled_from(("exact", "real", "wild")))))
    again = executed(source(program))
    assert described(again) == described(program)


def of(table, *calls, **setup):
    return Program(Setup((FeatureConfig(table),), **setup), calls)


def test_the_program_up_to_a_call():
    program = of(TableConfig(1, 1, Values([[0.0]]), SGD(1.0), name="t"), Drain(), Look(), Drain())
    assert described(executed(source(program, upto=1)))[3] == described(program)[3][:2]


def test_every_call():
    calls = (
        *(Enqueue([[[0]]]), Enqueue([[[0]]], training=False), Dequeue(), Apply([None]), Drain()),
        *(Train([[[0]]], [np.ones((1, 1))]), Evaluate([[[0, 0]]]), Look(), Save(), Restore()),
    )
    program = of(TableConfig(1, 1, Values([[0.0]]), SGD(1.0), name="t"), *calls)
    assert described(executed(source(program))) == described(program)


@pytest.mark.parametrize(
    "array",
    [
        np.array([[0.0, -0.0]], np.float32),
        np.array([[-0.0, -0.0]], np.float32),
        np.array([[np.nan, np.inf]], np.float32),
        np.full((1, 2), np.nan, np.float32),
        np.full((1, 2), -np.inf),
        np.array([[0.1, 1 / 3]], np.float16),
        np.full((1, 2), 0.1, np.float16),
        np.array([[0.1, 2.0**-149]], np.float32),
        np.array([[16777217, 0.1]]),
        np.array([[3, 3]]),
        [[np.float16(0.1), np.float32(0.1)]],
        [[float("nan"), -0.0]],
    ],
    ids=str,
)
def test_numbers_keep_their_bits(array):
    table = TableConfig(1, 2, Values(array), SGD(1.0), name="t")
    with np.errstate(over="ignore"):
        program = of(table, Train([[[0]]], [array]))
        assert described(executed(source(program))) == described(program)


def test_ids_and_weights_may_be_numpy_s():
    table = TableConfig(9, 1, None, SGD(1.0), name="t")
    weighted = [(np.int32(3), np.float32(0.1)), (np.int64(4), np.float64(np.inf)), (5, -0.0)]
    plain = [np.int64(8), 0, np.uint8(2)]
    program = of(table, *(Enqueue([[bag]]) for bag in (weighted, plain)))
    assert "np." not in source(program)
    assert described(executed(source(program))) == described(program)


@dataclass(frozen=True)
class OfAUser:
    learning_rate: float = 0.5
    slots: tuple = field(default=())

    def coefficients(self, learning_rate):
        return {"lr": learning_rate}

    def rule(self, ops):
        return lambda w, g, slots, c: (w - c.lr * g, slots)


def tenth(step):
    return 0.1


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(0.1, clipvalue=(None, 1.0), clip_weight_min=-2.0),
        SGD(Rates((0.5, 0.25)), clipvalue=1.5),
        SGD(1.0, multiply_weight_decay_factor_by_learning_rate=False, weight_decay_factor=0.1),
        Adagrad(0.1, initial_accumulator_value=0.25, use_gradient_accumulation=False),
        FTRL(Rates((0.5,)), learning_rate_power=-0.3),
        Adagrad(tenth),
        EveryOperation(),
        Counting(0.5),
        OfAUser(0.25),
        OfAUser(Rates((0.125, 1.0))),
    ],
)
def test_optimizers(optimizer):
    quantized = QuantizationConfig(5, -0.1, 1 / 3)
    table = TableConfig(2, 1, Values([[1.0], [2.0]]), optimizer, "sum", "t", quantized)
    program = of(table, schedule=Schedule(2, 3, 1), queue_capacity=3, samples=4, replicas=2)
    assert described(executed(source(program))) == described(program)


@pytest.mark.parametrize("names", [("np", "setup"), ("SGD", "float"), ("a b", "class"), ("", "ü")])
def test_tables_of_any_name(names):
    tables = [TableConfig(1, 1, Values([[0.5]]), SGD(1.0), name=name) for name in names]
    program = Program(Setup(tuple(map(FeatureConfig, tables))), (Train([[[0]]] * 2, [None] * 2),))
    assert described(executed(source(program))) == described(program)


@pytest.mark.parametrize(
    "initializer", [None, embsim.uniform(), embsim.row_id(), embsim.constant()]
)
def test_initial_numbers_are_the_engine_s(initializer):
    table = TableConfig(3, 2, initializer, SGD(1.0), name="t")
    setup = Setup((FeatureConfig(table),))
    engine = embsim.conformance.EmbsimEngine(setup)
    assert np.array_equal(engine.tables()["t"], setup.initial("t"))
    assert described(executed(source(Program(setup, ())))) == described(Program(setup, ()))
    engine.close()


@pytest.mark.parametrize(
    "names, optimizer, samples, message",
    [
        (("a", None), SGD(1.0), 2, "each must have a name of its own"),
        (("a", "a"), SGD(1.0), 2, r"\['a', 'a'\]; each must have a name of its own"),
        (("a", "b"), None, 2, "table 'a' has no optimizer"),
        (("a", "b"), SGD(1.0), 3, "2 replicas do not divide 3 samples"),
    ],
)
def test_a_setup_that_is_none(names, optimizer, samples, message):
    tables = [TableConfig(1, 1, None, optimizer, name=name) for name in names]
    with pytest.raises(ValueError, match=message):
        Setup(tuple(map(FeatureConfig, tables)), samples=samples, replicas=2)


def test_single_calls_take_apart_what_belongs_together():
    table = TableConfig(1, 1, None, SGD(1.0), name="t")
    program = of(table, Train([[[0]]], [None]), Drain(), Evaluate([[[0]]]))
    assert [(i, type(call).__name__) for i, call in program.single_calls] == [
        *((0, "Enqueue"), (0, "Dequeue"), (0, "Apply"), (1, "Drain")),
        *((2, "Enqueue"), (2, "Dequeue")),
    ]
    training = [c.training for _, c in program.single_calls if isinstance(c, Enqueue)]
    assert training == [True, False]


def test_rates_go_round():
    rates = [Rates((0.5, 0.25, 1.0))(step) for step in range(7)]
    assert rates == [0.5, 0.25, 1.0, 0.5, 0.25, 1.0, 0.5]
    assert all(a != b for a, b in pairwise(rates))
