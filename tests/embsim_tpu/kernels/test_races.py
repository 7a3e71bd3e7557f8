"""The TensorCore kernels in Pallas's interpreter of copies, semaphores and races.

A copy happens when it is started ("eager") or when it is waited for ("on_wait"); what has not been
written is NaN. Kernels with planted bugs run in processes of their own, since the interpreter of
JAX 0.10 does not recover from an error.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax import lax
from jax.experimental.pallas import tpu as pltpu

from embsim.optimizers import SGD, Adagrad, Adam, coefficients
from embsim_tpu._mesh import Shards
from embsim_tpu.kernels import Formula, _chunked, tensorcore_lookup, tensorcore_update
from embsim_tpu.kernels.tensorcore import Launch, TensorCore
from embsim_tpu.plan import device_plan, even_parts
from tests.embsim_tpu.conftest import F, capacities, plan_of
from tests.embsim_tpu.kernels.test_tensorcore import Moved, assert_bits, label, slots_of

ROOT = Path(__file__).parents[3]
CHECKED = {
    "detect_races": True,
    "vector_clock_size": 64,  # with fewer, copies seem to come one after the other
    "uninitialized_memory": "nan",
    "out_of_bounds_reads": "raise",
}
MODES = {
    mode: pltpu.InterpretParams(dma_execution_mode=mode, **CHECKED) for mode in ("eager", "on_wait")
}
LAUNCH = Launch(lookup=8, update=8, samples=8, unroll=2, block=8)
NUMBERS = coefficients(Moved(), 0.5)
FORMULA = Formula(Moved(), tuple(NUMBERS), np.array(list(NUMBERS.values()), F))
RACE = "RACE DETECTED"


@dataclass(frozen=True)
class Case:
    """One call of a kernel on small integers: every result is exact."""

    dim: int
    optimizer: object
    mode: str

    @property
    def kernels(self):
        launch = replace(LAUNCH, interpret=MODES[self.mode])
        return TensorCore.of(self.dim, self.optimizer, exact=False, launch=launch)

    @property
    def rows(self):
        """Of 40 records, the last of which is filled in part."""
        return 40 * self.kernels.records.pack - self.kernels.records.pack // 2

    def filled(self, draw):
        def fill(shape):
            return draw.integers(-9, 9, shape).astype(F)

        return fill((self.rows, self.dim)), slots_of(self.optimizer, self.rows, self.dim, fill)


def bags(draw, rows):
    """30 samples in 4 blocks of 8: a bag longer than two chunks, a block without ids, empty bags,
    and a last chunk that is filled in part."""
    lengths = [3, 0, 21, *[1] * 5, *[0] * 8, *[2] * 8, 5, 0, 0, 1, 0, 0]
    ids = draw.integers(0, rows, (sum(lengths), 2))
    pairs = iter([(int(row), float(gain % 3 - 1)) for row, gain in ids])
    return [[next(pairs) for _ in range(n)] for n in lengths]


def looked_up(case, beyond=False):
    """Activations by the kernel and by NumPy."""
    draw, kernels = np.random.default_rng(case.dim), case.kernels
    table, slots = case.filled(draw)
    given = bags(draw, min(case.rows, 40))
    plan = plan_of(given, case.rows)
    plan = device_plan(plan, even_parts(plan.samples, 1), capacities(), Shards(), kernels.sizes)
    if beyond:
        plan = replace(plan, slot=plan.slot.at[3].set(case.rows + 500))
    weights, _ = kernels.split(table, slots, np)
    found = jax.jit(lambda weights, plan: kernels.sum_bags(weights, plan, None))(weights, plan)
    wanted = np.zeros((len(given), case.dim), F)
    for sample, bag in enumerate(given):
        for row, gain in bag:
            wanted[sample] += F(gain) * table[row]
    return np.asarray(found), wanted


def gathered(case):
    """Rows by the kernel and by NumPy: five chunks, the last filled in part."""
    draw, kernels = np.random.default_rng(case.dim), case.kernels
    table, slots = case.filled(draw)
    rows = draw.integers(0, case.rows, 37).astype(np.int32)
    weights, _ = kernels.split(table, slots, np)
    return np.asarray(jax.jit(kernels.read)(weights, rows)), table[rows]


def updated(case, twice=None, beyond=False):
    """Table and slots by the kernel and by NumPy: of six chunks of records the fifth is filled in
    part and the last is empty."""
    draw, kernels = np.random.default_rng(case.dim), case.kernels
    table, slots = case.filled(draw)
    pack = kernels.records.pack
    rows = case.rows + np.arange(48, dtype=np.int32)
    rows[:37] = np.sort(draw.choice(39, 37, replace=False)) * pack
    if pack > 1:
        rows[3] = rows[2] + 1  # one record
    if twice is not None:
        rows[2] = rows[twice]
    gradients = draw.integers(-9, 9, (48, case.dim)).astype(F)

    @jax.jit
    def run(weights, beside):
        given = rows, gradients, FORMULA, 2 * case.rows if beyond else case.rows
        return kernels.update_rows(weights, beside, *given)

    made = jax.tree.map(np.asarray, run(*kernels.split(table, slots, np)))
    return kernels.join(*made, case.rows, np), by_hand(table, slots, rows[:37], gradients[:37])


def updated_everywhere(case):
    """As updated, of all rows but the last three, which are padding."""
    draw, kernels = np.random.default_rng(case.dim), case.kernels
    table, slots = case.filled(draw)
    local = case.rows - 3
    rows = np.array([0, 1, 7, local - 1, *(case.rows + np.arange(4))], np.int32)
    gradients = draw.integers(-9, 9, (8, case.dim)).astype(F)

    @jax.jit
    def run(weights, beside):
        return kernels.update_all(weights, beside, rows, gradients, FORMULA, np.array([local]))

    made = jax.tree.map(np.asarray, run(*kernels.split(table, slots, np)))
    whole = np.zeros_like(table)
    whole[rows[:4]] = gradients[:4]
    wanted = by_hand(table, slots, np.arange(local), whole[:local])
    return kernels.join(*made, case.rows, np), wanted


def by_hand(table, slots, rows, gradients):
    """The rule of Moved."""
    table, slots = table.copy(), {name: array.copy() for name, array in slots.items()}
    table[rows] -= F(0.5) * slots["last"][rows]
    slots["sums"][rows] += gradients
    slots["rows"][rows] += 1
    slots["last"][rows] = gradients
    return table, slots


# Records packed, of one line and of several; in one array or two, with slots beside them or not.
READ = [
    (1, SGD(0.1)),
    (3, Adam(0.1)),
    (32, Adagrad(0.1)),
    (128, Adagrad(0.1)),
    (384, Adagrad(0.1)),
]
WRITTEN = [(3, Moved()), (32, Moved()), (128, Moved()), (384, Moved())]
KERNELS = {
    "lookup": (looked_up, READ),
    "gather": (gathered, READ),
    "update": (updated, WRITTEN),
    "update_every": (updated_everywhere, WRITTEN[::3]),
}
CASES = [(name, *each) for name, (_, cases) in KERNELS.items() for each in cases]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel, dim, optimizer", CASES, ids=label)
def test_a_kernel_has_no_race_and_is_right(kernel, dim, optimizer, mode, capfd):
    run, _ = KERNELS[kernel]
    assert_bits(kernel, *run(Case(dim, optimizer, mode)))
    assert RACE not in capfd.readouterr().out


# --- planted bugs, in processes of their own --------------------------------------------------


class Patched:
    """A module with other functions in place of some of its own."""

    def __init__(self, module, **functions):
        self.__dict__.update(functions, module=module)

    def __getattr__(self, name):
        return getattr(self.module, name)


ALL = range(99)


def waits_but(skipped):
    """wait_all, but not at these of its places in a kernel, in the order of the source."""
    number = count()

    def wait_all(*given):
        if next(number) not in skipped:
            _chunked.wait_all(*given)

    return {"wait_all": wait_all}


def whole_waits_but(skipped):
    """As waits_but, of the waits for copies of whole chunks, which gather has."""
    number = count()

    def make_async_copy(*given):
        copy = pltpu.make_async_copy(*given)
        wait = (lambda: None) if next(number) in skipped else copy.wait
        return SimpleNamespace(start=copy.start, wait=wait)

    return {"pltpu": Patched(pltpu, make_async_copy=make_async_copy)}


def waits_for_fewer():
    """Bytes: those of one row less than there are."""
    return {"wait_all": lambda rows, *rest: _chunked.wait_all(rows - 1, *rest)}


def one_buffer_less():
    return {"lax": Patched(lax, rem=lambda x, divisor: lax.rem(x, divisor - 1))}


RIGHT, WRONG, BEYOND = "right", "wrong", "Out-of-bounds"


@dataclass(frozen=True)
class Planted:
    """Args:
    found: by the mode of copies, what gives it away.
    change: the names that a kernel's module shall have otherwise.
    given: to the call.
    """

    found: dict
    change: Callable = dict
    given: dict = field(default_factory=dict)


ANYHOW = {"eager": RIGHT, "on_wait": RIGHT}
BY_EITHER = {"eager": RACE, "on_wait": WRONG}
BUGS = {
    "lookup": {
        "none": Planted(ANYHOW),
        "rows are not waited for": Planted(BY_EITHER, partial(waits_but, ALL)),
        "a wait is for one row too few": Planted({"on_wait": WRONG}, waits_for_fewer),
        "one buffer for two chunks": Planted(dict.fromkeys(MODES, RACE), one_buffer_less),
        "an id beyond the table": Planted({"eager": BEYOND}, given={"beyond": True}),
    },
    "gather": {
        "none": Planted(ANYHOW),
        "rows are not waited for": Planted(BY_EITHER, partial(waits_but, ALL)),
        "a wait is for one row too few": Planted({"on_wait": WRONG}, waits_for_fewer),
        "a buffer is filled while it is sent on": Planted(BY_EITHER, partial(whole_waits_but, {0})),
        "no wait at the end": Planted(BY_EITHER, partial(whole_waits_but, ALL[1:])),
    },
    "update": {
        "none": Planted(ANYHOW),
        "none, with two buffers": Planted(ANYHOW, lambda: {"BUFFERS": 2}),
        "a buffer is filled while it is written back": Planted(BY_EITHER, partial(waits_but, {0})),
        "rows are not waited for": Planted(BY_EITHER, partial(waits_but, {1})),
        "no wait at the end": Planted(BY_EITHER, partial(waits_but, ALL[2:])),
        "a wait is for one row too few": Planted({"on_wait": WRONG}, waits_for_fewer),
        "two buffers, waited for as if there were three": Planted(
            dict.fromkeys(MODES, RACE), one_buffer_less
        ),
        "a row twice in a chunk": Planted({"eager": RACE}, given={"twice": 3}),
        "a row in two chunks": Planted({"eager": RACE}, given={"twice": 9}),
        "padding is taken for rows": Planted({"eager": BEYOND}, given={"beyond": True}),
    },
}
MODULES = {
    "lookup": tensorcore_lookup,
    "gather": tensorcore_lookup,
    "update": tensorcore_update,
}


def planted(kernel):
    """Prints what is found of each of its bugs."""
    module, (run, cases) = MODULES[kernel], KERNELS[kernel]
    case = next(each for each in cases if each[0] == 128)
    for name, bug in BUGS[kernel].items():
        for mode in bug.found:
            print(f"--- {name}, {mode}", flush=True)
            with pytest.MonkeyPatch.context() as patch:
                for attribute, value in bug.change().items():
                    patch.setattr(module, attribute, value)
                try:
                    found, wanted = map(jax.tree.leaves, run(Case(*case, mode), **bug.given))
                except Exception as error:
                    print(error, flush=True)
                    pltpu.reset_tpu_interpret_mode_state()
                else:
                    same = all(map(np.array_equal, found, wanted))
                    print(RIGHT if same else WRONG, flush=True)


@pytest.mark.parametrize("kernel", BUGS)
def test_planted_bugs_are_found(kernel):
    program = f"from tests.embsim_tpu.kernels import test_races as t; t.planted({kernel!r})"
    process = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    expected = [
        (f"{name}, {mode}", how)
        for name, bug in BUGS[kernel].items()
        for mode, how in bug.found.items()
    ]
    parts = process.stdout.split("--- ")[1:]
    for (what, how), part in zip(expected, parts, strict=True):
        assert part.startswith(what)
        assert how in part and (RACE in part) == (how == RACE), part
