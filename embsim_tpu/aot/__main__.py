"""What kernels cost a TPU, without one.

    python -m embsim_tpu.aot report                                every case on every generation
    python -m embsim_tpu.aot report --case 'lookup*' --target v5e
    python -m embsim_tpu.aot report --check                        against budgets.json

Exit status: 0 done, 1 a budget is exceeded, 2 usage, 130 interrupted.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

from . import TARGETS, missing
from .cost import NOTHING, Case, Cost, cost, measure, registered

DONE, EXCEEDED, USAGE, INTERRUPTED = 0, 1, 2, 130
CASES = "embsim_tpu.aot.cases:CASES"
BUDGETS = Path(__file__).with_name("budgets.json")
SLACK = 0.10

NOTE = """\
Bundles of a TensorCore's instructions for each row of a batch of 65,536, as the compiler wrote
them. They are a lower bound on cycles and say nothing of throughput: nothing ran on a TPU.
  a + b  a in the loops over rows; b once for a chunk of them, and around the kernel
  ≥      loops whose turns depend on data are counted once
  SC     on the SparseCore, of which the compiler writes nothing down
  *      the program copies a whole table, which is the larger a part the fewer the rows
  ?      cannot be known
  –      does not compile for this target
v5p has two cores; where the compiler shares a loop between them, each has half of it."""

Key = tuple[str, str]  # case, target
Costs = Mapping[Key, Cost]


class UsageError(Exception):
    """What was asked for cannot be done; its message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except UsageError as error:
        print(f"embsim_tpu.aot: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m embsim_tpu.aot", description="What kernels cost a TPU, without one."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    report = commands.add_parser("report", help="bundles per row of every case on every TPU")
    report.set_defaults(run=_report)
    report.add_argument(
        "--case", nargs="+", action="extend", metavar="NAME", help="only these; * and ? match"
    )
    report.add_argument(
        "--target", nargs="+", action="extend", choices=tuple(TARGETS), help="only these"
    )
    report.add_argument("--json", type=Path, metavar="FILE", help="all numbers, loop by loop")
    report.add_argument(
        "--check", action="store_true", help="fail beyond the budgets of this libtpu by over 10 %%"
    )
    report.add_argument(
        "--write", action="store_true", help="make what was counted the budgets of this libtpu"
    )
    report.add_argument("--budgets", type=Path, default=BUDGETS, metavar="FILE")
    one = commands.add_parser("bundles", help="used by report: the numbers of one case, as JSON")
    one.set_defaults(run=_bundles)
    one.add_argument("--case", required=True)
    one.add_argument("--target", required=True, choices=tuple(TARGETS))
    one.add_argument("--dump", required=True, type=Path)
    for each in (report, one):
        each.add_argument("--cases", default=CASES, help="a list of cases; default: %(default)s")
    return parser


def _bundles(options: argparse.Namespace) -> int:
    case = registered(options.cases)[options.case]
    print(json.dumps(asdict(cost(case, options.target, options.dump))))
    return DONE


def _report(options: argparse.Namespace) -> int:
    if (why := missing()) is not None:
        raise UsageError(why)
    try:
        import rich as rich
    except ModuleNotFoundError as error:
        raise UsageError("it needs rich; pip install 'embsim[conformance]'") from error
    try:
        known = registered(options.cases)
    except ValueError as error:
        raise UsageError(str(error)) from error
    chosen = [
        case
        for case in known.values()
        if any(fnmatchcase(case.name, each) for each in options.case or "*")
    ]
    if not chosen:
        raise UsageError(f"no case is called {options.case}; there are {', '.join(known)}")
    budgets = _budgets(options) if options.check else {}
    targets = [name for name in TARGETS if name in (options.target or TARGETS)]
    costs = _measured([case for case in chosen if case.installed], targets, options.cases)
    _show(chosen, targets, costs)
    if options.json is not None:
        _write_json(options.json, costs)
    if options.write:
        _write_budgets(options.budgets, costs)
    return _checked(costs, budgets) if options.check else DONE


def _measured(cases: Sequence[Case], targets: Sequence[str], source: str) -> Costs:
    """One process after another: each takes a core. Progress goes to standard error."""
    from rich import progress
    from rich.console import Console

    columns = (
        progress.MofNCompleteColumn(),
        progress.BarColumn(20),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.description}", markup=False),
    )
    costs: dict[Key, Cost] = {}
    console = Console(stderr=True)
    with progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(cases) * len(targets))
        for case in cases:
            for name in targets:
                bar.update(task, description=f"{case.name} on {name}")
                costs[case.name, name] = measure(case.name, name, source)
                bar.advance(task)
                if not console.is_terminal:
                    print(f"{case.name} on {name}: {costs[case.name, name]}", file=sys.stderr)
    return costs


