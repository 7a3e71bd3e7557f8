"""A smaller program that still shows what a program shows, found by leaving things out."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from .edit import (
    all_gradients,
    as_array,
    batches_of,
    edited,
    of_table,
    rows_named,
    with_bags,
    with_tables,
)
from .program import Program

RUNS = 600  # of programs, at most


def shrunk(
    program: Program, shows: Callable[[Program], bool], runs: int = RUNS, *, ids: bool = True
) -> Program:
    """The smallest that is found in so many runs; always the same one.

    Left out: calls, samples, features, ids, rows of gradients and tables that need not differ from
    zero, columns, rows that no batch names. What is left is rounded, if that still shows it.

    Args:
      ids: whether bags may lose ids. A bag of four has exact means, one of three has not.
    """
    search = _Search(program, shows, runs)
    before = None
    while before is not search.program and search.runs > 0:
        before = search.program
        cuts = (_calls, _replicas, _samples, _features, _ids, _gradients, _tables, _columns)
        for cut in cuts:
            if ids or cut is not _ids:
                cut(search)
        _unused_rows(search)
        _rounded(search)
    return search.program


class _Search:
    """The smallest program so far, and how many may still be run."""

    def __init__(self, program: Program, shows: Callable[[Program], bool], runs: int) -> None:
        self.program = program
        self.runs = runs
        self._shows = shows

    def accepts(self, candidate: Program) -> bool:
        if self.runs <= 0:
            return False
        self.runs -= 1
        if not self._shows(candidate):
            return False
        self.program = candidate
        return True

    def fewest(self, units: Sequence[Any], made: Callable[[list[Any]], Program | None]) -> None:
        """Delta debugging: leave out pieces of `units`, first all, then halves, at last single
        ones. `made` is the program of those that stay, or None.
        """
        left, size = list(units), len(units)
        while size >= 1:
            at = 0
            while at < len(left):
                rest = left[:at] + left[at + size :]
                candidate = made(rest)
                if candidate is not None and self.accepts(candidate):
                    left = rest
                else:
                    at += size
            size //= 2


def _calls(search: _Search) -> None:
    program = search.program
    search.fewest(program.calls, lambda kept: Program(program.setup, tuple(kept)))


def _replicas(search: _Search) -> None:
    setup = search.program.setup
    if setup.replicas > 1:
        search.accepts(Program(replace(setup, replicas=1), search.program.calls))


def _samples(search: _Search) -> None:
    program = search.program

    def made(kept: list[int]) -> Program | None:
        if not kept or len(kept) % program.setup.replicas:
            return None
        calls = edited(
            program,
            lambda batch: [[bags[sample] for sample in kept] for bags in batch],
            lambda gradients: [None if g is None else as_array(g)[kept] for g in gradients],
        )
        return Program(replace(program.setup, samples=len(kept)), calls)

    search.fewest(range(program.setup.samples), made)


def _features(search: _Search) -> None:
    program = search.program
    features = program.setup.features

    def made(kept: list[int]) -> Program | None:
        if not kept:
            return None
        calls = edited(program, lambda x: [x[i] for i in kept], lambda x: [x[i] for i in kept])
        return Program(replace(program.setup, features=tuple(features[i] for i in kept)), calls)

    search.fewest(range(len(features)), made)


def _ids(search: _Search) -> None:
    program = search.program

    def made(kept: list[Any]) -> Program:
        stay = set(kept)
        bags = with_bags(
            program, lambda bag, *at: [x for p, x in enumerate(bag) if (*at, p) in stay]
        )
        return Program(program.setup, bags)

    search.fewest(
        [
            (number, feature, sample, position)
            for number, batch in batches_of(program)
            for feature, bags in enumerate(batch)
            for sample, bag in enumerate(bags)
            for position in range(len(bag))
        ],
        made,
    )


def _gradients(search: _Search) -> None:
    """Rows of gradients that are not zero."""
    program = search.program
    arrays = [
        [None if g is None else as_array(g) for g in getattr(call, "gradients", ())]
        for call in program.calls
    ]

    def made(kept: list[Any]) -> Program:
        new = [[None if g is None else np.zeros_like(g) for g in each] for each in arrays]
        for number, feature, row in kept:
            new[number][feature][row] = arrays[number][feature][row]  # type: ignore[index]
        calls = zip(program.calls, new, strict=True)
        return Program(program.setup, tuple(replace(c, gradients=g) if g else c for c, g in calls))

    search.fewest(
        [
            (number, feature, int(row))
            for number, each in enumerate(arrays)
            for feature, g in enumerate(each)
            if g is not None
            for row in np.flatnonzero((g != 0).reshape(len(g), -1).any(axis=1))
        ],
        made,
    )


def _tables(search: _Search) -> None:
    """Rows of the initial tables that are not zero."""
    program = search.program
    arrays = {name: program.setup.initial(name) for name in program.setup.tables}

    def made(kept: list[tuple[str, int]]) -> Program:
        new = {name: np.zeros_like(array) for name, array in arrays.items()}
        for name, row in kept:
            new[name][row] = arrays[name][row]
        return Program(with_tables(program.setup, new), program.calls)

    units = [(n, int(row)) for n, a in arrays.items() for row in np.flatnonzero((a != 0).any(1))]
    search.fewest(units, made)


def _columns(search: _Search) -> None:
    for name, config in search.program.setup.tables.items():
        program = search.program
        search.fewest(range(config.dim), partial(_of_columns, program, name))


def _of_columns(program: Program, name: str, kept: list[int]) -> Program | None:
    if not kept:
        return None
    setup = program.setup
    mine = of_table(setup, name)
    calls = edited(
        program,
        gradients=lambda gradients: [
            as_array(g)[..., kept] if own and g is not None else g
            for own, g in zip(mine, gradients, strict=True)
        ],
    )
    return Program(with_tables(setup, {name: setup.initial(name)[:, kept]}), calls)


def _unused_rows(search: _Search) -> None:
    """Rows that no batch names; the others get new numbers."""
    for name, config in search.program.setup.tables.items():
        program = search.program
        used = rows_named(program, name)
        unused = sorted(set(range(config.vocabulary_size)) - used)
        made = partial(_of_rows, program, name, used)
        if len(unused) <= 64:
            search.fewest(unused, made)
        elif (all_left_out := made([])) is not None:
            search.accepts(all_left_out)


def _of_rows(program: Program, name: str, used: set[int], kept: list[int]) -> Program | None:
    rows = sorted({*kept, *used})
    if not rows:
        return None
    mine, number = of_table(program.setup, name), {row: i for i, row in enumerate(rows)}

    def renamed(item: Any) -> Any:
        return (number[item[0]], *item[1:]) if isinstance(item, tuple) else number[item]

    def bags(bag: Any, call: int, feature: int, sample: int) -> Any:
        return [renamed(item) for item in bag] if mine[feature] else bag

    setup = with_tables(program.setup, {name: program.setup.initial(name)[rows]})
    return Program(setup, with_bags(program, bags))


def _rounded(search: _Search) -> None:
    """Gradients of 1 and -1, and initial numbers with few digits."""
    program = search.program
    signs = edited(
        program,
        gradients=lambda gradients: [
            None if g is None else np.sign(as_array(g)) for g in gradients
        ],
    )
    if any(not np.array_equal(np.sign(g), g, equal_nan=True) for g in all_gradients(program)):
        search.accepts(Program(program.setup, signs))
    for decimals in (0, 1, 2):
        setup = search.program.setup
        new = {name: np.round(setup.initial(name), decimals) for name in setup.tables}
        if all(np.array_equal(setup.initial(name), array) for name, array in new.items()):
            return
        if search.accepts(Program(with_tables(setup, new), search.program.calls)):
            return
