"""The tables of an engine under versions: what is applied, what is pending, and looks that change
nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .backend import Backend
from .pending import Patch, PendingUpdate, drained_lookup, drained_rows, drained_state
from .plan import LookupPlan
from .rates import Rates
from .state import State, initial_state
from .tables import Tables

Found = Mapping[str, Any]


class Store:
    """A backend's state at `version`, and submitted updates that wait to be made visible, oldest
    first.

    The tables are made from their initial values when they are first needed. Not thread-safe: the
    engine locks.
    """

    def __init__(self, tables: Tables, backend: Backend, seed: int) -> None:
        self.tables = tables
        self.backend = backend
        self.specs = {spec.name: spec for spec in tables.specs}
        self.version = 0
        self.may_apply: int | None = None  # set during a run, whose steps may be undone
        self.pending: list[PendingUpdate] = []
        self._seed = seed
        self._made: Any = None
        self._patches: Mapping[str, Patch] | None = None
        self._rates = Rates(tables.specs)
        self._broken = False

    @property
    def state(self) -> Any:
        """The backend's tables and slots at `version`."""
        if self._broken:
            raise RuntimeError(
                "an update failed half-way, so that tables and slots are of no version; restore a "
                "checkpoint or make a new embedding"
            )
        if self._made is None:
            initial = initial_state(self.tables.specs, self.tables.configs, self._seed)
            self._made = self.backend.put_state(initial)
        return self._made

    def submit(self, update: PendingUpdate) -> None:
        self.pending.append(update)
        self._patches = None

    def apply(self, version: int) -> None:
        """Bring the tables to `version`, update by update; those of later steps stay pending."""
        if self.may_apply is not None:
            version = min(version, self.may_apply)
        while self.pending and self.pending[0].step < version:
            update = self.pending[0]
            state, self._broken = self.state, True  # until the update is whole
            self._made = self.backend.update(
                state, update.device_plan, update.gradients, update.coefficients
            )
            self._broken = False
            del self.pending[0]
            self._patches = None
            self.version = update.step + 1

    def lookup(self, plans: Mapping[str, LookupPlan], device_plan: Any, version: int) -> Found:
        """Activations by table at `version`, to which the tables are brought."""
        self.apply(version)
        held_back = [update for update in self.pending if update.step < version]
        if not held_back:
            return self.backend.lookup(self.state, device_plan)
        patches = drained_rows(self.backend, self.state, self.specs, held_back)
        return drained_lookup(self.backend, self.state, self.specs, plans, patches)

    def look(self, plans: Mapping[str, LookupPlan], device_plan: Any) -> Found:
        """Activations by table with every submitted update in them. Changes nothing."""
        if not self.pending:
            return self.backend.lookup(self.state, device_plan)
        return drained_lookup(self.backend, self.state, self.specs, plans, self.patches)

    def read(self) -> State:
        """All tables and slots with every submitted update in them, read-only. Changes nothing."""
        version = self.pending[-1].step + 1 if self.pending else self.version
        return drained_state(self.backend.get_state(self.state), self.patches, version)

    @property
    def patches(self) -> Mapping[str, Patch]:
        """The rows that pending updates touch, as if drained; computed once for each set of pending
        updates.
        """
        if self._patches is None:
            self._patches = drained_rows(self.backend, self.state, self.specs, self.pending)
        return self._patches

    def replace_with(self, state: State, pending: list[PendingUpdate]) -> None:
        """Take over the tables, slots and pending updates of a checkpoint."""
        made = self.backend.put_state(state)
        own = [
            replace(update, device_plan=self.backend.put_plan(update.plans)) for update in pending
        ]
        self._made, self.version, self.pending, self._patches = made, state.version, own, None
        self._broken = False

    def forget_pending(self, kept: list[PendingUpdate]) -> None:
        """Go back to the pending updates `kept`; those that were applied meanwhile stay applied."""
        self.pending = [update for update in kept if update.step >= self.version]
        self._patches = None

    def release(self) -> None:
        """Let the memory go."""
        self._made, self.pending, self._patches = None, [], None

    def coefficients(self, step: int) -> dict[str, dict[str, np.float32]]:
        """Of training step `step`, by table. Each distinct learning-rate callable is asked once."""
        return self._rates.at(step)
