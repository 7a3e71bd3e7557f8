"""Row gradients of one's choice, and numbers on which every rule is exact.

A row's gradient is the sum of its parts; each part reaches the row through a place of the batch, a
feature and a sample. Other places are empty bags, with a gradient that must reach nothing.

Exact: every root and every quotient of these numbers is a float32 (semantics 8.5). The roots are
those of Pythagorean triples; learning rates are multiples of them. Gradients, accumulators and
epsilons may be scaled together by a power of two, down to where an epsilon of 1e-7 would show.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...config import FeatureConfig, TableConfig
from ...optimizers import (
    FTRL,
    Adagrad,
    AdagradMomentum,
    Adam,
    RowwiseAdagrad,
)
from ...schedule import Schedule
from ..adapter import Capabilities
from ..program import Call, Drain, Program, Rates, Setup, Train, Values
from ..strategies import INTEGERS, schedules, tables_of

ROWS = 4  # of the table in all checks of this kind: engines that compile do so for each shape
SAMPLES = 4
SCALES = (1.0, 2.0**-20, 2.0**9)
Part = tuple[int, np.ndarray]  # a row, and what is added to its gradient


@st.composite
def one_table(
    draw: Any,
    can: Capabilities,
    optimizer: Any,
    *,
    dim: int = 2,
    weights: Sequence[float] = INTEGERS,
    schedule: st.SearchStrategy[Schedule] | None = None,
) -> Setup:
    """One table with combiner 'sum' and one feature, or two."""
    values = Values(draw(tables_of((ROWS, dim), weights)))
    table = TableConfig(ROWS, dim, values, optimizer, "sum", "t0")
    count = draw(st.sampled_from((1, 2))) if can.offers("shared tables") else 1
    return Setup(
        (FeatureConfig(table),) * count,
        draw(schedules(can) if schedule is None else schedule),
        samples=SAMPLES,
        replicas=draw(st.sampled_from([n for n in can.replicas if SAMPLES % n == 0])),
    )


@st.composite
def delivered(
    draw: Any, setup: Setup, parts: Sequence[Part], *, ordered: bool = False, junk: float = 7.0
) -> Train:
    """A step that brings these parts, at most SAMPLES; `ordered`: in the order of 8.3.

    A part may come as two ids of one bag, half of it each.
    """
    places = list(np.ndindex(len(setup.features), setup.samples))
    chosen = draw(st.permutations(range(len(places))))[: len(parts)]
    assert len(chosen) == len(parts), f"{len(parts)} parts for {len(places)} places"
    halved = draw(st.booleans()) if not ordered else False
    batch: list[list[Any]] = [[[] for _ in range(setup.samples)] for _ in setup.features]
    gradients = [
        np.full(setup.activation_shape(number), junk, np.float32)
        for number in range(len(setup.features))
    ]
    for place, (row, vector) in zip(sorted(chosen) if ordered else chosen, parts, strict=True):
        feature, sample = places[place]
        batch[feature][sample] = [row, row] if halved else [row]
        gradients[feature][sample] = vector / 2 if halved else vector
    return Train(batch, gradients)


@st.composite
def in_parts(draw: Any, row: int, vector: np.ndarray, unit: float, most: int) -> list[Part]:
    """The row gradient `vector` as 1 to `most` parts, multiples of `unit`."""
    numbers = tuple(unit * x for x in (3.0, -2.0, 1.0, -5.0))
    count = draw(st.integers(1, most))
    parts = [draw(tables_of(vector.shape, numbers)) for _ in range(count - 1)]
    rest = vector - sum(parts, start=np.zeros_like(vector))
    return [(row, part) for part in [*parts, rest]]


@dataclass(frozen=True)
class Chain:
    """Gradients on which an optimizer stays exact from its initial slots on.

    touches: the magnitudes that a row's k-th gradient may have; the last ones repeat.
    unit: of the gradients, a power of two.
    rowwise: the mean square of a row's gradient must be that of one magnitude.
    """

    optimizer: Any
    touches: tuple[tuple[float, ...], ...]
    unit: float = 1.0
    rowwise: bool = False
    dim: int = 2


# By dim, with mean square 1.
PATTERNS = {
    2: ((1, 1),),
    4: ((1, 1, 1, 1), (2, 0, 0, 0), (0, 0, 2, 0)),
    8: ((1,) * 8, (2, 2, 0, 0, 0, 0, 0, 0), (0, 2, 1, 1, 1, 0, 1, 0)),
}
FROM_3 = (4.0,), (12.0,), (84.0,), (0.0,)  # 3² + 4² = 5², 5² + 12² = 13², 13² + 84² = 85²
FROM_8 = (15.0,), (144.0,), (0.0,)  # 8² + 15² = 17², 17² + 144² = 145²


def rates(can: Capabilities, *values: float) -> st.SearchStrategy[Any]:
    """These, and, if it may be a callable, the first one and its half by turns."""
    by_turns = [Rates((values[0], values[0] / 2))] if can.offers("a learning-rate callable") else []
    return st.sampled_from([*values, *by_turns])


@st.composite
def adagrad(draw: Any, can: Capabilities, **options: Any) -> Chain:
    unit = draw(st.sampled_from(SCALES))
    start, touches, rate = draw(st.sampled_from(((3, FROM_3, 1105.0), (8, FROM_8, 2465.0))))
    initial = (start * unit) ** 2
    rule = Adagrad(draw(rates(can, rate)), initial_accumulator_value=initial, **options)
    return Chain(rule, touches, unit)


@st.composite
def rowwise_adagrad(draw: Any, can: Capabilities) -> Chain:
    """3² + 4² = 5², 5 + 3 = 8, 13 + 3 = 16: with the epsilon 3 any rate will do."""
    unit, dim = draw(st.sampled_from(SCALES)), draw(st.sampled_from((2, 4, 8)))
    epsilon, rate, touches = draw(
        st.sampled_from(((0.0, 1105.0, FROM_3), (3 * unit, 1.0, (*FROM_3[:2], (0.0,)))))
    )
    rule = RowwiseAdagrad(draw(rates(can, rate)), 9 * unit * unit, epsilon)
    return Chain(rule, touches, unit, rowwise=True, dim=dim)


@st.composite
def adagrad_momentum(draw: Any, can: Capabilities) -> Chain:
    """1² + 15 = 4², 7² + 15 = 8²; with beta2 = 1/2: 2²/2 + 14 = 4², 10²/2 + 14 = 8²."""
    unit = draw(st.sampled_from(SCALES))
    beta2, epsilon, first = draw(
        st.sampled_from(((1.0, 15.0, (1.0, 7.0)), (0.5, 14.0, (2.0, 10.0))))
    )
    rule = AdagradMomentum(
        draw(rates(can, 1.0, 0.5)),
        momentum=draw(st.sampled_from((0.5, 2.0))),
        use_nesterov=draw(st.booleans()),
        beta2=beta2,
        epsilon=epsilon * unit * unit,
    )
    return Chain(rule, (first, (0.0,)), unit)


@st.composite
def adam(draw: Any, can: Capabilities) -> Chain:
    """With b2 = 3/4: v = 8²/4 = 16, then 3/4 * 16 + 4²/4 = 16 for ever; 16 + 3² = 5², 4 + 4 = 8."""
    unit, inside = draw(st.sampled_from(SCALES)), draw(st.booleans())
    rule = Adam(
        draw(rates(can, 5.0 if inside else 1.0)),
        beta_1=0.5,
        beta_2=0.75,
        epsilon=(3.0 if inside else 4.0) * unit,
        sum_inside_sqrt=inside,
    )
    return Chain(rule, ((8.0,), (4.0,)), unit)


@st.composite
def adam_on_any_row(draw: Any, can: Capabilities, *, lazy: bool = True) -> Chain:
    """With b2 = 0: v = g², and 12 is a leg with 5, 9 and 16; gradients of 0 are exact too."""
    unit = draw(st.sampled_from(SCALES))
    rate = draw(rates(can, 780.0))
    rule = Adam(rate, beta_1=0.5, beta_2=0.0, epsilon=12 * unit, lazy_adam=lazy)
    return Chain(rule, ((5.0, 9.0, 16.0, 0.0),), unit)


@st.composite
def ftrl(draw: Any, can: Capabilities) -> Chain:
    """3² + 4² = 5², 5 + 3 = 8, 13 + 3 = 16, where 3 = beta + 2 * l2 * lr."""
    unit = draw(st.sampled_from(SCALES))
    rate = draw(rates(can, 1.0, 0.5))
    beta = 3.0 if callable(rate) else draw(st.sampled_from((3.0, 1.0, 0.0)))
    l2 = 0.0 if callable(rate) else (3 - beta) / (2 * rate)
    rule = FTRL(
        rate,
        l1_regularization_strength=draw(st.sampled_from((0.0, 1.0, 2.0))) * unit,
        l2_regularization_strength=l2 * unit,
        beta=beta * unit,
        initial_accumulator_value=9 * unit * unit,
        multiply_linear_by_learning_rate=draw(st.booleans()),
    )
    return Chain(rule, (*FROM_3[:2], (0.0,)), unit)


@st.composite
def chain_programs(
    draw: Any,
    can: Capabilities,
    chain: st.SearchStrategy[Chain],
    *,
    weights: Sequence[float] = INTEGERS,
    least: int = 1,
    most: int = 4,
    parts: int = 2,
) -> Program:
    """A table under any schedule: `least` to `most` steps of exact numbers, of which each touches
    some rows with the next gradient of their chain; drains between where it may.
    """
    drawn = draw(chain)
    setup = draw(one_table(can, drawn.optimizer, dim=drawn.dim, weights=weights))
    touched, ids = dict.fromkeys(range(ROWS), 0), st.integers(0, ROWS - 1)
    steps: list[Train] = []
    for _ in range(draw(st.integers(least, most))):
        rows = draw(st.lists(ids, unique=True, min_size=1, max_size=SAMPLES // parts))
        brought: list[Part] = []
        for row in rows:
            allowed = drawn.touches[min(touched[row], len(drawn.touches) - 1)]
            brought += draw(in_parts(row, draw(_signed(drawn, allowed)), drawn.unit, parts))
            touched[row] += 1
        steps.append(draw(delivered(setup, brought, junk=7 * drawn.unit)))
    return Program(setup, tuple(draw(with_drains(can, steps))))


@st.composite
def _signed(draw: Any, chain: Chain, allowed: Sequence[float]) -> np.ndarray:
    """A row gradient of these magnitudes."""
    signs = draw(tables_of((chain.dim,), (1.0, -1.0)))
    if chain.rowwise:
        pattern = np.array(draw(st.sampled_from(PATTERNS[chain.dim])), np.float32)
        return np.float32(chain.unit * draw(st.sampled_from(allowed))) * pattern * signs
    return np.float32(chain.unit) * draw(tables_of((chain.dim,), allowed)) * signs


@st.composite
def with_drains(draw: Any, can: Capabilities, steps: Sequence[Train]) -> list[Call]:
    calls: list[Call] = []
    for step in steps:
        calls.append(step)
        if can.drain_points == "any" and draw(st.integers(0, 3)) == 3:
            calls.append(Drain())
    return calls
