"""An optimizer's rule as a key: optimizers that compute the same share compiled programs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from embsim._codegen import update_source
from embsim.optimizers import Optimizer


@dataclass(frozen=True)
class Rule:
    """The statements of one row's update, and an optimizer that has them. Rates and all other
    numbers of the formula are arguments of the programs, and no part of it."""

    statements: str
    coefficients: tuple[str, ...]
    optimizer: Optimizer = field(compare=False)

    @staticmethod
    def of(optimizer: Optimizer, coefficients: tuple[str, ...]) -> "Rule":
        """Raises TypeError: a rule with a literal, a branch, or what `ops` does not offer."""
        return Rule(_statements(optimizer), coefficients, optimizer)


def _statements(optimizer: Optimizer) -> str:
    try:
        return _remembered(optimizer)
    except TypeError:  # not hashable, or an error of the rule, which is raised again here
        return update_source(optimizer)


_remembered: Callable[[Any], str] = lru_cache(maxsize=1024, typed=True)(update_source)
