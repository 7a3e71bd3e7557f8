"""What a check is, and what comes of it on one subject.

A check is a function (subject, draw) whose name is a sentence; it asserts one decision of
docs/semantics.md, on operands that Hypothesis draws. Bound to a subject it is a callable without
arguments.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..errors import BackendError, CapacityError
from .adapter import REFUSABLE, Capabilities
from .difference import Difference
from .examples import Draw as Draw
from .examples import Examples
from .smallest import smallest
from .subject import Subject, subject_of

# Examples of a check of effort 1.
LEVELS = {"quick": 8, "default": 80, "nightly": 1000}

Body = Callable[[Subject, Draw], None]


def always(can: Capabilities) -> bool:
    return True


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
    when: Callable[[Capabilities], bool] = always
    effort: float = 1.0

    @property
    def name(self) -> str:
        return self.body.__name__

    @property
    def sentence(self) -> str:
        """What it asserts, in words."""
        return " ".join((self.body.__doc__ or self.name).split())

    def applies_to(self, subject: Subject) -> bool:
        return self.why_not(subject) is None

    def why_not(self, subject: Subject) -> str | None:
        """Why it does not apply to `subject`; None if it does."""
        can = subject.capabilities
        if self.backend and subject.backend is None:
            return "it is for backends; this engine has queues of its own"
        refused = [name for name in self.needs if not can.offers(name)]
        if refused:
            return "; ".join(f"{name} is refused: {can.refuses[name]}" for name in refused)
        return None if self.when(can) else _asked(self.when, can)

    def on(self, subject: Any, level: str = "default") -> "BoundCheck":
        """It and `subject`, to be called."""
        return BoundCheck(self, subject_of(subject), level)

    def __call__(self, subject: Any, level: str = "default") -> None:
        """Hold `subject` to it. Raises AssertionError with the shortest example that was found."""
        __tracebackhide__ = True  # pytest shows the check's body and the message
        self.on(subject, level)()


@dataclass(frozen=True)
class Result:
    """Of one check on one subject.

    Args:
      examples: tried, up to the first that failed.
      seconds: with the search for the shortest example that fails.
      error: None where it passed; an AssertionError where the subject differs from the law;
        anything else where it broke.
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
class BoundCheck:
    """A check of one subject at one level; call it."""

    check: Check
    subject: Subject
    level: str = "default"
    shrink: bool = True

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level is {self.level!r}; it must be one of {list(LEVELS)}")

    @property
    def __name__(self) -> str:
        return self.check.name

    def __str__(self) -> str:
        return self.check.name

    def __repr__(self) -> str:
        return f"<{self.check.name} of {self.subject.name}, level {self.level}>"

    @property
    def examples(self) -> int:
        """How many are tried, if none fails."""
        return max(1, round(LEVELS[self.level] * self.check.effort))

    def __call__(self) -> None:
        """Raises AssertionError with the shortest example that was found."""
        __tracebackhide__ = True
        error = self.result().error
        if error is not None:
            raise error

    def result(self, told: Callable[[int], None] | None = None) -> Result:
        """What came of it, whatever was raised; only KeyboardInterrupt and the like pass through.

        `told` is called with the number of each example, up to the first that fails.
        """
        start = time.perf_counter()
        examples = Examples(
            self.check.name,
            self._body,
            self.examples,
            shrink=self.shrink,
            random=self.level == "nightly",
            told=told,
        )
        error = examples.error()
        if self.shrink and isinstance(error, Difference):
            error = smallest(self.subject, error).with_traceback(error.__traceback__)
        return Result(self.check, examples.tried, time.perf_counter() - start, error)

    def _body(self, draw: Draw) -> None:
        try:
            self.check.body(self.subject, draw)
        except (BackendError, CapacityError) as error:
            raise Difference(
                f"{self.subject.name} refuses what it does not declare in `refuses`: {error}"
            ) from error


def check(
    *decisions: str,
    needs: Sequence[str] = (),
    backend: bool = False,
    when: Callable[[Capabilities], bool] = always,
    effort: float = 1.0,
) -> Callable[[Body], Check]:
    """Make a Check of a function (subject, draw); its docstring is the sentence that is shown.

    Those of the kit are in checks/. Any other is yours: call it with a subject, or give it to
    `run_checks`.
    """

    def made(body: Body) -> Check:
        assert decisions, f"{body.__name__} holds no decision"
        unknown = sorted(set(needs) - set(REFUSABLE))
        assert not unknown, f"{body.__name__} needs {unknown}; the names are {REFUSABLE}"
        return Check(body, decisions, tuple(needs), backend, when, effort)

    return made


def _asked(when: Callable[[Capabilities], bool], can: Capabilities) -> str:
    """What `when` saw last of the capabilities, after which it said no."""
    seen: list[str] = []
    refused: list[str] = []

    class Seen(Capabilities):
        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if name in names and name != "refuses":
                seen.append(f"{name} is {value!r}")
            return value

        def offers(self, *names: str) -> bool:
            refused.extend(name for name in names if name in can.refuses)
            return can.offers(*names)

    names = {each.name for each in fields(can)}
    watched = Seen(**{name: getattr(can, name) for name in names})
    seen.clear()
    when(watched)
    if refused:
        return f"refused are {', '.join(dict.fromkeys(refused))}"
    return seen[-1] if seen else "its capabilities"
