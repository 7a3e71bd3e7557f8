"""Whether a peer computes the update that all are timed on, within bounds that are computed.

The law is computed in float64; each number carries a bound on the distance of any float32
computation of it: sums in any order, the rule's roundings twice (embsim.conformance.tolerance), a
coefficient rounded once. Nothing in it is chosen.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

import embsim
from embsim.conformance import Difference
from embsim.conformance.tolerance import (
    RULES,
    Rounded,
    RoundedOps,
    check_within,
    exact,
    rounded,
    sum_of,
)
from embsim.optimizers import row_update

from .job import RATE, Batches, Job

STEPS = 3


def check(peer: str, found: Mapping[str, np.ndarray], law: Mapping[str, Rounded]) -> None:
    """Raises Difference: numbers that are missing, or farther from the law than their bound."""
    if set(found) != set(law):
        raise Difference(f"{peer}: has {sorted(found)}; it must have {sorted(law)}")
    for name, bounded in law.items():
        check_within(f"{peer}: {name}", found[name].reshape(bounded.value.shape), bounded)


def lawful(job: Job, batches: Batches) -> dict[str, Rounded]:
    """What `Steps.read` must return after STEPS steps: the newest lookup, tables and slots."""
    made: dict[str, Rounded] = {}
    for t in range(job.workload.tables):
        rows = [exact(row) for row in job.initial()]
        slots = [
            [
                exact(np.full(1 if s.rowwise else job.workload.dim, np.float32(s.initial)))
                for s in job.law.slots
            ]
            for _ in rows
        ]
        found: list[Rounded] = []
        for k in range(STEPS):
            ids = batches.ids[k, t]
            found = [sum_of([_gain(job) * rows[row] for row in bag]) for bag in ids]
            for row in np.unique(ids):
                terms = [
                    _gain(job) * exact(batches.gradients[t, bag])
                    for bag in np.nonzero(ids == row)[0]
                ]
                rows[row], slots[row] = _updated(job.law, rows[row], slots[row], terms)
        made[f"activations {t}"] = _stacked(found)
        made[f"table {t}"] = _stacked(rows)
        for i, slot in enumerate(job.law.slots):
            made[f"{slot.name} {t}"] = _stacked([of_row[i] for of_row in slots])
    return made


def _gain(job: Job) -> Rounded:
    if job.workload.combiner == "sum":
        return exact(np.ones(1))
    return rounded(np.full(1, 1 / job.workload.pooling), 0.0)


def _updated(
    law: Any, row: Rounded, slots: list[Rounded], terms: list[Rounded]
) -> tuple[Rounded, list[Rounded]]:
    if isinstance(law, embsim.SGD):  # libraries may add the terms to the row one after another
        rate = rounded(np.full(1, -RATE), 0.0)
        return sum_of([row, *(rate * term for term in terms)]), slots
    numbers = {n: _of_a_rule(_coefficient(x)) for n, x in law.coefficients(RATE).items()}
    update = row_update(law, RoundedOps)
    given = _of_a_rule(row), _of_a_rule(sum_of(terms)), tuple(map(_of_a_rule, slots))
    row, made = update(*given, SimpleNamespace(**numbers))
    return row, list(made)


def _coefficient(x: float) -> Rounded:
    """Given in float64; rounded, or computed from others in float32."""
    return rounded(np.full(1, x), 0.0)


def _of_a_rule(x: Rounded) -> Rounded:
    return replace(x, steps=RULES)


def _stacked(parts: list[Rounded]) -> Rounded:
    return Rounded(np.stack([p.value for p in parts]), np.stack([p.error for p in parts]))
