"""Checks of `make tpu-check` that are not a few small steps: IEEE arithmetic, rows that must not
change, races, and the conformance kit."""

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from embsim.optimizers import Adagrad, coefficients
from embsim.reference import ReferenceBackend
from embsim.state import State, TableSpec

from ..backend import JaxBackend
from ..capacity import Capacity
from ..kernels import ieee
from .common import (
    ROWS,
    Chip,
    F,
    Found,
    SkippedError,
    Told,
    WrongError,
    apart,
    plan_of,
)

# Two samples of many; nothing; one bag of 1000 ids with others.
PADDING: list[list[int]] = [[95, 0, 95], *[[]] * 20, [3]]
EMPTY: list[list[int]] = [[]] * 16
LONG: list[list[int]] = [[7], [(13 * i) % 96 for i in range(1000)], [], [95]]
IEEE_NUMBERS = 2**20
LARGE, LARGE_SAMPLES, LARGE_IDS, REPEATS = 2**17, 1024, 16, 20
KIT_SECONDS = 420.0


# --- IEEE


def ieee_divide(chip: Chip, told: Told) -> Found:
    draw = np.random.default_rng(1)
    a, b = (_any_magnitude(draw, -75, 25) for _ in range(2))
    return _equal_in_kernel(chip, lambda a, b: ieee.divide(a, b), a / b, a, b)


def ieee_sqrt(chip: Chip, told: Told) -> Found:
    x = np.abs(_any_magnitude(np.random.default_rng(2), -75, 100))
    return _equal_in_kernel(chip, lambda x: ieee.sqrt(x), np.sqrt(x), x)


def _any_magnitude(draw: np.random.Generator, low: int, high: int) -> np.ndarray:
    """Any significand and sign, exponents low .. high - 1: where ieee.py says it is right."""
    significand = draw.integers(0, 2**23, IEEE_NUMBERS, dtype=np.uint32)
    exponent = draw.integers(127 + low, 127 + high, IEEE_NUMBERS, dtype=np.uint32)
    sign = draw.integers(0, 2, IEEE_NUMBERS, dtype=np.uint32)
    return (sign << 31 | exponent << 23 | significand).view(F)


def _equal_in_kernel(chip: Chip, function: Any, wanted: np.ndarray, *operands: Any) -> Found:
    if not chip.rounds:
        raise SkippedError("XLA on CPU fuses operations here; run it without --here")

    def kernel(*refs: Any) -> None:
        refs[-1][...] = function(*(ref[...] for ref in refs[:-1]))

    rows = IEEE_NUMBERS // 128
    block = pl.BlockSpec((256, 128), lambda i: (i, 0))
    made: Any = pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((rows, 128), jnp.float32),
        grid=(rows // 256,),
        in_specs=[block] * len(operands),
        out_specs=block,
        interpret=chip.interpreted,
    )
    found = np.asarray(jax.jit(made)(*(each.reshape(rows, 128) for each in operands)))
    size, differ, ulps = apart(found.reshape(-1), wanted)
    data = {"numbers": size, "differ": differ, "ulps": ulps}
    if differ:
        first = int(np.flatnonzero(found.reshape(-1) != wanted)[0])
        given = ", ".join(float(each[first]).hex() for each in operands)
        raise WrongError(
            f"{differ} of {size} differ from NumPy's, by up to {ulps} ulp; required: none; the "
            f"first is of {given}: {float(found.flat[first]).hex()} instead of "
            f"{float(wanted[first]).hex()}",
            data,
        )
    return f"{size} numbers: equal", data


# --- rows that must not change


def untouched(kernels: str, dim: int, chip: Chip, told: Told) -> Found:
    """Of rows of any bits, not-a-numbers and subnormals too, those that no bag names."""
    draw = np.random.default_rng(dim)
    table, slot = draw.integers(0, 2**32, (2, ROWS, dim), np.uint32).view(F)
    table[1::2] = slot[1::2] = F(1)
    bags = [[1, 3], [95, 3], [41], []]
    named = sorted({row for bag in bags for row in bag})
    spec = TableSpec("t", ROWS, dim, Adagrad(0.1))
    state = State({"t": spec}, {"t": table.copy()}, {"t": {"accumulators": slot.copy()}})
    backend = JaxBackend(None, Capacity(64, 64), kernels)
    held = backend.put_state(state)
    plan = backend.put_plan({"t": plan_of(bags, ROWS, np.ones(5, F))})
    gradients = {"t": np.ones((len(bags), dim), F)}
    rates = {"t": coefficients(Adagrad(0.1), 0.1)}
    made = backend.get_state(backend.update(held, plan, gradients, rates))
    rest = np.setdiff1d(np.arange(ROWS), named)
    for name, found, old in (
        ("table", made.weights["t"], table),
        ("slot", made.slots["t"]["accumulators"], slot),
    ):
        same = (np.asarray(found).view(np.int32) == old.view(np.int32)).all(axis=1)
        if not same[rest].all():
            wrong = rest[~same[rest]]
            raise WrongError(
                f"{name}: rows {wrong[:8].tolist()} changed, {len(wrong)} of {len(rest)} that no "
                "bag names; required: none",
                {"rows": wrong.tolist()},
            )
        if same[named].any():
            raise WrongError(f"{name}: a row that is named did not change; required: all do")
    return f"{len(rest)} rows keep their bits", {"rows": len(rest)}


