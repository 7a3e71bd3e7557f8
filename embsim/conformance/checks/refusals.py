"""What a backend declares in parity.refuses is what it refuses, in put_state or put_plan."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...config import FeatureConfig, QuantizationConfig, TableConfig
from ...errors import BackendError, CapacityError
from ..adapter import REFUSABLE_BY_BACKENDS, asked_for
from ..bench import Bench
from ..check import Draw, check
from ..difference import Difference
from ..lockstep import explained
from ..program import Program, Setup, Train, Values
from ..rules import REAL_OPTIMIZERS
from ..subject import Subject
from ._benches import backend_of

OF_A_BACKEND = frozenset(REFUSABLE_BY_BACKENDS)


@st.composite
def _asking(draw: Any) -> Setup:
    """A table that asks for some of what a backend may refuse."""
    kind, options = draw(st.sampled_from(REAL_OPTIMIZERS))
    quantization = draw(st.sampled_from((None, None, QuantizationConfig(5, -2.0, 2.0))))
    table = TableConfig(
        *(4, 2, Values(np.ones((4, 2))), kind(0.5, **options), "sum", "t0"),
        quantization_config=quantization,
    )
    return Setup((FeatureConfig(table),), samples=2)


@check("11", "4.6", "4.9", backend=True)
def check_a_backend_refuses_what_it_declares_and_nothing_else(subject: Subject, draw: Draw) -> None:
    """A BackendError that says why, in put_state or put_plan, before anything is computed; whatever
    is not declared is trained.
    """
    can = subject.capabilities
    setup = draw(_asking(), "setup")
    asked = asked_for(setup) & OF_A_BACKEND
    declared = sorted(asked & set(can.refuses))
    step = Train([[[1, 1], [0, 3]]], [np.ones((2, 2), np.float32)])
    refused: Exception | None = None
    try:
        bench = Bench(backend_of(subject), setup)
        bench.backend.put_plan(bench.plans(step.batch)[0])
    except (BackendError, CapacityError) as error:
        refused = error
    else:
        if not declared:
            bench.lookup(step.batch)
            bench.update(step.batch, step.gradients)
    what = None
    if refused is None and declared:
        why = {name: can.refuses[name] for name in declared}
        what = f"it must be refused, as declared ({why}), but put_state and put_plan took it"
    elif refused is not None and not declared:
        what = f"refused what is not declared in `refuses` ({sorted(asked)}): {refused}"
    elif refused is not None and len(str(refused).strip()) == 0:
        what = f"refused with a {type(refused).__name__} that does not say why"
    if what is not None:
        raise Difference(explained(what, subject, Program(setup, (step,))), table="t0")
