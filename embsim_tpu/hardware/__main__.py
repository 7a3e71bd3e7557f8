"""What the kernels do on a real TPU: results beside the reference's, and times beside XLA's.

    make tpu-check                                              all of it, with its own set-up
    python -m embsim_tpu.hardware --quick                       in fewer shapes, without the kit
    python -m embsim_tpu.hardware --only 'steps-pallas-128-*' --only ieee-divide
    python -m embsim_tpu.hardware --interpret --quick           the same on CPU, without times

Checks run in a process of their own: one that crashes or hangs is a result, and the others go on in
a new one. Exit status: 0 all passed or were skipped, 1 something failed, 2 no TPU, or usage, 130
interrupted.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import jax

from ..backend import BITWISE_FLAGS
from .checks import all_checks
from .child import MARK, Event, isolated
from .common import Check, Chip, SkippedError, WrongError
from .facts import facts, no_tpu, scrubbed

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class UsageError(Exception):
    """What was asked for cannot be done; its message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        names = _chosen(options)
        if options.worker:
            return _work(names, options)
        if options.list:
            print("\n".join(names))
            return DONE
        return _report(names, options)
    except UsageError as error:
        print(f"embsim_tpu.hardware: {error}", file=sys.stderr)
        return USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m embsim_tpu.hardware",
        description="What the kernels do on a real TPU; a report to send back.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer shapes, and not the kit")
    parser.add_argument(
        "--interpret", action="store_true", help="on CPU, in Pallas's interpreter; no times"
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="only this check; * and ? match"
    )
    parser.add_argument("--list", action="store_true", help="names of the checks; run none")
    parser.add_argument("--json", type=Path, default=Path("tpu-check.json"), metavar="PATH")
    parser.add_argument(
        "--here", action="store_true", help="in this process, for a debugger: a crash ends all"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


def _chosen(options: argparse.Namespace) -> list[str]:
    known = all_checks()
    for pattern in options.only or ():
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UsageError(f"no check is called {pattern!r}; there are {', '.join(known)}")
    named = [n for n in known if any(fnmatchcase(n, each) for each in options.only or ("*",))]
    quick = [name for name in named if known[name].quick or not options.quick]
    if not quick:
        raise UsageError(f"--quick leaves out {', '.join(named)}; leave out --quick")
    if options.interpret and not options.only:  # of all, those that can be
        quick = [name for name in quick if not name.startswith("time-")]
    return quick


def _report(names: Sequence[str], options: argparse.Namespace) -> int:
    try:
        from .report import Report
    except ModuleNotFoundError as error:
        raise UsageError(f"it needs {error.name}; pip install 'embsim[conformance]'") from error
    try:
        options.json.touch()
    except OSError as error:
        raise UsageError(f"--json {options.json}: {error.strerror}; name a file") from error
    known = all_checks()
    report = Report([known[name] for name in names], interpreted=options.interpret)
    try:
        with report:
            if options.here:
                run(names, options.interpret, report.take)
            else:
                isolated(
                    names, {n: known[n].kernels for n in names}, _command(options), report.take
                )
    except KeyboardInterrupt:
        report.interrupted = True
    if report.refused:
        if not options.json.stat().st_size:
            options.json.unlink()
        raise UsageError(report.refused)
    options.json.write_text(json.dumps(report.data(), indent=1) + "\n")
    report.show(str(options.json))
    if report.failed:
        return FAILED
    return INTERRUPTED if report.interrupted else DONE


def _command(options: argparse.Namespace) -> list[str]:
    interpret = ["--interpret"] if options.interpret else []
    return [sys.executable, "-m", "embsim_tpu.hardware", "--worker", *interpret]


def _work(names: Sequence[str], options: argparse.Namespace) -> int:
    """In the child: events go to standard output."""

    def emit(event: Event) -> None:
        print(MARK + json.dumps(event), flush=True)

    run(names, options.interpret, emit)
    return DONE


def run(names: Sequence[str], interpret: bool, emit: Callable[[Event], None]) -> None:
    """These checks in this process; Exceptions are results."""
    if not interpret and (why := no_tpu()) is not None:
        emit({"refused": why})
        return
    found = facts()
    emit({"facts": found})
    flags, on_tpu = found["XLA_FLAGS"], found["platform"] == "tpu"
    rounds = on_tpu or all(flag in flags for flag in BITWISE_FLAGS)
    chip = Chip(found["platform"], found["device_kind"], found["devices"], rounds)
    known = all_checks()
    for name in names:
        emit({"begin": name})
        start = time.perf_counter()
        result = _result(known[name], chip, lambda text: emit({"told": text}))
        emit({"result": {"name": name, **result, "seconds": time.perf_counter() - start}})
        jax.clear_caches()


def _result(check: Check, chip: Chip, told: Callable[[str], None]) -> Event:
    try:
        note, data = check.run(chip, told)
        return {"status": "passed", "note": note, "data": data}
    except SkippedError as why:
        return {"status": "skipped", "note": str(why), "data": {}}
    except WrongError as error:
        return {"status": "failed", "note": scrubbed(str(error)), "data": scrubbed(error.data)}
    except Exception as error:
        whole = scrubbed("".join(traceback.format_exception(error)))
        note = scrubbed(f"{type(error).__name__}: {error}")
        return {"status": "failed", "note": note, "data": {"error": whole}}


if __name__ == "__main__":
    sys.exit(main())
