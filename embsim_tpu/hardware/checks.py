"""What `make tpu-check` asks of kernels: their results on the chip against the reference's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from embsim.optimizers import FTRL, SGD, Adagrad, Adam, Optimizer, RowwiseAdagrad, coefficients
from embsim.plan import LookupPlan
from embsim.reference import ReferenceBackend
from embsim.state import State, TableSpec

from ..backend import JaxBackend
from ..capacity import Capacity
from . import more
from .common import (
    ROWS,
    Check,
    Chip,
    F,
    Found,
    SkippedError,
    Told,
    WrongError,
    apart,
    plan_of,
)
from .times import times

KERNELS = ("xla", "pallas", "pallas-exact", "sparsecore")
DIMS = (32, 128, 200, 256)
# Rates that are no powers of two; SGD's is, so that integers stay exact.
OPTIMIZERS: Mapping[str, Optimizer] = {
    "sgd": SGD(0.5),
    "adagrad": Adagrad(0.1),
    "adam": Adam(0.01),
    "ftrl": FTRL(0.1),
    "rowwise-adagrad": RowwiseAdagrad(0.1),
}
QUICK_DIMS, QUICK_OPTIMIZERS = (32, 128), ("sgd", "adagrad")
# Terms of a sum have one sign, so that errors do not grow by cancellation: 10 ids a bag and 3 steps
# are at most 30 roundings; a rule has at most four roots and quotients of at most 4 ulp (as
# JaxBackend.parity has it). FTRL's difference of two roots is 10 times as wrong as these.
ULPS_MAX = {"sgd": 32, "ftrl": 640}
ULPS_MAX_OTHERS = 64
SAMPLES, STEPS = 16, 3
CAPACITY = Capacity(positions=64, rows=64)


def all_checks() -> dict[str, Check]:
    """By name, in the order in which they run: those that may take long stand last."""
    found = [_check("ieee-divide", "", more.ieee_divide), _check("ieee-sqrt", "", more.ieee_sqrt)]
    for kernels in KERNELS:
        for dim in DIMS:
            for name in OPTIMIZERS:
                if (kernels, name) != ("sparsecore", "rowwise-adagrad"):  # which it refuses
                    quick = dim in QUICK_DIMS and name in QUICK_OPTIMIZERS
                    body = partial(steps, kernels, dim, name)
                    found.append(_check(f"steps-{kernels}-{dim}-{name}", kernels, body, quick))
        for dim in (32, 128):
            body = partial(more.untouched, kernels, dim)
            found.append(_check(f"untouched-{kernels}-{dim}", kernels, body))
        for name, bags in (("padding", more.PADDING), ("empty", more.EMPTY), ("long", more.LONG)):
            found.append(_check(f"{name}-{kernels}", kernels, partial(shaped, kernels, bags)))
        found.append(_check(f"mesh-{kernels}", kernels, partial(on_mesh, kernels)))
    for kernels, dim in (("pallas", 32), ("pallas", 128), ("sparsecore", 32)):
        body = partial(more.repeated, kernels, dim)
        found.append(_check(f"repeat-{kernels}-{dim}", kernels, body, dim == 32))
    for dim in (32, 128, 256):
        for what in ("lookup", "adagrad"):
            for ids in ("uniform", "zipf"):
                body = partial(times, what, dim, ids)
                quick = dim == 128 and ids == "zipf"
                found.append(_check(f"time-{what}-{dim}-{ids}", "pallas", body, quick))
    found.append(_check("kit-pallas", "pallas", partial(more.kit, "pallas"), False))
    return {check.name: check for check in found}


def _check(name: str, kernels: str, body: Any, quick: bool = True) -> Check:
    first = name.partition("-")[0]
    return Check(name, f"{first}-{kernels}" if kernels else first, kernels, quick, body)


# --- steps


@dataclass(frozen=True)
class Numbers:
    """Small integers, or any numbers: those of one column have one sign, gradients the other."""

    exact: bool
    seed: int = 0

    def table(self, dim: int, rows: int = ROWS) -> np.ndarray:
        return -self._drawn((rows, dim), 1)

    def gradients(self, samples: int, dim: int, step: int) -> np.ndarray:
        return self._drawn((samples, dim), 2 + step)

    def gains(self, count: int, step: int) -> np.ndarray:
        draw = np.random.default_rng((self.seed, 9, step))
        if self.exact:
            return draw.choice([F(0.5), F(1), F(2)], count)
        return draw.uniform(0.1, 2.0, count).astype(F)

    def _drawn(self, shape: tuple[int, int], seed: int) -> np.ndarray:
        draw = np.random.default_rng((self.seed, seed))
        if self.exact:
            return draw.integers(-8, 9, shape).astype(F)
        sign = np.where(np.arange(shape[1]) % 2, F(1), F(-1))
        return sign * draw.uniform(0.25, 4.0, shape).astype(F)


def ragged(step: int, rows: int = ROWS, samples: int = SAMPLES) -> list[list[int]]:
    """Bags: one empty, one of 10 ids, others of up to 4; repeated ids, the first and last row."""
    draw = np.random.default_rng((7, step))
    bags = [draw.integers(0, rows, n).tolist() for n in draw.integers(1, 5, samples)]
    bags[1], bags[2] = [], [0, rows - 1, 5, 5, 5, 6, 7, 0, rows - 1, 33 % rows]
    return bags


def state_of(spec: TableSpec, table: np.ndarray) -> State:
    slots = () if spec.optimizer is None else spec.optimizer.slots
    made = {s.name: np.full(spec.slot_shape(s.name, len(table)), s.initial, F) for s in slots}
    return State({"t": spec}, {"t": table.copy()}, {"t": made})


def run_steps(backend: Any, state: State, plans: Sequence[LookupPlan], numbers: Numbers) -> Any:
    """[activations, ..., table, slots by name] after these plans' lookups and updates."""
    spec = state.specs["t"]
    assert spec.optimizer is not None
    rates = {"t": coefficients(spec.optimizer, _rate(spec.optimizer))}
    held, seen = backend.put_state(state), {}
    for step, plan in enumerate(plans):
        put = backend.put_plan({"t": plan})
        seen[f"activations {step}"] = np.array(backend.lookup(held, put)["t"])
        gradients = numbers.gradients(plan.samples, spec.dim, step)
        held = backend.update(held, put, {"t": gradients}, rates)
    put = backend.put_plan({"t": plans[-1]})
    seen["activations"] = np.array(backend.lookup(held, put)["t"])
    made = backend.get_state(held)
    return (
        seen
        | {"table": np.array(made.weights["t"])}
        | {f"slot {name}": np.array(slot) for name, slot in made.slots["t"].items()}
    )


