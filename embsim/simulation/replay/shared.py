"""Tables that all workers share, as the operations of a schedule touch them.

A stage that reads takes all rows of its batch, or by its share a part of them:

    quiet      rows that no earlier batch has still to update, early
    missed     rows that a cache lacks, from the host's memory
    (others)   the rest, and then the batch is looked up
"""

from collections.abc import Sequence

import numpy as np

from ...lookup import row_gradients
from ...optimizers import updates_every_row
from ...plan import LookupPlan
from ..operations import Stage
from .cache import Caches
from .compensation import Compensation
from .setting import Setting
from .step import Step, joined, lookup_of_rows, rows_plan


class Shared:
    """One set of tables.

    Args:
      setting: what is trained, and by which backend.
      cached: the share of rows that a cache holds, for schedules with one.
      compensate: of stale gradients.
    """

    def __init__(self, setting: Setting, cached: float, compensate: Compensation | None) -> None:
        self.setting, self.compensate = setting, compensate
        self.state = setting.initial_state()
        self.updates = 0
        self.rows: dict[str, int] = {}
        self.caches = Caches(setting.sizes, cached)
        self.every = {n for n, s in setting.specs.items() if updates_every_row(s.optimizer)}

    def read(self, step: Step, stage: Stage) -> bool:
        """As a stage that reads begins. Whether the batch is looked up now."""
        book, specs = self.setting.book, self.setting.specs
        if stage.share == "quiet":
            self._part(step, "early", {table: self._quiet(step, table) for table in specs})
            return False
        if stage.share == "missed":
            missed = {t: self.caches.miss(t, step.unique(t), step.batch) for t in specs}
            self._part(step, "got", missed)
            return False
        in_parts = bool(step.known)
        if in_parts or self.compensate is not None:
            self._take(step, {table: ~self._known(step, table) for table in specs})
        for table in specs:
            missed = step.missed[table] if step.known else book.missing(step, table)
            book.read(step, table, missed)
        backend = self.setting.backend
        found = (
            lookup_of_rows(backend, specs, step)
            if in_parts
            else backend.lookup(self.state, step.planned.device_plan)
        )
        self.setting.looked_up(step, found)
        return True

    def pull(self, step: Step) -> None:
        """As it begins: rows have travelled with the lookup."""

    def update(self, steps: Sequence[Step]) -> None:
        """As the update of these batches ends."""
        backend, rates = self.setting.backend, self.setting.rates.at(self.updates)
        if len(steps) == 1 and self.compensate is None:
            planned, gradients = steps[0].planned.device_plan, steps[0].gradients
        else:
            parts = {table: self._parts(table, steps) for table in self.setting.specs}
            planned = backend.put_plan({name: plan for name, (plan, _) in parts.items()})
            gradients = {name: gradient for name, (_, gradient) in parts.items()}
        self.state = backend.update(self.state, planned, gradients, rates)
        self.updates += 1
        for step in steps:
            self.setting.book.updated(step)

    def _parts(self, table: str, steps: Sequence[Step]) -> tuple[LookupPlan, np.ndarray]:
        """Of several steps as one: a table's plan and gradients."""
        if self.compensate is None:
            gradients = np.concatenate([step.gradients[table] for step in steps])
            return joined([step.planned.plans[table] for step in steps]), gradients
        rows = np.concatenate([step.unique(table) for step in steps])
        gradients = np.concatenate([self._compensated(step, table) for step in steps])
        return rows_plan(table, self.setting.sizes[table], rows), gradients

    def push(self, step: Step) -> None:
        """As it ends: nothing."""

    def drained(self) -> object:
        """The backend's state after all updates."""
        return self.state

    def _part(self, step: Step, kind: str, wanted: dict[str, np.ndarray]) -> None:
        """Read a part of the step's rows before the others."""
        for table, which in wanted.items():
            self._counted("asked", len(step.unique(table)))
            self._counted(kind, int(np.count_nonzero(which)))
        self._take(step, wanted)

    def _counted(self, kind: str, rows: int) -> None:
        self.rows[kind] = self.rows.get(kind, 0) + rows

    def _take(self, step: Step, wanted: dict[str, np.ndarray]) -> None:
        """Read these of the step's rows, bool [unique] by table, as they are now."""
        book = self.setting.book
        for table, which in wanted.items():
            unique, dim = step.unique(table), self.setting.specs[table].dim
            if table not in step.known:
                step.known[table] = np.zeros(len(unique), np.bool_)
                step.rows[table] = np.empty((len(unique), dim), np.float32)
                step.made[table] = np.zeros(len(unique), np.int32)
                step.missed[table] = np.zeros(len(unique), np.int32)
            rows = unique[which]
            read = self.setting.backend.read_rows(self.state, table, rows)
            step.rows[table][which] = read.weights
            step.made[table][which] = book.made[table][rows]
            step.missed[table][which] = book.missing(step, table)[which]
            step.known[table] |= which

    def _known(self, step: Step, table: str) -> np.ndarray:
        return step.known.get(table, np.zeros(len(step.unique(table)), np.bool_))

    def _quiet(self, step: Step, table: str) -> np.ndarray:
        none = self.setting.book.missing(step, table) == 0
        return none & (table not in self.every)

    def _compensated(self, step: Step, table: str) -> np.ndarray:
        assert self.compensate is not None
        rows = step.unique(table)
        gradient = row_gradients(step.gradients[table], step.planned.plans[table])
        now = np.asarray(self.setting.backend.read_rows(self.state, table, rows).weights)
        age = (self.setting.book.made[table][rows] - step.made[table]).astype(np.int64)
        found = np.asarray(self.compensate(gradient, now, step.rows[table], age[:, None]))
        if found.shape != gradient.shape or found.dtype != np.float32:
            raise ValueError(
                f"compensation of table {table!r} returned {found.dtype} {found.shape}; it must "
                f"return float32 {gradient.shape}, as it was given"
            )
        return found
