"""The console command `embsim`.

    embsim conformance my_backend                          a backend, by its entry-point name
    embsim conformance my_package.engine:MyEngineAdapter   a class or an instance of yours
    embsim simulate --hardware v5p --chips 64              schedules, on a clock

Exit status: 0 passed, 1 a check failed or broke, 2 usage, 130 interrupted.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from traceback import extract_tb
from typing import Any

from .simulation.command import add_arguments, run

# embsim.conformance needs an extra, so that it is imported where it is used, and its classes
# (Subject, BoundCheck, Result, Report) are Any here.

PASSED, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
LEVELS = ("quick", "default", "nightly")  # embsim.conformance.LEVELS, known without the extra


class UsageError(Exception):
    """What was asked for cannot be run; its message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:  # --help, --version, or a usage that argparse refuses
        return USAGE if stop.code else PASSED
    if options.command is None:
        parser.print_help()
        return USAGE
    try:
        return run(options) if options.command == "simulate" else _conformance(options)
    except UsageError as error:
        print(f"embsim conformance: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, a pager or head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("embsim", description="A pipelined embedding engine, exactly.")
    parser.add_argument("--version", action="version", version=f"embsim {version('embsim')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    kit = commands.add_parser(
        "conformance",
        help="hold a backend or an engine to the definition",
        description="Hold a backend or an engine to the definition.",
        epilog="Exit status: 0 passed, 1 a check failed, 2 wrong usage. More: docs/conformance.md.",
    )
    kit.add_argument(
        "subject",
        nargs="?",
        metavar="SUBJECT",
        help="a backend's name, or package.module:attribute of a backend or an EngineAdapter",
    )
    kit.add_argument("--level", choices=LEVELS, default="default", help="how many examples")
    kit.add_argument(
        "--check", nargs="+", action="extend", metavar="NAME", help="only these checks"
    )
    kit.add_argument("--list", action="store_true", help="say what the checks are; run none")
    kit.add_argument(
        "--no-shrink", action="store_true", help="show the first example that fails, not the least"
    )
    add_arguments(
        commands.add_parser(
            "simulate",
            help="how long schedules take, and how stale their lookups are",
            description="How long schedules take on a pod, and how stale their lookups are.",
            epilog='Example: embsim simulate --chips 16 --schedule "stale(2)" --out results',
        )
    )
    return parser


def _conformance(options: argparse.Namespace) -> int:
    _require_extra()
    from .conformance.report import Report, bound, chosen, not_applicable

    if options.subject is None and not options.list:
        raise UsageError("name a SUBJECT, or pass --list; `embsim conformance --help` says more")
    try:
        checks = chosen(options.check)
    except ValueError as error:
        raise UsageError(str(error)) from error
    subject = None if options.subject is None else _subject(options.subject)
    if options.list or subject is None:
        _list(checks, subject)
        return PASSED
    left_out = not_applicable(subject, checks)
    applicable = bound(subject, options.level, checks)
    if not applicable:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise UsageError(f"no check applies to {options.subject}: {reasons}")
    results, finished = _run(applicable, not options.no_shrink)
    report = Report(str(options.subject), options.level, tuple(results), left_out)
    _show(report, not finished)
    if not finished:
        return FAILED if report.failures else INTERRUPTED
    return PASSED if report.passed else FAILED


def _require_extra() -> None:
    storage = Path(tempfile.gettempdir(), "embsim-hypothesis")  # not in the user's directory
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(storage))
    for name in ("hypothesis", "rich"):
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            raise UsageError(f"it needs {error.name}; pip install 'embsim[conformance]'") from error


# --- the subject


def _subject(text: str) -> Any:
    """A Subject from a backend's name or from module:attribute."""
    from .conformance.subject import subject_of
    from .errors import BackendError

    try:
        return subject_of(_attribute(text) if ":" in text else text)
    except BackendError as error:
        hint = "" if ":" in text else "; a class or an instance is named package.module:attribute"
        raise UsageError(f"{error}{hint}") from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"{text}: {error}") from error


