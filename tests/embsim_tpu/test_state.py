"""Tables and slots on devices and back: every bit, logical rows only."""

import jax
import numpy as np
import pytest

from embsim.conformance.rules import Counting
from embsim.optimizers import SGD, Adam, RowwiseAdagrad
from embsim.state import State as HostState
from embsim.state import TableSpec
from embsim_tpu.kernels import choose
from embsim_tpu.placement import Placement
from embsim_tpu.state import State, get_state, put_state, put_table
from tests.embsim_tpu.conftest import F

SPECS = {
    spec.name: spec
    for spec in (
        TableSpec("one", 1, 1, SGD()),
        TableSpec("few", 5, 3, Adam()),
        TableSpec("many", 100, 2, RowwiseAdagrad()),
        TableSpec("of a user", 7, 2, Counting()),  # slots not in the order of their names
        TableSpec("only looked up", 9, 4, None),
    )
}


def any_bits(shape, seed):
    """Not-a-numbers with their payload, subnormals, minus zeros."""
    made = np.random.default_rng(seed).integers(0, 2**32, shape, np.uint32).view(F)
    made[0] = [np.nan, 1e-45, -0.0, -1e-40][seed % 4]
    return made


def host_state():
    weights = {
        s.name: any_bits((s.vocabulary_size, s.dim), i) for i, s in enumerate(SPECS.values())
    }
    slots = {
        s.name: {
            slot: any_bits(s.slot_shape(slot, s.vocabulary_size), 7 * i + j)
            for j, slot in enumerate(s.slot_names)
        }
        for i, s in enumerate(SPECS.values())
    }
    return HostState(SPECS, weights, slots)


def kernels_of(name):
    return {s.name: choose(name, "cpu", s.dim, s.optimizer) for s in SPECS.values()}


XLA = kernels_of("xla")


@pytest.mark.parametrize("name", ["xla", "pallas"])
def test_what_comes_back_is_what_was_put(shards, name):
    state, kernels = host_state(), kernels_of(name)
    found = get_state(put_state(state, shards, kernels), SPECS, shards, kernels, version=7)
    assert (found.specs, found.version) == (SPECS, 7)
    for name, array in state.weights.items():
        assert found.weights[name].tobytes() == array.tobytes(), name
        assert found.weights[name].shape == array.shape
        assert list(found.slots[name]) == list(state.slots[name])
        for slot, values in state.slots[name].items():
            assert found.slots[name][slot].tobytes() == values.tobytes(), (name, slot)


def test_slots_come_back_in_the_optimizer_s_order_from_any_program(shards):
    """JAX sorts the keys of a dict."""
    made = jax.jit(lambda state: state)(put_state(host_state(), shards, XLA))
    for name, slots in get_state(made, SPECS, shards, XLA).slots.items():
        assert tuple(slots) == SPECS[name].slot_names


def test_every_device_has_its_shard_and_padding_is_zero(shards):
    table = np.arange(1.0, 15.0, dtype=F).reshape(7, 2)
    placement = Placement(7, shards.size)
    made = put_table(table, shards)
    assert made.shape == (shards.size * placement.local_rows, 2)
    for part in made.addressable_shards:
        shard = shards.devices.index(part.device)
        rows = np.asarray(part.data)
        wanted = table[shard :: shards.size]
        assert rows[: len(wanted)].tolist() == wanted.tolist()
        assert not rows[len(wanted) :].any()


def test_a_state_is_a_pytree(shards):
    state = put_state(host_state(), shards, XLA)
    doubled = jax.tree.map(lambda leaf: leaf * 2, state)
    assert isinstance(doubled, State)
    assert len(jax.tree.leaves(state)) == 5 + sum(len(s.slot_names) for s in SPECS.values())


@pytest.mark.parametrize("rows", [8, 64])
def test_on_one_cpu_device_nothing_is_copied_on_the_way_back(rows):
    from embsim_tpu._mesh import Shards

    shards, spec = Shards(), TableSpec("t", rows - 1, 2, None)
    made = State({"t": put_table(np.zeros((rows - 1, 2), F), shards)}, {"t": {}})
    first, again = (
        get_state(made, {"t": spec}, shards, {"t": XLA[next(iter(XLA))]}).weights["t"]
        for _ in range(2)
    )
    assert np.shares_memory(first, again)
