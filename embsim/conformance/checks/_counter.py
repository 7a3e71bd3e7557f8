"""A table of one number that falls by the learning rate with every update: its value is its
version.
"""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...config import FeatureConfig, TableConfig
from ...optimizers import SGD
from ...schedule import Schedule
from ..adapter import Capabilities
from ..program import Apply, Call, Dequeue, Enqueue, Setup, Train, Values


def counter(can: Capabilities, schedule: Schedule, rate: Any = 1.0, capacity: int = 8) -> Setup:
    """One row, dim 1, SGD, from 0; as many samples as the fewest replicas that may be started."""
    replicas = min(can.replicas)
    table = TableConfig(1, 1, Values([[0.0]]), SGD(rate), "sum", "t0")
    return Setup((FeatureConfig(table),), schedule, replicas, replicas, capacity)


def unit_step(setup: Setup) -> Train:
    """Every sample reads the row; the gradients of all together are 1."""
    gradient = np.zeros((setup.samples, 1), np.float32)
    gradient[0] = 1.0
    return Train([[[0]] * setup.samples], [gradient])


@st.composite
def arrivals(draw: Any, setup: Setup, can: Capabilities, most: int) -> tuple[Call, ...]:
    """Training steps of a counter whose batches are enqueued at any time before they are needed."""
    step, room = unit_step(setup), min(can.ahead, setup.queue_capacity)
    calls: list[Call] = []
    queued = 0
    for more in draw(st.lists(st.booleans(), min_size=1, max_size=2 * most)):
        if (more and queued < room) or not queued:
            calls.append(Enqueue(step.batch))
            queued += 1
        else:
            calls += [Dequeue(), Apply(step.gradients)]
            queued -= 1
    return (*calls, *([Dequeue(), Apply(step.gradients)] * queued))


@st.composite
def ahead(draw: Any, setup: Setup, can: Capabilities, most: int) -> tuple[Call, ...]:
    """Steps of a counter that are dequeued before the gradients of earlier ones are given, as far
    ahead as the schedule and the subject allow.
    """
    step = unit_step(setup)
    calls: list[Call] = []
    given = 0
    for number in range(draw(st.integers(2, most))):
        calls.append(Enqueue(step.batch))
        needed = max(setup.schedule.version_read(number), number + 1 - can.in_flight)
        submit = draw(st.integers(max(needed, given), number)) - given
        calls += [Apply(step.gradients)] * submit
        given += submit
        calls.append(Dequeue())
    return (*calls, Apply(step.gradients))
