"""What a replay trains, by which backend: all that does not depend on the schedule."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..._queue import by_feature, plan_batch
from ...backend import get_backend
from ...batch import make_batch
from ...config import FeatureConfig
from ...gradients import stack_gradients
from ...rates import Rates
from ...state import initial_state
from ...tables import resolve_tables
from .account import Book
from .step import Step


class Setting:
    """Tables of features, by name; errors as those of Engine."""

    check_numerics = False

    def __init__(
        self, features: Mapping[str, FeatureConfig], optimizer: Any, backend: Any, seed: int
    ) -> None:
        self.names, self.features = tuple(features), tuple(features.values())
        self.tables = resolve_tables(self.features, optimizer, trains=True)
        self.backend, self.seed = get_backend(backend), seed
        self.specs = {spec.name: spec for spec in self.tables.specs}
        self.sizes = {name: spec.vocabulary_size for name, spec in self.specs.items()}
        self.rates = Rates(self.tables.specs)
        self.book = Book(self.sizes)

    def initial_state(self) -> Any:
        """The backend's, made anew at every call."""
        return self.backend.put_state(self.initial_arrays())

    def initial_arrays(self) -> Any:
        """The State, as host arrays, made anew at every call."""
        return initial_state(self.tables.specs, self.tables.configs, self.seed)

    def step(self, batch: int, worker: int, features: Mapping[str, Any], inputs: Any) -> Step:
        """Plan a batch.

        Raises:
          ValueError: other features than there are; what make_batch refuses.
        """
        if set(features) != set(self.names):
            raise ValueError(
                f"replay: batch {batch} has the features {sorted(features)}; it must have "
                f"{sorted(self.names)}"
            )
        ordered = [features[name] for name in self.names]
        known = (self.features, self.names, [None] * len(self.names))
        made = make_batch(ordered, None, *known, 1)
        return Step(batch, worker, plan_batch(made, self.tables, self.backend, True), inputs)

    def looked_up(self, step: Step, found: Mapping[str, Any]) -> None:
        """Keep a step's activations, given by table."""
        arrays = by_feature(step.planned.outputs, found)
        step.activations = dict(zip(self.names, arrays, strict=True))

    def computed(self, step: Step, gradients: Mapping[str, Any]) -> None:
        """Keep a step's gradients, given by feature.

        Raises:
          ValueError, TypeError: as apply_gradients.
        """
        ordered = [gradients.get(name) for name in self.names]
        by_table, _ = stack_gradients(ordered, self, step.planned.outputs)
        step.gradients = {name: np.asarray(array) for name, array in by_table.items()}
