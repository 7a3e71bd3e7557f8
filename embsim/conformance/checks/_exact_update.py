"""One update by a backend's six functions, from slots on which the rule is exact."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...backend import Backend
from ..bench import Bench
from ..difference import compare_state
from ..lockstep import definition_of
from ..strategies import INTEGERS, tables_of
from ..subject import Subject
from ._chains import PATTERNS, ROWS, delivered, one_table


@dataclass(frozen=True)
class Elements:
    """What one number of a row may meet: (magnitude of its gradient, value of each slot); where a
    slot is None any small integer will do. Of a rowwise optimizer: what one row may meet.
    """

    optimizer: Any
    elements: Sequence[tuple[float | None, ...]]
    dim: int = 2


def exact_update(subject: Subject, draw: Any, drawn: Elements) -> None:
    """The definition's to the bit, with another element in every place."""
    optimizer, dim = drawn.optimizer, drawn.dim
    rowwise = any(slot.rowwise for slot in optimizer.slots)
    setup = draw(one_table(subject.capabilities, optimizer, dim=dim), "setup")
    width = 1 if rowwise else dim
    numbers = st.integers(0, len(drawn.elements) - 1)
    chosen = draw(st.lists(numbers, min_size=ROWS * width, max_size=ROWS * width), "elements")
    columns = list(zip(*(drawn.elements[i] for i in chosen), strict=True))
    g = np.array(columns[0], np.float32).reshape(ROWS, width)
    if rowwise:
        g = g * np.array(draw(st.sampled_from(PATTERNS[dim]), "pattern"), np.float32)
    g = g * draw(tables_of((ROWS, dim), (1.0, -1.0)), "signs")
    slots: dict[str, np.ndarray] = {}
    for slot, column in zip(optimizer.slots, columns[1:], strict=True):
        if column[0] is None:
            slots[slot.name] = draw(tables_of((ROWS, width), INTEGERS), slot.name)
        else:
            slots[slot.name] = np.array(column, np.float32).reshape(ROWS, width)
    rows = draw(st.lists(st.integers(0, ROWS - 1), unique=True, min_size=1), "rows")
    step = draw(delivered(setup, [(row, g[row]) for row in rows]), "step")
    assert subject.backend is not None
    _compare(subject.backend, setup, slots, step)


def _compare(backend: Backend, setup: Any, slots: dict[str, np.ndarray], step: Any) -> None:
    law = definition_of(setup)
    (config,) = setup.tables.values()
    law.versions = [{config: [setup.initial("t0"), *slots.values()]}]
    law.dequeue(step.batch)
    law.apply_gradients(step.gradients)
    bench = Bench(backend, setup, None, {"t0": slots})
    bench.update(step.batch, step.gradients)
    compare_state(setup, law.versions[-1], *bench.read(), "the update")
