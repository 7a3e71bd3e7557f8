"""One operation at a time, from equal inputs: how engines that round in their own way are compared.

An engine is drained after each step, and what it then shows is where the next comparison begins. A
backend is given any tables and slots by its six functions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..backend import Backend
from .bench import Bench
from .bounded import bounded_step, check_activations, check_state
from .difference import Difference
from .lockstep import REFUSALS, explained
from .program import Batch, Drain, Gradients, Program, Setup, Train
from .subject import Subject
from .tolerance import IEEE, Accuracy


def engine_steps(subject: Subject, setup: Setup, steps: Sequence[tuple[Batch, Gradients]]) -> None:
    """Each step's activations, and its tables and slots after a drain, within computed bounds.

    Raises:
      Difference: with the program up to the step that is wrong.
    """
    calls = [call for step in steps for call in (Train(*step), Drain())]
    program = Program(setup, tuple(calls))
    engine = subject.start(setup)
    number = 0
    try:
        before = _read(engine)
        for number, (batch, gradients) in enumerate(steps):
            accuracy = subject.capabilities.accuracy
            bounds = bounded_step(setup, *before, batch, gradients, number, accuracy)
            engine.enqueue(batch, True)
            check_activations(setup, engine.dequeue(), bounds)
            engine.apply_gradients(gradients)
            engine.drain()
            after = _read(engine)
            check_state(setup, before, after, bounds, f"after step {number}")
            before = after
    except Difference as difference:
        difference.call = 2 * number + 1
        text = explained(difference.what, subject, program, difference.call)
        difference.args = (text,)
        raise
    except REFUSALS as error:
        what = f"a legal step was refused: {error}"
        raise Difference(explained(what, subject, program, 2 * number)) from error
    finally:
        engine.close()


def backend_step(
    backend: Backend,
    setup: Setup,
    tables: Mapping[str, np.ndarray],
    slots: Mapping[str, Mapping[str, np.ndarray]],
    batch: Batch,
    gradients: Gradients,
    accuracy: Accuracy = IEEE,
) -> None:
    """Lookup and update of one batch from these numbers, within computed bounds."""
    bench = Bench(backend, setup, tables, slots)
    before = bench.read()
    bounds = bounded_step(setup, *before, batch, gradients, 0, accuracy)
    check_activations(setup, bench.lookup(batch), bounds)
    bench.update(batch, gradients)
    check_state(setup, before, bench.read(), bounds, "after the update")


def _read(engine: Any) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    tables = {name: np.array(array) for name, array in engine.tables().items()}
    slots = {
        name: {slot: np.array(array) for slot, array in each.items()}
        for name, each in engine.slots().items()
    }
    return tables, slots
