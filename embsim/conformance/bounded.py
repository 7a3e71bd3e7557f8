"""One training step with bounds: what an engine that rounds in its own way may compute."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import QuantizationConfig
from ..optimizers import accumulates_gradients, coefficients, learning_rate_at, updates_every_row
from .difference import Difference
from .program import Bag, Batch, Gradients, Setup
from .tolerance import (
    IEEE,
    Accuracy,
    Rounded,
    RoundedOps,
    bounded_update,
    check_within,
    exact,
    sum_of,
)


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
    accuracy: Accuracy = IEEE,
) -> BoundedStep:
    """Lookup and update of one batch in these tables, with the coefficients of step `step`."""
    activations: list[dict[tuple[int, ...], Rounded]] = []
    parts: dict[str, dict[int, list[Rounded]]] = {name: {} for name in setup.tables}
    for feature, bags, g in zip(setup.features, batch, gradients, strict=True):
        name, quantization = str(feature.table.name), feature.table.quantization_config
        places: dict[tuple[int, ...], Rounded] = {}
        for place, rows, factors in _lookups(bags, feature, accuracy):
            values = [exact(tables[name][row], accuracy) for row in rows]
            values = [quantized(value, quantization) for value in values]
            places[place] = bounded_bag(values, factors, feature.table.dim)
            slope = np.zeros(feature.table.dim) if g is None else np.asarray(g, np.float32)[place]
            for row, factor in zip(rows, factors, strict=True):
                parts[name].setdefault(row, []).append(factor * exact(slope, accuracy))
        activations.append(places)
    updated = {
        name: _updated(setup, name, tables[name], slots[name], parts[name], step, accuracy)
        for name in setup.tables
    }
    return BoundedStep(activations, updated)


def _lookups(
    bags: Sequence[Bag], feature: Any, accuracy: Accuracy
) -> Iterator[tuple[tuple[int, ...], list[int], list[Rounded]]]:
    """(place, rows, gains) of each row of activations that is not zero for want of ids."""
    for sample, bag in enumerate(bags):
        pairs = [item if isinstance(item, tuple) else (item, 1.0) for item in bag]
        if feature.max_sequence_length:
            for position, (row, _) in enumerate(pairs[: feature.max_sequence_length]):
                yield (sample, position), [row], [exact(1.0, accuracy)]
        elif pairs:
            weights = [weight for _, weight in pairs]
            factors = gains(weights, feature.table.combiner, accuracy)
            yield (sample,), [row for row, _ in pairs], factors


@np.errstate(all="ignore")
def gains(weights: Sequence[float], combiner: str, accuracy: Accuracy = IEEE) -> list[Rounded]:
    """As the definition's; a denominator of 0 gives 0, one that could be 0 has no bound."""
    w = [exact(np.float32(weight), accuracy) for weight in weights]
    if combiner == "sum" or not w:
        return w
    d = sum_of(w if combiner == "mean" else [each * each for each in w])
    if not d.value and not sum(abs(each.value) for each in w):
        return [exact(0.0, accuracy)] * len(w)
    if combiner == "sqrtn":
        d = RoundedOps.sqrt(d)
    return [each / d for each in w]


def quantized(x: Rounded, config: QuantizationConfig | None) -> Rounded:
    """Q. Near a tie the value may be one bucket off, and the error says so."""
    if config is None:
        return x
    width = exact(np.float32((config.upper - config.lower) / (config.num_buckets - 1)), x.accuracy)
    low, high = (exact(np.float32(limit), x.accuracy) for limit in (config.lower, config.upper))
    x = RoundedOps.minimum(RoundedOps.maximum(x, low), high)
    place = (x - low) / width + exact(np.float32(0.5))
    level = np.floor(place.value)
    off = np.maximum(
        np.floor(place.value + place.error) - level, level - np.floor(place.value - place.error)
    )
    return Rounded(level, off, x.accuracy) * width + low


def bounded_bag(rows: Sequence[Rounded], factors: Sequence[Rounded], dim: int) -> Rounded:
    """sum of gain * row; zeros of an empty bag."""
    if not rows:
        return exact(np.zeros(dim))
    return sum_of([factor * row for factor, row in zip(factors, rows, strict=True)])


def _updated(
    setup: Setup,
    name: str,
    table: np.ndarray,
    slots: Mapping[str, np.ndarray],
    parts: Mapping[int, list[Rounded]],
    step: int,
    accuracy: Accuracy,
) -> dict[int, tuple[Rounded, tuple[Rounded, ...]]]:
    optimizer = setup.tables[name].optimizer
    numbers = coefficients(optimizer, learning_rate_at(optimizer.learning_rate, step))
    zero = exact(np.zeros(table.shape[1]), accuracy)
    rows = range(len(table)) if updates_every_row(optimizer) else sorted(parts)
    made: dict[int, tuple[Rounded, tuple[Rounded, ...]]] = {}
    for row in rows:
        contributions = parts.get(row, [])
        if accumulates_gradients(optimizer):
            contributions = [sum_of(contributions) if contributions else zero]
        before = [exact(slots[slot.name][row], accuracy) for slot in optimizer.slots]
        w = exact(table[row], accuracy)
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