def _rate(optimizer: Optimizer) -> float:
    assert not callable(optimizer.learning_rate)
    return optimizer.learning_rate


def compared(
    kernels: str,
    dim: int,
    optimizer: Optimizer,
    exact: bool,
    bags: Sequence[Sequence[Sequence[int]]] | None = None,
    mesh: Mesh | None = None,
) -> dict[str, tuple[int, int, int]]:
    """By array: (numbers, numbers whose bits differ, greatest distance in ulp)."""
    numbers, backend = (
        Numbers(exact),
        JaxBackend(mesh, CAPACITY if bags is None else "auto", kernels),
    )
    given = [ragged(step) for step in range(STEPS)] if bags is None else bags
    plans = [
        plan_of(each, ROWS, numbers.gains(sum(map(len, each)), step))
        for step, each in enumerate(given)
    ]
    spec = TableSpec("t", ROWS, dim, optimizer)
    found, wanted = (
        run_steps(each, state_of(spec, numbers.table(dim)), plans, numbers)
        for each in (backend, ReferenceBackend())
    )
    return {name: apart(found[name], wanted[name]) for name in wanted}


def judged(
    found: Mapping[str, tuple[int, int, int]], ulps_max: int, what: str
) -> tuple[str, dict[str, Any]]:
    """A note and numbers, or WrongError: the first array beyond the bound and how far."""
    size, differ = (sum(each[i] for each in found.values()) for i in (0, 1))
    ulps = max(each[2] for each in found.values())
    data = {"numbers": size, "differ": differ, "ulps": ulps, "ulps_max": ulps_max}
    if ulps > ulps_max or (ulps_max == 0 and differ):
        name, (count, wrong, far) = next(
            item for item in found.items() if item[1][2] > ulps_max or (not ulps_max and item[1][1])
        )
        allowed = f"at most {ulps_max} ulp" if ulps_max else "equal to the bit"
        raise WrongError(
            f"{what}: {name}: {wrong} of {count} numbers differ from the reference's, by up to "
            f"{far} ulp; required: {allowed}",
            {**data, "arrays": dict(found)},
        )
    return f"{what}: {'equal' if not differ else f'{differ} of {size} by up to {ulps} ulp'}", data


def steps(kernels: str, dim: int, name: str, chip: Chip, told: Told) -> Found:
    """A lookup and three updates, on integers and on any numbers."""
    optimizer = OPTIMIZERS[name]
    notes: list[str] = []
    data: dict[str, Any] = {}
    exact = compared(kernels, dim, optimizer, exact=True)
    if name != "sgd":
        exact = {"activations 0": exact["activations 0"]}  # all else has roots and quotients
    note, data["exact"] = judged(exact, 0, "integers")
    notes.append(note)
    to_the_bit = kernels == "pallas-exact" and name != "rowwise-adagrad" and chip.rounds
    ulps_max = 0 if to_the_bit else ULPS_MAX.get(name, ULPS_MAX_OTHERS)
    try:
        note, data["real"] = judged(
            compared(kernels, dim, optimizer, False), ulps_max, "any numbers"
        )
    except WrongError as error:
        raise WrongError(str(error), {**data, "real": error.data}) from None
    return "; ".join([*notes, note]), data | {"ulps": data["real"]["ulps"]}


def shaped(kernels: str, bags: Any, chip: Chip, told: Told) -> Found:
    """Bags of a special form, on integers: every bit."""
    return judged(compared(kernels, 32, SGD(0.5), True, [bags] * 2), 0, "integers")


def on_mesh(kernels: str, chip: Chip, told: Told) -> Found:
    devices = jax.local_devices()[: 2 if chip.interpreted else None]
    if len(devices) < 2:
        raise SkippedError("there is one device")
    samples = len(devices) * 4
    bags = [ragged(step, ROWS, samples) for step in range(2)]
    mesh = Mesh(np.array(devices), ("x",))
    note, data = judged(compared(kernels, 128, SGD(0.5), True, bags, mesh), 0, "integers")
    return f"{len(devices)} devices: {note}", data
