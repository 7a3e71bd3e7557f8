"""embsim against what other libraries really returned: tests/oracles/goldens, docs/oracles.md.

Every number is compared with a bound that is computed from the operands: embsim's own rounding
steps plus the library's. A declared divergence must be there, in the arrays that are declared.
"""

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from tests.oracles import formulas
from tests.oracles.cases import digest
from tests.oracles.compare import carried_runs, compare, compare_carried
from tests.oracles.embsim_results import looked_up, one_step_each
from tests.oracles.formulas import DIVERGENCES, FORMULAS
from tests.oracles.make_goldens import read
from tests.oracles.models import optimizer_of
from tests.oracles.runs import RUNS, Run, runs

HERE = Path(__file__).parent
DOCUMENT = (HERE.parents[1] / "docs/oracles.md").read_text()
ASKED = [(library, name) for library in RUNS for name in runs(library)]
WHOLE = [(library, run.name) for library in RUNS for run in carried_runs(library, runs(library))]

goldens = lru_cache(read)


def results(library, name):
    return goldens(library)[2][name][1]


@pytest.mark.parametrize("library, name", ASKED)
def test_one_step_at_a_time(library, name):
    """Lookups; and each step of a trajectory, from the library's own state before it."""
    found = compare(library, runs(library)[name], results(library, name))
    assert found.fault is None
    assert found.silent == set(), "declared to diverge, but does not"


@pytest.mark.parametrize("library, name", WHOLE)
def test_whole_trajectories(library, name):
    """30 steps of one embedding, the bound carried along."""
    found = compare_carried(library, runs(library)[name], results(library, name))
    assert found.fault is None
    assert found.unbounded == 0


@pytest.mark.parametrize("library", RUNS)
def test_goldens_are_of_these_inputs(library):
    _, _, found = goldens(library)
    assert {name: inputs for name, (inputs, _) in found.items()} == {
        name: digest(run.case) for name, run in runs(library).items()
    }


@pytest.mark.parametrize("library", RUNS)
def test_goldens_are_of_the_pinned_versions(library):
    pins = dict(
        line.replace("-", "_").split("==")
        for line in (HERE / f"requirements-{library}.txt").read_text().splitlines()
        if "==" in line
    )
    versions = {name: version.split("+")[0] for name, version in goldens(library)[0].items()}
    assert versions.items() <= pins.items()


# --- the comparison itself ----------------------------------------------------------------------


@pytest.mark.parametrize("array", ["w", "accumulators", "linears"])
def test_a_number_that_is_a_little_off_is_found(array):
    """Three times the rounding of one number, in one of 30 steps."""
    run = runs("tensorflow")["ftrl_regular"]
    touched = run.case.rows[7, 0]
    off = {name: values.copy() for name, values in results("tensorflow", run.name).items()}
    before = {name: np.concatenate([first[None], off[name][:-1]]) for name, first in first_of(run)}
    bound = 32 * np.spacing(abs(before[array][7, touched]) + abs(off[array][7, touched]))
    off[array][7, touched] += bound
    assert "does not do what its formula says" in compare("tensorflow", run, off).fault


def first_of(run):
    return {"w": run.case.table, **run.case.slots}.items()


def test_a_formula_that_is_not_the_library_s_is_found():
    """TensorFlow's trajectory with the epsilon of Keras, taken for the one without."""
    other = results("tensorflow", "adagrad_small/keras_epsilon")
    run = runs("tensorflow")["adagrad_small"]
    assert "times the bound" in compare("tensorflow", run, other).fault
    assert compare_carried("tensorflow", run, other).diverging.keys() == {"w"}


def test_a_declared_divergence_that_is_not_there_is_found():
    run = runs("torch")["adagrad_small"]
    declared = Run("adagrad_small/default_eps", run.case, {"eps": 0.0})
    assert compare("torch", declared, results("torch", "adagrad_small")).silent == {"w"}


# --- divergences, one by one --------------------------------------------------------------------


