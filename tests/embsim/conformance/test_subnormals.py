"""The law watched for subnormal numbers: what it lets through has the same bits on machines without
them, and what these may do otherwise is within the bounds.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from embsim import SGD, Adagrad, FeatureConfig, RowwiseAdagrad, Slot, TableConfig
from embsim.conformance import (
    Dequeue,
    Difference,
    Draw,
    EmbsimEngine,
    Enqueue,
    Program,
    Setup,
    Train,
    Values,
    check,
    definition_of,
    replay,
    strategies,
    subject_of,
)
from embsim.conformance.checks._benches import one_step
from embsim.conformance.machine import programs
from embsim.conformance.mutants.controls import FlushesProducts, FlushesSubnormals
from embsim.conformance.mutants.precision import MoreThanSubnormalsIsZero
from embsim.conformance.single import backend_step
from embsim.conformance.subnormals import SubnormalMet
from embsim.conformance.tolerance import Accuracy

F = np.float32
TINY = 2.0**-130
NEAR = (1.25 * 2.0**-125, -(2.0**-125))  # normal numbers, whose sum is not
WITHOUT = Accuracy(subnormals=False)
ALONE = {"use_gradient_accumulation": False}


def setup_of(rows, optimizer=None, combiner="sum"):
    optimizer = SGD(1.0) if optimizer is None else optimizer
    table = TableConfig(len(rows), len(rows[0]), Values(rows), optimizer, combiner, "t0")
    return Setup((FeatureConfig(table),))


def watched(rows, optimizer=None, combiner="sum"):
    return definition_of(setup_of(rows, optimizer, combiner), subnormals=False)


@dataclass(frozen=True)
class Rule:
    """A user's optimizer: w <- f(ops, w, g, c), and a slot that stays."""

    f: Any
    learning_rate: Any = 1.0
    slots: tuple[Slot, ...] = (Slot("kept"),)
    use_gradient_accumulation: bool = True

    def coefficients(self, learning_rate):
        return {"two": 2.0, "large": 2.0**100}

    def rule(self, ops):
        return lambda w, g, slots, c: (self.f(ops, w, g, c), slots)


def a_square_of_what_was_chosen(ops, w, g, c):
    chosen = ops.where(g > w, w, g)
    return g + chosen * chosen * c.large


def a_square_of_the_gradient(ops, w, g, c):
    return w - g * g * c.large


@pytest.mark.parametrize(
    "row, bag, combiner",
    [
        pytest.param([TINY], [0], "sum", id="a row"),
        pytest.param([2.0**-126], [0], "sum", id="the smallest normal number"),
        pytest.param([2.0**-40], [(0, 2.0**-90)], "sum", id="a product"),
        pytest.param([1.0], [(0, NEAR[0]), (0, NEAR[1])], "sum", id="a sum"),
        pytest.param([1.0], [(0, 1e-3), (0, 3e38)], "mean", id="a gain"),
        pytest.param([1.0], [(0, NEAR[0]), (0, NEAR[1])], "mean", id="a sum of weights"),
        pytest.param([1.0], [(0, 2.0**-65), (0, 1.0)], "sqrtn", id="a square of a weight"),
    ],
)
def test_a_lookup_that_meets_one(row, bag, combiner):
    law = watched([row], None, combiner)
    with pytest.raises(SubnormalMet, match="meets the number"):
        law.dequeue([[bag]])


