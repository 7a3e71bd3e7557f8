"""lockstep.py: a right engine passes, and each kind of difference is reported where it is."""

import numpy as np
import pytest

from embsim import SGD, Adagrad, FeatureConfig, TableConfig, sequential, stale
from embsim.conformance import (
    Apply,
    Capabilities,
    Dequeue,
    Difference,
    Drain,
    EmbsimEngine,
    Enqueue,
    Evaluate,
    Lockstep,
    Look,
    Program,
    Restore,
    Save,
    Setup,
    Train,
    Values,
    definition_of,
    replay,
    subject_of,
)
from tests.embsim.conformance.restricted import Late, LateToTheEnd, LooksAfterDrains

TABLE = TableConfig(3, 2, Values([[1, 2], [3, 4], [5, 6]]), SGD(1.0), "sum", "t0")
SETUP = Setup((FeatureConfig(TABLE),), stale(1), samples=2, queue_capacity=2)
ONE = np.ones((2, 2), np.float32)
STEP = Train([[[0], [1, 2]]], [ONE])
SPLIT = (Enqueue(STEP.batch), Dequeue(), Apply(STEP.gradients))


def differs(engine, calls, setup=SETUP):
    with pytest.raises(Difference) as caught:
        replay(subject_of(engine), Program(setup, tuple(calls)))
    return caught.value


def made(**methods):
    return type("Wrong", (EmbsimEngine,), methods)


CALLS = ("enqueue", "dequeue", "apply_gradients", "drain", "tables", "save", "restore")
SEEN: list[str] = []


def noted(name):
    def call(self, *arguments):
        SEEN.append(name)
        return getattr(EmbsimEngine, name)(self, *arguments)

    return call


def test_a_right_engine_passes_legal_and_illegal_calls():
    calls = [Dequeue(), Apply([ONE]), *SPLIT, Restore(), *SPLIT[:2], Drain(), Look(), Save()]
    calls += [Evaluate(STEP.batch), Apply([ONE]), Dequeue(), Save(), STEP, Drain(), STEP]
    calls += [Enqueue(STEP.batch)] * 3 + [Restore(), Dequeue(), Dequeue(), Dequeue(), Apply([None])]
    calls += [Apply([ONE]), Restore(), STEP, Look(), Evaluate(STEP.batch)]
    replay(subject_of(EmbsimEngine), Program(SETUP, tuple(calls)))
    replay(subject_of("reference"), Program(SETUP, tuple(calls)), watch=False)


def test_the_law_of_a_setup():
    law = definition_of(SETUP)
    assert (law.staleness, law.drain_every, law.warmup_steps) == (1, None, 0)
    assert law.versions[0][TABLE][0].tolist() == [[1, 2], [3, 4], [5, 6]]


class TestDifferences:
    def test_of_activations(self):
        def dequeue(self):
            (found,) = EmbsimEngine.dequeue(self)
            wrong = np.array(found)
            wrong[1, 0] += 1
            return [wrong]

        error = differs(made(dequeue=dequeue), [Drain(), STEP])
        assert (error.call, error.table, error.slot, error.step) == (1, "t0", None, 0)
        assert (error.found, error.wanted) == (9.0, 8.0)
        assert "activations of training step 0, feature 0 (table 't0'): at [1, 0]" in str(error)
        assert "subject: Wrong" in str(error)
        assert "program = Program(setup, (" in str(error)

    def test_of_a_table(self):
        def tables(self):
            found = {name: np.array(each) for name, each in EmbsimEngine.tables(self).items()}
            if self.embedding._engine.progress.submitted == 2:
                found["t0"][2, 1] = 70
            return found

        error = differs(made(tables=tables), [STEP, Drain(), STEP, STEP])
        assert (error.call, error.table, error.slot, error.step, error.row) == (
            2, "t0", None, 1, 2,
        )  # fmt: skip
        assert (error.found, error.wanted) == (70.0, 4.0)
        assert "after Apply, 2 updates: table 't0': at [2, 1]" in str(error)
        assert str(error).count("Train(") == 2  # calls 0 to 2 only, and the import

    def test_of_a_slot(self):
        def slots(self):
            return {"t0": {"accumulators": np.full((3, 2), 7, np.float32)}}

        table = TableConfig(3, 2, Values(np.zeros((3, 2))), Adagrad(1.0), "sum", "t0")
        setup = Setup((FeatureConfig(table),), samples=2)
        error = differs(made(slots=slots), [Look()], setup)
        assert (error.call, error.table, error.slot, error.step, error.row) == (
            0, "t0", "accumulators", None, 0,
        )  # fmt: skip
        assert (error.found, error.wanted) == (7.0, np.float32(0.1))

    @pytest.mark.parametrize(
        ("found", "what"),
        [
            (None, "dequeue of training step 0 returned a NoneType"),
            ([], "it must return a list or tuple of 1 arrays"),
            ([ONE.astype(np.float64)], "has dtype float64; it must be float32"),
            ([ONE[:1]], r"has shape \(1, 2\); it must be \(2, 2\)"),
            ([np.full((2, 2), np.nan, np.float32)], "found nan, the law says 1.0"),
        ],
    )
    def test_of_what_a_dequeue_returned(self, found, what):
        with pytest.raises(Difference, match=what):
            replay(subject_of(made(dequeue=lambda self: found)), Program(SETUP, (STEP,)))

    def test_of_names(self):
        assert "tables are ['u']" in str(differs(made(tables=lambda self: {"u": ONE}), [Look()]))
        slots = made(slots=lambda self: {"t0": {"momenta": ONE}})
        assert "slots of table 't0' are ['momenta']" in str(differs(slots, [Look()]))

    def test_at_the_end_where_nothing_is_watched(self):
        engine = made(apply_gradients=lambda self, g: EmbsimEngine.apply_gradients(self, [None]))
        with pytest.raises(Difference, match="after the end of the program, 1 updates") as caught:
            replay(subject_of(engine), Program(SETUP, (STEP,)), watch=False)
        assert caught.value.row == 0

    def test_steps_that_wait_get_zeros_at_the_end(self):
        def apply_gradients(self, gradients):
            assert not any(np.asarray(each).any() for each in gradients)
            EmbsimEngine.apply_gradients(self, gradients)

        engine = made(apply_gradients=apply_gradients)
        engine.capabilities = Capabilities(refuses={"gradients of None": "they are arrays"})
        replay(subject_of(engine), Program(SETUP, SPLIT[:2]))


