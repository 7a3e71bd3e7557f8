"""Found against wanted, and what is said where they differ."""

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .program import Program, Setup


class Difference(AssertionError):  # noqa: N818 (what it is, not what went wrong)
    """Where a subject and the law part.

    `call` is the index in the program's calls; `table`, `slot`, `step`, `row` are None where they
    do not apply; `found` and `wanted` are the first pair of values that differ.
    """

    def __init__(self, what: str, **place: Any) -> None:
        super().__init__(what)
        self.what = what
        self.call: int | None = place.get("call")
        self.table: str | None = place.get("table")
        self.slot: str | None = place.get("slot")
        self.step: int | None = place.get("step")
        self.row: int | None = place.get("row")
        self.found: Any = place.get("found")
        self.wanted: Any = place.get("wanted")
        self.program: Program | None = None  # of a replay: all that it needs to be seen again
        self.watched = True


def raised(error: BaseException) -> str:
    """What was raised, and where: an engine that breaks raises RuntimeErrors too."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"raised {type(error).__name__}: {error} ({at.filename}, line {at.lineno})"


def compare_state(
    setup: Setup,
    version: Mapping[Any, Sequence[np.ndarray]],
    tables: Mapping[str, Any],
    slots: Mapping[str, Mapping[str, Any]],
    after: str,
    number: int | None = None,
) -> None:
    """Tables and slots with a version of the law, to the bit."""
    for name, found in (("tables()", tables), ("slots()", slots)):
        if not isinstance(found, Mapping):
            kind = type(found).__name__
            raise Difference(f"{name} returned a {kind}; it must return a mapping by table name")
    if set(tables) != set(setup.tables):
        raise Difference(f"tables are {sorted(tables)}; they must be {sorted(setup.tables)}")
    for name, config in setup.tables.items():
        wanted, *wanted_slots = version[config]
        step = None if not number else number - 1
        place: dict[str, Any] = {"table": name, "step": step}
        when = f"after {after}, {number} updates: " if number is not None else f"after {after}: "
        compare(f"{when}table {name!r}", np.asarray(tables[name]), wanted, **place)
        names = [slot.name for slot in config.optimizer.slots]
        if set(slots.get(name, {})) != set(names):
            found = sorted(slots.get(name, {}))
            raise Difference(f"slots of table {name!r} are {found}; they must be {names}")
        for slot, values in zip(names, wanted_slots, strict=True):
            what = f"{when}slot {slot!r} of table {name!r}"
            compare(what, np.asarray(slots[name][slot]), values, slot=slot, **place)


def compare(what: str, found: np.ndarray, wanted: np.ndarray, hint: str = "", **place: Any) -> None:
    """Raises Difference unless the arrays are bitwise equal: equal bits, both NaN, or both zero."""
    if found.dtype != np.float32:
        raise Difference(f"{what} has dtype {found.dtype}; it must be float32", **place)
    if found.shape != wanted.shape:
        raise Difference(f"{what} has shape {found.shape}; it must be {wanted.shape}", **place)
    if same_bits(found, wanted):
        return
    same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
    first = tuple(int(i) for i in np.argwhere(~same)[0])
    where = f"[{', '.join(map(str, first))}]"
    raise Difference(
        f"{what}: at {where} found {found[first]!s}, the law says {wanted[first]!s}, to the bit "
        f"({int((~same).sum())} of {same.size} numbers differ){_close(found[first], wanted[first])}"
        f"{hint}",
        row=first[0],
        found=found[first],
        wanted=wanted[first],
        **place,
    )


def _close(found: Any, wanted: Any) -> str:
    """What may explain numbers that are only just not equal."""
    if not (np.isfinite(found) and np.isfinite(wanted)):
        return ""
    if found == 0 and abs(wanted) <= np.finfo(np.float32).smallest_normal:
        return (
            "; that is a subnormal number: if the engine takes these for zero (XLA on a CPU and "
            "fast-math builds do), declare `subnormals=False`"
        )
    ulps = abs(float(found) - float(wanted)) / float(np.spacing(np.abs(wanted)))
    if ulps > 16:
        return ""
    return (
        f"; they are {ulps:.0f} units in the last place apart: if the engine's sqrt or division is "
        "not IEEE (XLA and fast-math compilers rewrite g / sqrt(a)), declare it as `ulps`; if some "
        "of its rules alone are not to the bit, name them in `bounded`"
    )


def same_bits(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Equal bits, or both NaN, or both zeros of either sign, everywhere; both float32."""
    return (
        found.dtype == wanted.dtype == np.float32
        and found.shape == wanted.shape
        and np.array_equal(found, wanted, equal_nan=True)
    )
