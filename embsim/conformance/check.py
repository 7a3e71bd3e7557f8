"""What a check is, and how many are run: from pytest, or without it.

A check is a function (subject, draw) whose name is a sentence; it asserts one decision of
docs/semantics.md, on operands that Hypothesis draws. `checks_for_backend` and `checks_for_engine`
bind checks to a subject; a bound check is a callable without arguments.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from .adapter import Capabilities
from .subject import Subject, subject_of

# Examples of a check of effort 1.
LEVELS = {"quick": 8, "default": 80, "nightly": 2000}


class Draw:
    """draw(strategy): a value, drawn inside Hypothesis, so that a failure shrinks."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __call__(self, strategy: st.SearchStrategy[Any], label: str | None = None) -> Any:
        return self._data.draw(strategy, label=label)


Body = Callable[[Subject, Draw], None]


@dataclass(frozen=True)
class Check:
    """One decision, as a test of any subject.

    Args:
      body: asserts it for one example.
      decisions: numbers of docs/semantics.md.
      needs: what the subject must not refuse (names of REFUSABLE).
      backend: whether it calls the six functions of a backend, or embsim's API over one: such a
        check is not for engines with queues of their own.
      when: whether it applies to a subject of these capabilities.
      effort: examples, relative to the others.
    """

    body: Body
    decisions: tuple[str, ...]
    needs: tuple[str, ...] = ()
    backend: bool = False
    when: Callable[[Capabilities], bool] = lambda can: True
    effort: float = 1.0

    @property
    def name(self) -> str:
        return self.body.__name__

    @property
    def sentence(self) -> str:
        """What it asserts, in words."""
        return " ".join((self.body.__doc__ or self.name).split())

    def applies_to(self, subject: Subject) -> bool:
        can = subject.capabilities
        has = subject.backend is not None or not self.backend
        return has and can.offers(*self.needs) and self.when(can)

    def __call__(self, subject: Any, level: str = "default") -> None:
        """Hold `subject` to it. Raises AssertionError with the shortest example that was found."""
        BoundCheck(self, subject_of(subject), level)()


@dataclass(frozen=True)
class BoundCheck:
    """A check of one subject at one level; call it."""

    check: Check
    subject: Subject
    level: str = "default"
    shrink: bool = True

    @property
    def __name__(self) -> str:
        return self.check.name

    def __str__(self) -> str:
        return self.check.name

    def __call__(self) -> None:
        """Raises AssertionError with the shortest example that was found."""
        self.examples()

    def examples(self) -> int:
        """As a call; returns how many examples were tried."""
        tried = 0
        body, subject = self.check.body, self.subject

        @_settings(self)
        @given(data=st.data())
        def run(data: Any) -> None:
            nonlocal tried
            tried += 1
            body(subject, Draw(data))

        run()
        return tried


def _settings(bound: BoundCheck) -> settings:
    examples = max(1, round(LEVELS[bound.level] * bound.check.effort))
    phases = [Phase.generate, Phase.shrink] if bound.shrink else [Phase.generate]
    return settings(
        max_examples=examples,
        phases=phases,
        derandomize=bound.level != "nightly",
        database=None,
        deadline=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=(
            HealthCheck.data_too_large,
            HealthCheck.filter_too_much,
            HealthCheck.too_slow,
            HealthCheck.large_base_example,
            HealthCheck.nested_given,
        ),
    )


_REGISTERED: dict[str, Check] = {}


def check(
    *decisions: str,
    needs: Sequence[str] = (),
    backend: bool = False,
    when: Callable[[Capabilities], bool] = lambda can: True,
    effort: float = 1.0,
) -> Callable[[Body], Check]:
    """Register a check; its docstring is the sentence that is shown."""

    def register(body: Body) -> Check:
        made = Check(body, decisions, tuple(needs), backend, when, effort)
        assert made.name not in _REGISTERED, f"two checks are called {made.name}"
        assert decisions, f"{made.name} holds no decision"
        _REGISTERED[made.name] = made
        return made

    return register


