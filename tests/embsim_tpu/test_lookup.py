"""Lookup and its adjoint against the reference's, on one device and on meshes."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embsim.lookup as reference
from embsim import QuantizationConfig
from embsim.conformance.bounded import bounded_bag, quantized
from embsim.conformance.tolerance import Accuracy, check_within, exact, sum_of
from embsim_tpu._mesh import Shards
from embsim_tpu.kernels import choose
from embsim_tpu.lookup import lookup, row_gradients, shard_rows
from embsim_tpu.placement import Placement
from embsim_tpu.plan import device_plan, even_parts
from embsim_tpu.state import put_table
from tests.embsim.programs import assert_same
from tests.embsim_tpu.conftest import BUCKETS, EXACT, REAL, F, capacities, plan_of, steps

XLA_ON_CPU = Accuracy(subnormals=False)
WHOLE = QuantizationConfig(5, -2.0, 2.0)  # levels are whole numbers: exact
FINE = QuantizationConfig(100, -0.3, 0.7)


@cache
def lookup_on(shards, quantization):
    made = partial(
        lookup, quantization=quantization, axes=shards.axes, kernels=choose("xla", "cpu")
    )
    return jax.jit(shards.local(made))


@cache
def row_gradients_on(shards):
    return jax.jit(shards.local(row_gradients))


@cache
def shard_rows_on(shards):
    return jax.jit(shards.local(lambda plan: shard_rows(plan, shards.axes)))


def put_plan(shards, plan):
    return device_plan(plan, even_parts(plan.samples, shards.size), capacities(), shards)


def looked_up(shards, step, quantization=None):
    found = lookup_on(shards, quantization)(
        put_table(step.table, shards), put_plan(shards, step.plan)
    )
    return np.asarray(found)[: step.bucket.samples]


def summed(shards, step):
    """{row: sums in which it takes part}, one of each device that asks for the row."""
    made = put_plan(shards, step.plan)
    samples = np.zeros((shards.size * made.samples, step.bucket.dim), F)
    samples[: step.bucket.samples] = step.gradients
    sums = np.asarray(row_gradients_on(shards)(shards.put(samples), made))
    sums = sums.reshape(shards.size, shards.size, -1, step.bucket.dim)
    asked = np.asarray(made.asked).reshape(shards.size, shards.size, -1)
    placement, found = Placement(step.bucket.rows, shards.size), {}
    for device, shard in np.ndindex(shards.size, shards.size):
        there = asked[device, shard] < placement.local_rows
        rows = placement.global_row(shard, asked[device, shard][there])
        for row, total in zip(rows.tolist(), sums[device, shard][there], strict=True):
            found.setdefault(row, []).append(total)
        assert not sums[device, shard][~there].any(), "a row of padding has a gradient"
    return found


@pytest.mark.parametrize("quantization", [None, WHOLE], ids=["plain", "quantized"])
@settings(max_examples=40)
@given(st.data())
def test_lookup_is_the_reference_s_where_sums_are_exact(shards, quantization, data):
    step = data.draw(steps(EXACT, shards.size))
    wanted = reference.lookup(step.table, step.plan, quantization)
    assert_same("lookup", looked_up(shards, step, quantization), wanted)


@pytest.mark.parametrize("quantization", [None, FINE], ids=["plain", "quantized"])
@settings(max_examples=40)
@given(st.data())
def test_lookup_of_any_numbers_is_within_its_bound(shards, quantization, data):
    step = data.draw(steps(REAL, shards.size))
    found = looked_up(shards, step, quantization)
    for sample, bag in enumerate(step.bags):
        rows = [quantized(exact(step.table[row], XLA_ON_CPU), quantization) for row, _ in bag]
        gains = [exact(F(gain), XLA_ON_CPU) for _, gain in bag]
        check_within(f"sample {sample}", found[sample], bounded_bag(rows, gains, step.bucket.dim))


@settings(max_examples=40)
@given(st.data())
def test_row_gradients_are_the_reference_s_where_sums_are_exact(shards, data):
    """On a mesh each device has its own part of a row's sum."""
    step = data.draw(steps(EXACT, shards.size))
    with np.errstate(invalid="ignore"):
        found = {row: np.sum(parts, axis=0) for row, parts in summed(shards, step).items()}
    plan = step.plan
    assert sorted(found) == plan.unique.tolist()
    wanted = reference.row_gradients(step.gradients, plan)
    for row, total in zip(plan.unique.tolist(), wanted, strict=True):
        assert_same(f"row {row}", found[row], total)


@settings(max_examples=40)
@given(st.data())
def test_row_gradients_of_any_numbers_are_within_their_bound(shards, data):
    step = data.draw(steps(REAL, shards.size))
    parts = even_parts(step.bucket.samples, shards.size)
    for row, found in summed(shards, step).items():
        wanted = []
        for [(low, high)] in parts:
            terms = [
                exact(F(gain), XLA_ON_CPU) * exact(step.gradients[sample], XLA_ON_CPU)
                for sample in range(low, high)
                for other, gain in step.bags[sample]
                if other == row
            ]
            wanted += [sum_of(terms)] if terms else []
        for total, bound in zip(found, wanted, strict=True):
            check_within(f"row {row}", total, bound)


@settings(max_examples=40)
@given(st.data())
def test_a_shard_is_asked_for_the_rows_of_the_plan(shards, data):
    step = data.draw(steps(EXACT, shards.size))
    placement = Placement(step.bucket.rows, shards.size)
    found = np.asarray(shard_rows_on(shards)(put_plan(shards, step.plan)))
    rows = set()
    for shard, local in enumerate(found.reshape(shards.size, -1)):
        there = local[local < placement.local_rows]
        rows |= set(placement.global_row(shard, there).tolist())
    assert rows == set(step.plan.unique.tolist())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_looked_up_do_not_leak_through_padding(shards, bad):
    """Row 0 and the last row are where padding points."""
    bucket = BUCKETS[2]
    table = np.full((bucket.rows, bucket.dim), bad, F)
    table[7] = 3.0
    bags = [[(7, 1.0)] * (sample % 3) for sample in range(bucket.samples)]
    plan = plan_of(bags, bucket.rows)
    found = lookup_on(shards, None)(put_table(table, shards), put_plan(shards, plan))
    wanted = [[3.0 * len(bag)] * bucket.dim for bag in bags]
    assert np.asarray(found)[: bucket.samples].tolist() == wanted


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gain_of_zero_is_arithmetic(shards, bad):
    """0 times infinity is not a number, as in the reference."""
    bucket = BUCKETS[1]
    table = np.full((bucket.rows, bucket.dim), bad, F)
    bags = [[(1, 0.0)]] + [[]] * (bucket.samples - 1)
    plan = plan_of(bags, bucket.rows)
    found = lookup_on(shards, None)(put_table(table, shards), put_plan(shards, plan))
    found = np.asarray(found)[: bucket.samples]
    assert np.isnan(found[0]).all()
    assert not found[1:].any()
    assert_same("lookup", found, reference.lookup(table, plan))


def test_the_defaults_are_one_device_and_plain_xla():
    plan = put_plan(Shards(), plan_of([[(1, 2.0), (0, 1.0)], []], 2))
    table, gradients = jnp.array([[1.0], [10.0]]), jnp.array([[3.0], [4.0]])
    assert lookup(table, plan).tolist() == [[21], [0]]
    assert row_gradients(gradients, plan)[:2].tolist() == [[3], [6]]
