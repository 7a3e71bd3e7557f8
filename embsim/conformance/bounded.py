"""One training step with bounds: what an engine that rounds in its own way may compute."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..optimizers import accumulates_gradients, coefficients, learning_rate_at, updates_every_row
from . import tolerance
from .difference import Difference
from .program import Bag, Batch, Gradients, Setup
from .tolerance import Rounded, bounded_bag, bounded_update, check_within, exact, sum_of


@dataclass(frozen=True, eq=False)
class BoundedStep:
    """What a step from given tables and slots may give.

    activations: by feature, {place: Rounded [dim]}; every other place is zero.
    rows: by table, {row: (w, slots)} of the rows that the step updates; every other one stays.
    """

    activations: list[dict[tuple[int, ...], Rounded]]
    rows: dict[str, dict[int, tuple[Rounded, tuple[Rounded, ...]]]]


@np.errstate(all="ignore")
def bounded_step(
    setup: Setup,
    tables: Mapping[str, np.ndarray],
    slots: Mapping[str, Mapping[str, np.ndarray]],
    batch: Batch,
    gradients: Gradients,
    step: int = 0,
    ulps: float = 0.5,
) -> BoundedStep:
    """Lookup and update of one batch in these tables, with the coefficients of step `step`."""
    activations: list[dict[tuple[int, ...], Rounded]] = []
    parts: dict[str, dict[int, list[Rounded]]] = {name: {} for name in setup.tables}
    for feature, bags, g in zip(setup.features, batch, gradients, strict=True):
        name, quantization = str(feature.table.name), feature.table.quantization_config
        places: dict[tuple[int, ...], Rounded] = {}
        for place, rows, factors in _lookups(bags, feature, ulps):
            values = [exact(tables[name][row], ulps) for row in rows]
            values = [tolerance.quantized(value, quantization) for value in values]
            places[place] = bounded_bag(values, factors, feature.table.dim)
            slope = np.zeros(feature.table.dim) if g is None else np.asarray(g, np.float32)[place]
            for row, factor in zip(rows, factors, strict=True):
                parts[name].setdefault(row, []).append(factor * exact(slope, ulps))
        activations.append(places)
    updated = {
        name: _updated(setup, name, tables[name], slots[name], parts[name], step, ulps)
        for name in setup.tables
    }
    return BoundedStep(activations, updated)


def _lookups(
    bags: Sequence[Bag], feature: Any, ulps: float
) -> Iterator[tuple[tuple[int, ...], list[int], list[Rounded]]]:
    """(place, rows, gains) of each row of activations that is not zero for want of ids."""
    for sample, bag in enumerate(bags):
        pairs = [item if isinstance(item, tuple) else (item, 1.0) for item in bag]
        if feature.max_sequence_length:
            for position, (row, _) in enumerate(pairs[: feature.max_sequence_length]):
                yield (sample, position), [row], [exact(1.0, ulps)]
        elif pairs:
            weights = [weight for _, weight in pairs]
            factors = tolerance.gains(weights, feature.table.combiner, ulps)
            yield (sample,), [row for row, _ in pairs], factors


def _updated(
    setup: Setup,
    name: str,
    table: np.ndarray,
    slots: Mapping[str, np.ndarray],
    parts: Mapping[int, list[Rounded]],
    step: int,
    ulps: float,
) -> dict[int, tuple[Rounded, tuple[Rounded, ...]]]:
    optimizer = setup.tables[name].optimizer
    numbers = coefficients(optimizer, learning_rate_at(optimizer.learning_rate, step))
    zero = exact(np.zeros(table.shape[1]), ulps)
    rows = range(len(table)) if updates_every_row(optimizer) else sorted(parts)
    made: dict[int, tuple[Rounded, tuple[Rounded, ...]]] = {}
    for row in rows:
        contributions = parts.get(row, [])
        if accumulates_gradients(optimizer):
            contributions = [sum_of(contributions) if contributions else zero]
        before = [exact(slots[slot.name][row], ulps) for slot in optimizer.slots]
        w = exact(table[row], ulps)
        made[row] = bounded_update(optimizer, w, before, contributions, numbers)
    return made


def check_activations(setup: Setup, found: Sequence[Any] | None, bounds: BoundedStep) -> None:
    """Raises Difference where activations are not within their bounds, or not zero."""
    if found is None or len(found) != len(setup.features):
        raise Difference(f"dequeue returned {found!r}; it must return one array per feature")
    for number, (array, places) in enumerate(zip(found, bounds.activations, strict=True)):
        table = str(setup.features[number].table.name)
        what = f"activations of feature {number} (table {table!r})"
        array = np.asarray(array)
        if array.shape != setup.activation_shape(number):
            shape = setup.activation_shape(number)
            raise Difference(f"{what} has shape {array.shape}; it must be {shape}", table=table)
        zero = exact(np.zeros(array.shape[-1]))
        for place in np.ndindex(array.shape[:-1]):
            where = f"{what}, place {list(place)}"
            check_within(where, array[place], places.get(place, zero), table=table)


def check_state(
    setup: Setup,
    before: tuple[Mapping[str, Any], Mapping[str, Mapping[str, Any]]],
    after: tuple[Mapping[str, Any], Mapping[str, Mapping[str, Any]]],
    bounds: BoundedStep,
    when: str,
) -> None:
    """Raises Difference where an updated row or its slots are outside their bounds, or where any
    other row changed.
    """
    for name, config in setup.tables.items():
        old = [before[0][name], *(before[1][name][slot.name] for slot in config.optimizer.slots)]
        new = [after[0][name], *(after[1][name][slot.name] for slot in config.optimizer.slots)]
        names = ["weights", *(f"slot {slot.name!r}" for slot in config.optimizer.slots)]
        for row in range(config.vocabulary_size):
            updated = bounds.rows[name].get(row)
            wanted = None if updated is None else [updated[0], *updated[1]]
            for i, kind in enumerate(names):
                what = f"{when}: {kind} of table {name!r}, row {row}"
                place: dict[str, Any] = {"table": name, "row": row}
                found = np.asarray(new[i])[row]
                if wanted is None:
                    same = np.array_equal(found, np.asarray(old[i])[row], equal_nan=True)
                    if not same:
                        raise Difference(
                            f"{what} was not looked up, but changed from "
                            f"{np.asarray(old[i])[row]} to {found}",
                            found=found, wanted=np.asarray(old[i])[row], **place,
                        )  # fmt: skip
                else:
                    check_within(what, found, wanted[i], **place)