# --- races


def repeated(kernels: str, dim: int, chip: Chip, told: Told) -> Found:
    """One update of a large table, of many and of heavily repeated ids, again and again."""
    rows, samples, repeats = LARGE, LARGE_SAMPLES, REPEATS
    if chip.interpreted:
        rows, samples, repeats = 2**9, 32, 3
    draw = np.random.default_rng(3)
    ids = (rows * draw.uniform(0, 1, (samples, LARGE_IDS)) ** 4).astype(int)
    state, plan, gradients, rates = _large(rows, dim, ids, draw)
    wanted = ReferenceBackend().update(_copied(state), {"t": plan}, gradients, rates)
    backend = JaxBackend(None, "auto", kernels)
    first = backend.put_state(_copied(state))
    put = backend.put_plan({"t": plan})
    differ = jax.jit(_differ)
    results: list[Any] = []
    for number in range(repeats):
        told(f"{number + 1} of {repeats}")
        held = type(first)(
            first.specs, jax.tree.map(jnp.copy, first.state), first.kernels, first.version
        )
        made = backend.update(held, put, gradients, rates)
        if results and (wrong := int(differ(results[0].state, made.state))):
            raise WrongError(
                f"update {number + 1} of {repeats} equal ones gave {wrong} other numbers than the "
                "first; required: the same bits",
                {"differ": wrong},
            )
        results = results or [made]
    found = backend.get_state(results[0])
    # Integers: what Adagrad accumulates is exact.
    name = "accumulators"
    size, wrong, _ = apart(np.asarray(found.slots["t"][name]), wanted.slots["t"][name])
    if wrong:
        raise WrongError(
            f"slot {name!r}: {wrong} of {size} numbers differ from the reference's; required: none",
            {"differ": wrong},
        )
    distinct = len(np.unique(ids))
    note = f"{repeats} times the same bits; {ids.size} ids, {distinct} rows of {rows}"
    return note, {"repeats": repeats, "ids": ids.size, "distinct": distinct, "rows": rows}


def _large(rows: int, dim: int, ids: np.ndarray, draw: np.random.Generator) -> Any:
    optimizer = Adagrad(0.1)
    spec = TableSpec("t", rows, dim, optimizer)
    table = draw.integers(-8, 9, (rows, dim)).astype(F)
    state = State({"t": spec}, {"t": table}, {"t": {"accumulators": np.ones((rows, dim), F)}})
    # Some 800 terms of -1, 0 and 1 meet in a row at most, so that squares of sums are exact.
    plan = plan_of(ids.tolist(), rows, np.ones(ids.size, F))
    gradients = {"t": draw.integers(-1, 2, (len(ids), dim)).astype(F)}
    return state, plan, gradients, {"t": coefficients(optimizer, 0.1)}


def _copied(state: State) -> State:
    slots = {name: array.copy() for name, array in state.slots["t"].items()}
    return State(state.specs, {"t": state.weights["t"].copy()}, {"t": slots})


def _differ(one: Any, other: Any) -> Any:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)

    def bits(a: Any) -> Any:
        return lax.bitcast_convert_type(a, jnp.int32)

    return sum(jnp.sum(bits(a) != bits(b), dtype=jnp.int32) for a, b in pairs)


# --- the kit


def kit(kernels: str, chip: Chip, told: Told) -> Found:
    """Level quick of the conformance kit; what is left after KIT_SECONDS is not run."""
    storage = Path(tempfile.gettempdir(), "embsim-hypothesis")  # not in the user's directory
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(storage))
    from embsim.conformance import checks_for_backend

    checks = checks_for_backend(JaxBackend(kernels=kernels), "quick")
    start, passed, failures = time.monotonic(), 0, dict[str, str]()
    done = 0
    for check in checks:
        if time.monotonic() - start > KIT_SECONDS:
            break
        told(f"{done + 1} of {len(checks)}, {check.check.name}")
        result = replace(check, shrink=False).result(lambda number: told(""))
        done += 1
        passed += result.error is None
        if result.error is not None:
            failures[check.check.name] = f"{type(result.error).__name__}: {result.error}"
    left = f"; {len(checks) - done} not run, for want of time" if done < len(checks) else ""
    note = f"{passed} of {done} checks passed{left}"
    data = {"passed": passed, "run": done, "checks": len(checks), "failures": failures}
    if failures:
        raise WrongError(f"{note}; failed: {', '.join(failures)}", data)
    return note, data