@pytest.mark.parametrize(
    "row, bag, g, optimizer",
    [
        pytest.param([1.0], [0], [TINY], SGD(1.0), id="a gradient"),
        pytest.param([1.0], [0], [TINY], SGD(1.0, **ALONE), id="a gradient alone"),
        pytest.param([0.0], [(0, NEAR[0]), (0, NEAR[1])], [1.0], SGD(1.0), id="a sum of them"),
        pytest.param([1.0], [0], [2.0**-40], SGD(2.0**-90), id="a product of the rule"),
        pytest.param([1.0], [0], [2.0**-65], Adagrad(1.0), id="a square, lost in a sum"),
        pytest.param([1.0], [0], [2.0**-65], Adagrad(1.0, **ALONE), id="such a square alone"),
        pytest.param([1.0, 1.0], [0], [1.0, 2.0**-65], RowwiseAdagrad(1.0), id="one in a mean"),
        pytest.param(
            *([1.0], [0], [2.0**-65], Rule(a_square_of_the_gradient, **ALONE)),
            id="a square within a product",
        ),
        pytest.param(
            *([*NEAR, 1.0], [0], [1.0] * 3, Rule(lambda o, w, g, c: g + o.mean(w))),
            id="a sum in a mean",
        ),
        pytest.param([1.0], [0], [1.0], Adagrad(1.0, TINY), id="a slot"),
        pytest.param([NEAR[1]], [0], [0.0], SGD(1.0, weight_decay_factor=0.75), id="decay"),
        pytest.param([2.0**-70], [0], [1.0], Rule(a_square_of_what_was_chosen), id="where"),
        pytest.param(
            [2.0**-70], [0], [1.0], Rule(lambda o, w, g, c: o.power(w, c.two)), id="power"
        ),
    ],
)
def test_an_update_that_meets_one(row, bag, g, optimizer):
    law = watched([row], optimizer)
    law.dequeue([[bag]])
    with pytest.raises(SubnormalMet, match="meets the number"):
        law.apply_gradients([[g]])


def test_what_is_only_stored_or_vanishes_altogether_is_not_met():
    rows = [[1.0, 0.0], [TINY, -TINY], [np.nan, np.inf]]
    for combiner in ("sum", "sqrtn"):
        law, plain = (
            watched(rows, Adagrad(1.0), combiner),
            definition_of(setup_of(rows, Adagrad(1.0), combiner)),
        )
        for each in (law, plain):
            each.dequeue([[[(0, 1e-30), (0, 1e-30)]]])
            each.apply_gradients([[[1e-30, -3.0]]])
            each.dequeue([[[2, 0]]])
            each.apply_gradients([None])
        for seen, wanted in zip(law.versions, plain.versions, strict=True):
            (found,), (right,) = seen.values(), wanted.values()
            for a, b in zip(found, right, strict=True):
                assert type(a) is np.ndarray
                assert np.array_equal(a, b, equal_nan=True)


# --- what it lets through

SMALL = (0.0, 1.0, -1.0, 3.0, 1e-3, -0.3, 1e-12, 3e-20, -1e-30, 7e-38, 1e-41, float("inf"))


def of_small_numbers(count):
    """Programs, of which many meet subnormal numbers and many do not."""
    found = []

    @settings(max_examples=count, phases=[Phase.generate], derandomize=True, database=None)
    @given(programs(regime="wild", max_calls=6))
    def collect(program):
        found.append(program)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strategies, "WILD", SMALL)
        collect()
    return found


def outcome(subject, program):
    try:
        replay(subject, program)
    except (Difference, SubnormalMet) as error:
        return type(error)
    return None


@pytest.mark.parametrize("kind", [FlushesSubnormals, FlushesProducts])
def test_what_is_let_through_has_the_same_bits_without_subnormals(kind):
    declared = subject_of(kind())
    can = replace(declared.capabilities, subnormals=True)
    kept = type("Kept", (declared.factory,), {"capabilities": can})
    outcomes = [(outcome(declared, p), outcome(subject_of(kept), p)) for p in of_small_numbers(120)]
    assert (None, Difference) not in outcomes
    assert {found for found, _ in outcomes} == {None, SubnormalMet}
    assert outcomes.count((None, None)) > 30
    assert outcomes.count((SubnormalMet, Difference)) > 5  # as it must be without the declaration


# --- in programs and checks

STEP = Train([[[0]]], [[[2.0**-65]]])
PROGRAM = Program(setup_of([[1.0]], Adagrad(1.0, 2.0**-120)), (STEP,))
FLUSHING = subject_of(FlushesSubnormals())


