"""What a mutant is: a subject with one fault, and the check that must find it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mutant:
    """A wrong backend (an instance) or engine (an adapter's class).

    Args:
      subject: what run_checks takes.
      killed_by: the name of the check that fails on it, run alone.
      origin: where the field met this fault: a public thread, a documented behaviour, or the
        reason to expect it.
    """

    subject: Any
    killed_by: str
    origin: str

    @property
    def name(self) -> str:
        return getattr(self.subject, "__name__", type(self.subject).__name__)

    @property
    def fault(self) -> str:
        """What it does wrong, in words: the first line of its docstring."""
        return (self.subject.__doc__ or "").strip().splitlines()[0]


MUTANTS: list[Mutant] = []


def mutant(killed_by: str, origin: str) -> Callable[[Any], Any]:
    """Register a class: an EngineAdapter, or a backend that is made without arguments."""

    def register(kind: Any) -> Any:
        subject = kind if hasattr(kind, "capabilities") else kind()
        MUTANTS.append(Mutant(subject, killed_by, origin))
        return kind

    return register
