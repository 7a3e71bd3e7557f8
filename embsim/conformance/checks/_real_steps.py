"""Real numbers for one update: gradients of all magnitudes, and slots that a rule may meet.

No square of these gradients is a subnormal float32: either it is 0 there, or a normal number.
Engines that take subnormals for 0 are not what these checks look for.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ..adapter import Capabilities
from ..difference import Difference
from ..lockstep import explained
from ..program import Program, Setup, Train
from ..single import backend_step, engine_steps
from ..strategies import tables_of
from ..subject import Subject
from ._chains import ROWS, delivered, one_table

# Around the roots of the epsilons that optimizers have, and far from them.
GRADIENTS = (
    *(0.1, -0.3, 1.0, 3e-6, -1e-7, 1e-3, 0.0, -7.0, 300.0, 1e-5),
    *(1e-30, -3e-15, 1e7, -1e15),
)
WEIGHTS = (0.0, 1e-3, 0.1, -0.3, 1 / 3, 2.0)
POSITIVE = (0.1, 1e-14, 1e-4, 3.0, 9.0, 1e-7, 1e4)
ANY = (0.0, 0.1, -0.3, 1e-7, 2.0, -1e-3)
# What a slot may hold, by its name; the others may hold anything.
SLOTS = {
    "accumulators": POSITIVE,
    "velocities": (0.0, *POSITIVE),
    "largest": (0.5, 1.0, 3.0, 100.0),
}


def may_step(can: Capabilities) -> bool:
    """Steps can be compared one at a time."""
    return can.output_shift == 0


def real_steps(subject: Subject, draw: Any, optimizer: Any, dims: Sequence[int] = (2,)) -> None:
    """Steps of a fresh engine, or one update of a backend from drawn slots, within bounds."""
    can = subject.capabilities
    dim = draw(st.sampled_from(dims), "dim")
    setup: Setup = draw(one_table(can, optimizer, dim=dim, weights=WEIGHTS), "setup")
    if subject.backend is not None and draw(st.booleans(), "the six functions alone"):
        _one_update(subject, draw, setup)
        return
    most = 3 if can.drain_points == "any" else 1
    steps = [draw(real_step(setup), "step") for _ in range(draw(st.integers(1, most), "steps"))]
    engine_steps(subject, setup, [(step.batch, step.gradients) for step in steps])


@st.composite
def real_step(draw: Any, setup: Setup) -> Train:
    """One or two contributions to each of some rows."""
    dim = setup.features[0].table.dim
    rows = draw(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=4))
    parts = [(row, draw(tables_of((dim,), GRADIENTS))) for row in rows]
    return draw(delivered(setup, parts))


def _one_update(subject: Subject, draw: Any, setup: Setup) -> None:
    config = setup.tables["t0"]
    slots = {
        slot.name: draw(
            tables_of((ROWS, 1 if slot.rowwise else config.dim), SLOTS.get(slot.name, ANY)),
            slot.name,
        )
        for slot in config.optimizer.slots
    }
    step = draw(real_step(setup), "step")
    tables = {"t0": setup.initial("t0")}
    backend = subject.backend
    assert backend is not None
    try:
        backend_step(
            backend, setup, tables, {"t0": slots}, step.batch, step.gradients,
            subject.capabilities.accuracy,
        )  # fmt: skip
    except Difference as difference:
        shown = {name: np.asarray(array).tolist() for name, array in slots.items()}
        what = f"{difference.what}; slots before it: {shown}"
        difference.args = (explained(what, subject, Program(setup, (step,))),)
        raise
