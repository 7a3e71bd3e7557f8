"""Training on data in the order of a timeline."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...config import FeatureConfig
from ...state import State
from ..pipelines import Pipeline
from ..pipelines.base import Clocks, Replicas
from ..timeline import Timeline
from ..traffic import CACHED
from .account import Account
from .clocks import Clocked
from .compensation import Compensation
from .dense import Dense
from .events import Keeper, Run
from .replicas import Replicated
from .setting import Setting
from .shared import Shared

Batches = Iterable[tuple[Mapping[str, Any], Any]]


@dataclass(frozen=True, eq=False)
class Replayed:
    """What became of the numbers.

    Args:
      seconds: float64 [batches], simulated, when each batch was scored.
      scores: by batch, what the dense model returned, before it was trained on the batch.
      served: by batch, the same by the last copy for serving; None where there was none.
      state: tables and slots in the end, with all updates in them; the mean of replicas.
      parameters: of the dense model, likewise.
      account: who paid.
      rows: that batches asked for, and of these: `early`, that a look-ahead read early; `got` and
        `sent`, that caches had to get and that they sent.
    """

    seconds: np.ndarray
    scores: list[Any]
    served: list[Any]
    state: State
    parameters: Any
    account: Account
    rows: dict[str, int]


def replay(
    timeline: Timeline,
    pipeline: Pipeline,
    features: Mapping[str, FeatureConfig],
    optimizer: Any,
    batches: Batches,
    dense: Dense,
    *,
    backend: Any = "reference",
    seed: int = 0,
    cached: float = CACHED,
    compensate: Compensation | None = None,
) -> Replayed:
    """Train on data in the order of a timeline.

    Args:
      timeline: of the pipeline's operations, as many batches as are to be trained.
      features, optimizer, backend, seed: as those of Engine; features by name.
      batches: of each (features by name, inputs of the dense model); taken as they are needed.
      dense: the model on the activations.
      cached: the share of rows that a device's cache holds, for `offload`.
      compensate: a change of stale gradients, see compensation.py.

    Raises:
      ValueError: fewer batches than the timeline has; a schedule whose workers have copies together
        with `compensate`; what Engine's methods refuse.
    """
    setting = Setting(features, optimizer, backend, seed)
    keeper = _keeper(setting, pipeline, cached, compensate)
    run = Run(timeline, pipeline, setting, keeper, dense, iter(batches))
    run.all()
    state, parameters = setting.backend.get_state(keeper.drained()), run.parameters.drain()
    account = setting.book.account()
    return Replayed(run.seconds, run.scores, run.served, state, parameters, account, keeper.rows)


def _keeper(
    setting: Setting, pipeline: Pipeline, cached: float, compensate: Compensation | None
) -> Keeper:
    match pipeline.copies:
        case None:
            return Shared(setting, cached, compensate)
        case _ if compensate is not None:
            raise ValueError(
                f"replay: {pipeline.name} with a compensation; it needs tables that all workers "
                "share, and here each has rows of its own"
            )
        case Clocks(bound):
            return Clocked(setting, pipeline.workers, bound)
        case Replicas():
            return Replicated(setting, pipeline.workers)
