"""All checks of a subject: for pytest, or run here, with a report."""

import difflib
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import ModuleType
from typing import Any

from .check import LEVELS, BoundCheck, Check, Result
from .subject import Subject, subject_of

SHRINK_SECONDS = 30.0  # of a run; after that failures are shown as they were found


def all_checks() -> tuple[Check, ...]:
    """Every check of the kit, in the order of the decisions."""
    package = import_module(".checks", __package__)
    modules = [each for _, each in sorted(vars(package).items()) if isinstance(each, ModuleType)]
    found: dict[str, Check] = {}
    for module in modules:
        for each in vars(module).values():
            if isinstance(each, Check):
                same = found.setdefault(each.name, each) is each
                assert same, f"two checks are called {each.name}"
    return tuple(sorted(found.values(), key=_order))


def _order(each: Check) -> list[int]:
    return [int(part) for part in each.decisions[0].split(".")]


def sentences() -> Iterator[tuple[str, str]]:
    """(name, sentence) of every check."""
    for each in all_checks():
        yield each.name, each.sentence


def checks_for_backend(
    backend: Any, level: str = "default", names: Sequence[str] | None = None
) -> list[BoundCheck]:
    """The checks of a backend, by name or instance; each is a callable without arguments.

    Of `names` alone, if given; a name that no check has is a ValueError.
    """
    return bound(subject_of(backend), level, chosen(names))


def checks_for_engine(
    adapter: Any, level: str = "default", names: Sequence[str] | None = None
) -> list[BoundCheck]:
    """The checks of an engine with queues of its own; `adapter` is an EngineAdapter's class."""
    return bound(subject_of(adapter), level, chosen(names))


def chosen(names: Sequence[str] | None, checks: Sequence[Check] | None = None) -> list[Check]:
    """Those of `checks`, or of the kit, that have these names."""
    known = {each.name: each for each in (all_checks() if checks is None else checks)}
    if names is None:
        return list(known.values())
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(
                f"no check is called {name!r}{hint}; all_checks(), or `embsim conformance --list`, "
                f"names all {len(known)}"
            )
    return [each for name, each in known.items() if name in wanted]


def bound(subject: Subject, level: str, checks: Sequence[Check]) -> list[BoundCheck]:
    """Those that apply to the subject."""
    if level not in LEVELS:
        raise ValueError(f"level is {level!r}; it must be one of {list(LEVELS)}")
    return [BoundCheck(each, subject, level) for each in checks if each.applies_to(subject)]


@dataclass(frozen=True)
class Report:
    """What a run of the kit found. Its str() has everything, the programs of failures too.

    Args:
      results: in the order in which the checks ran.
      not_applicable: {name of a check that was left out: why}.
    """

    subject: str
    level: str
    results: tuple[Result, ...]
    not_applicable: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def passed(self) -> bool:
        """At least one check was run, and none failed or broke."""
        return bool(self.results) and not self.failures

    @property
    def failures(self) -> tuple[Result, ...]:
        return tuple(result for result in self.results if result.error is not None)

    @property
    def counts(self) -> str:
        """In one line."""
        verdicts = [result.verdict for result in self.results]
        parts = [f"{verdicts.count('passed')} of {len(verdicts)} checks passed"]
        parts += [f"{verdicts.count('failed')} failed"] if "failed" in verdicts else []
        parts += [f"{verdicts.count('error')} broke"] if "error" in verdicts else []
        left = len(self.not_applicable)
        parts += [f"{left} {'do' if left > 1 else 'does'} not apply"] if left else []
        examples = sum(result.examples for result in self.results)
        seconds = sum(result.seconds for result in self.results)
        return f"{', '.join(parts)} ({examples:,} examples, {seconds:.1f} s)"

    def __str__(self) -> str:
        lines = [f"{self.subject}, level {self.level}", *map(line, self.results)]
        lines += not_run(self.not_applicable)
        lines += [f"\n{explanation(each)}\n" for each in shortest_last(self.failures)]
        return "\n".join([*lines, self.counts])


def line(result: Result) -> str:
    """A result in one line."""
    decisions = ", ".join(result.check.decisions)
    return (
        f"{result.verdict:7} {result.check.name} "
        f"({decisions}; {result.examples} examples, {result.seconds:.1f} s)"
    )


def not_run(not_applicable: Mapping[str, str]) -> list[str]:
    """The names of checks that were left out, by reason; their number alone, where it is large."""
    names: dict[str, list[str]] = {}
    for name, why in not_applicable.items():
        names.setdefault(why, []).append(name)
    return [
        f"not run, {why}: {', '.join(each) if len(each) <= 8 else f'{len(each)} checks'}"
        for why, each in names.items()
    ]


def shortest_last(failures: Sequence[Result]) -> list[Result]:
    """One fault fails many checks; the simplest account of it stands where the reader looks."""
    return sorted(failures, key=lambda each: len(explanation(each)), reverse=True)


def explanation(result: Result) -> str:
    """Of a failure: the decision in words, and what was seen; nothing is cut or wrapped."""
    check, error = result.check, result.error
    assert error is not None
    seen = [str(error), *getattr(error, "__notes__", [])]
    if not isinstance(error, AssertionError):  # it broke: where?
        seen = [text.rstrip() for text in traceback.format_exception(error)]
    sentence = textwrap.fill(f"{', '.join(check.decisions)}: {check.sentence}", 100)
    found = f"{result.verdict}, example {result.examples}"
    return "\n".join([f"{check.name} ({found})", sentence, *seen])


def run_checks(
    subject: Any,
    level: str = "default",
    names: Sequence[str] | None = None,
    *,
    shrink: bool = True,
    each: Callable[[Result], None] | None = None,
    checks: Sequence[Check] | None = None,
) -> Report:
    """All checks of a backend (by name or instance) or of an engine (an adapter's class).

    No check is left out after a failure.

    Args:
      names: of the checks to run, if not all.
      shrink: whether a failure is made as short as possible; the first ones only, where there are
        many.
      each: called with every result as it comes.
      checks: others than the kit's own, `all_checks()`.
    """
    made, picked = subject_of(subject), chosen(names, checks)
    results: list[Result] = []
    for one in bound(made, level, picked):
        results.append(replace(one, shrink=shrink and not tired(results)).result())
        if each is not None:
            each(results[-1])
    return Report(made.name, level, tuple(results), not_applicable(made, picked))


def tired(results: Sequence[Result]) -> bool:
    """Whether enough time went into making failures short: one fault fails many checks."""
    return sum(result.seconds for result in results if result.error is not None) > SHRINK_SECONDS


def not_applicable(subject: Subject, checks: Sequence[Check]) -> dict[str, str]:
    """{name of a check that does not apply: why}."""
    why = {each.name: each.why_not(subject) for each in checks}
    return {name: reason for name, reason in why.items() if reason is not None}
