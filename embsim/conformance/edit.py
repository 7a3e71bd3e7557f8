"""Programs with other batches, gradients or tables: what `shrink` does to them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .program import Apply, Batch, Call, Enqueue, Evaluate, Program, Setup, Train, Values


def edited(
    program: Program,
    batch: Callable[[Any], Any] = lambda batch: batch,
    gradients: Callable[[Any], Any] = lambda gradients: gradients,
) -> tuple[Call, ...]:
    """The calls with other batches and gradients."""

    def new(call: Call) -> Call:
        if isinstance(call, Enqueue | Evaluate | Train):
            call = replace(call, batch=batch(call.batch))
        if isinstance(call, Apply | Train):
            call = replace(call, gradients=gradients(call.gradients))
        return call

    return tuple(new(call) for call in program.calls)


def with_bags(program: Program, bag: Callable[[Any, int, int, int], Any]) -> tuple[Call, ...]:
    """The calls with `bag(old, call, feature, sample)` for each bag."""
    calls = list(program.calls)
    for number, batch in batches_of(program):
        new = [
            [bag(old, number, feature, sample) for sample, old in enumerate(bags)]
            for feature, bags in enumerate(batch)
        ]
        calls[number] = replace(calls[number], batch=new)  # type: ignore[call-arg]
    return tuple(calls)


def with_tables(setup: Setup, arrays: Mapping[str, np.ndarray]) -> Setup:
    """The same setup on tables of these numbers, which may have other sizes."""
    tables = dict(setup.tables)
    for name, array in arrays.items():
        rows, dim = array.shape
        values = Values(array)
        tables[name] = replace(tables[name], initializer=values, vocabulary_size=rows, dim=dim)
    features = [replace(each, table=tables[str(each.table.name)]) for each in setup.features]
    return replace(setup, features=tuple(features))


def of_table(setup: Setup, name: str) -> list[bool]:
    """For each feature, whether it looks up this table."""
    return [feature.table.name == name for feature in setup.features]


def batches_of(program: Program) -> Iterator[tuple[int, Batch]]:
    """(call, batch) of each call that has one."""
    for number, call in enumerate(program.calls):
        if isinstance(call, Enqueue | Evaluate | Train):
            yield number, call.batch


def all_gradients(program: Program) -> Iterator[np.ndarray]:
    """Every gradient that is not None."""
    for call in program.calls:
        if isinstance(call, Apply | Train):
            yield from (as_array(g) for g in call.gradients if g is not None)


def rows_named(program: Program, table: str) -> set[int]:
    """The rows of a table that batches look up."""
    mine = of_table(program.setup, table)
    return {
        int(item[0] if isinstance(item, tuple) else item)
        for _, batch in batches_of(program)
        for bags, own in zip(batch, mine, strict=True)
        if own
        for bag in bags
        for item in bag
    }


def as_array(g: Any) -> np.ndarray:
    return np.asarray(g, np.float32)
