"""Which code does the arithmetic of a step, chosen in one place by name and platform."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..ops import Ops
from . import xla

NAMES = ("auto", "xla")


@dataclass(frozen=True)
class Kernels:
    """See xla.py for what each does; all run on one device's part."""

    name: str
    ops: Ops
    sum_bags: Callable[..., Any]
    sum_rows: Callable[..., Any]
    update_rows: Callable[..., Any]
    update_all: Callable[..., Any]


@lru_cache
def choose(name: str, platform: str) -> Kernels:
    """The kernels of that name for "cpu", "gpu" or "tpu"; "auto" is the fastest that is there.

    Raises:
      ValueError: another name.
    """
    if name not in NAMES:
        raise ValueError(f"kernels is {name!r}; it must be one of {NAMES}")
    ops = Ops(exact=platform == "cpu")
    return Kernels("xla", ops, xla.sum_bags, xla.sum_rows, xla.update_rows, xla.update_all)
