"""A backend's state on the bench: any numbers in it, and what to compare."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...backend import Backend
from ...optimizers import coefficients, learning_rate_at
from ..bench import Bench
from ..check import Draw
from ..difference import Difference, same_bits
from ..lockstep import definition_of
from ..program import Batch, Gradients, Program, Setup, Train
from ..strategies import (
    WILD,
    Bucket,
    batches,
    buckets,
    gradients,
    regimes,
    setups,
    tables_of,
    to_the_bit,
)
from ..subject import Subject
from ._operands import told

STORED = (*WILD, 1e-40, -0.0)  # a number is kept, whatever it is


def one_step(subject: Subject, draw: Draw) -> tuple[Setup, Batch, Gradients]:
    """Numbers for which the same computation must give the same bits."""
    can = subject.capabilities
    regime = draw(regimes(can), "regime")
    setup = draw(setups(to_the_bit(can, regime), regime), "setup")
    batch = draw(batches(setup, can, regime), "batch")
    gradient = draw(gradients(setup, can, regime), "gradients")
    if not can.subnormals:
        law = definition_of(setup, subnormals=False)
        law.dequeue(batch)
        law.apply_gradients(gradient)
    return setup, batch, gradient


def told_step(subject: Subject, setup: Setup, batch: Batch, gradient: Gradients) -> Any:
    """A context that adds the program to a Difference."""
    return told(subject, Program(setup, (Train(batch, gradient),)))


def numbers_of(bench: Bench, tables: Any) -> dict[str, Any]:
    rules = {name: bench.specs[name].optimizer for name in tables}
    return {
        name: coefficients(rule, learning_rate_at(rule.learning_rate, 0))
        for name, rule in rules.items()
        if rule is not None
    }


def compare_states(what: str, setup: Setup, found: Any, wanted: Any, why: str) -> None:
    """Two of Bench.read(), to the bit."""
    for name in setup.tables:
        for slot, array in [("", wanted[0][name]), *wanted[1][name].items()]:
            seen = found[1][name][slot] if slot else found[0][name]
            kind = f"slot {slot!r} of table {name!r}" if slot else f"table {name!r}"
            if seen.dtype != array.dtype or seen.shape != array.shape:
                text = f"{what}: {kind} is {seen.dtype} {seen.shape}; it must be float32"
                raise Difference(f"{text} {array.shape}", table=name, slot=slot or None)
            if not same_bits(seen, array):
                at = tuple(int(i) for i in np.argwhere(~_equal(seen, array))[0])
                raise Difference(
                    f"{what}: {kind} at {list(at)} is {seen[at]!s}, was {array[at]!s}; {why}",
                    table=name, slot=slot or None, row=at[0], found=seen[at], wanted=array[at],
                )  # fmt: skip


def _equal(found: np.ndarray, wanted: np.ndarray) -> Any:
    return (found == wanted) | (np.isnan(found) & np.isnan(wanted))


@st.composite
def stored(draw: Any, setup: Setup) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Any tables and slots."""
    tables: dict[str, Any] = {}
    slots: dict[str, dict[str, Any]] = {}
    for name, config in setup.tables.items():
        rows, dim = config.vocabulary_size, config.dim
        tables[name] = draw(tables_of((rows, dim), STORED))
        slots[name] = {
            slot.name: draw(tables_of((rows, 1 if slot.rowwise else dim), STORED))
            for slot in config.optimizer.slots
        }
    return tables, slots


def tall(subject: Subject) -> list[Bucket]:
    """Shapes of tables with several rows, without sequences."""
    shapes = buckets(subject.capabilities)
    simple = [each for each in shapes if not any(length for _, length in each.features)]
    return [each for each in simple if all(rows > 1 for rows, _ in each.tables)]


def backend_of(subject: Subject) -> Backend:
    assert subject.backend is not None, "such a check is for backends"
    return subject.backend
