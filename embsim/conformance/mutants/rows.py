"""Faults in which rows are updated, and in which order a row's gradient is summed."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...optimizers import FTRL, AdagradMomentum, Adam
from ...plan import LookupPlan
from ...reference import ReferenceBackend
from ...state import State
from ..embsim_engine import EmbsimEngine
from ..program import Batch
from ._changed import OtherOptions, OtherRule
from .mutant import mutant

Plans = Mapping[str, LookupPlan]
Arrays = Mapping[str, np.ndarray]
Numbers = Mapping[str, Mapping[str, np.float32]]


@mutant(
    killed_by="check_rows_outside_the_plan_keep_their_slots",
    origin="tf.nn.safe_embedding_lookup_sparse looks up id 0 in the place of an empty row; masked, "
    "it leaves a gradient of 0 for that row behind",
)
class EmptyBagsTouchRowZero(EmbsimEngine):
    """An empty bag is padded with row 0 and gain 0."""

    def enqueue(self, batch: Batch, training: bool = True) -> None:
        padded = [[bag or [(0, 0.0)] for bag in bags] for bags in batch]
        super().enqueue(padded, training)


@mutant(
    killed_by="check_rows_outside_the_plan_keep_their_slots",
    origin="tf.keras.optimizers.Adam moves all rows of a table, also for sparse gradients",
)
class LazyAdamUpdatesEveryRow(OtherOptions, lazy_adam=False):
    """Adam decays the momenta of rows that were not looked up."""


@mutant(
    killed_by="check_a_non_lazy_adam_moves_every_row_also_for_an_empty_plan",
    origin="TPUEmbeddingV2 ignores lazy_adam=False",
)
class NonLazyAdamIsLazy(OtherOptions, lazy_adam=True):
    """lazy_adam=False is ignored."""


@mutant(
    killed_by="check_a_non_lazy_adam_moves_every_row_also_for_an_empty_plan",
    origin="a step without ids looks like one without work",
)
class EmptyPlansAreNoUpdates(ReferenceBackend):
    """A table that no id reaches is left out of the update."""

    def update(self, state: State, plan: Plans, gradients: Arrays, coefficients: Numbers) -> State:
        some = {name: each for name, each in plan.items() if len(each.row)}
        return super().update(state, some, gradients, coefficients)


@mutant(
    killed_by="check_a_gradient_of_zero_is_an_update",
    origin="gradients of 0 are dropped to save work; for SGD and Adagrad nothing is lost",
)
class ZeroGradientsAreNoUpdates(OtherRule, zero=0.0):
    """A row whose gradient is 0 is not updated, though it was looked up."""

    kinds = (FTRL, Adam, AdagradMomentum)

    def formula(self, optimizer: Any, ops: Any, w: Any, g: Any, slots: Any, c: Any) -> Any:
        new, new_slots = optimizer.rule(ops)(w, g, slots, c)
        some = g * g > c.zero
        kept = [ops.where(some, a, b) for a, b in zip(new_slots, slots, strict=True)]
        return ops.where(some, new, w), tuple(kept)


@mutant(
    killed_by="check_contributions_are_added_in_the_written_order",
    origin="a sort that is not stable, or a sum by halves, adds in another order",
)
class ContributionsAreAddedBackwards(ReferenceBackend):
    """Row gradients are summed from the last contribution to the first."""

    def update(self, state: State, plan: Plans, gradients: Arrays, coefficients: Numbers) -> State:
        turned = {
            name: LookupPlan(
                each.table,
                each.num_rows,
                (len(each.row) - each.splits)[::-1].copy(),
                each.row[::-1].copy(),
                each.gain[::-1].copy(),
            )
            for name, each in plan.items()
        }
        backwards = {name: np.ascontiguousarray(g[::-1]) for name, g in gradients.items()}
        return super().update(state, turned, backwards, coefficients)
