"""What the checks of updates and optimizers rest on: exact numbers are exact, bounds are finite."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embsim.definition
from embsim.conformance import Capabilities, EmbsimEngine, Train
from embsim.conformance.adapter import REFUSABLE
from embsim.conformance.bounded import bounded_step
from embsim.conformance.check import BoundCheck, Check
from embsim.conformance.checks import _chains, optimizers, update
from embsim.conformance.checks._real_steps import POSITIVE, real_step
from embsim.conformance.literal import literal as short
from embsim.conformance.lockstep import definition_of
from embsim.conformance.subject import subject_of
from embsim.optimizers import FTRL, SGD, Adagrad, AdagradMomentum, Adam, RowwiseAdagrad

ALL = Capabilities(bitwise=True, replicas=(1, 2, 4))
CHECKS = {
    each.name: each
    for module in (update, optimizers)
    for each in vars(module).values()
    if isinstance(each, Check)
}

# --- what is called exact is exact


def final_numbers(setup, steps):
    law, seen = definition_of(setup), []
    for batch, slopes in steps:
        seen += law.dequeue(batch)
        law.apply_gradients(slopes)
    for arrays in law.versions[-1].values():
        seen += arrays
    return seen


CHAINS = {
    "adagrad": _chains.adagrad(ALL),
    "rowwise_adagrad": _chains.rowwise_adagrad(ALL),
    "adagrad_momentum": _chains.adagrad_momentum(ALL),
    "adam": _chains.adam(ALL),
    "adam_on_any_row": _chains.adam_on_any_row(ALL),
    "non-lazy adam": _chains.adam_on_any_row(ALL, lazy=False),
    "ftrl": _chains.ftrl(ALL),
}


@pytest.mark.parametrize("name", CHAINS)
@settings(max_examples=50)
@given(data=st.data())
def test_chains_are_exact(name, data):
    """In float64 the numbers are the same: no operation was rounded."""
    program = data.draw(_chains.chain_programs(ALL, CHAINS[name]))
    steps = [(c.batch, c.gradients) for c in program.calls if isinstance(c, Train)]
    in_float32 = final_numbers(program.setup, steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embsim.definition, "F", np.float64)
        in_float64 = final_numbers(program.setup, steps)
    for a, b in zip(in_float32, in_float64, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("name", [name for name in CHECKS if "roots_are_exact" in name])
def test_elements_are_exact(name, monkeypatch):
    """As above, of the updates that are done by a backend's six functions."""
    seen = []

    def compared(_backend, setup, slots, step):
        results = []
        for kind in (np.float32, np.float64):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(embsim.definition, "F", kind)
                law = definition_of(setup)
                (config,) = setup.tables.values()
                start = [setup.initial("t0"), *slots.values()]
                law.versions = [{config: [np.asarray(each, kind) for each in start]}]
                law.dequeue(step.batch)
                law.apply_gradients(step.gradients)
                results.append(law.versions[-1][config])
        seen.append(results)
        for a, b in zip(*results, strict=True):
            assert np.array_equal(a, b)

    monkeypatch.setattr("embsim.conformance.checks._exact_update._compare", compared)
    BoundCheck(CHECKS[name], subject_of("reference"), "default")()
    assert len(seen) > 10


# --- bounds are not vacuous


REAL = [
    SGD(0.1),
    Adagrad(0.1, initial_accumulator_value=1e-8),
    RowwiseAdagrad(0.1),
    AdagradMomentum(0.1, momentum=0.9),
    AdagradMomentum(0.1, exponent=1.5, beta2=0.9),
    Adam(0.1),
    Adam(0.1, sum_inside_sqrt=False),
    FTRL(0.1),
    FTRL(0.1, -0.3, beta=0.5),
]


@pytest.mark.parametrize("optimizer", REAL, ids=short)
@settings(max_examples=40)
@given(data=st.data())
def test_drawn_numbers_have_finite_bounds(optimizer, data):
    setup = data.draw(_chains.one_table(ALL, optimizer, weights=(0.0, 0.1)))
    step = data.draw(real_step(setup))
    shape = (_chains.ROWS, setup.tables["t0"].dim)
    slots = {
        slot.name: np.full((shape[0], 1) if slot.rowwise else shape, value, np.float32)
        for slot in optimizer.slots
        for value in [data.draw(st.sampled_from(POSITIVE))]
    }
    tables = {"t0": setup.initial("t0")}
    bounds = bounded_step(setup, tables, {"t0": slots}, step.batch, step.gradients)
    assert bounds.rows["t0"]
    for w, new_slots in bounds.rows["t0"].values():
        for each in (w, *new_slots):
            assert np.isfinite(each.value).all()
            assert np.isfinite(each.error).all()


def test_a_subject_that_refuses_all_that_it_may_is_held_to_sgd():
    """The checks apply by what a subject offers; SGD is left."""

    class Least(EmbsimEngine):
        capabilities = Capabilities(refuses=dict.fromkeys(REFUSABLE, "to see"))

    subject = subject_of(Least)
    applying = [each for each in CHECKS.values() if each.applies_to(subject)]
    assert [each.name for each in applying] == ["check_sgd_stays_within_computed_bounds"]
    BoundCheck(applying[0], subject, "quick")()
