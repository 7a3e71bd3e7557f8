"""Static sizes: given ones refuse what does not fit, learned ones grow only so many times."""

import math
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

import embsim
from embsim import SGD, CapacityError, FeatureConfig, TableConfig, stale
from embsim.config import QuantizationConfig
from embsim.conformance import Values
from embsim.state import State, TableSpec
from embsim_tpu import Capacity, JaxBackend
from embsim_tpu.capacity import FINE, SMALLEST, Capacities, bucket, power_of_two
from tests.embsim_tpu.conftest import F, mesh_of, plan_of

NEEDS = st.builds(Capacity, st.integers(0, 5000), st.integers(0, 5000))


class TestGiven:
    @given(NEEDS, NEEDS)
    def test_what_fits_is_padded_to_it_and_what_does_not_is_refused(self, given, need):
        capacities = Capacities({"t": given})
        if need.positions <= given.positions and need.rows <= given.rows:
            assert capacities.fitting("t", need) == given
        else:
            with pytest.raises(CapacityError) as error:
                capacities.fitting("t", need)
            text = str(error.value)
            assert "table 't'" in text
            assert f"{need.positions} ids on one device" in text
            assert f"{need.rows} distinct rows" in text
            assert f"found {given}" in text
            assert recommended(error.value) == need
        assert (capacities.learned, capacities.growths) == ({}, 0)

    def test_one_capacity_is_for_every_table(self):
        capacities = Capacities(Capacity(16, 8))
        assert capacities.fitting("a", Capacity(1, 1)) == capacities.fitting("b", Capacity(16, 8))

    def test_tables_that_a_mapping_leaves_out_are_learned(self):
        capacities = Capacities({"a": Capacity(4, 4)})
        assert capacities.fitting("b", Capacity(100, 5)) == Capacity(128, 8)
        assert list(capacities.learned) == ["b"]

    @pytest.mark.parametrize("size", [-1, 4.5, "4", True])
    def test_sizes_are_whole_numbers(self, size):
        for sizes in ((size, 4), (4, size)):
            with pytest.raises(ValueError, match=r"Capacity: .* it must be an int >= 0"):
                Capacity(*sizes)

    @pytest.mark.parametrize("given", ["automatic", 5, None, [Capacity(1, 1)]])
    def test_anything_else_is_refused(self, given):
        with pytest.raises(
            ValueError, match=re.escape(f"capacity is {given!r}; it must be 'auto'")
        ):
            Capacities(given)


def recommended(error):
    """The Capacity that a message says to pass."""
    found = re.search(r"at least Capacity\(positions=(\d+), rows=(\d+)\); pass that", str(error))
    assert found, str(error)
    return Capacity(int(found[1]), int(found[2]))


class TestAuto:
    @given(st.lists(NEEDS, max_size=20))
    def test_it_holds_every_batch_and_grows_only_so_often(self, needs):
        capacities, seen = Capacities("auto"), []
        for need in needs:
            made = capacities.fitting("t", need)
            assert made.holds(need)
            for size in (made.positions, made.rows):
                assert size >= SMALLEST
                assert size == bucket(size)
            assert not seen or made.holds(seen[-1])
            seen.append(made)
        assert capacities.learned == ({"t": seen[-1]} if needs else {})
        most = [max((getattr(need, name) for need in needs), default=0) for name in NAMES]
        assert capacities.growths == len(set(seen)) <= 1 + sum(map(growths, most))

    def test_batches_that_grow_and_grow_compile_about_three_programs_per_doubling(self):
        capacities = Capacities()
        for size in range(1, 2**16):
            capacities.fitting("t", Capacity(size, 1))
        assert capacities.growths <= 8 + 3 * 6 + 2  # to 1024, and six doublings

    def test_tables_grow_apart(self):
        capacities = Capacities()
        capacities.fitting("a", Capacity(1000, 10))
        assert capacities.fitting("b", Capacity(1, 1)) == Capacity(8, 8)
        assert capacities.growths == 2

    @given(st.integers(0, 2**24))
    def test_large_sizes_are_padded_by_an_eighth_at_most(self, number):
        made = bucket(number)
        assert made >= max(number, SMALLEST)
        assert made == bucket(made)
        if number > FINE:
            assert made < number * 1.125
        else:
            assert made == power_of_two(number)

    @given(st.integers(0, 2**20))
    def test_the_next_power_of_two(self, number):
        made = power_of_two(number)
        assert made >= number
        assert made & (made - 1) == 0
        assert made == SMALLEST or made < 2 * number


NAMES = ("positions", "rows")


def growths(number):
    """At most so many from the smallest capacity up to this number: in powers of two to 1024, then
    by a quarter or more."""
    fine = math.ceil(math.log(max(1, number / FINE), 1.25))
    return int(math.log2(power_of_two(min(number, FINE)) / SMALLEST)) + fine