def test_a_program_of_one_s_own_is_not_compared_beyond():
    replay(subject_of("reference"), PROGRAM)
    with pytest.raises(SubnormalMet, match="from here on the two are not compared"):
        replay(FLUSHING, PROGRAM)


def test_an_example_that_meets_one_is_left_out():
    seen = []

    @check("8.1")
    def check_some_programs(subject, draw):
        tiny = draw(st.booleans(), "tiny")
        if tiny:
            replay(subject, PROGRAM)
        seen.append(tiny)

    assert check_some_programs.on(FLUSHING).result().verdict == "passed"
    assert set(seen) == {False}


def test_so_is_a_step_that_is_compared_with_itself():
    met = []

    @settings(max_examples=40, phases=[Phase.generate], derandomize=True, database=None)
    @given(st.data())
    def draw_steps(data):
        try:
            one_step(FLUSHING, Draw(data))
        except SubnormalMet:
            met.append(data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strategies, "MODEST", SMALL)
        draw_steps()
    assert len(met) > 2


def test_a_difference_is_not_left_out_for_a_hint_that_meets_one():
    class Wrong(EmbsimEngine):
        capabilities = replace(EmbsimEngine.capabilities, subnormals=False)

        def dequeue(self):
            return [np.array(array) + 1 for array in super().dequeue()]

    calls = (Enqueue([[[0]]]), Enqueue([[[1]]]), Dequeue())
    with pytest.raises(Difference, match=r"found 2\.0, the law says 1\.0"):
        replay(subject_of(Wrong), Program(setup_of([[1.0], [TINY]]), calls))


def test_the_difference_says_what_to_declare():
    class Undeclared(FlushesSubnormals):
        parity = replace(FlushesSubnormals.parity, subnormals=True)

    program = Program(setup_of([[TINY]]), (Train([[[0]]], [None]),))
    with pytest.raises(Difference, match=r"subnormal number.* declare `subnormals=False`"):
        replay(subject_of(Undeclared()), program)


# --- within the bounds

OPERANDS = [  # row, bag, gradient, optimizer
    ([TINY, -TINY], [0], [1.0, 1.0], SGD(1.0)),
    ([1.0, -TINY], [(0, 0.5), (0, 0.25)], [TINY, 1.0], SGD(0.1)),
    ([0.0, 0.0], [0, 0], [2.0**-40, 1.0], SGD(2.0**-90)),
    ([1.0, 0.0], [0], [2.0**-64, 2.0**-65], Adagrad(2.0**-64, 2.0**-125)),
    ([0.0, 1.0], [0], [2.0**-65, 2.0**-64], RowwiseAdagrad(2.0**-120, epsilon=1.0)),
]


@pytest.mark.parametrize("row, bag, g, optimizer", OPERANDS)
@pytest.mark.parametrize("backend", [FlushesSubnormals(), FlushesProducts()])
def test_a_step_without_subnormals_is_within_its_bounds(backend, row, bag, g, optimizer):
    setup = setup_of([row], optimizer)
    backend_step(backend, setup, {}, {}, [[bag]], [F([g])], WITHOUT)


@pytest.mark.parametrize("row, bag, g, optimizer", OPERANDS)
def test_and_outside_those_of_a_machine_that_has_them(row, bag, g, optimizer):
    with pytest.raises(Difference, match="the computed bound is"):
        backend_step(
            FlushesSubnormals(), setup_of([row], optimizer), {}, {}, [[bag]], [F([g])], Accuracy()
        )


def test_more_than_subnormals_is_outside_too():
    setup = setup_of([[0.0]], SGD(0.1))
    backend_step(FlushesSubnormals(), setup, {}, {}, [[[0]]], [F([[1e-30]])], WITHOUT)
    with pytest.raises(Difference, match=r"found 0\.0, the law says -1e-31"):
        backend_step(MoreThanSubnormalsIsZero(), setup, {}, {}, [[[0]]], [F([[1e-30]])], WITHOUT)
