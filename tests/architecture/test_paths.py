"""What configuration, tests and documents name is there."""

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/**/*.md"))]
MODULES = [
    path.relative_to(ROOT)
    for package in ("embsim", "embsim_tpu")
    for path in sorted(ROOT.glob(f"{package}/**/*.py"))
]

# Modules without a test file of their own, each with the tests that hold it.
TESTED_ELSEWHERE = {
    "embsim_tpu/aot/__init__.py": "in tests/embsim_tpu/test_aot.py",
    "embsim_tpu/kernels/__init__.py": "in tests/embsim_tpu/test_kernels.py",
    "embsim_tpu/kernels/_chunked.py": "in every kernel, in test_tensorcore.py and test_races.py",
    "embsim_tpu/kernels/base.py": "a protocol; what has its form, in test_kernels.py and kernels/",
    "embsim_tpu/kernels/bfloat16.py": "in tests/embsim_tpu/test_bfloat16.py",
    "embsim_tpu/kernels/launch.py": "in test_tensorcore.py",
    "embsim_tpu/kernels/tensorcore_rule.py": "in test_tensorcore.py and test_races.py",
    "embsim_tpu/kernels/tensorcore_lookup.py": "in test_tensorcore.py and test_races.py",
    "embsim_tpu/kernels/tensorcore_update.py": "in test_tensorcore.py and test_races.py",
    "embsim_tpu/kernels/xla.py": "in tests/embsim_tpu/test_kernels.py",
    "experiments/__main__.py": "in tests/experiments/test_main.py",
    "experiments/data/adult.py": "in tests/experiments/data/test_samples.py",
    "experiments/data/frappe.py": "in tests/experiments/data/test_samples.py",
    "experiments/data/movielens.py": "in tests/experiments/data/test_samples.py",
    "experiments/data/sources.py": "in tests/experiments/data/test_samples.py",
    "experiments/zero_tables.py": "in tests/experiments/test_sweep.py",
    "experiments/batch_size.py": "in tests/experiments/test_sweep.py",
    "experiments/hybrid_against_async.py": "in tests/experiments/test_sweep.py",
    "experiments/one_stale_step.py": "in tests/experiments/test_sweep.py",
    "experiments/optimizers.py": "in tests/experiments/test_sweep.py",
    "experiments/row_clocks.py": "in tests/experiments/test_sweep.py",
    "embsim/__init__.py": "only re-exports",
    "embsim/__main__.py": "as a process, in test_cli.py",
    "embsim/optimizers/__init__.py": "only re-exports",
    "embsim/errors.py": "names; every message is tested where it is raised",
    "embsim/reduction.py": "through strategy.reduce and all_reduce, in test_strategy.py",
    "embsim/conformance/__init__.py": "only re-exports",
    "embsim/simulation/replay/__init__.py": "only re-exports",
    "embsim/simulation/replay/events.py": "through replay, in replay/test_run.py",
    "embsim/simulation/replay/setting.py": "through replay, in replay/test_run.py",
    "embsim/simulation/replay/shared.py": "through replay, in replay/test_run.py",
    "embsim/simulation/replay/step.py": "through replay, in replay/test_run.py",
    "embsim/conformance/checks/": "on the reference and on mutants, in test_kit.py",
    "embsim/conformance/difference.py": "through replay, in test_lockstep.py",
    "embsim/conformance/edit.py": "through first_difference, in test_bisect.py",
    "embsim/conformance/literal.py": "through source, in test_program.py",
    "embsim/conformance/machine.py": "with the strategies, in test_strategies.py",
    "embsim/conformance/mutants/": "in test_kit.py",
    "embsim/conformance/pair.py": "through first_difference, in test_bisect.py",
    "embsim/conformance/rules.py": "with the strategies, in test_strategies.py",
    "embsim/conformance/shifted.py": "through replay, in test_lockstep.py",
    "embsim/conformance/shrink.py": "through first_difference, in test_bisect.py",
    "embsim/conformance/smallest.py": "by a dropped update, in test_kit.py, and in test_cli.py",
    "embsim/conformance/single.py": "through the checks of optimizers, in test_kit.py",
    "embsim/rates.py": "through learning-rate callables, in test_engine.py",
    "embsim/rendezvous.py": "through strategy.run, in test_strategy.py",
    "embsim/simulation/__init__.py": "only says what is there",
    "embsim/simulation/pipelines/": "in tests/embsim/simulation/test_pipelines.py",
    "embsim_tpu/__init__.py": "only re-exports",
    "embsim_tpu/_carry.py": "by saving and restoring, in test_checkpoint.py",
    "embsim_tpu/_pending.py": "by saving and restoring, in test_checkpoint.py",
    "embsim_tpu/_saved.py": "by saving and restoring, in test_checkpoint.py",
    "embsim_tpu/conformance.py": "the kit runs on it, in test_kit.py",
    "embsim_tpu/hardware/": "in test_hardware.py",
    "embsim_tpu/kernels/": "in test_kernels.py",
    "embsim_tpu/train_state.py": "through train, in test_pipeline.py",
}


def test_paths_in_pyproject_exist() -> None:
    project, tool = PROJECT["project"], PROJECT["tool"]
    paths = [
        project["readme"],
        *project["license-files"],
        *tool["hatch"]["build"]["targets"]["wheel"]["packages"],
        *tool["hatch"]["build"]["targets"]["sdist"]["exclude"],
        *tool["pytest"]["ini_options"]["testpaths"],
        *tool["pyright"]["include"],
        *tool["ruff"]["lint"]["per-file-ignores"],
    ]
    assert [path for path in paths if not any(ROOT.glob(path))] == []


def test_entry_points_exist() -> None:
    groups = [PROJECT["project"].get("scripts", {}), *PROJECT["project"]["entry-points"].values()]
    for group in groups:
        for target in group.values():
            module, _, attribute = target.partition(":")
            assert hasattr(importlib.import_module(module), attribute), target


def test_modules_in_contracts_exist() -> None:
    inside = set(PROJECT["tool"]["importlinter"]["root_packages"])
    names = {
        name
        for name in _strings(PROJECT["tool"]["importlinter"]["contracts"])
        if re.fullmatch(r"[\w.]+", name) and name.partition(".")[0] in inside
    }
    assert [name for name in sorted(names) if importlib.util.find_spec(name) is None] == []


def test_files_and_modules_in_makefile_exist() -> None:
    text = (ROOT / "Makefile").read_text()
    modules = [m for m in re.findall(r"python -m ([\w.]+)", text) if m.startswith("experiments")]
    assert modules
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
    paths = re.findall(r"\b(?:embsim|experiments|tests)/[\w/.]+", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert "make test" in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_module_has_a_test_file(module: Path) -> None:
    inside = {f"{module.parent.as_posix()}/", module.as_posix()}
    if not inside & set(TESTED_ELSEWHERE):
        name = module.name.removeprefix("_")
        assert (ROOT / "tests" / module.parent / f"test_{name}").exists()


def test_modules_tested_elsewhere_exist() -> None:
    assert [path for path in TESTED_ELSEWHERE if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_resolve(document: Path) -> None:
    text = _without_code(document.read_text())
    broken = []
    for link in re.findall(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)", text):
        if re.match(r"[a-z]+:", link):
            continue  # another site
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert broken == []


def _anchors(document: Path) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ +(.+?) *$", _without_code(document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inner for text in _strings(item)]
