"""The tests and checks that docs/semantics.md names exist, and no check is left out."""

import ast
import re
from pathlib import Path

from embsim.conformance import all_checks
from tests.architecture.checks_in_semantics import checks_of, decisions, rewritten

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/semantics.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:[\w/]+/)?test_\w+\.py)((?:::\w+)+)`", TEXT)))


def test_every_decision_names_tests_that_exist() -> None:
    missing = []
    for file, path in NAMED:
        found = [p for p in (ROOT / "tests").rglob(Path(file).name) if p.as_posix().endswith(file)]
        nodes = {name for p in found for name in _functions(ast.parse(p.read_text()))}
        if path.removeprefix("::") not in nodes:
            missing.append(file + path)
    assert len(NAMED) > 100
    assert missing == []


# Decisions that no backend or engine can break, since they are about embsim's own inputs, names,
# files and threads; and 11.1, an option of embsim_tpu alone. Everything else has a check.
EMBSIM_ALONE = [
    *("7.7", "8.4", "10.2", "10.8", "10.9", "10.10", "10.12", "10.16", "10.17", "10.18", "10.19"),
    *("10.21", "10.22", "10.23", "10.24", "10.25", "10.26", "10.27", "10.28", "10.29", "10.30"),
    *("10.32", "10.33", "10.34", "10.35", "11.1"),
]


def test_every_decision_names_its_checks() -> None:
    """If not: python -m tests.architecture.checks_in_semantics"""
    assert rewritten(TEXT) == TEXT
    named = set(re.findall(r"`(check_\w+)`", TEXT))
    assert named - {"check_numerics"} <= {each.name for each in all_checks()}


def test_every_decision_has_a_check_or_is_about_embsim_alone() -> None:
    numbers = [number for number, _ in decisions(TEXT)]
    assert [number for number in numbers if not checks_of(number)] == EMBSIM_ALONE
    assert {d for each in all_checks() for d in each.decisions} <= {*numbers, "11"}


def _functions(tree: ast.Module) -> set[str]:
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            methods = [n.name for n in node.body if isinstance(n, ast.FunctionDef)]
            names |= {node.name, *(f"{node.name}::{method}" for method in methods)}
        elif isinstance(node, ast.Assign):  # TestPrograms = Machine.TestCase
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names