# --- what is shown


def _versions() -> str:
    return f"jax {version('jax')}, libtpu {version('libtpu')}"


def _show(cases: Sequence[Case], targets: Sequence[str], costs: Costs) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    table.add_column("bundles per row", no_wrap=True)
    for name in targets:
        table.add_column(name, justify="right", no_wrap=True)
    for case in cases:
        if case.installed:
            table.add_row(case.name, *(str(costs[case.name, name]) for name in targets))
        else:
            table.add_row(case.name, *["not installed", *[""] * (len(targets) - 1)])
    # Into a file as wide as it is.
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    lines = ["", f"{_versions()}", NOTE]
    reasons: dict[str, list[str]] = {}
    for (case, name), each in costs.items():
        if why := each.refused or each.unknown:
            reasons.setdefault(f"{each} {why}", []).append(f"{case} on {name}")
    lines += [f"{why}: {', '.join(places)}" for why, places in reasons.items()]
    console.print("\n".join(lines), markup=False, highlight=False)


def _write_json(file: Path, costs: Costs) -> None:
    rows = [
        {"case": case, "target": name, "text": str(each)} | asdict(each)
        for (case, name), each in costs.items()
    ]
    file.write_text(json.dumps({"versions": _versions(), "costs": rows}, indent=1) + "\n")


# --- budgets: {versions: {case: {target: what a cost was when it was written}}}


def _budgets(options: argparse.Namespace) -> dict[str, dict[str, dict[str, Any]]]:
    """Of the versions at hand: another compiler makes other bundles."""
    pinned = json.loads(options.budgets.read_text())
    if _versions() not in pinned:
        raise UsageError(
            f"the budgets are pinned to {'; '.join(pinned)}, and here is {_versions()}; install "
            "one of those, or see what changed and --write budgets for these"
        )
    return pinned[_versions()]


def _budget(each: Cost) -> dict[str, Any]:
    """What is kept of a cost: numbers, and what else must stay as it is."""
    total = None if each.bundles is None else round(each.bundles + each.chunk, 2)
    flags = {"sparsecore": each.sparsecore, "refused": bool(each.refused), "copies": each.copies}
    return {"bundles": total} | {name: value for name, value in flags.items() if value}


def _write_budgets(file: Path, costs: Costs) -> None:
    """Those of other versions, cases and targets stay."""
    found = json.loads(file.read_text()) if file.exists() else {}
    of_these = found.setdefault(_versions(), {})
    for (case, name), each in costs.items():
        of_these.setdefault(case, {})[name] = _budget(each)
    file.write_text(json.dumps(found, indent=1) + "\n")
    print(f"budgets of {_versions()} are in {file}")


def _checked(costs: Costs, budgets: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> int:
    failed, lower = 0, 0
    for (case, name), each in costs.items():
        budget = budgets.get(case, {}).get(name)
        why = "there is no budget; --write one" if budget is None else _beyond(each, budget)
        if why is not None:
            failed += 1
            print(f"{case} on {name}: {why}")
        elif budget is not None and _ratio(each, budget) < 1 - SLACK:
            lower += 1
    if lower:
        print(f"{lower} costs are below their budgets by more than {SLACK:.0%}: --write them")
    print(f"{len(costs)} budgets, {failed} exceeded")
    return EXCEEDED if failed else DONE


def _ratio(each: Cost, budget: Mapping[str, Any]) -> float:
    """Of what was counted to the budget; 1 where both leave rows to the SparseCore."""
    total, kept = (each.bundles or 0.0) + each.chunk, budget["bundles"] or 0.0
    if not kept or (each.sparsecore and max(total, kept) < NOTHING):
        return 1.0
    return total / kept


def _beyond(each: Cost, budget: Mapping[str, Any]) -> str | None:
    """What is worse than the budget, or of another kind; None if nothing is."""
    now = _budget(each)
    if (now["bundles"] is None) != (budget["bundles"] is None) or any(
        bool(now.get(kind)) != bool(budget.get(kind)) for kind in ("sparsecore", "refused")
    ):
        return f"it is now {each}, {each.refused or each.unknown or 'and was'} {dict(budget)}"
    if now.get("copies", 0) > budget.get("copies", 0):
        return f"it copies whole tables {now['copies']} times, before {budget.get('copies', 0)}"
    ratio = _ratio(each, budget)
    if ratio > 1 + SLACK:
        return f"{now['bundles']} bundles per row, {ratio - 1:.0%} above {budget['bundles']}"
    return None


if __name__ == "__main__":
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    sys.exit(main())
