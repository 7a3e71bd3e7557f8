"""An engine that shares nothing with embsim is held to the definition through its adapter."""

import numpy as np
import pytest

from embsim import SGD, Adagrad, FeatureConfig, TableConfig, stale, uniform
from embsim.conformance import (
    EmbsimEngine,
    EngineAdapter,
    Setup,
    checks_for_engine,
    first_difference,
    random_program,
)
from embsim.conformance.torch_engine import TorchEngine

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # the tensors are small


def setup_of(optimizer, **options):
    table = TableConfig(50, 8, uniform(-1.0, 1.0), optimizer, name="t")
    return Setup((FeatureConfig(table), FeatureConfig(table, 3)), samples=16, **options)


@pytest.mark.parametrize("check", checks_for_engine(TorchEngine, "quick"), ids=str)
def test_check(check):
    check()


def test_it_is_an_adapter():
    assert isinstance(TorchEngine(setup_of(SGD(0.1))), EngineAdapter)


@pytest.mark.parametrize("optimizer", [SGD(0.1), Adagrad(0.1)], ids=repr)
def test_it_stays_near_embsim_on_real_numbers(optimizer):
    program = random_program(setup_of(optimizer, schedule=stale(1)), weighted=True)
    assert first_difference(EmbsimEngine, TorchEngine, program, bound=1e-5) is None
    sequential = random_program(setup_of(optimizer), weighted=True)
    assert first_difference(EmbsimEngine, TorchEngine, sequential, bound=1e-5) is None


def test_a_checkpoint_is_a_copy():
    setup = setup_of(Adagrad(0.1), schedule=stale(2))
    engine = TorchEngine(setup)
    train, later = random_program(setup, steps=2).calls

    def step(call):
        engine.enqueue(call.batch)
        seen = engine.dequeue()
        engine.apply_gradients(call.gradients)
        return np.concatenate([each.ravel() for each in seen]), engine.tables()["t"]

    step(train)
    saved = engine.save()
    first = step(later)
    engine.restore(saved)
    again = step(later)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
