"""JaxBackend's six functions against the reference's, step by step, on any mesh."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embsim import BackendError
from embsim.backend import Backend, get_backend
from embsim.config import QuantizationConfig
from embsim.optimizers import SGD, Adagrad, Adam, coefficients
from embsim.reference import ReferenceBackend
from embsim.state import State, TableSpec
from embsim_tpu import Capacity, JaxBackend
from embsim_tpu.placement import Placement
from tests.embsim.programs import assert_same
from tests.embsim.simulation.replay import world
from tests.embsim_tpu.conftest import BUCKETS, EXACT, F, bags_of, mesh_of, numbers, plan_of

QUANTIZED = QuantizationConfig(5, -2.0, 2.0)
RULES = {"plain": SGD(0.5), "decay": SGD(1.0, weight_decay_factor=0.5, clipvalue=2.0)}


def specs():
    return {
        name: TableSpec(name, each.rows, each.dim, rule, None if name == "plain" else QUANTIZED)
        for (name, rule), each in zip(RULES.items(), BUCKETS[1:], strict=True)
    }


def state_of(data):
    weights = {
        name: data.draw(numbers((spec.vocabulary_size, spec.dim), EXACT), label=name)
        for name, spec in specs().items()
    }
    return State(specs(), weights, {name: {} for name in weights})


def copied(state):
    return State(
        state.specs,
        {name: array.copy() for name, array in state.weights.items()},
        {name: dict(each) for name, each in state.slots.items()},
        state.version,
    )


@pytest.mark.parametrize("devices", [1, 2, 8])
@settings(max_examples=15)
@given(st.data())
def test_every_function_is_the_reference_s_where_sums_are_exact(devices, data):
    backend = JaxBackend(mesh_of(devices), Capacity(positions=128, rows=40))
    state = state_of(data)
    pairs = [(each, each.put_state(copied(state))) for each in (backend, ReferenceBackend())]
    for _ in range(2):
        plans, gradients = {}, {}
        for name, bucket in zip(RULES, BUCKETS[1:], strict=True):
            bags = data.draw(bags_of(bucket, EXACT, devices))
            plans[name] = plan_of(bags, bucket.rows)
            shape = (bucket.samples, bucket.dim)
            gradients[name] = data.draw(numbers(shape, EXACT), label="gradients")
        c = {name: coefficients(rule, 0.5) for name, rule in RULES.items()}
        seen = []
        for number, (each, held) in enumerate(pairs):
            put = each.put_plan(plans)
            found = each.lookup(held, put)
            held = each.update(held, put, gradients, c)
            rows = {name: each.read_rows(held, name, plan.unique) for name, plan in plans.items()}
            pairs[number] = each, held
            seen.append((found, rows, each.get_state(held)))
        compare(*seen)


def compare(found, wanted):
    for name in RULES:
        assert_same(f"activations of {name}", found[0][name], wanted[0][name])
        assert_same(f"rows of {name}", found[1][name].weights, wanted[1][name].weights)
        assert_same(f"table {name}", found[2].weights[name], wanted[2].weights[name])
    assert found[2].version == wanted[2].version


def one_table(optimizer, rows=5, dim=2, seed=0):
    draw = np.random.default_rng(seed)
    spec = TableSpec("t", rows, dim, optimizer)
    slots = {
        name: draw.uniform(1, 2, spec.slot_shape(name, rows)).astype(F) for name in spec.slot_names
    }
    weights = draw.integers(-4, 5, (rows, dim)).astype(F)
    return State({"t": spec}, {"t": weights}, {"t": slots})


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_padding_is_never_trained_not_even_by_non_lazy_adam(devices):
    backend, optimizer = JaxBackend(mesh_of(devices)), Adam(0.5, lazy_adam=False)
    held = backend.put_state(one_table(optimizer))
    plan = plan_of([[(0, 1.0), (4, 2.0)], [(0, 1.0)], []], 5)
    for _ in range(3):
        put = backend.put_plan({"t": plan})
        gradients = {"t": np.ones((3, 2), F)}
        held = backend.update(held, put, gradients, {"t": coefficients(optimizer, 0.5)})
    placement = Placement(5, devices)
    padding = np.ones(devices * placement.local_rows, bool)
    padding[placement.physical_row(np.arange(5))] = False
    assert padding.any()
    for array in (held.state.weights["t"], *held.state.slots["t"].values()):
        assert not np.asarray(array)[padding].any()
    found = backend.get_state(held)
    assert all(array.shape[0] == 5 for array in (found.weights["t"], *found.slots["t"].values()))


@pytest.mark.parametrize("devices", [1, 8])
def test_a_batch_without_samples_changes_nothing(devices):
    backend, optimizer = JaxBackend(mesh_of(devices)), Adagrad(0.5)
    state = one_table(optimizer)
    before = state.copied()
    put = backend.put_plan({"t": plan_of([], 5)})
    held = backend.put_state(state)
    assert backend.lookup(held, put)["t"].shape == (0, 2)
    rates = {"t": coefficients(optimizer, 0.5)}
    found = backend.get_state(backend.update(held, put, {"t": np.zeros((0, 2), F)}, rates))
    assert found.weights["t"].tobytes() == before.weights["t"].tobytes()
    assert found.slots["t"]["accumulators"].tobytes() == before.slots["t"]["accumulators"].tobytes()


@pytest.mark.parametrize("schedule", ["lookahead(2)", "row_clocks(2, 1)", "replica_sync(2, 3)"])
def test_replays_on_it_are_the_reference_s(schedule):
    """To the bit, where sums are exact."""
    model, optimizer = world.constant(), SGD(0.25)
    wanted = world.replayed(schedule, 8, 0, optimizer, model, initial=0)
    found = world.replayed(schedule, 8, 0, optimizer, model, initial=0, backend=JaxBackend())
    world.assert_same(found.state, wanted.state)


@pytest.mark.parametrize("devices", [1, 8])
def test_read_rows_copies_any_bits_in_the_order_that_was_asked_for(devices):
    backend, state = JaxBackend(mesh_of(devices)), one_table(Adagrad(), rows=100, dim=3)
    draw = np.random.default_rng(1)
    weights = draw.integers(0, 2**32, (100, 3), np.uint32).view(F)
    weights[:3] = F([1e-45, -0.0, np.nan])[:, None]
    held = backend.put_state(State(state.specs, {"t": weights.copy()}, state.slots))
    for rows in ([], [7], [99, 0, 1, 2, 50], list(range(100))):
        found = backend.read_rows(held, "t", np.array(rows, np.int32))
        assert found.weights.tobytes() == weights[rows].tobytes()
        assert found.slots["accumulators"].shape == (len(rows), 3)
        found.weights[...] = 0  # the caller's own


@pytest.mark.parametrize("devices", [1, 8])
def test_activations_outlive_later_updates(devices):
    backend, optimizer = JaxBackend(mesh_of(devices)), SGD(1.0)
    held = backend.put_state(one_table(optimizer))
    put = backend.put_plan({"t": plan_of([[(3, 1.0)], [(1, 1.0)]], 5)})
    before = backend.lookup(held, put)["t"]
    kept = before.copy()
    c = {"t": coefficients(optimizer, 1.0)}
    for _ in range(5):
        held = backend.update(held, put, {"t": np.ones((2, 2), F)}, c)
    assert before.tobytes() == kept.tobytes()
    assert backend.lookup(held, put)["t"].tolist() == (kept - 5).tolist()


def test_an_optimizer_without_accumulation_is_refused():
    state = one_table(SGD(1.0, use_gradient_accumulation=False))
    with pytest.raises(BackendError, match=r"put_state: table 't': SGD.*backend='reference'"):
        JaxBackend().put_state(state)
    assert "use_gradient_accumulation=False" in JaxBackend().parity.refuses


@pytest.mark.parametrize(
    "options, message",
    [
        ({"capacity": "large"}, "capacity is 'large'; it must be 'auto'"),
        ({"kernels": "fast"}, "kernels is 'fast'; it must be one of"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        JaxBackend(**options)


def test_it_is_found_by_its_name():
    assert isinstance(get_backend("jax"), JaxBackend)
    assert isinstance(get_backend("jax"), Backend)


def test_the_report_says_what_static_shapes_cost():
    backend = JaxBackend(mesh_of(2))
    assert (backend.report.capacities, backend.report.growths, backend.report.programs) == (
        {},
        0,
        0,
    )
    held = backend.put_state(one_table(SGD(1.0)))
    small, large = plan_of([[(3, 1.0)] * 2], 5), plan_of([[(3, 1.0)] * 20], 5)
    for programs, (plan, positions) in enumerate([(small, 8), (large, 32), (large, 32)], start=1):
        backend.lookup(held, backend.put_plan({"t": plan}))
        assert backend.report.capacities == {"t": Capacity(positions, 8)}
        assert backend.report.programs == min(programs, 2)
    assert backend.report.growths == 2
