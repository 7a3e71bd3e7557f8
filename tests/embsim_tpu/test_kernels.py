"""The XLA kernels, each by itself; whole steps are in test_lookup.py and test_update.py."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embsim import QuantizationConfig
from embsim.definition import quantized
from embsim_tpu._mesh import Shards
from embsim_tpu.kernels import NAMES, choose, xla
from embsim_tpu.ops import Ops
from embsim_tpu.plan import device_plan, even_parts
from tests.embsim.programs import assert_same
from tests.embsim_tpu.conftest import BUCKETS, EXACT, F, capacities, numbers, plan_of, steps


def minus(w, g, slots):
    """w <- w - g, and a count of updates of width 1."""
    return w - g, tuple(slot + 1 for slot in slots)


def put_plan(plan):
    return device_plan(plan, even_parts(plan.samples, 1), capacities(), Shards())


@jax.jit
def update_rows(table, slot, rows, gradients):
    return xla.update_rows(table, (slot,), rows, gradients, minus)


@jax.jit
def update_all(table, slot, rows, gradients, local_rows):
    return xla.update_all(table, (slot,), rows, gradients, minus, local_rows)


class TestChoice:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
    def test_by_name_and_platform(self, name, platform):
        made = choose(name, platform)
        assert made is choose(name, platform)
        assert made.name == "xla"
        assert made.ops == Ops(exact=platform == "cpu")
        assert (made.sum_bags, made.update_rows) == (xla.sum_bags, xla.update_rows)

    def test_an_unknown_name_is_refused(self):
        with pytest.raises(
            ValueError, match=r"kernels is 'fast'; it must be one of \('auto', 'xla'\)"
        ):
            choose("fast", "cpu")


class TestSums:
    @settings(max_examples=30)
    @given(st.data())
    def test_the_two_forms_of_a_lookup_agree(self, data):
        """One id each is the general case without the sum."""
        bucket = BUCKETS[1]
        gains = st.sampled_from([1.0, -0.5, 0.0])
        ids = st.tuples(st.integers(0, bucket.rows - 1), gains)
        bags = [[data.draw(ids)] for _ in range(bucket.samples)]
        table = jnp.array(data.draw(numbers((bucket.rows, bucket.dim), EXACT)))
        plan = put_plan(plan_of(bags, bucket.rows))
        assert plan.one_id_each
        leaves = {name: getattr(plan, name) for name in vars(plan)}
        general = type(plan)(**{**leaves, "one_id_each": False})
        one, other = (xla.sum_bags(table, each, None, Ops()) for each in (plan, general))
        assert_same("lookup", np.asarray(one), np.asarray(other))

    def test_contributions_are_added_in_their_order(self):
        """2^24 + 1 + 1 is 2^24, 1 + 1 + 2^24 is not, in floats."""
        table = jnp.array([[2.0**24], [1.0]])
        for bag, wanted in (([0, 1, 1], 2.0**24), ([1, 1, 0], 2.0**24 + 2)):
            plan = put_plan(plan_of([[(row, 1.0) for row in bag]], 2))
            assert xla.sum_bags(table, plan, None, Ops()).tolist() == [[wanted]]
            plan = put_plan(plan_of([[(0, 1.0)] for _ in bag], 1))
            gradients = jnp.array([[float(table[row, 0])] for row in bag])
            assert xla.sum_rows(gradients, plan, 1).tolist() == [[wanted]]

    @settings(max_examples=30)
    @given(numbers((40, 1), (-2.0, -0.3, 0.0, 0.1, 0.35, 0.7, 1.0, 5.0, np.nan, np.inf, -np.inf)))
    def test_quantization_is_the_definition_s(self, x):
        """Levels are exact here: width and limits are powers of two."""
        config = QuantizationConfig(9, -1.0, 1.0)
        plan = put_plan(plan_of([[(row, 1.0)] for row in range(40)], 40))
        found = np.asarray(xla.sum_bags(jnp.array(x), plan, config, Ops()))
        assert_same("quantized", found, quantized(x, config))


class TestUpdates:
    @settings(max_examples=30)
    @given(st.data())
    def test_only_the_rows_that_are_named_are_written(self, data):
        bucket = BUCKETS[2]
        step = data.draw(steps(EXACT, buckets=[bucket]))
        touched = step.plan.unique
        rows = np.arange(bucket.rows, 2 * bucket.rows, dtype=np.int32)
        rows[: len(touched)] = touched
        gradients = data.draw(numbers((len(rows), bucket.dim), (0.0, 1.0, -2.0, np.nan)))
        slot = data.draw(numbers((bucket.rows, 1), EXACT))
        found, (counted,) = update_rows(step.table, slot, rows, gradients)
        wanted, wanted_slot = step.table.copy(), slot.copy()
        wanted[touched] -= gradients[: len(touched)]
        wanted_slot[touched] += 1
        rest = np.setdiff1d(np.arange(bucket.rows), touched)
        assert_same("table", np.asarray(found), wanted)
        assert_same("slot", np.asarray(counted), wanted_slot)
        assert np.asarray(found)[rest].tobytes() == step.table[rest].tobytes()
        assert np.asarray(counted)[rest].tobytes() == slot[rest].tobytes()

    @pytest.mark.parametrize("local_rows", [0, 1, 5, 8])
    def test_of_every_row_padding_stays_as_it_is(self, local_rows):
        table, slot = np.arange(16, dtype=F).reshape(8, 2), np.full((8, 1), 7, F)
        rows = np.array([1, 4, 8, 9], np.int32)
        gradients = np.full((4, 2), 10, F)
        found, (counted,) = update_all(
            table, slot, rows, gradients, np.array([local_rows], np.int32)
        )
        wanted, wanted_slot = table.copy(), slot.copy()
        wanted[[row for row in (1, 4) if row < local_rows]] -= 10
        wanted_slot[:local_rows] += 1
        assert np.asarray(found).tolist() == wanted.tolist()
        assert np.asarray(counted).tolist() == wanted_slot.tolist()


class TestBlocks:
    """The form that a TPU is shown, run on this CPU."""

    @pytest.mark.parametrize("count, dim", [(1, 64), (5, 64), (8, 200)])
    def test_rows_are_read_and_written_as_they_are_plainly(self, count, dim):
        """Of any bits, beyond the last row too."""
        draw = np.random.default_rng(count)
        read, write = jax.jit(xla.read_blocks), jax.jit(partial(xla.write_blocks, unique=True))
        for _ in range(5):
            array, values = (
                draw.integers(0, 2**32, (rows, dim), np.uint32).view(F) for rows in (count, 4)
            )
            rows = np.sort(draw.choice(count + 4, 4, replace=False)).astype(np.int32)
            wanted = array[np.minimum(rows, count - 1)]
            assert np.asarray(read(array, rows)).tobytes() == wanted.tobytes()
            inside = rows < count
            wanted = array.copy()
            wanted[rows[inside]] = values[inside]
            assert np.asarray(write(array, rows, values)).tobytes() == wanted.tobytes()

    def test_rows_that_are_named_twice_are_written_once(self):
        array, values = jnp.zeros((4, 64)), jnp.ones((3, 64))
        rows = jnp.array([2, 2, 9])
        for found in (
            xla.write_blocks(array, rows, values, unique=False),
            xla.write(array, rows, values),
        ):
            assert found.sum(axis=1).tolist() == [0, 0, 64, 0]