class TestHints:
    def test_the_version_that_was_read(self):
        class Fresh(EmbsimEngine):
            def __init__(self, setup):
                super().__init__(Setup(setup.features, sequential(), setup.samples))

        error = differs(Fresh, [STEP, STEP])
        assert "training step 1 read version 1, the law says 0" in str(error)
        assert (error.call, error.step) == (1, 1)

    def test_that_of_an_inference_step(self):
        def dequeue(self):
            store, held = self.embedding._engine._store, []
            if not self.embedding._engine._queue.queued[0].training:
                held, store.pending = store.pending, held
            found = EmbsimEngine.dequeue(self)
            store.pending += held
            return found

        error = differs(made(dequeue=dequeue), [STEP, Evaluate(STEP.batch)])
        assert "an inference step read version 0, the law says 1" in str(error)
        assert (error.call, error.step) == (1, None)

    def test_another_batch(self):
        def enqueue(self, batch, training=True):
            EmbsimEngine.enqueue(self, batch, training)
            self.embedding._engine._queue.queued.reverse()

        other = Enqueue([[[0, 1, 2], []]])
        error = differs(made(enqueue=enqueue), [SPLIT[0], other, Dequeue()])
        assert "they equal the activations of the batch 1 after it" in str(error)

    def test_no_version_and_no_batch(self):
        engine = made(dequeue=lambda self: [ONE * 99])
        assert "training step 0 reads version 0" in str(differs(engine, [STEP]))


class TestCallsThatAreRefused:
    @pytest.mark.parametrize(
        ("name", "calls"),
        [
            ("Dequeue", [Dequeue()]),
            ("Apply", [Apply([ONE])]),
            ("Enqueue", [SPLIT[0]] * 3),
            ("Drain", [*SPLIT[:2], Drain()]),
            ("Look", [*SPLIT[:2], Look()]),
            ("Save", [*SPLIT[:2], Save()]),
            ("Dequeue", [SPLIT[0], Enqueue(STEP.batch, training=False), Dequeue(), Dequeue()]),
            ("Restore", [Save(), SPLIT[0], Restore()]),
        ],
    )
    @pytest.mark.parametrize("kind", [None, ValueError])
    def test_illegal_calls_must_raise_a_runtime_error(self, name, calls, kind):
        method = {"Apply": "apply_gradients", "Look": "slots"}.get(name, name.lower())

        def careless(self, *arguments):
            try:
                return getattr(EmbsimEngine, method)(self, *arguments)
            except RuntimeError as error:
                if kind is not None:
                    raise kind("no") from error

        error = differs(made(**{method: careless}), calls)
        found = "but returned" if kind is None else "but raised ValueError: no"
        assert f"{name} could never be served here (queue: " in str(error)
        assert f"it must raise a RuntimeError, {found}" in str(error)
        assert error.call == len(calls) - 1

    def test_they_must_change_nothing(self):
        def apply_gradients(self, gradients):
            self.embedding._engine._store.state.weights["t0"][...] += 1
            EmbsimEngine.apply_gradients(self, gradients)

        error = differs(made(apply_gradients=apply_gradients), [Apply([ONE])])
        assert "after Apply, 0 updates: table 't0'" in str(error)

    @pytest.mark.parametrize("method", ["enqueue", "dequeue", "apply_gradients", "drain"])
    def test_legal_calls_must_not_be_refused(self, method):
        def refuse(self, *arguments):
            raise RuntimeError("not today")

        error = differs(made(**{method: refuse}), [STEP, Drain()])
        assert "is legal here, but raised RuntimeError: not today (" in str(error)

    def test_tables_must_be_shown_whenever_they_may(self):
        def slots(self):
            raise RuntimeError("not today")

        assert "may be read, but this was refused: not today" in str(
            differs(made(slots=slots), [Drain()])
        )