# --- on a backend


@st.composite
def batches(draw, rows, samples):
    ids = st.lists(st.integers(0, rows - 1), max_size=6)
    return draw(st.lists(ids, min_size=samples, max_size=samples))


@pytest.mark.parametrize("devices", [1, 8])
@settings(max_examples=25)
@given(st.data())
def test_the_capacity_that_a_message_recommends_suffices(devices, data):
    """And is the least: with one less of either it is refused."""
    rows, samples = 40, data.draw(st.sampled_from((3, 16)))
    bags = data.draw(batches(rows, samples))
    plan = plan_of([[(row, 1.0) for row in bag] for bag in bags], rows)
    if not len(plan.row):
        return
    with pytest.raises(CapacityError) as error:
        JaxBackend(mesh_of(devices), Capacity(0, 0)).put_plan({"t": plan})
    need = recommended(error.value)
    JaxBackend(mesh_of(devices), need).put_plan({"t": plan})
    for less in (Capacity(need.positions - 1, need.rows), Capacity(need.positions, need.rows - 1)):
        with pytest.raises(CapacityError):
            JaxBackend(mesh_of(devices), {"t": less}).put_plan({"t": plan})


@pytest.mark.parametrize("devices", [1, 8])
def test_a_refused_batch_changes_nothing(devices):
    values = Values(np.arange(80, dtype=F).reshape(40, 2))
    table = TableConfig(40, 2, values, SGD(1.0), "sum", "items")
    made = JaxBackend(mesh_of(devices), Capacity(positions=16, rows=16))
    with embsim.TPUStrategy().scope():
        embedding = embsim.TPUEmbedding([FeatureConfig(table)], schedule=stale(1), backend=made)
    small, large = [[[1, 2]] * 8], [[list(range(40))] * 8]
    for _ in range(2):  # one update is pending
        embedding.enqueue(small)
        embedding.dequeue()
        embedding.apply_gradients([np.ones((8, 2), F)])
    before = embedding.snapshot()
    ids = 320 // devices
    match = rf"'items'.*{ids} ids.*Capacity\(positions=16, rows=16\).*'auto', or smaller batches"
    with pytest.raises(CapacityError, match=match):
        embedding.enqueue(large)
    after = embedding.snapshot()
    assert after.step == before.step
    assert after.embedding_tables[table].tobytes() == before.embedding_tables[table].tobytes()
    embedding.enqueue(small)
    assert np.asarray(embedding.dequeue()[0]).tolist() == [[2 + 4 - 16, 3 + 5 - 16]] * 8  # r(2) = 1
    embedding.apply_gradients([np.ones((8, 2), F)])
    embedding.drain()
    embedding.close()


class Compilations:
    """How many programs XLA compiles."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event, duration, **more):
        self.count += event == "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def compilations():
    return Compilations()


@pytest.mark.parametrize("devices", [(3,), (2, 5, 7)], ids=["a mesh of one", "three devices"])
def test_the_report_counts_what_jax_compiles_and_it_is_bounded(devices, compilations):
    """On devices of its own, since backends on the same ones share programs."""
    draw = np.random.default_rng(0)
    backend = JaxBackend(Mesh(np.array([jax.devices()[i] for i in devices]), ("own",)))
    spec = TableSpec("t", 50, 3, SGD(1.0), QuantizationConfig(5, -2.0, 2.0))
    state = backend.put_state(State({"t": spec}, {"t": np.zeros((50, 3), F)}, {"t": {}}))
    before, samples, largest = compilations.count, 6, 0
    for _ in range(40):
        lengths = draw.integers(0, draw.integers(1, 40), samples)
        lengths[0] += 2  # never one id each
        bags = np.split(draw.integers(0, 50, lengths.sum()), np.cumsum(lengths)[:-1])
        plan = plan_of([[(int(row), 1.0) for row in bag] for bag in bags], 50)
        put = backend.put_plan({"t": plan})
        backend.lookup(state, put)
        backend.read_rows(state, "t", plan.unique)
        gradients = {"t": np.ones((samples, 3), F)}
        state = backend.update(state, put, gradients, {"t": {"lr": np.float32(1.0)}})
        largest = max(largest, int(lengths.sum()))
    report = backend.report
    assert report.programs == compilations.count - before
    assert report.capacities["t"].positions <= power_of_two(largest)
    most = 1 + growths(largest) + growths(50)
    assert report.growths <= most
    assert report.programs <= 2 * most + 1 + growths(50)  # lookups, updates, reads
    again = compilations.count
    backend.lookup(state, put)
    assert (backend.report, compilations.count) == (report, again)
