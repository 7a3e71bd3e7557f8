"""The XLA kernels, each by itself; whole steps are in test_lookup.py and test_update.py."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embsim import QuantizationConfig
from embsim.definition import quantized
from embsim.errors import BackendError
from embsim.optimizers import Adagrad, Adam, RowwiseAdagrad
from embsim.optimizers.base import Slot
from embsim_tpu import kernels as kernels_module
from embsim_tpu._mesh import Shards
from embsim_tpu.kernels import Formula, choose, xla
from embsim_tpu.kernels.records import Records
from embsim_tpu.ops import Ops
from embsim_tpu.plan import device_plan, even_parts
from tests.embsim.programs import assert_same
from tests.embsim_tpu.conftest import BUCKETS, EXACT, F, capacities, numbers, plan_of, steps


@dataclass(frozen=True)
class Minus:
    """w <- w - g, and a count of updates of width 1."""

    learning_rate: float = 1.0
    slots: tuple = (Slot("count", rowwise=True),)

    def coefficients(self, learning_rate):
        return {"one": 1.0}

    def rule(self, ops):
        return lambda w, g, slots, c: (w - g, (slots[0] + c.one,))


FORMULA = Formula(Minus(), ("one",), jnp.ones(1))
KERNELS = choose("xla", "cpu")


def put_plan(plan):
    return device_plan(plan, even_parts(plan.samples, 1), capacities(), Shards())


@jax.jit
def update_rows(table, slot, rows, gradients):
    made = KERNELS.update_rows(table, {"count": slot}, rows, gradients, FORMULA, len(table))
    return made[0], made[1]["count"]


@jax.jit
def update_all(table, slot, rows, gradients, local_rows):
    made = KERNELS.update_all(table, {"count": slot}, rows, gradients, FORMULA, local_rows)
    return made[0], made[1]["count"]


class TestChoice:
    @pytest.mark.parametrize("name", ["auto", "xla"])
    @pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
    def test_xla_runs_everywhere(self, name, platform):
        made = choose(name, platform, 64, Adagrad(0.1))
        assert made == xla.Xla(Ops(exact=platform == "cpu"))

    @pytest.mark.parametrize("name", ["pallas", "pallas-exact"])
    def test_a_tpu_s_kernels_are_interpreted_on_cpu_and_refused_on_gpu(self, name):
        on_tpu, on_cpu = (choose(name, platform, 64, Adam(0.1)) for platform in ("tpu", "cpu"))
        assert on_tpu.launch.interpret is False and on_cpu.launch.interpret is True
        assert on_tpu.records == on_cpu.records == Records(64, 3)
        assert on_tpu.exact == (name == "pallas-exact")
        with pytest.raises(ValueError, match=f"kernels is '{name}', which are a TPU's; on GPU"):
            choose(name, "gpu", 64, Adam(0.1))

    def test_auto_takes_no_kernel_that_has_never_run(self, monkeypatch):
        """Then by the counts: on a v6e XLA has fewer bundles for narrow rows."""
        v6e = "tpu", 64, Adagrad(0.1), "TPU v6 lite"
        assert frozenset() == kernels_module.RAN
        assert choose("auto", *v6e).name == "xla"
        monkeypatch.setattr(kernels_module, "RAN", frozenset({"TPU v6 lite"}))
        assert choose("auto", *v6e).name == "xla"
        assert choose("auto", "tpu", 128, Adagrad(0.1), "TPU v6 lite").name == "pallas"
        assert choose("auto", "tpu", 128, Adagrad(0.1), "TPU v5 lite").name == "xla"

    def test_sparsecores_have_no_rowwise_slots(self):
        made = choose("sparsecore", "tpu", 20, Adam(0.1))
        assert (made.records.width, made.beside, made.interpret) == (
            32,
            ("momenta", "velocities"),
            None,
        )
        with pytest.raises(BackendError, match="RowwiseAdagrad: SparseCores have no sum"):
            choose("sparsecore", "tpu", 20, RowwiseAdagrad(0.1))

    def test_an_unknown_name_is_refused(self):
        with pytest.raises(
            ValueError, match=r"kernels is 'fast'; it must be one of \('auto', 'xla', 'pallas',"
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
        one, other = (KERNELS.sum_bags(table, each, None) for each in (plan, general))
        assert_same("lookup", np.asarray(one), np.asarray(other))

    def test_contributions_are_added_in_their_order(self):
        """2^24 + 1 + 1 is 2^24, 1 + 1 + 2^24 is not, in floats."""
        table = jnp.array([[2.0**24], [1.0]])
        for bag, wanted in (([0, 1, 1], 2.0**24), ([1, 1, 0], 2.0**24 + 2)):
            plan = put_plan(plan_of([[(row, 1.0) for row in bag]], 2))
            assert KERNELS.sum_bags(table, plan, None).tolist() == [[wanted]]
            plan = put_plan(plan_of([[(0, 1.0)] for _ in bag], 1))
            gradients = jnp.array([[float(table[row, 0])] for row in bag])
            assert KERNELS.sum_rows(gradients, plan, 1).tolist() == [[wanted]]

    @settings(max_examples=30)
    @given(numbers((40, 1), (-2.0, -0.3, 0.0, 0.1, 0.35, 0.7, 1.0, 5.0, np.nan, np.inf, -np.inf)))
    def test_quantization_is_the_definition_s(self, x):
        """Levels are exact here: width and limits are powers of two."""
        config = QuantizationConfig(9, -1.0, 1.0)
        plan = put_plan(plan_of([[(row, 1.0)] for row in range(40)], 40))
        found = np.asarray(KERNELS.sum_bags(jnp.array(x), plan, config))
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
        found, counted = update_rows(step.table, slot, rows, gradients)
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
        found, counted = update_all(table, slot, rows, gradients, np.array([local_rows], np.int32))
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