def test_the_document_has_every_divergence():
    rows = re.findall(r"^\| (D\d+) \|.*`(test_d\d+)_\w+` \|$", DOCUMENT, re.MULTILINE)
    assert [f"test_{row.lower()}" for row, _ in rows] == [test for _, test in rows]
    assert {row for row, _ in rows} >= {row for row, _ in DIVERGENCES.values()}
    named = set(re.findall(r"`(test_d\d+\w*)`", DOCUMENT))
    assert named == {name for name in globals() if re.match(r"test_d\d", name)}
    assert set(DIVERGENCES) <= set(ASKED)
    assert {library for library, _ in FORMULAS} <= set(RUNS)


def run_and_results(library, name):
    return runs(library)[name], results(library, name)


def check_does_not_fit(library, name):
    """The library's numbers are not those of its formula, as patched by the test."""
    fault = compare(library, *run_and_results(library, name)).fault
    assert f"{library} does not do what its formula says" in fault


def states(library, name):
    """[steps, rows, dim] by array: the library's before each step, embsim's and its own after."""
    run, theirs = run_and_results(library, name)
    before = {
        key: np.concatenate([first[None], theirs[key][:-1].astype("f4")])
        for key, first in first_of(run)
    }
    return before, one_step_each(run.case, before), theirs


@pytest.mark.parametrize("combiner", ["mean", "sqrtn"])
def test_d1_tensorflow_drops_weights_that_are_not_positive(combiner):
    """Bag 0 has row 1 with weight 1 and row 2 with weight -1."""
    run, safe = run_and_results("tensorflow", f"lookup/signs_{combiner}/safe")
    mine = looked_up(run.case)["activations 0"][0]
    one, two = run.case.table[1:3]
    assert np.array_equal(safe["activations 0"][0], one)
    assert not safe["row gradients"][2].any()
    root = np.float32(1) / np.sqrt(np.float32(2))
    assert np.array_equal(mine, 0 * one if combiner == "mean" else root * one - root * two)
    for kind in ("unsafe", "ragged"):  # neither validates
        name = f"lookup/signs_{combiner}/{kind}"
        assert not compare("tensorflow", *run_and_results("tensorflow", name)).diverging


@pytest.mark.parametrize("name", ["adam", "adam_all_rows"])
def test_d2_tensorflow_sets_subnormal_velocities_to_zero(name):
    _, mine, theirs = states("tensorflow", name)
    mine, theirs = mine["velocities"], theirs["velocities"]
    smallest = np.finfo(np.float32).tiny
    subnormal = (mine > 0) & (mine < smallest)
    assert subnormal.any()
    assert not theirs[subnormal].any()
    assert not ((theirs > 0) & (theirs < smallest)).any()
    apart = compare("tensorflow", *run_and_results("tensorflow", name)).apart["velocities"]
    assert 0 < (apart > 1).sum() <= subnormal.sum()


def test_d3_tensorflow_rounds_beta_2_before_it_subtracts():
    """1 - float32(0.999) is 0.00099998713, not 0.001: first velocities are 1.3e-5 smaller. On
    either side c * (g * g) has three roundings, c's own included.
    """
    before, mine, theirs = states("tensorflow", "adam_default_betas")
    case = runs("tensorflow")["adam_default_betas"].case
    once = [[list(rows).count(row) == 1 for row in range(len(case.table))] for rows in case.rows]
    fresh = (before["velocities"] == 0) & (mine["velocities"] > 1e-30) & np.array(once)[..., None]
    surplus = theirs["velocities"][fresh] / mine["velocities"][fresh].astype("f8") - 1
    exact = (1 - float(np.float32(0.999))) / 0.001 - 1
    assert fresh.any()
    assert -1.29e-5 < exact < -1.28e-5
    assert abs(surplus - exact).max() < 6.001 * 2.0**-24


def test_d4_tensorflow_s_velocity_is_nan_after_an_overflow():
    """v + (g * g - v) * c is inf - inf, where b2 * v + c2 * (g * g) stays infinite."""
    before, mine, theirs = states("tensorflow", "adam_beyond")
    again = np.isinf(before["velocities"]) & (before["momenta"] != mine["momenta"])
    assert again.any()
    assert np.isposinf(mine["velocities"][again]).all()
    assert np.isnan(theirs["velocities"][again]).all()


