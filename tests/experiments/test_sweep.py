"""Sweeps on few flights: paired, deterministic, and what reports say of made-up records."""

import dataclasses

import numpy as np
import pytest

from experiments import (
    batch_size,
    hybrid_against_async,
    one_stale_step,
    optimizers,
    row_clocks,
    study,
    sweep,
    zero_tables,
)
from experiments.sweep import Record

SMALL = one_stale_step.Params(seeds=(0,), samples=3000, epochs=2)


@pytest.fixture(scope="module")
def records():
    return one_stale_step.run(SMALL)


def test_the_points_of_the_sweep_run_alone_as_they_do_together(records):
    (alone,) = one_stale_step.run(dataclasses.replace(SMALL, staleness=(1,)))
    assert alone == records[1]
    assert [r.steps for r in records] == [2 * 2700 // 256] * 2
    assert records[0].early_loss == records[1].early_loss  # of one batch, which misses nothing
    fresh, stale = records
    assert fresh.auc != stale.auc and 0.5 < fresh.auc < 0.8
    assert (fresh.missed, fresh.stale_mass) == (0, 0) and stale.missed > 0 < stale.stale_mass


def test_a_tenth_is_held_out_and_each_epoch_has_an_order_of_its_own():
    training, held_out = sweep.split("flights", 1000, 2, 3)
    assert (len(training), len(held_out)) == (1800, 100)
    first, second = (training.take(np.arange(900) + at) for at in (0, 900))
    keys = [np.sort(part.times) for part in (first, second)]
    np.testing.assert_array_equal(*keys)
    assert not np.array_equal(first.times, second.times)
    other, _ = sweep.split("flights", 1000, 2, 4)
    assert not np.array_equal(training.times, other.times)


def made_up(losses, seeds=5, moved=lambda staleness: 0.0):
    """Records in which a cell (variant, staleness) costs so many bp, the same in each seed."""
    return [
        Record(
            *(seed, variant, k, 10, 0.7 + seed / 1000 - 1e-4 * loss),
            *(0.5 + loss / 100, 0.5 * k, 0.1, moved(k), 1.0),
        )
        for seed in range(seeds)
        for (variant, k), loss in losses.items()
    ]


def test_what_diverged_is_said_and_drawn():
    made = made_up({("a", 0): 0.0, ("a", 4): float("nan")})
    assert "diverged" in sweep.report(made)
    (axes,) = sweep.figure(made).axes
    assert axes.get_xlim()[1] == pytest.approx(5)


def test_changes_are_paired_by_seed():
    made = made_up({("a", 0): 0.0, ("a", 4): 30.0})
    found = sweep.change(sweep.cells(made), "a", 4)
    assert found.mean == pytest.approx(-30) and found.verdict == "loss"
    assert "-30.0 ± 0.0" in sweep.report(made) and "5 seeds" in sweep.report(made)


@pytest.mark.parametrize(
    ("loss", "held"), [(2.0, "holds"), (9.0, "undecided"), (11.0, "undecided"), (15.0, "does not")]
)
def test_one_stale_step_is_within_ten_bp_only_with_its_uncertainty(loss, held):
    """The 95 % interval of 2 bp times (-2..2) is ± 3.93; its detection limit, 5.23, is another."""
    made = made_up({("Adagrad", 0): 0.0, ("Adagrad", 1): loss})
    shaken = [dataclasses.replace(r, auc=r.auc + 2e-4 * r.staleness * (r.seed - 2)) for r in made]
    assert one_stale_step.verdict(shaken).startswith(held)
    text = one_stale_step.report(shaken)
    assert f"95 % interval: {-loss - 3.93:+.1f} to {-loss + 3.93:+.1f} bp: {held}" in text
    near = [dataclasses.replace(r, auc=r.auc - 3.4e-4 * r.staleness) for r in shaken]
    if loss == 2.0:  # -5.4 ± 3.9: inside; by the detection limit it would not be
        assert one_stale_step.verdict(near) == "holds"
    assert one_stale_step.verdict([r for r in shaken if r.seed < 4]) == "no claim: 4 of 5 seeds"


@pytest.mark.parametrize(("loss", "held"), [(50.0, "holds"), (20.0, "does not hold")])
def test_async_loses_three_times_what_hybrid_loses_or_not(loss, held):
    cells = {("hybrid", 0): 0.0, ("hybrid", 16): 10.0, ("async", 0): 0.0, ("async", 16): loss}
    line = hybrid_against_async.report(made_up(cells)).splitlines()[-1]
    assert line.endswith(f": {held}") and f"{loss:.1f} against 10.0" in line


def test_the_verdict_on_async_is_at_each_staleness_from_16_on():
    cells = {(v, k): 0.0 for v in ("hybrid", "async") for k in (0, 8, 16, 32)}
    cells |= {("hybrid", 16): 10.0, ("async", 16): 50.0, ("hybrid", 32): 10.0, ("async", 32): 20.0}
    said = hybrid_against_async.verdict(made_up(cells))
    assert said == "at 16: holds; at 32: does not hold"


def test_async_has_stale_dense_weights_and_hybrid_has_not():
    t = np.array([20])
    assert hybrid_against_async._pipeline("async", 16).dense_seen(t) == 4
    assert hybrid_against_async._pipeline("hybrid", 16).dense_seen(t) == 20
    law = hybrid_against_async._pipeline("async", 16).law
    assert law is not None and law.staleness == 16


def test_batch_sizes_are_compared_at_staleness_0():
    cells = {("B = 256", 0): 0.0, ("B = 256", 8): 7.0, ("B = 1024", 0): 40.0, ("B = 1024", 8): 90.0}
    text = batch_size.report(made_up(cells))
    assert "B = 1024 against B = 256: -40.0 bp: loss" in text
    assert "B = 1024, staleness 8: -50.0 bp: loss" in text
    assert batch_size.verdict(made_up(cells)) == "holds"
    cells["B = 256", 8] = 0.0
    assert batch_size.verdict(made_up(cells)) == (
        "a loss, as expected: B = 1024 against B = 256; B = 1024, staleness 8; of 3"
    )
    assert batch_size._setup("B = 1024", "reference").batch_size == 1024


def test_optimizers_that_gain_by_staleness_refute_the_expectation():
    cells = {("SGD x 1", 0): 0.0, ("SGD x 1", 8): float("nan"), ("Adam x 1", 0): 0.0}
    text = optimizers.report(made_up({**cells, ("Adam x 1", 8): 30.0}))
    assert "SGD x 1: +nan at 8 bp: diverged at 8" in text and text.endswith("It holds.")
    text = optimizers.report(made_up({**cells, ("Adam x 1", 8): -30.0}))
    assert text.endswith("It does not hold of Adam x 1.")
    assert optimizers.verdict(made_up({("Adam x 1", 0): 0.0, ("Adam x 1", 8): 0.0}, 2)) == (
        "no claim: 2 of 5 seeds"
    )


def test_variants_of_optimizers_have_twice_the_rate():
    rates = [optimizers._setup(v, "reference").optimizer.learning_rate for v in optimizers.VARIANTS]
    assert len(rates) == 8 and rates[1::2] == [2 * rate for rate in rates[::2]]


def test_caches_with_clocks_move_fewer_rows_for_longer_bounds():
    params = row_clocks.Params(seeds=(0,), staleness=(0, 5), samples=9000, epochs=1)
    tight, loose = row_clocks.run(params)
    assert loose.moved < 0.9 * tight.moved and loose.missed > tight.missed
    assert "0.90 at 0, 0.40 at 5; expected to fall: holds" in row_clocks.report(
        made_up(
            {("eight workers", 0): 0.0, ("eight workers", 5): 1.0}, moved=lambda k: 0.9 - k / 10
        )
    )


@pytest.mark.parametrize(
    "module",
    [one_stale_step, hybrid_against_async, batch_size, optimizers, row_clocks, zero_tables],
)
def test_each_study_has_sizes_and_a_figure(module):
    for params in (module.Params(), module.Params.smoke(), module.Params.full()):
        assert params.staleness[0] == 0 and study.single_runs(params)
    assert len(module.Params().seeds) == 5
    default = module.Params()
    cells = {(v, k): 3.0 * k for v in default.variants for k in default.staleness}
    (axes,) = module.STUDY.figure(made_up(cells)).axes
    assert len(axes.containers) == len(default.variants)
    assert "Expectation (written before the run)" in module.__doc__


def of_tables(adagrad, sgd, normal=0.0):
    losses = {}
    for optimizer, loss in (("Adagrad", adagrad), ("SGD", sgd)):
        for law, bp in (("zeros", loss), ("normal", normal)):
            losses |= {(f"{optimizer}, {law}", 0): 0.0, (f"{optimizer}, {law}", 1): bp}
    return made_up(losses)


def test_tables_of_zeros_must_lose_what_normal_ones_do_not():
    """Early losses of the records grow as their AUC falls."""
    assert zero_tables.verdict(of_tables(15.0, 5.0)) == (
        "Adagrad: AUC holds, early loss holds; SGD: AUC does not hold, early loss holds"
    )
    said = zero_tables.verdict(of_tables(-15.0, 15.0, normal=15.0))
    assert said.startswith(
        "Adagrad: AUC does not hold, early loss does not hold; SGD: AUC does not"
    )
    diverged = [
        dataclasses.replace(r, auc=float("nan") if r.staleness and "zeros" in r.variant else r.auc)
        for r in of_tables(15.0, 15.0)
    ]
    assert zero_tables.verdict(diverged).count("AUC holds") == 2
    made = of_tables(15.0, 15.0)
    shaken = [dataclasses.replace(r, early_loss=r.early_loss * (r.seed - 2)) for r in made]
    assert zero_tables.verdict(shaken).count("early loss undecided") == 2
    assert zero_tables.verdict([r for r in made if r.seed < 4]) == "no claim: 4 of 5 seeds"
    assert "Adagrad, zeros: 0.5000 at 0, 0.6500 at 1" in zero_tables.report(of_tables(15.0, 5.0))


def test_tables_of_zeros_are_zeros():
    assert zero_tables._setup("SGD, zeros", "reference").initial_stddev == 0
    assert zero_tables._setup("SGD, normal", "reference").initial_stddev == 0.03
