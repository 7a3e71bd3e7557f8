"""embsim's own engine as an adapter."""

import warnings
from dataclasses import fields

import numpy as np
import pytest

from embsim import SGD, Adam, DeadlockError, FeatureConfig, ReferenceBackend, TableConfig, stale
from embsim.backend import Parity
from embsim.conformance import Capabilities, EmbsimEngine, EngineAdapter, Setup, Values
from embsim.conformance.embsim_engine import engine_on

ONE = [np.ones((2, 1), np.float32), None]


def setup_of(**options):
    a = TableConfig(3, 1, Values([[0.0], [1.0], [2.0]]), SGD(1.0), "sum", "a")
    b = TableConfig(2, 2, Values([[0.0, 0.0], [1.0, 2.0]]), Adam(0.5), "sum", "b")
    return Setup((FeatureConfig(a), FeatureConfig(b)), samples=2, **options)


def step(engine, gradients=ONE):
    engine.enqueue([[[0], [(1, 0.5)]], [[1], []]])
    seen = [each.tolist() for each in engine.dequeue()]
    engine.apply_gradients(gradients)
    return seen


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_step(replicas):
    engine = EmbsimEngine(setup_of(replicas=replicas))
    assert isinstance(engine, EngineAdapter)
    assert step(engine) == [[[0.0], [0.5]], [[1.0, 2.0], [0.0, 0.0]]]
    assert engine.tables()["a"].tolist() == [[-1.0], [0.5], [2.0]]
    assert engine.slots()["a"] == {} and set(engine.slots()["b"]) == {"momenta", "velocities"}
    engine.close()


def test_gradients_may_be_lists():
    engine = EmbsimEngine(setup_of())
    step(engine, [[[1.0], [1.0]], None])
    assert engine.tables()["a"].tolist() == [[-1.0], [0.5], [2.0]]
    engine.close()


def test_schedule_and_queue_are_the_setup_s():
    engine = EmbsimEngine(setup_of(schedule=stale(1), queue_capacity=1))
    assert [step(engine)[0][0] for _ in range(3)] == [[0.0], [0.0], [-1.0]]
    engine.drain()
    assert step(engine)[0][0] == [-3.0]
    engine.enqueue([[[0], [1]], [[], []]], training=False)
    with pytest.raises(DeadlockError, match="capacity 1"):
        engine.enqueue([[[0], [1]], [[], []]])
    engine.close()


def test_save_and_restore_leave_no_files_behind():
    engine = EmbsimEngine(setup_of(schedule=stale(1)))
    step(engine)
    saved = engine.save()
    before = engine.tables()["a"].tolist()
    second = step(engine)
    assert engine.save() != saved
    engine.restore(saved)
    assert engine.tables()["a"].tolist() == before
    assert step(engine) == second
    assert saved.exists()
    engine.close()
    assert not saved.parent.exists()


def test_close_says_nothing_of_work_given_up():
    engine = EmbsimEngine(setup_of())
    engine.enqueue([[[0], [1]], [[], []]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.close()


def test_engines_over_a_backend_use_it_and_declare_its_parity():
    class Seen(ReferenceBackend):
        lookups = 0

        def lookup(self, state, plan):
            Seen.lookups += 1
            return super().lookup(state, plan)

    parity = Parity(ulps=1.0, subnormals=False, bounded=("FTRL",), refuses={"Adam": "no"})
    made = engine_on(Seen(), parity)
    engine = made(setup_of())
    step(engine)
    engine.close()
    assert Seen.lookups == 1
    assert (made.capabilities.bitwise, made.capabilities.ulps) == (False, 1.0)
    assert (made.capabilities.subnormals, made.capabilities.bounded) == (False, ("FTRL",))
    assert not made.capabilities.offers("Adam") and EmbsimEngine.capabilities.offers("Adam")


def test_a_parity_has_the_names_and_defaults_of_capabilities():
    assert {f.name for f in fields(Parity)} <= {f.name for f in fields(Capabilities)}
    for each in fields(Parity):
        assert getattr(Parity(), each.name) == getattr(Capabilities(), each.name)


def test_a_parity_with_unknown_names_is_refused():
    with pytest.raises(ValueError, match=r"bounded names \['adam'\]"):
        engine_on(ReferenceBackend(), Parity(bounded=("adam",)))
