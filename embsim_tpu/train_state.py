"""A batch on its way to the devices, and a run between two training steps."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from embsim.plan import LookupPlan as HostPlan
from embsim.plan import Output
from embsim.schedule import Schedule

from .functions import Plan
from .state import State


class Example(NamedTuple):
    """One batch: ids in the structure of feature_config, arrays [samples, ...] for the dense step
    (a pytree), and weights of the ids."""

    features: Any
    inputs: Any = None
    weights: Any = None

    @classmethod
    def of(cls, item: Any) -> "Example":
        """Raises TypeError: neither an Example nor a tuple of one to three of its parts."""
        if isinstance(item, tuple) and 1 <= len(item) <= 3:
            return cls(*item)
        found = f"a {type(item).__name__}" + (f" of {len(item)}" if isinstance(item, tuple) else "")
        raise TypeError(
            f"a batch of the data is {found}; it must be an Example, or a tuple (features, inputs, "
            "weights) of which the last two may be left out: ids, arrays for the dense step, and "
            "weights of the ids"
        )


@dataclass(frozen=True, eq=False)
class Planned:
    """A batch as it is transferred: the plans on the host and on the devices, the inputs there."""

    plans: Mapping[str, HostPlan]
    outputs: tuple[Output, ...]
    plan: Plan
    inputs: Any = None


@dataclass(frozen=True, eq=False)
class Pending:
    """A submitted update that the law does not let lookups see yet."""

    step: int
    planned: Planned
    gradients: Any
    coefficients: Mapping[str, Mapping[str, np.float32]]


@dataclass(frozen=True, eq=False)
class TrainState:
    """A run between two training steps.

    Args:
      tables: tables and slots after `version` updates.
      carry: of the dense step: parameters, the state of their optimizer, whatever it returns.
      step: training steps done: the position in the data.
      start: as at the last drain.
      pending: updates version .. step - 1, oldest first.
      schedule: under which the run was so far; None at its beginning.
    """

    tables: State
    carry: Any
    step: int = 0
    version: int = 0
    start: int = 0
    pending: tuple[Pending, ...] = ()
    schedule: Schedule | None = None


def adopted(state: TrainState, schedule: Schedule) -> TrainState:
    """`state` for a run under `schedule`: if it was under another one, as after a drain.

    Raises:
      TypeError: no TrainState.
      ValueError: pending updates that are not those between its version and its step; a next
        lookup that has happened.
    """
    if not isinstance(state, TrainState):
        raise TypeError(
            f"a run begins at a {type(state).__name__}; it must be a TrainState: "
            "TrainState(embedding.init(), carry), or what a checkpoint or train() returned"
        )
    steps = [each.step for each in state.pending]
    if steps != list(range(state.version, state.step)):
        raise ValueError(
            f"a run at training step {state.step} with tables at version {state.version} has "
            f"pending the updates {list(range(state.version, state.step))}; found {steps}"
        )
    if state.schedule is None:
        return replace(state, schedule=schedule)
    if state.schedule == schedule:
        reads = schedule.version_read(state.step, state.start)
        if state.version > reads:
            raise ValueError(
                f"a run at training step {state.step} reads version {reads} next under {schedule}; "
                f"found tables at version {state.version}: its next lookup has happened; give a "
                "state between two steps: in on_pause of train, or after Pipeline.step without "
                "`following`"
            )
        return state
    return replace(state, start=state.step, schedule=schedule)