def _attribute(text: str) -> Any:
    """What package.module:attribute names; a backend's class is made an instance."""
    from .backend import Backend

    module, _, path = text.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = import_module(module)
    except Exception as error:
        place = extract_tb(error.__traceback__)[-1]
        where = f" ({place.filename}, line {place.lineno})" if Path(place.filename).exists() else ""
        raise UsageError(
            f"module {module!r} cannot be imported: {type(error).__name__}: {error}{where}"
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise UsageError(f"{text}: {module!r} has no attribute {path!r}")
        found = getattr(found, name)
    if isinstance(found, type) and issubclass(found, Backend):
        try:
            return found()
        except Exception as error:
            raise UsageError(
                f"{text}: {found.__name__}() raises {type(error).__name__}: {error}; name an "
                "instance, or a class that is made without arguments"
            ) from error
    return found


# --- running


def _run(checks: Sequence[Any], shrink: bool) -> tuple[list[Any], bool]:
    """Results, and whether it came to the end; Ctrl-C ends it with those that there are."""
    from dataclasses import replace

    from .conformance.report import tired

    results: list[Any] = []
    view = _Bar(len(checks)) if sys.stdout.isatty() else _Lines()
    try:
        with view:
            for each in checks:
                view.begins(each)
                results.append(
                    replace(each, shrink=shrink and not tired(results)).result(view.tried)
                )
                view.ended(results[-1])
    except KeyboardInterrupt:
        return results, False
    return results, True


class _Lines:
    """One line for each result, as it comes."""

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...

    def begins(self, check: Any) -> None: ...

    def tried(self, number: int) -> None: ...

    def ended(self, result: Any) -> None:
        from .conformance.report import line

        print(line(result), flush=True)


class _Bar:
    """Checks done, the name of the one that runs and how far it is, and the time so far."""

    def __init__(self, total: int) -> None:
        from rich import progress

        columns = (
            progress.MofNCompleteColumn(),
            progress.BarColumn(20),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.description}", markup=False),
        )
        self._progress = progress.Progress(*columns, transient=True)
        self._task = self._progress.add_task("", total=total)
        self._name, self._examples = "", 0

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def begins(self, check: Any) -> None:
        self._name, self._examples = check.check.name, check.examples
        self._progress.update(self._task, description=self._name)

    def tried(self, number: int) -> None:
        if self._examples >= 200 and number % 20 == 0:
            text = f"{self._name} {min(number, self._examples)}/{self._examples}"
            self._progress.update(self._task, description=text)

    def ended(self, result: Any) -> None:
        self._progress.advance(self._task)


# --- what is shown


def _show(report: Any, interrupted: bool) -> None:
    """A table on a terminal; what did not apply, the failures whole, and the counts."""
    from .conformance.report import explanation, not_run, shortest_last

    if sys.stdout.isatty():
        _table(report)
    for each in not_run(report.not_applicable):
        print(each)
    level = "" if report.level == "default" else f" --level {report.level}"
    for each in shortest_last(report.failures):
        print(f"\n{explanation(each)}")
        print(f"again: embsim conformance {report.subject}{level} --check {each.check.name}")
    if report.failures:
        print("\nThe shortest failure is the last one." if len(report.failures) > 1 else "")
    end = " before it was interrupted" if interrupted else ""
    print(f"{report.subject}, level {report.level}: {report.counts}{end}")


def _table(report: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    table.add_column("check")
    table.add_column("decisions")
    for name in ("examples", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for result in report.results:
        style = None if result.error is None else "bold red"
        seconds, decisions = f"{result.seconds:.1f}", ", ".join(result.check.decisions)
        words = result.check.name.removeprefix("check_").replace("_", " ")  # they can be wrapped
        row = (words, decisions, str(result.examples), seconds, result.verdict)
        table.add_row(*row, style=style)
    Console().print(table)


def _list(checks: Sequence[Any], subject: Any) -> None:
    """What they hold, and which do not apply."""
    for each in checks:
        why = None if subject is None else each.why_not(subject)
        print(f"{each.name} ({', '.join(each.decisions)})\n    {each.sentence}")
        if why is not None:
            print(f"    does not apply: {why}")