def test_d5_tensorflow_s_adam_op_has_epsilon_outside_the_root_only(monkeypatch):
    """TPUEmbedding's default, and embsim's, is inside; optax, asked for it, agrees."""
    name = "adam_inside/outside_in_tensorflow"
    assert optimizer_of(runs("tensorflow")[name].case).sum_inside_sqrt
    assert not compare("optax", *run_and_results("optax", "adam_inside")).diverging
    monkeypatch.setitem(FORMULAS, ("tensorflow", name), inside)
    check_does_not_fit("tensorflow", name)


def inside(w, g, slots, p, ops):
    _, (m, v) = FORMULAS["tensorflow", "Adam"](w, g, slots, p, ops)
    return w - (p.lr * m) / ops.sqrt(v + p.eps * p.eps), (m, v)


@pytest.mark.parametrize(
    "library, epsilon", [("tensorflow", "keras"), ("torch", "default"), ("fbgemm", "default")]
)
def test_d6_other_adagrads_add_an_epsilon_to_the_root(library, epsilon, monkeypatch):
    """Outside it: the formula with epsilon inside does not fit, and none at all neither."""
    name = f"adagrad_small/{epsilon}_{'epsilon' if library == 'tensorflow' else 'eps'}"
    for other in (FORMULAS["optax", "Adagrad"], without_epsilon):
        monkeypatch.setitem(FORMULAS, (library, name), other)
        check_does_not_fit(library, name)


def without_epsilon(w, g, slots, p, ops):
    (a,) = slots
    a = a + g * g
    return w - (p.lr * g) / ops.sqrt(a), (a,)


def test_d7_optax_s_adagrad_adds_epsilon_inside_the_root(monkeypatch):
    name = "adagrad_small/default_eps"
    monkeypatch.setitem(FORMULAS, ("optax", name), FORMULAS["torch", "Adagrad"])
    check_does_not_fit("optax", name)


def test_d8_torch_s_sparse_adam_corrects_the_bias():
    """With the corrected rate as embsim's schedule they agree; with a constant rate they do not."""
    agreeing = compare("torch", *run_and_results("torch", "adam_textbook/sparse_adam"))
    assert not agreeing.diverging
    apart = compare("torch", *run_and_results("torch", "adam_default_betas/sparse_adam"))
    assert apart.diverging["w"] > apart.apart["w"].size / 2


def test_d9_optax_s_adam_adds_epsilon_after_the_correction(monkeypatch):
    """Its epsilon is 31.6 times embsim's at the first step, 1 / sqrt(1 - 0.999)."""
    name = "adam_textbook/corrected"
    monkeypatch.setitem(FORMULAS, ("optax", name), FORMULAS["torch", "Adam"])
    check_does_not_fit("optax", name)


@pytest.mark.parametrize("name", ["weighted_mean", "signs_mean", "random_weighted_mean"])
def test_d10_fbgemm_s_weighted_mean_counts_ids_and_its_gradient_has_no_mean(name, monkeypatch):
    """Without weights it agrees. With them the gradient of the mean it returns does not fit."""
    assert not compare("fbgemm", *run_and_results("fbgemm", "lookup/plain_mean")).diverging
    monkeypatch.setattr(formulas, "gains_without_mean", formulas.gains_by_count)
    check_does_not_fit("fbgemm", f"lookup/{name}")


def test_d11_torch_s_bags_have_weights_for_sums_only_and_no_sqrtn():
    assert goldens("torch")[1] == {
        "weights with mode mean": "NotImplementedError",
        "mode sqrtn": "ValueError",
    }


def test_d12_fbgemm_has_no_sqrtn_and_no_adam_on_a_cpu():
    found = goldens("fbgemm")[1]
    assert found["pooling sqrtn"] == "absent"
    assert found["ADAM"] == "AssertionError"
