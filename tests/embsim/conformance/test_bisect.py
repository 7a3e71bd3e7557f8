"""Planted faults are found at their call, table and row, and what is printed finds them again."""

from dataclasses import replace

import numpy as np
import pytest

from embsim import (
    SGD,
    Adagrad,
    Adam,
    FeatureConfig,
    ReferenceBackend,
    Schedule,
    TableConfig,
    row_id,
    sequential,
    stale,
    uniform,
)
from embsim.conformance import (
    Apply,
    Capabilities,
    Dequeue,
    Drain,
    EmbsimEngine,
    Enqueue,
    Evaluate,
    Look,
    Program,
    Restore,
    Save,
    Setup,
    Train,
    first_difference,
    random_program,
)

# --- planted faults


class DropsAtDrain(EmbsimEngine):
    """The update that waits at a drain is lost."""

    def drain(self):
        self.embedding._engine._store.forget_pending([])
        super().drain()


class DrainForgotten(EmbsimEngine):
    """drain does nothing."""

    def drain(self):
        pass


class RowOffByOne(ReferenceBackend):
    """Row 2 is read where row 3 should be."""

    def lookup(self, state, plan):
        moved = {
            name: replace(each, row=np.where(each.row == 3, 2, each.row).astype(np.int32))
            for name, each in plan.items()
        }
        return super().lookup(state, moved)


class WrongRuleAtStep3(EmbsimEngine):
    """The gradients of step 3 are doubled."""

    def __init__(self, setup):
        super().__init__(setup)
        self.step = 0

    def apply_gradients(self, gradients):
        if self.step == 3:
            gradients = [2 * np.asarray(g, np.float32) for g in gradients]
        self.step += 1
        super().apply_gradients(gradients)


class RefusesLongBags(EmbsimEngine):
    """A bag of more than 2 ids is an error."""

    def enqueue(self, batch, training=True):
        if any(len(bag) > 2 for bags in batch for bag in bags):
            raise ValueError("a bag has more than 2 ids")
        super().enqueue(batch, training)


class Inexact(EmbsimEngine):
    """Activations are off by some ulps."""

    def dequeue(self):
        return [each * np.float32(1 + 2.0**-22) for each in super().dequeue()]


def setup_of(schedule, *optimizers, samples=3, dim=4, rows=7):
    tables = [
        TableConfig(rows, dim, uniform(-1.0, 1.0), optimizer, name=name)
        for name, optimizer in zip(("users", "items"), optimizers, strict=False)
    ]
    features = [FeatureConfig(table) for table in tables]
    return Setup((*features, FeatureConfig(tables[0], 2)), schedule, samples=samples)


def executed(separation):
    names = {}
    exec(str(separation).split("\n\n", 1)[1], names)
    return names["separation"]


def place(separation):
    return separation.call, separation.what, separation.table, separation.where


# --- where they part


def test_the_first_difference_is_that_of_the_first_wrong_call():
    setup = setup_of(sequential(), SGD(0.5), Adagrad(0.5))
    program = random_program(setup, seed=1, steps=6)
    fourth = [n for n, call in enumerate(program.calls) if isinstance(call, Train)][3]
    found = first_difference("reference", WrongRuleAtStep3, program, shrink=False)
    assert (found.call, found.what, found.table) == (fourth, "weights", "users")
    assert found.program is program
    named = [row for bags in program.calls[fourth].batch[::2] for bag in bags for row in bag[:2]]
    assert found.row in named
    assert found.in_a != found.in_b and found.in_a.dtype == np.float32


def test_an_update_that_is_lost_at_a_drain():
    program = random_program(setup_of(stale(1), Adam(0.1), SGD(0.5)), seed=2, steps=12)
    found = first_difference(EmbsimEngine, DropsAtDrain, program)
    assert [type(call) for call in found.program.calls] == [Train, Drain]
    assert len(list(found.program.single_calls)) <= 8
    assert (found.call, found.what, found.row) == (1, "weights", 0)
    assert len(found.program.setup.features) == 1
    assert found.program.setup.tables[found.table].dim == 1


def test_a_drain_that_does_nothing():
    program = random_program(setup_of(stale(2), SGD(0.5)), seed=3, steps=12)
    found = first_difference(EmbsimEngine, DrainForgotten, program)
    assert [type(call) for call in found.program.calls] == [Train, Drain, Train]
    assert (found.call, found.what[:11]) == (2, "activations")


def test_a_row_off_by_one():
    table = TableConfig(9, 2, row_id(), SGD(1.0), "sum", "t")
    program = random_program(Setup((FeatureConfig(table),), samples=8), seed=4)
    whole = first_difference("reference", RowOffByOne(), program, shrink=False)
    assert whole.what == "activations of feature 0"
    assert 3 in program.calls[whole.call].batch[0][whole.row]
    found = first_difference("reference", RowOffByOne(), program)
    (call,) = found.program.calls
    assert call.batch == [[[3]]]
    assert (found.in_a, found.in_b) == (3.0, 0.0)
    assert found.program.setup.tables["t"].vocabulary_size == 4


def test_a_rule_that_is_wrong_at_one_step_keeps_the_steps_before():
    program = random_program(setup_of(sequential(), SGD(0.5)), seed=5, steps=9)
    found = first_difference(EmbsimEngine, WrongRuleAtStep3, program)
    assert [type(call) for call in found.program.calls] == [Train] * 4
    assert [sum(map(len, bags)) for call in found.program.calls for bags in call.batch] == [
        0,
        0,
        0,
        1,
    ]