def all_checks() -> tuple[Check, ...]:
    """Every check of the kit, in the order of the decisions."""
    import_module(".checks", __package__)  # they register themselves
    return tuple(sorted(_REGISTERED.values(), key=_order))


def _order(each: Check) -> list[int]:
    return [int(part) for part in each.decisions[0].split(".")]


def checks_for_backend(
    backend: Any, level: str = "default", names: Sequence[str] | None = None
) -> list[BoundCheck]:
    """The checks of a backend, by name or instance; each is a callable without arguments.

    Of `names` alone, if given; a name that no check has is a ValueError.
    """
    return _bound(subject_of(backend), level, names)


def checks_for_engine(
    adapter: Any, level: str = "default", names: Sequence[str] | None = None
) -> list[BoundCheck]:
    """The checks of an engine with queues of its own; `adapter` is an EngineAdapter's class."""
    return _bound(subject_of(adapter), level, names)


def _bound(subject: Subject, level: str, names: Sequence[str] | None) -> list[BoundCheck]:
    if level not in LEVELS:
        raise ValueError(f"level is {level!r}; it must be one of {list(LEVELS)}")
    known = {each.name: each for each in all_checks()}
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise ValueError(f"no check is called {unknown}; the checks are {list(known)}")
    chosen = [each for name, each in known.items() if names is None or name in names]
    return [BoundCheck(each, subject, level) for each in chosen if each.applies_to(subject)]


@dataclass(frozen=True)
class Result:
    """Of one check. `error` is None where it passed; an AssertionError where the subject differs
    from the law; anything else where it broke.
    """

    check: Check
    examples: int
    seconds: float
    error: BaseException | None = None

    @property
    def verdict(self) -> str:
        if self.error is None:
            return "passed"
        return "failed" if isinstance(self.error, AssertionError) else "error"


@dataclass(frozen=True)
class Report:
    """What a run of the kit found."""

    subject: str
    level: str
    results: tuple[Result, ...]
    not_applicable: tuple[Check, ...] = ()

    @property
    def passed(self) -> bool:
        return bool(self.results) and not self.failures

    @property
    def failures(self) -> tuple[Result, ...]:
        return tuple(result for result in self.results if result.error is not None)

    def __str__(self) -> str:
        lines = [
            f"{result.verdict:7} {result.check.name} ({result.examples} examples, "
            f"{result.seconds:.1f} s)"
            for result in self.results
        ]
        lines += [f"\n{each.check.name}\n{each.error}" for each in self.failures]
        count = f"{len(self.results) - len(self.failures)} of {len(self.results)} checks passed"
        return "\n".join([f"{self.subject}, level {self.level}", *lines, count])


def run_checks(
    subject: Any,
    level: str = "default",
    names: Sequence[str] | None = None,
    *,
    shrink: bool = True,
    each: Callable[[Result], None] | None = None,
) -> Report:
    """All checks of a backend (by name or instance) or of an engine (an adapter's class).

    `each` is called with every result as it comes. No check is left out after a failure.
    """
    made = subject_of(subject)
    bound = _bound(made, level, names)
    results: list[Result] = []
    for one in bound:
        results.append(run_one(replace(one, shrink=shrink)))
        if each is not None:
            each(results[-1])
    ran = {one.check.name for one in bound}
    wanted = [check for check in all_checks() if names is None or check.name in names]
    left = tuple(check for check in wanted if check.name not in ran)
    return Report(made.name, level, tuple(results), left)


def run_one(bound: BoundCheck) -> Result:
    """One check, whatever it raises; only KeyboardInterrupt and the like pass through."""
    start = time.perf_counter()
    error: Exception | None = None
    tried = 0
    try:
        tried = bound.examples()
    except Unsatisfiable as unsatisfiable:
        error = AssertionError(f"{bound.check.name} could draw no example: {unsatisfiable}")
    except Exception as found:
        error = found
    return Result(bound.check, tried, time.perf_counter() - start, error)


def sentences() -> Iterator[tuple[str, str]]:
    """(name, sentence) of every check."""
    for each in all_checks():
        yield each.name, each.sentence
