"""Faults of a backend's states and lookups: precision, padding, versions, memory."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ...backend import Parity
from ...errors import BackendError
from ...optimizers import FTRL
from ...plan import LookupPlan
from ...reference import ReferenceBackend
from ...state import Rows, State
from .lookup import bfloat16
from .mutant import mutant

Plans = Mapping[str, LookupPlan]


@mutant(
    "check_put_state_and_get_state_keep_every_number",
    "Tables of half precision, as FBGEMM offers them: https://github.com/pytorch/FBGEMM",
)
class TablesAreStoredInBfloat16(ReferenceBackend):
    """Tables keep 8 bits of each number's 24."""

    def put_state(self, state: State) -> State:
        weights = {name: bfloat16(array) for name, array in state.weights.items()}
        return super().put_state(replace(state, weights=weights))


@mutant(
    "check_put_state_and_get_state_keep_every_number",
    "Vocabularies are padded for SparseCores: https://github.com/jax-ml/jax-tpu-embedding",
)
class PaddingComesOutAgain(ReferenceBackend):
    """get_state gives tables whose rows are padded to a multiple of 8."""

    def get_state(self, state: State) -> State:
        weights = {
            name: np.pad(array, ((0, -len(array) % 8), (0, 0)))
            for name, array in state.weights.items()
        }
        return replace(super().get_state(state), weights=weights)


@mutant(
    "check_read_rows_gives_copies_of_the_rows_that_are_asked_for",
    "Reason to expect it: rows are read shard by shard, here row r of shard r mod 2.",
)
class RowsAreReadShardByShard(ReferenceBackend):
    """read_rows gives the even rows first, then the odd ones."""

    def read_rows(self, state: State, table: str, rows: np.ndarray) -> Rows:
        return super().read_rows(state, table, rows[np.argsort(rows % 2, kind="stable")])


@mutant(
    "check_read_rows_gives_copies_of_the_rows_that_are_asked_for",
    "A slice of an array is a view, as the reader of NumPy may forget: "
    "https://numpy.org/doc/stable/user/basics.copies.html",
)
class RowsAreViews(ReferenceBackend):
    """Rows that follow one another are read without a copy, so that updates change them."""

    def read_rows(self, state: State, table: str, rows: np.ndarray) -> Rows:
        if not len(rows) or int(rows[-1]) - int(rows[0]) != len(rows) - 1:
            return super().read_rows(state, table, rows)
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        slots = {name: array[part] for name, array in state.slots[table].items()}
        return Rows(state.weights[table][part], slots)


@mutant(
    "check_every_update_makes_one_version",
    "Reason to expect it: the example of a backend is copied, and this line lost.",
)
class UpdatesMakeNoVersion(ReferenceBackend):
    """The version of a state is that of put_state for ever."""

    def update(self, state: State, plan: Plans, gradients: Any, coefficients: Any) -> State:
        new = super().update(state, plan, gradients, coefficients)
        return replace(new, version=state.version)


@mutant(
    "check_every_update_makes_one_version",
    "Reason to expect it: without ids there seems to be nothing to do.",
)
class AnEmptyPlanMakesNoVersion(ReferenceBackend):
    """An update without ids is skipped."""

    def update(self, state: State, plan: Plans, gradients: Any, coefficients: Any) -> State:
        if not any(len(each.row) for each in plan.values()):
            return state
        return super().update(state, plan, gradients, coefficients)


@mutant(
    "check_a_table_without_optimizer_is_looked_up",
    "Reason to expect it: only tables that are trained are put to the device.",
)
class TablesWithoutOptimizerAreZeros(ReferenceBackend):
    """A table that is not trained is not put, and gives zeros."""

    def put_state(self, state: State) -> State:
        weights = {
            name: np.zeros_like(array) if state.specs[name].optimizer is None else array
            for name, array in state.weights.items()
        }
        return super().put_state(replace(state, weights=weights))


@mutant(
    "check_a_lookup_leaves_the_state_as_it_was",
    "Reason to expect it: caches count how often a row is looked up, beside its slots.",
)
class LookupsAreCountedInTheSlots(ReferenceBackend):
    """A lookup adds 1 to the slots of its rows."""

    def lookup(self, state: State, plan: Plans) -> dict[str, np.ndarray]:
        for name, each in plan.items():
            for slot in state.slots[name].values():
                slot[each.unique] += np.float32(1)
        return super().lookup(state, plan)


@mutant(
    "check_a_later_lookup_does_not_reach_into_activations",
    "A staging buffer of the output that is kept from call to call, as CUDA graphs need it.",
)
class ActivationsAreInOneBuffer(ReferenceBackend):
    """Every lookup of so many samples returns the same memory."""

    buffers: ClassVar[dict[Any, np.ndarray]] = {}

    def lookup(self, state: State, plan: Plans) -> dict[str, np.ndarray]:
        found = super().lookup(state, plan)
        for name, array in found.items():
            buffer = self.buffers.setdefault((name, array.shape), np.empty_like(array))
            buffer[...] = array
            found[name] = buffer
        return found


@mutant(
    "check_a_later_update_does_not_reach_into_activations",
    "Arrays that share memory with their source: https://github.com/jax-ml/jax/issues/37830",
)
class ActivationsMayBeViewsOfTheTable(ReferenceBackend):
    """Samples of one id each, one row after the other, are a slice of the table."""

    def lookup(self, state: State, plan: Plans) -> dict[str, np.ndarray]:
        found = super().lookup(state, plan)
        for name, each in plan.items():
            single = np.array_equal(each.splits, np.arange(each.samples + 1))
            if single and np.all(np.diff(each.row) == 1) and np.all(each.gain == 1):
                found[name] = state.weights[name][each.row[0] : each.row[-1] + 1]
        return found


@dataclass
class _Later:
    """Activations of one table that are computed when they are read."""

    state: State
    name: str
    plan: LookupPlan

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return ReferenceBackend().lookup(self.state, {self.name: self.plan})[self.name]


@mutant(
    "check_a_later_update_does_not_reach_into_activations",
    "Reads and updates on streams that do not wait for each other: "
    "https://github.com/meta-pytorch/torchrec/pull/2731",
)
class ActivationsAreComputedWhenTheyAreRead(ReferenceBackend):
    """A lookup runs only when its result is wanted, from the tables of then."""

    def lookup(self, state: State, plan: Plans) -> Any:
        return {name: _Later(state, name, each) for name, each in plan.items()}


@mutant(
    "check_a_backend_refuses_what_it_declares_and_nothing_else",
    "Reason to expect it: options are accepted and ignored until somebody writes them.",
)
class ClipvalueIsDeclaredAndTaken(ReferenceBackend):
    """It declares that it refuses clipvalue, and trains with it."""

    parity: ClassVar[Parity] = Parity(bitwise=True, refuses={"clipvalue": "not written yet"})


@mutant(
    "check_a_backend_refuses_what_it_declares_and_nothing_else",
    "Optimizers that are listed and raise when they are used: FBGEMM's EmbOptimType, "
    "https://github.com/pytorch/FBGEMM",
)
class FTRLIsRefusedAndNotDeclared(ReferenceBackend):
    """It refuses FTRL, of which its parity says nothing."""

    def put_state(self, state: State) -> State:
        for spec in state.specs.values():
            if isinstance(spec.optimizer, FTRL):
                raise BackendError(f"table {spec.name!r}: FTRL is not written yet; use SGD")
        return super().put_state(state)