class TestWhatIsNotDeclared:
    def run(self, calls, **capabilities):
        SEEN.clear()
        engine = made(**{name: noted(name) for name in CALLS})
        engine.capabilities = Capabilities(**capabilities)
        replay(subject_of(engine), Program(SETUP, tuple(calls)))
        return list(SEEN)

    def test_no_errors(self):
        calls = [Dequeue(), Apply([ONE]), *SPLIT[:2], Drain(), Save(), Look(), SPLIT[2], Restore()]
        assert self.run(calls, errors=False, looks=False, drain_points="end") == [
            "enqueue", "dequeue", "apply_gradients", "drain", "tables",
        ]  # fmt: skip

    def test_no_looks(self):
        seen = self.run([STEP, Look(), Evaluate(STEP.batch), Drain(), STEP], looks=False)
        assert seen.count("drain") == 2
        assert seen.count("enqueue") == 2
        assert [seen[i - 1] for i, each in enumerate(seen) if each == "tables"] == [
            "drain", "drain",
        ]  # fmt: skip

    def test_inference_right_after_a_drain_is_no_look_at_updates_in_flight(self):
        seen = self.run([STEP, Drain(), Evaluate(STEP.batch), STEP], looks=False)
        assert seen.count("enqueue") == 3
        seen = self.run([*SPLIT[:2], Enqueue(STEP.batch, False), SPLIT[2]], looks=False)
        assert seen.count("enqueue") == 1

    def test_an_evaluation_is_left_out_with_its_dequeue(self):
        seen = self.run([SPLIT[0], Evaluate(STEP.batch), *SPLIT[1:]], looks=False)
        assert seen == ["enqueue", "dequeue", "apply_gradients", "drain", "tables"]

    def test_none_ahead_and_one_in_flight(self):
        seen = self.run([SPLIT[0], SPLIT[0], Dequeue(), SPLIT[0], Dequeue()], ahead=1, in_flight=1)
        calls = [each for each in seen if each != "tables"]
        assert calls == ["enqueue", "dequeue", "enqueue", "apply_gradients"]

    def test_a_drain_at_the_end_alone_is_made_then_and_after_all_steps(self):
        seen = self.run([STEP, Drain(), SPLIT[0]], drain_points="end")
        calls = [each for each in seen if each != "tables"]
        assert calls == ["enqueue", "dequeue", "apply_gradients"] * 2 + ["drain"]

    def test_no_checkpoints(self):
        assert "save" not in self.run([Save(), Restore()], refuses={"checkpoints": "none"})


class TestCheckpoints:
    def test_a_restore_goes_back_to_what_was_in_flight(self):
        calls = (STEP, Save(), STEP, Drain(), Restore(), Look(), STEP, STEP)
        replay(subject_of(EmbsimEngine), Program(SETUP, calls))

    def test_after_a_restore_updates_are_in_flight_again(self):
        calls = (STEP, Save(), Drain(), Restore(), Look(), Evaluate(STEP.batch), STEP)
        replay(subject_of(LooksAfterDrains), Program(SETUP, calls))


class TestShiftedOutputs:
    STEPS = tuple(Train([[[n % 3], []]], [ONE * (n + 1)]) for n in range(5))

    @pytest.mark.parametrize("engine", [Late, LateToTheEnd])
    def test_loops_with_drains_between(self, engine):
        for calls in ((), self.STEPS[:1], (Drain(), *self.STEPS[:3], Drain(), *self.STEPS[3:])):
            replay(subject_of(engine), Program(SETUP, calls))

    def test_the_nth_gradients_are_for_the_nth_batch(self):
        a, b = self.STEPS[:2]
        calls = (Enqueue(a.batch), Enqueue(b.batch), Dequeue(), Apply(a.gradients))
        replay(subject_of(Late), Program(SETUP, (*calls, Dequeue(), Apply(b.gradients))))

    def test_an_engine_that_is_not_late_is_told_so(self):
        class Early(EmbsimEngine):
            capabilities = Late.capabilities

        error = differs(Early, self.STEPS)
        assert "dequeue 0 of a loop returned" in str(error)
        assert "it must be None, because output_shift is 1" in str(error)

    def test_the_message_has_the_calls_up_to_the_end_of_the_loop(self):
        class Doubled(Late):
            def apply_gradients(self, gradients):
                super().apply_gradients([2 * each for each in gradients])

        error = differs(Doubled, (*self.STEPS[:2], Drain(), *self.STEPS[2:]))
        assert "after Drain, 2 updates: table 't0'" in str(error)
        assert (error.call, error.step, str(error).count("Train([")) == (2, 1, 2)


def test_a_lockstep_by_hand():
    pair = Lockstep(subject_of("reference"), SETUP)
    for call in SPLIT[:2]:
        pair.do(call)
    assert (len(pair.queue), len(pair.law.waiting), pair.submitted) == (0, 1, 0)
    pair.end()
    assert pair.submitted == 1
    pair.engine.close()
