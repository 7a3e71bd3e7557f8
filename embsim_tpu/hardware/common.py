"""What the checks of `make tpu-check` have in common."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embsim.plan import LookupPlan

F = np.float32
ROWS = 96  # of a small table
SPARSECORES = ("TPU v5", "TPU v5p", "TPU v6 lite", "TPU v6e", "TPU7x")


class SkippedError(Exception):
    """What does not apply to this chip; the message says why."""


class WrongError(AssertionError):
    """A result that is not as it must be. `data` goes into the report."""

    def __init__(self, message: str, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.data = dict(data or {})


@dataclass(frozen=True)
class Chip:
    """Where checks run.

    Args:
      rounds: whether every operation is rounded by itself, which XLA on CPU does under two flags.
    """

    platform: str
    kind: str
    devices: int
    rounds: bool

    @property
    def interpreted(self) -> bool:
        return self.platform != "tpu"


Told = Callable[[str], None]
Found = tuple[str, Mapping[str, Any]]  # a note in a few words, and numbers


@dataclass(frozen=True)
class Check:
    """Raises SkippedError, WrongError or whatever the compiler and the chip raise.

    Args:
      group: with others that are shown in one line.
      kernels: whose; "" of none.
      quick: whether --quick has it.
    """

    name: str
    group: str
    kernels: str
    quick: bool
    body: Callable[[Chip, Told], Found]

    def run(self, chip: Chip, told: Told) -> Found:
        if self.kernels == "sparsecore" and not chip.interpreted and chip.kind not in SPARSECORES:
            raise SkippedError(f"{chip.kind} has no SparseCores; v5p, v6e and 7x have")
        return self.body(chip, told)


def plan_of(bags: Sequence[Sequence[int]], rows: int, gains: np.ndarray) -> LookupPlan:
    row = np.array([row for bag in bags for row in bag], np.int32)
    return LookupPlan("t", rows, np.cumsum([0, *map(len, bags)]), row, gains)


def apart(found: np.ndarray, wanted: np.ndarray) -> tuple[int, int, int]:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise WrongError(
            f"an array is {found.dtype} {found.shape}; it must be {wanted.dtype} {wanted.shape}"
        )
    bits, others = found.view(np.int32).astype(np.int64), wanted.view(np.int32).astype(np.int64)
    differ = int(np.count_nonzero(bits != others))
    ordered = [np.where(each < 0, -(2**31) - each, each) for each in (bits, others)]
    return found.size, differ, int(np.max(np.abs(ordered[0] - ordered[1]), initial=0))