def test_a_call_that_only_one_refuses():
    program = random_program(setup_of(sequential(), SGD(0.5)), seed=6)
    found = first_difference(EmbsimEngine, RefusesLongBags, program)
    assert (found.what, found.in_a) == ("raised", "nothing")
    assert found.in_b == "ValueError: a bag has more than 2 ids"
    assert max(len(bag) for bag in found.program.calls[found.call].batch[0]) == 3


def test_equal_subjects_do_not_part():
    setup = setup_of(Schedule(2, 3, 1), Adam(0.1), Adagrad(0.5))
    program = random_program(setup, seed=7, steps=6, weighted=True)
    batch = program.calls[0].batch
    illegal = (Apply([None] * 3), Dequeue(), Save(), Enqueue(batch), Enqueue(batch, False))
    legal = (Evaluate(batch), Save(), Train(batch, [None] * 3), Look(), Restore(), Dequeue())
    program = Program(setup, (*illegal, *program.calls, *legal, Dequeue()))
    assert first_difference("reference", EmbsimEngine, program) is None
    assert first_difference("reference", ReferenceBackend(), program) is None


def test_what_one_does_not_offer_is_left_out():
    class Narrow(EmbsimEngine):
        capabilities = Capabilities(
            ahead=1, in_flight=1, drain_points="end", looks=False, refuses={"checkpoints": "none"}
        )

        def save(self):
            raise AssertionError("it offers no checkpoints")

        def enqueue(self, batch, training=True):
            assert training, "it does not look"
            super().enqueue(batch, training)

    program = random_program(setup_of(stale(1), SGD(0.5)), seed=8, steps=4)
    first = program.calls[0]
    more = (Save(), Evaluate(first.batch), Enqueue(first.batch), Enqueue(first.batch))
    more += (Dequeue(), Dequeue(), Apply(first.gradients))
    program = Program(program.setup, (*program.calls, *more))
    assert first_difference("reference", Narrow, program) is None
    found = first_difference(DropsAtDrain, Narrow, program)
    assert found.what == "weights"  # seen at the end, after the only drain


def test_an_engine_with_late_outputs_is_refused():
    class Late(EmbsimEngine):
        capabilities = Capabilities(output_shift=1)

    program = random_program(setup_of(sequential(), SGD(0.5)))
    with pytest.raises(ValueError, match="Late has output_shift=1"):
        first_difference("reference", Late, program)


def test_a_bound_is_relative_to_the_largest_number_of_a_row():
    program = random_program(setup_of(sequential(), SGD(0.5)), seed=9)
    exactly = first_difference("reference", Inexact, program, shrink=False)
    assert exactly.call == 0
    assert first_difference("reference", Inexact, program, bound=1e-6) is None
    found = first_difference("reference", Inexact, program, bound=1e-7)
    assert f"bound={1e-7!r}" in str(found)
    assert place(executed(found)) == place(found)


# --- what is printed


@pytest.mark.parametrize(
    "a, b",
    [
        ("reference", DropsAtDrain),
        (DrainForgotten, EmbsimEngine),
        (ReferenceBackend(), RowOffByOne()),
        (EmbsimEngine, WrongRuleAtStep3),
        (RefusesLongBags, "reference"),
    ],
    ids=str,
)
def test_the_printed_program_shows_the_same(a, b):
    program = random_program(setup_of(stale(1), SGD(0.5), Adagrad(0.5)), seed=10, steps=12)
    found = first_difference(a, b, program)
    again = executed(found)
    assert place(again) == place(found)
    assert (again.in_a, again.in_b) == (found.in_a, found.in_b)
    assert len(str(found).splitlines()) <= 20
    assert str(found).splitlines()[-1].startswith("separation = first_difference(")


def test_it_is_the_same_every_time():
    program = random_program(setup_of(stale(1), SGD(0.5)), seed=11, steps=12)
    assert len({str(first_difference("reference", DropsAtDrain, program)) for _ in range(2)}) == 1


def test_what_nothing_can_import_is_named_in_a_comment():
    class Local(DrainForgotten):
        pass

    program = random_program(setup_of(stale(1), SGD(0.5)), seed=12, steps=12)
    assert "# b: your Local" in str(first_difference("reference", Local, program))


def test_programs_of_real_size_are_described_and_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = TableConfig(2000, 64, uniform(), SGD(0.5), name="t")
    program = random_program(Setup((FeatureConfig(table),), samples=512), steps=5, longest=8)
    whole = first_difference("reference", WrongRuleAtStep3, program, shrink=False)
    assert "# table 't': 2000 x 64, mean, SGD(0.5)" in str(whole)
    assert len(str(whole)) < 2000
    whole.save("program.py")
    assert place(executed(whole)) == place(whole)
    small = first_difference("reference", WrongRuleAtStep3, program)
    assert len(list(small.program.single_calls)) == 12
    assert len(str(small)) < 2000


def test_random_programs_depend_on_their_seed_alone():
    setup = setup_of(sequential(), SGD(0.5))
    a, b, c = (random_program(setup, seed) for seed in (1, 1, 2))
    assert [x.batch for x in a.calls if isinstance(x, Train)] == [
        x.batch for x in b.calls if isinstance(x, Train)
    ]
    assert a.calls[0].batch != c.calls[0].batch
