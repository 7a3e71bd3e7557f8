"""The command: python -m embsim_tpu.aot."""

import json
import subprocess
import sys

import pytest

from embsim_tpu import aot
from embsim_tpu.aot import __main__ as command
from embsim_tpu.aot.cases import CASES
from embsim_tpu.aot.cost import Cost

needs_libtpu = pytest.mark.skipif(aot.missing() is not None, reason=str(aot.missing()))

COSTS = {
    ("take-128-xla", "v5e"): Cost(5.25),
    ("take-128-xla", "7x"): Cost(0.01, sparsecore=True),
    ("adagrad-32-xla", "v5e"): Cost(50.3, copies=4),
    ("adagrad-32-xla", "7x"): Cost(refused="XlaRuntimeError: too large"),
}
CHOSEN = ("--case", "take-128*", "adagrad-32-xla", "--target", "v5e", "7x")


@pytest.fixture
def costs(monkeypatch):
    """What measuring finds; a test may change it."""
    found = dict(COSTS)
    monkeypatch.setattr(command, "measure", lambda case, target, cases: found[case, target])
    monkeypatch.setattr(command, "_versions", lambda: "jax 1, libtpu 2")
    monkeypatch.setattr(command, "missing", lambda: None)
    return found


@pytest.fixture
def run(capsys, tmp_path, costs):
    """(status, standard output, standard error) of a report of COSTS."""

    def report(*arguments, chosen=CHOSEN):
        file = tmp_path / "budgets.json"
        status = command.main(["report", *chosen, "--budgets", str(file), *arguments])
        return status, *capsys.readouterr()

    return report


def test_the_table_has_a_row_for_each_case_and_a_column_for_each_target(run):
    status, out, err = run()
    lines = [line.split() for line in out.splitlines()]
    assert status == 0
    assert lines[:3] == [
        ["bundles", "per", "row", "v5e", "7x"],
        ["take-128-xla", "5.2", "SC"],
        ["adagrad-32-xla", "50.3*", "–"],
    ]
    assert "a lower bound on cycles" in out and "nothing ran on a TPU" in out
    assert "– XlaRuntimeError: too large: adagrad-32-xla on 7x" in out
    assert "take-128-xla on v5e: 5.2" in err


def test_what_is_not_installed_is_a_row_that_says_so(run, monkeypatch):
    monkeypatch.setattr("embsim_tpu.aot.cost.find_spec", lambda name: None)
    status, out, _ = run(chosen=("--case", "lookup-32-jax*"))
    assert status == 0 and "lookup-32-jax-tpu-embedding  not installed" in out


def test_json_has_what_was_measured(run, tmp_path):
    run("--json", str(tmp_path / "costs.json"))
    found = json.loads((tmp_path / "costs.json").read_text())
    assert found["versions"] == "jax 1, libtpu 2"
    assert [(each["case"], each["target"]) for each in found["costs"]] == list(COSTS)
    assert found["costs"][0]["bundles"] == 5.25 and found["costs"][2]["text"] == "50.3*"


@pytest.fixture
def budgets(run):
    assert run("--write")[0] == 0


def test_what_was_written_passes(run, budgets):
    status, out, _ = run("--check")
    assert (status, out.splitlines()[-1]) == (0, "4 budgets, 0 exceeded")


@pytest.mark.parametrize(
    ("key", "cost", "message"),
    [
        (("take-128-xla", "v5e"), Cost(5.25, 0.6), "5.85 bundles per row, 11% above 5.25"),
        (("take-128-xla", "v5e"), Cost(unknown="a loop was missed"), "now ?, a loop was missed"),
        (("take-128-xla", "v5e"), Cost(0.0, sparsecore=True), "now SC, and was {'bundles': 5.25}"),
        (("take-128-xla", "7x"), Cost(5.0), "now 5.0, and was {'bundles': 0.01"),
        (("adagrad-32-xla", "v5e"), Cost(50.3, copies=5), "whole tables 5 times, before 4"),
        (("adagrad-32-xla", "7x"), Cost(50.3), "now 50.3, and was {'bundles': None"),
    ],
    ids=["more", "unknown", "to SC", "from SC", "copies", "compiles"],
)
def test_what_is_worse_or_of_another_kind_fails(run, budgets, costs, key, cost, message):
    costs[key] = cost
    status, out, _ = run("--check")
    assert status == 1 and f"{key[0]} on {key[1]}: " in out and message in out
    assert out.splitlines()[-1] == "4 budgets, 1 exceeded"


@pytest.mark.parametrize(
    "cost", [Cost(5.77), Cost(5.25, at_least=True), Cost(5.0)], ids=["slack", "bound", "less"]
)
def test_ten_percent_more_pass(run, budgets, costs, cost):
    costs["take-128-xla", "v5e"] = cost
    assert run("--check")[0] == 0


def test_what_became_cheaper_is_told(run, budgets, costs):
    costs["take-128-xla", "v5e"] = Cost(4.0)
    status, out, _ = run("--check")
    assert status == 0 and "1 costs are below their budgets by more than 10%" in out


def test_a_cost_without_a_budget_fails(run, tmp_path):
    run("--write", chosen=("--case", "take-128*", "--target", "v5e"))
    status, out, _ = run("--check")
    assert status == 1 and "adagrad-32-xla on 7x: there is no budget; --write one" in out
    assert out.splitlines()[-1] == "4 budgets, 3 exceeded"


def test_writing_keeps_other_budgets(run, budgets, tmp_path, costs, monkeypatch):
    monkeypatch.setattr(command, "_versions", lambda: "jax 1, libtpu 3")
    costs["take-128-xla", "v5e"] = Cost(6.0)
    run("--write", chosen=("--case", "take-128*", "--target", "v5e"))
    found = json.loads((tmp_path / "budgets.json").read_text())
    assert found["jax 1, libtpu 2"]["adagrad-32-xla"]["v5e"] == {"bundles": 50.3, "copies": 4}
    assert found["jax 1, libtpu 3"] == {"take-128-xla": {"v5e": {"bundles": 6.0}}}


def test_budgets_of_another_compiler_are_no_budgets(run, budgets, monkeypatch):
    monkeypatch.setattr(command, "_versions", lambda: "jax 1, libtpu 3")
    status, out, err = run("--check")
    assert (status, out) == (2, "")
    assert "pinned to jax 1, libtpu 2, and here is jax 1, libtpu 3" in err


def test_the_budgets_at_hand_are_of_cases_and_targets_that_exist():
    names = {case.name for case in CASES}
    for of_these in json.loads(command.BUDGETS.read_text()).values():
        assert set(of_these) <= names
        assert all(set(each) <= set(aot.TARGETS) for each in of_these.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--case", "none"), "no case is called ['none']; there are take-128-xla, "),
        (("--cases", "embsim_tpu.none:CASES"), "No module named 'embsim_tpu.none'"),
    ],
)
def test_wrong_usage_is_told(run, arguments, message):
    status, _, err = run(chosen=arguments)
    assert status == 2 and message in err


def test_without_libtpu_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setattr(command, "missing", lambda: "libtpu is not installed")
    assert run()[::2] == (2, "embsim_tpu.aot: libtpu is not installed\n")


@needs_libtpu
def test_the_command_as_a_process():
    arguments = ["report", "--case", "take-128-xla", "--target", "v5e"]
    done = subprocess.run(
        [sys.executable, "-m", "embsim_tpu.aot", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0
    name, cost = done.stdout.splitlines()[1].split()
    assert name == "take-128-xla" and 4 < float(cost) < 7
