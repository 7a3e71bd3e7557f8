"""ExampleBackend: plain NumPy, one rounded operation at a time, hence equal to the reference bit
for bit.

Its states look unlike embsim's, and are never changed: a table and its slots stand side by side in
one array, and an update makes a new one. Copy it to begin a backend of your own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from embsim import BackendError, CapacityError, LookupPlan, Parity, QuantizationConfig, State
from embsim.optimizers import NumpyOps, accumulates_gradients, row_update, updates_every_row
from embsim.state import Rows, TableSpec

F = np.float32


@dataclass(frozen=True, eq=False)
class Held:
    """Blocks by table: [rows, dim + widths of the slots]."""

    specs: Mapping[str, TableSpec]
    blocks: Mapping[str, np.ndarray]
    version: int


@dataclass(frozen=True)
class Lookups:
    """Of one table: (sample, row, gain) in position order."""

    samples: int
    triples: tuple[tuple[int, int, Any], ...]


@dataclass(frozen=True)
class ExampleBackend:
    """`capacity`: the most lookups that a table may have in one step; None is no limit."""

    parity: ClassVar[Parity] = Parity(
        bitwise=True,
        refuses={"use_gradient_accumulation=False": "it sums a row's gradients before the rule"},
    )
    capacity: int | None = None

    def put_state(self, state: State, /) -> Held:
        blocks = {}
        for name, spec in state.specs.items():
            if spec.optimizer is not None and not accumulates_gradients(spec.optimizer):
                raise BackendError(
                    f"backend 'example': table {name!r} has use_gradient_accumulation=False, which "
                    "is not implemented; accumulate gradients, or use backend='reference'"
                )
            blocks[name] = np.concatenate([state.weights[name], *state.slots[name].values()], 1)
        return Held(state.specs, blocks, state.version)

    def get_state(self, held: Held, /) -> State:
        rows = {name: _rows(held.specs[name], block) for name, block in held.blocks.items()}
        weights = {name: part.weights for name, part in rows.items()}
        return State(held.specs, weights, {n: p.slots for n, p in rows.items()}, held.version)

    def read_rows(self, held: Held, table: str, rows: np.ndarray, /) -> Rows:
        return _rows(held.specs[table], held.blocks[table][rows])

    def put_plan(self, plans: Mapping[str, LookupPlan], /) -> dict[str, Lookups]:
        for name, plan in plans.items():
            if self.capacity is not None and len(plan.row) > self.capacity:
                raise CapacityError(
                    f"plan of table {name!r} has {len(plan.row)} lookups, capacity is "
                    f"{self.capacity}; raise capacity or split the batch"
                )
        return {name: Lookups(plan.samples, tuple(_triples(plan))) for name, plan in plans.items()}

    def lookup(self, held: Held, plans: Mapping[str, Lookups], /) -> dict[str, np.ndarray]:
        activations = {}
        for name, lookups in plans.items():
            spec = held.specs[name]
            out = activations[name] = np.zeros((lookups.samples, spec.dim), F)
            with np.errstate(all="ignore"):
                for sample, row, gain in lookups.triples:
                    values = _quantized(held.blocks[name][row, : spec.dim], spec.quantization)
                    out[sample] = out[sample] + gain * values
        return activations

    def update(
        self,
        held: Held,
        plans: Mapping[str, Lookups],
        gradients: Mapping[str, np.ndarray],
        coefficients: Mapping[str, Mapping[str, np.float32]],
        /,
    ) -> Held:
        blocks = dict(held.blocks)
        for name, lookups in plans.items():
            with np.errstate(all="ignore"):
                blocks[name] = _updated(
                    held.specs[name], blocks[name], lookups, gradients[name], coefficients[name]
                )
        return Held(held.specs, blocks, held.version + 1)


def _updated(
    spec: TableSpec,
    block: np.ndarray,
    lookups: Lookups,
    gradients: np.ndarray,
    coefficients: Mapping[str, np.float32],
) -> np.ndarray:
    """The block after the optimizer's rule on each touched row."""
    assert spec.optimizer is not None
    sums: dict[int, np.ndarray] = {}
    zeros = np.zeros(spec.dim, F)
    for sample, row, gain in lookups.triples:
        sums[row] = sums.get(row, zeros) + gain * gradients[sample]
    rule, c = row_update(spec.optimizer, NumpyOps), SimpleNamespace(**coefficients)
    new = block.copy()
    for row in range(len(block)) if updates_every_row(spec.optimizer) else sums:
        old = _rows(spec, block[row : row + 1])
        slots = tuple(slot[0] for slot in old.slots.values())
        w, slots = rule(old.weights[0], sums.get(row, zeros), slots, c)
        new[row] = np.concatenate([w, *slots])
    return new


def _triples(plan: LookupPlan) -> Iterator[tuple[int, int, Any]]:
    return zip(plan.sample.tolist(), plan.row.tolist(), plan.gain, strict=True)


def _rows(spec: TableSpec, block: np.ndarray) -> Rows:
    """Copies of the parts of a block."""
    slots, low = {}, spec.dim
    for name in spec.slot_names:
        width = spec.slot_shape(name, 1)[1]
        slots[name] = block[:, low : low + width].copy()
        low += width
    return Rows(block[:, : spec.dim].copy(), slots)


def _quantized(x: np.ndarray, config: QuantizationConfig | None) -> np.ndarray:
    if config is None:
        return x
    width = F((config.upper - config.lower) / (config.num_buckets - 1))
    x = np.minimum(np.maximum(x, F(config.lower)), F(config.upper))
    return np.floor((x - F(config.lower)) / width + F(0.5)) * width + F(config.lower)
