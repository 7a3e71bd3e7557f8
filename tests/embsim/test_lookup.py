"""Lookup and its adjoint against loops over bags, one rounded operation at a time."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import embsim
from embsim import QuantizationConfig, _threads, definition
from embsim.lookup import CHUNK, lookup, lookup_tasks, quantization_constants, row_gradients
from embsim.plan import LookupPlan
from tests.embsim.programs import F, assert_same

ANY = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1e-45, -1e-40, 3e38, 2.0**24, 1.0, 0.1])
SMALL = st.integers(-8, 8).map(float)  # every sum of a few products is exact


def plan_of(bags, rows):
    """bags of (row, gain)."""
    flat = [item for bag in bags for item in bag]
    row, gain = (np.array([item[i] for item in flat], d) for i, d in ((0, np.int32), (1, F)))
    return LookupPlan("t", rows, np.cumsum([0, *map(len, bags)]), row, gain)


def naive_lookup(table, bags, quantization=None):
    out = np.zeros((len(bags), table.shape[1]), F)
    with np.errstate(all="ignore"):
        for sample, bag in enumerate(bags):
            for row, gain in bag:
                values = definition.quantized(table[row], quantization)
                out[sample] = out[sample] + F(gain) * values
    return out


def naive_row_gradients(gradients, bags):
    found = {}
    with np.errstate(all="ignore"):
        for sample, bag in enumerate(bags):
            for row, gain in bag:
                before = found.get(row, np.zeros(gradients.shape[1], F))
                found[row] = before + F(gain) * gradients[sample]
    return np.array([found[row] for row in sorted(found)], F).reshape(-1, gradients.shape[1])


@st.composite
def worlds(draw, numbers):
    """(table, bags, gradients): few rows, so that they repeat in a bag and across bags."""
    rows, dim = draw(st.integers(1, 5), label="rows"), draw(st.sampled_from([1, 2, 3, 7]))
    item = st.tuples(st.integers(0, rows - 1) | st.just(rows - 1), numbers)
    bags = draw(st.lists(st.lists(item, max_size=5), max_size=5), label="bags")
    table, gradients = (
        draw(hnp.arrays(F, (n, dim), elements=numbers.map(F)), label=what)
        for n, what in ((rows, "table"), (len(bags), "gradients"))
    )
    return table, bags, gradients


@given(st.data())
def test_lookup_sums_each_bag_in_position_order(data):
    table, bags, _ = data.draw(worlds(ANY))
    before = table.copy()
    assert_same("lookup", lookup(table, plan_of(bags, len(table))), naive_lookup(table, bags))
    assert table.tobytes() == before.tobytes()


@given(st.data())
def test_row_gradients_are_summed_by_sample_and_position(data):
    table, bags, gradients = data.draw(worlds(ANY))
    before = gradients.copy()
    got = row_gradients(gradients, plan_of(bags, len(table)))
    assert_same("row gradients", got, naive_row_gradients(gradients, bags))
    assert gradients.tobytes() == before.tobytes()


@given(st.data())
def test_row_gradients_are_the_adjoint_of_lookup(data):
    """<G w, x> = <w, G^T x>."""
    table, bags, gradients = data.draw(worlds(SMALL))
    plan = plan_of(bags, len(table))
    left = float(np.sum(lookup(table, plan) * gradients))
    right = float(np.sum(table[plan.unique] * row_gradients(gradients, plan)))
    assert left == right


@given(st.data())
def test_the_order_within_a_bag_is_free_where_sums_are_exact(data):
    table, bags, gradients = data.draw(worlds(SMALL))
    shuffled = [data.draw(st.permutations(bag), label="a bag, permuted") for bag in bags]
    one, other = plan_of(bags, len(table)), plan_of(shuffled, len(table))
    assert_same("lookup", lookup(table, one), lookup(table, other))
    assert_same("gradients", row_gradients(gradients, one), row_gradients(gradients, other))


def test_the_order_within_a_bag_counts_where_sums_are_rounded():
    table = F([[2**24], [1], [-(2**24)]])
    plan = plan_of([[(0, 1), (1, 1), (2, 1)], [(0, 1), (2, 1), (1, 1)]], 3)
    assert lookup(table, plan).tolist() == [[0], [1]]
    contributions = [[(0, 2**24)], [(0, 1)], [(0, -(2**24))]]
    assert row_gradients(np.ones((3, 1), F), plan_of(contributions, 1)).tolist() == [[0]]
    contributions[1:] = contributions[:0:-1]
    assert row_gradients(np.ones((3, 1), F), plan_of(contributions, 1)).tolist() == [[1]]


def test_gain_and_row_are_multiplied_before_they_are_added():
    """No fused multiply-add: (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24 is rounded first."""
    x = F(1 + 2**-12)
    plan = plan_of([[(1, 1), (0, x)]], 2)
    assert lookup(F([[x], [-1]]), plan)[0, 0] == 2**-11
    plan = plan_of([[(0, 1)], [(0, x)]], 1)
    assert row_gradients(F([[-1], [x]]), plan)[0, 0] == 2**-11


@pytest.mark.parametrize("bags", [[], [[]], [[], [(3, 1)], []]], ids=str)
@pytest.mark.parametrize("dim", [1, 5])
def test_an_empty_bag_gives_zeros_whatever_the_table_holds(bags, dim):
    table = np.full((4, dim), np.nan, F)
    table[3] = 2
    plan = plan_of(bags, 4)
    expected = np.array([[2.0 * len(bag)] * dim for bag in bags], F).reshape(-1, dim)
    assert_same("lookup", lookup(table, plan), expected)
    assert row_gradients(np.ones((len(bags), dim), F), plan).shape == (len(plan.unique), dim)


def test_a_row_with_gain_zero_is_present_with_gradient_zero():
    plan = plan_of([[(1, 0.0), (0, -2.0)]], 2)
    assert row_gradients(F([[3, 4]]), plan).tolist() == [[-6, -8], [0, 0]]


def test_read_only_tables_and_gradients_will_do():
    draw = np.random.default_rng(0)
    table, gradients = draw.normal(size=(3, 2)).astype(F), draw.normal(size=(2, 2)).astype(F)
    bags = [[(2, 0.5), (2, 1.0)], [(0, 1.5)]]
    for array in (table, gradients):
        array.flags.writeable = False
    plan = plan_of(bags, 3)
    for array in (plan.splits, plan.row, plan.gain):
        array.flags.writeable = False
    assert_same("lookup", lookup(table, plan), naive_lookup(table, bags))
    assert_same("rows", row_gradients(gradients, plan), naive_row_gradients(gradients, bags))


class TestQuantization:
    @given(st.data())
    def test_rows_are_quantized_before_the_combiner(self, data):
        table, bags, _ = data.draw(worlds(ANY))
        buckets = data.draw(st.sampled_from([2, 3, 5, 256, 65537]), label="buckets")
        lower = data.draw(st.sampled_from([-1.0, -0.3, 0.0, 0.1, -1e30]), label="lower")
        upper = data.draw(st.sampled_from([0.2, 1.0, 7.7, 3e38]), label="upper")
        config = QuantizationConfig(buckets, lower, upper)
        got = lookup(table, plan_of(bags, len(table)), config)
        assert_same("quantized lookup", got, naive_lookup(table, bags, config))

    def test_ties_round_up_and_values_beyond_the_limits_are_clipped(self):
        config = QuantizationConfig(5, -1.0, 1.0)  # levels -1, -0.5, 0, 0.5, 1
        x = [-2, -1, -0.75, -0.76, -0.25, -0.0, 0.0, 0.24, 0.25, 0.75, 1, 9, -np.inf, np.inf]
        y = [-1, -1, -0.50, -1.00, 0.00, 0.0, 0.0, 0.00, 0.50, 1.00, 1, 1, -1, 1]
        plan = plan_of([[(i, 1)] for i in range(len(x))], len(x))
        assert lookup(F(x)[:, None], plan, config)[:, 0].tolist() == y

    def test_nan_stays_nan_and_subnormals_are_numbers(self):
        config = QuantizationConfig(2, 0.0, 1e-40)
        x = [np.nan, 1e-45, 0.49e-40, 0.51e-40]
        plan = plan_of([[(i, 1)] for i in range(4)], 4)
        got = lookup(F(x)[:, None], plan, config)[:, 0]
        assert np.isnan(got[0])
        assert got[1:].tolist() == [0, 0, F(1e-40)]

    def test_the_width_of_a_bucket_is_computed_in_float64_and_rounded_once(self):
        lower, upper, width = quantization_constants(QuantizationConfig(4, 0.3, 0.4))
        assert (lower, upper, width) == (F(0.3), F(0.4), F((0.4 - 0.3) / 3))
        assert width != (F(0.4) - F(0.3)) / F(3)
        assert {type(x) for x in (lower, upper, width)} == {np.float32}

    def test_the_table_and_row_gradients_are_not_quantized(self):
        table, before = F([[0.3]]), F([[0.3]])
        assert lookup(table, plan_of([[(0, 1)]], 1), QuantizationConfig(2, 0.0, 1.0)) == [[0]]
        assert table.tobytes() == before.tobytes()


@pytest.fixture
def restored_threads():
    before = embsim.num_threads()
    yield
    embsim.set_num_threads(before)


@pytest.mark.parametrize("samples, dim", [(3000, 129), (5, CHUNK + 3)], ids=str)
@pytest.mark.parametrize("quantization", [None, QuantizationConfig(16, -2.0, 2.0)], ids=str)
@pytest.mark.usefixtures("restored_threads")
def test_threads_change_no_bit(samples, dim, quantization):
    draw = np.random.default_rng(0)
    rows = 40
    lengths = draw.integers(0, 5, samples)
    lengths[0] = 4
    row = draw.integers(0, rows, lengths.sum()).astype(np.int32)
    gain = draw.normal(size=len(row)).astype(F)
    plan = LookupPlan("t", rows, np.concatenate([[0], np.cumsum(lengths)]), row, gain)
    table = draw.normal(size=(rows, dim)).astype(F)
    gradients = draw.normal(size=(samples, dim)).astype(F)
    pieces = lookup_tasks(table, plan, quantization, np.empty((samples, dim), F))
    assert len(pieces) >= 2
    assert len(row) * dim > _threads.WORTH_THREADS
    seen = set()
    for count in (1, 2, 3):
        embsim.set_num_threads(count)
        forward, backward = lookup(table, plan, quantization), row_gradients(gradients, plan)
        seen.add((forward.tobytes(), backward.tobytes()))
    assert len(seen) == 1
    bags = np.split(np.stack([row, np.arange(len(row))], 1), plan.splits[1:-1])
    pairs = [[(r, gain[i]) for r, i in bag] for bag in bags]
    assert_same("lookup", forward, naive_lookup(table, pairs, quantization))
    assert_same("row gradients", backward, naive_row_gradients(gradients, pairs))
