"""Every test that docs/semantics.md names as holding a decision exists."""

import ast
import re
from pathlib import Path

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
