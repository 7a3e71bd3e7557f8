"""A step's bounds hold for the definition in any order of its bags, and only for a right step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embsim import (
    FTRL,
    SGD,
    Adagrad,
    Adam,
    FeatureConfig,
    QuantizationConfig,
    TableConfig,
    definition,
)
from embsim.conformance import Difference, Setup, Values
from embsim.conformance.bounded import (
    bounded_step,
    check_activations,
    check_state,
    gains,
    quantized,
)
from embsim.conformance.checks._real_steps import GRADIENTS, WEIGHTS
from embsim.conformance.lockstep import definition_of
from embsim.conformance.strategies import batches, gradients, setups
from embsim.conformance.tolerance import Rounded, check_within, exact

F = np.float32
NUMBERS = st.sampled_from([F(x) for x in (*GRADIENTS, *WEIGHTS, 2.0**24, -7.5, 1e4)])
SEEDS = st.integers(0, 2**32 - 1)


def arrays_of(law, version):
    """({table: weights}, {table: {slot: values}}) of a version of the law."""
    configs = {str(config.name): config for config in version}
    tables = {name: version[config][0] for name, config in configs.items()}
    slots = {
        name: {
            slot.name: values
            for slot, values in zip(law.optimizers[config].slots, version[config][1:], strict=True)
        }
        for name, config in configs.items()
    }
    return tables, slots


def step_of_the_law(setup, versions, batch, slopes):
    law = definition_of(setup)
    if versions:
        law.versions = [versions[-1]]
    before = arrays_of(law, law.versions[-1])
    activations = law.dequeue(batch)
    law.apply_gradients(slopes)
    return law, before, activations, arrays_of(law, law.versions[-1])


def with_bags_turned(batch, features):
    """Every bag backwards, but for those whose positions matter."""
    return [
        bags if feature.max_sequence_length else [list(reversed(bag)) for bag in bags]
        for feature, bags in zip(features, batch, strict=True)
    ]


@settings(max_examples=60)
@given(data=st.data())
def test_the_definition_is_within_its_bounds_in_any_order_of_the_bags(data):
    setup = data.draw(setups(regime="real"))
    versions = None
    for _ in range(2):
        batch = data.draw(batches(setup, regime="real"))
        slopes = data.draw(gradients(setup, regime="real"))
        law, before, activations, after = step_of_the_law(setup, versions, batch, slopes)
        bounds = bounded_step(setup, *before, batch, slopes)
        check_activations(setup, activations, bounds)
        check_state(setup, before, after, bounds, "after the step")
        sequential = any(
            getattr(t.optimizer, "use_gradient_accumulation", True) is False
            for t in setup.tables.values()
        )
        if not sequential:
            turned = with_bags_turned(batch, setup.features)
            _, _, other, others = step_of_the_law(setup, law.versions[:-1], turned, slopes)
            check_activations(setup, other, bounds)
            check_state(setup, before, others, bounds, "after the step")
        versions = law.versions


def one_step(optimizer, bags, *, combiner="sum", rows=3):
    """(setup, before, activations, after, bounds) of one step with gradients of 0.3 and 3."""
    values = np.arange(2 * rows).reshape(rows, 2) / 7
    table = TableConfig(rows, 2, Values(values), optimizer, combiner, "t0")
    setup = Setup((FeatureConfig(table),), samples=len(bags))
    slopes = [np.tile(F([0.3, 3.0]), (len(bags), 1))]
    _, before, activations, after = step_of_the_law(setup, None, [bags], slopes)
    return setup, before, activations, after, bounded_step(setup, *before, [bags], slopes)


def test_a_lookup_of_one_row_with_gain_one_is_exact():
    setup, _, activations, _, bounds = one_step(SGD(1.0), [[1]])
    check_activations(setup, activations, bounds)
    (row,) = bounds.activations[0].values()
    assert (row.error == 0).all()
    with pytest.raises(Difference, match="activations of feature 0"):
        check_activations(setup, [np.nextafter(activations[0], F(9))], bounds)


def test_a_few_ulps_more_than_a_lookup_s_bound_are_found():
    setup, _, activations, _, bounds = one_step(SGD(1.0), [[1, 2, 2]], combiner="mean")
    check_activations(setup, activations, bounds)
    with pytest.raises(Difference, match="the computed bound is"):
        check_activations(setup, [activations[0] * F(1 + 10 * 2.0**-23)], bounds)


def test_an_empty_bag_must_be_zero():
    setup, _, activations, _, bounds = one_step(SGD(1.0), [[1], []])
    wrong = activations[0].copy()
    wrong[1, 0] = 2.0**-149
    with pytest.raises(Difference, match=r"place \[1\]"):
        check_activations(setup, [wrong], bounds)


@pytest.mark.parametrize("found", [None, [], [np.zeros((2, 2), F)]])
def test_missing_activations_and_other_shapes_are_named(found):
    setup, *_, bounds = one_step(SGD(1.0), [[1]])
    with pytest.raises(Difference, match="it must"):
        check_activations(setup, found, bounds)


@pytest.mark.parametrize("optimizer", [SGD(0.1), Adagrad(0.1), Adam(0.1), FTRL(0.1, beta=1.0)])
def test_some_ulps_more_than_an_update_s_bound_are_found(optimizer):
    setup, before, _, after, bounds = one_step(optimizer, [[1, 2], [2]])
    check_state(setup, before, after, bounds, "after the step")
    wrong = after[0]["t0"].copy()
    wrong[2] *= F(1 + 100 * 2.0**-23)
    with pytest.raises(Difference, match="weights of table 't0', row 2") as raised:
        check_state(setup, before, ({"t0": wrong}, after[1]), bounds, "after the step")
    assert (raised.value.table, raised.value.row) == ("t0", 2)


def test_a_row_that_was_not_looked_up_may_not_change_at_all():
    setup, before, _, after, bounds = one_step(Adagrad(0.1), [[1], [2]])
    for kind in ("weights", "slot 'accumulators'"):
        tables = {"t0": after[0]["t0"].copy()}
        slots = {"t0": {"accumulators": after[1]["t0"]["accumulators"].copy()}}
        changed = tables["t0"] if kind == "weights" else slots["t0"]["accumulators"]
        changed[0, 1] = np.nextafter(changed[0, 1], F(9))
        with pytest.raises(Difference, match=f"{kind} of table 't0', row 0 was not looked up"):
            check_state(setup, before, (tables, slots), bounds, "after the step")


def test_a_non_lazy_optimizer_updates_every_row():
    setup, before, _, after, bounds = one_step(Adam(0.1, lazy_adam=False), [[1], [2]])
    assert sorted(bounds.rows["t0"]) == [0, 1, 2]
    check_state(setup, before, after, bounds, "after the step")


@settings(max_examples=40)
@given(data=st.data())
def test_nearly_every_drawn_number_has_a_bound(data):
    """Only denominators that may be 0 have none."""
    setup = data.draw(setups(regime="real", combiners=("sum",), quantized=False))
    law = definition_of(setup)
    before = arrays_of(law, law.versions[-1])
    batch = data.draw(batches(setup, regime="real"))
    bounds = bounded_step(setup, *before, batch, data.draw(gradients(setup, regime="real")))
    for places in bounds.activations:
        assert all(np.isfinite(row.error).all() for row in places.values())
    for rows in bounds.rows.values():
        for w, slots in rows.values():
            assert all(np.isfinite(each.error).all() for each in (w, *slots))


# --- gains and quantization


@settings(max_examples=200)
@given(st.lists(NUMBERS, max_size=5), st.sampled_from(["sum", "mean", "sqrtn"]), SEEDS)
def test_gains_are_those_of_the_definition_in_any_order(weights, combiner, seed):
    bounds = gains([float(weight) for weight in weights], combiner)
    order = np.random.default_rng(seed).permutation(len(weights))
    with np.errstate(all="ignore"):
        for places in (range(len(weights)), order):
            found = definition.gains([weights[i] for i in places], combiner)
            for i, gain in zip(places, found, strict=True):
                check_within("gain", np.asarray(gain), bounds[i])


def test_weights_that_are_all_zero_have_gain_zero_and_no_doubt():
    for combiner in ("mean", "sqrtn"):
        assert [(g.value, g.error) for g in gains([0.0, 0.0], combiner)] == [(0, 0), (0, 0)]


def test_a_denominator_that_may_be_zero_has_no_bound():
    assert all(not np.isfinite(gain.error) for gain in gains([0.1, -0.1], "mean"))


@settings(max_examples=200)
@given(st.lists(NUMBERS, min_size=1, max_size=4), st.sampled_from([2, 3, 100]))
def test_quantized_rows_are_within_their_bounds(row, buckets):
    config = QuantizationConfig(buckets, -0.3, 0.7)
    row = np.array(row, F)
    bounded = quantized(exact(row), config)
    check_within("row", definition.quantized(row, config), bounded)


def test_near_a_tie_both_buckets_are_right():
    config = QuantizationConfig(3, -1.0, 1.0)
    tie, beside = exact(F([0.5])), exact(F([0.25]))
    both = quantized(Rounded(tie.value, np.array([1e-6])), config)
    check_within("row", F([1.0]), both)
    check_within("row", F([0.0]), both)
    with pytest.raises(Difference):
        check_within("row", F([1.0]), quantized(beside, config))
