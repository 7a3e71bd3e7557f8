"""A backend's six functions on tables, slots and batches of one's own choice, without an engine."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._queue import by_feature
from ..backend import Backend
from ..batch import make_batch
from ..optimizers import coefficients, learning_rate_at
from ..plan import LookupPlan, Output, build_plans
from ..ragged import RaggedTensor
from ..state import State, TableSpec
from .adapter import arrays
from .program import Batch, Gradients, Setup

Slots = Mapping[str, Mapping[str, np.ndarray]]


class Bench:
    """One state of `backend`; `state` is what the backend made of it.

    Args:
      backend: the six functions.
      setup: whose tables, features and optimizers; its schedule plays no part.
      tables, slots: other numbers than the initial ones, by name.
    """

    def __init__(
        self,
        backend: Backend,
        setup: Setup,
        tables: Mapping[str, np.ndarray] | None = None,
        slots: Slots | None = None,
    ) -> None:
        self.backend = backend
        self.setup = setup
        self.specs = {
            name: TableSpec(
                name,
                config.vocabulary_size,
                config.dim,
                config.optimizer,
                config.quantization_config,
            )
            for name, config in setup.tables.items()
        }
        weights = {name: self._own(setup.initial(name)) for name in self.specs}
        weights |= {name: self._own(array) for name, array in (tables or {}).items()}
        made = {name: self._initial_slots(name) for name in self.specs}
        for name, each in (slots or {}).items():
            made[name] |= {slot: self._own(array) for slot, array in each.items()}
        self.state = backend.put_state(State(self.specs, weights, made))

    def plans(self, batch: Batch) -> tuple[dict[str, LookupPlan], tuple[Output, ...]]:
        """The plans by table, and where each feature's activations stand."""
        ids: list[Any] = []
        weights: list[Any] = []
        for values, splits, factors in arrays(batch):
            ids.append(RaggedTensor(values, splits))
            weights.append(None if factors is None else RaggedTensor(factors, splits))
        names = [f"feature_{i}" for i in range(len(self.setup.features))]
        given = None if all(each is None for each in weights) else weights
        made = make_batch(ids, given, self.setup.features, names, [None] * len(ids), 1, False)
        sizes = [(name, spec.vocabulary_size) for name, spec in self.specs.items()]
        of_feature = [str(feature.table.name) for feature in self.setup.features]
        return build_plans(made, sizes, of_feature)

    def lookup(self, batch: Batch) -> list[np.ndarray]:
        """Activations by feature, in each feature's shape; read-only views of what came back."""
        plans, outputs = self.plans(batch)
        found = self.backend.lookup(self.state, self.backend.put_plan(plans))
        return list(by_feature(outputs, found))

    def update(self, batch: Batch, gradients: Gradients, step: int = 0) -> None:
        """One update, with the coefficients of training step `step`."""
        plans, outputs = self.plans(batch)
        put = self.backend.put_plan(plans)
        numbers = {
            name: coefficients(spec.optimizer, learning_rate_at(spec.optimizer.learning_rate, step))
            for name, spec in self.specs.items()
            if spec.optimizer is not None
        }
        by_table = self.gradients_by_table(plans, outputs, gradients)
        self.state = self.backend.update(self.state, put, by_table, numbers)

    def gradients_by_table(
        self, plans: Mapping[str, LookupPlan], outputs: tuple[Output, ...], gradients: Gradients
    ) -> dict[str, np.ndarray]:
        """float32 [samples, dim] by table, from one array or None per feature."""
        stacked = {
            name: np.zeros((plan.samples, self.specs[name].dim), np.float32)
            for name, plan in plans.items()
        }
        for output, g in zip(outputs, gradients, strict=True):
            if g is not None:
                part = stacked[output.table][output.lo : output.hi]
                part[...] = np.asarray(g, np.float32).reshape(part.shape)
        return stacked

    def read(self) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
        """Copies of all tables and slots, from get_state."""
        state = self.backend.get_state(self.state)
        tables = {name: np.array(state.weights[name]) for name in self.specs}
        slots = {
            name: {slot: np.array(array) for slot, array in state.slots[name].items()}
            for name in self.specs
        }
        return tables, slots

    def _initial_slots(self, name: str) -> dict[str, np.ndarray]:
        spec = self.specs[name]
        assert spec.optimizer is not None
        return {
            slot.name: np.full(
                spec.slot_shape(slot.name, spec.vocabulary_size), slot.initial, np.float32
            )
            for slot in spec.optimizer.slots
        }

    @staticmethod
    def _own(array: Any) -> np.ndarray:
        return np.array(array, np.float32, order="C")
