"""A batch on its way to the devices, and a run between two training steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from embsim.plan import LookupPlan as HostPlan
from embsim.plan import Output

from .functions import Plan
from .state import State


class Example(NamedTuple):
    """One batch: ids in the structure of feature_config, arrays [samples, ...] for the dense step
    (a pytree), and weights of the ids."""

    features: Any
    inputs: Any = None
    weights: Any = None


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
    """

    tables: State
    carry: Any
    step: int = 0
    version: int = 0
    start: int = 0
    pending: tuple[Pending, ...] = ()
