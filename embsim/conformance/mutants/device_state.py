"""Backends that share memory, lay tables out anew, or keep something of their own."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ...plan import LookupPlan
from ...reference import ReferenceBackend
from ...state import Rows, State
from .mutant import mutant

Arrays = Mapping[str, np.ndarray]


@mutant(
    "check_a_full_queue_refuses_a_batch_and_keeps_those_that_it_holds",
    "Prefetching evicts what was prefetched before and is still needed: "
    "https://github.com/pytorch/FBGEMM/pull/1201",
)
class ThreeStagingBuffers(ReferenceBackend):
    """Plans wait in three buffers, filled in turn, whatever is still in them."""

    buffers: ClassVar[int] = 3

    def __init__(self) -> None:
        self.__dict__.update(ring=[None] * self.buffers, used=0)

    def put_plan(self, plans: Mapping[str, LookupPlan]) -> Any:
        number = vars(self)["used"] % self.buffers
        vars(self)["ring"][number], vars(self)["used"] = plans, number + 1
        return number

    def lookup(self, state: State, plan: Any) -> dict[str, np.ndarray]:
        return super().lookup(state, vars(self)["ring"][plan])

    def update(self, state: State, plan: Any, gradients: Arrays, coefficients: Any) -> State:
        return super().update(state, vars(self)["ring"][plan], gradients, coefficients)


@mutant(
    "check_a_deadlock_names_the_call_that_is_missing",
    "Reason to expect it: the batch of a call that is refused is already in the staging buffer.",
)
class OneStagingBuffer(ThreeStagingBuffers):
    """A plan that is put, if only for a call that is refused, replaces the one before it."""

    buffers: ClassVar[int] = 1


class _OneOutputBuffer(ReferenceBackend):
    def __init__(self) -> None:
        self.__dict__["buffers"] = {}

    def lookup(self, state: State, plan: Mapping[str, LookupPlan]) -> dict[str, np.ndarray]:
        found = super().lookup(state, plan)
        for name, array in found.items():
            out = vars(self)["buffers"].setdefault((name, array.shape), array)
            out[...] = array
            found[name] = out
        return found


@mutant(
    "check_abandoned_steps_return_the_activations_that_they_returned",
    "Cross-stream races over buffers that are used again: "
    "https://github.com/meta-pytorch/torchrec/pull/2731",
)
class AbandonedStepsReturnWhatWasLookedUpLast(_OneOutputBuffer):
    """All lookups write into one buffer: a step that was given up returns those of a later one."""


@mutant(
    "check_activations_stay_what_they_were_when_they_were_returned",
    "Donated buffers are used again while views of them live, as JAX warns of donation: "
    "https://docs.jax.dev/en/latest/faq.html",
)
class ActivationsAreOverwrittenByTheNextLookup(_OneOutputBuffer):
    """All lookups write into one buffer, which was handed out."""


@dataclass
class _Owed:
    state: Any
    update: tuple[Any, ...] | None


@mutant(
    "check_the_caller_may_overwrite_what_it_gave",
    "An asynchronous copy from host memory that the caller reuses: "
    "https://github.com/meta-pytorch/torchrec/pull/4460",
)
class GradientsAreReadWhenTheUpdateIsNeeded(ReferenceBackend):
    """Updates are made when the next lookup needs them, from gradients that were not copied."""

    def _paid(self, owed: Any) -> State:
        if owed.update is not None:
            owed.state, owed.update = super().update(owed.state, *owed.update), None
        return owed.state

    def put_state(self, state: State) -> Any:
        return _Owed(super().put_state(state), None)

    def get_state(self, state: Any) -> State:
        return self._paid(state)

    def read_rows(self, state: Any, table: str, rows: np.ndarray) -> Rows:
        return super().read_rows(self._paid(state), table, rows)

    def lookup(self, state: Any, plan: Any) -> dict[str, np.ndarray]:
        return super().lookup(self._paid(state), plan)

    def update(self, state: Any, plan: Any, gradients: Arrays, coefficients: Any) -> Any:
        return _Owed(self._paid(state), (plan, gradients, coefficients))


@mutant(
    "check_several_steps_in_one_run_equal_several_runs",
    "Reason to expect it: a slice of an array is a view, a list of rows is a copy.",
)
class NeighbouringRowsAreReadAsAView(ReferenceBackend):
    """read_rows of rows that stand side by side returns the table's own memory."""

    def read_rows(self, state: State, table: str, rows: np.ndarray) -> Rows:
        if not len(rows) or rows[-1] - rows[0] + 1 != len(rows):
            return super().read_rows(state, table, rows)
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        slots = {name: array[part] for name, array in state.slots[table].items()}
        return Rows(state.weights[table][part], slots)


@mutant(
    "check_a_reader_without_optimizer_gets_the_tables_as_if_drained",
    "TensorFlow's host variables are stale copies of the tables until something retrieves them.",
)
class TheHostCopyIsOneUpdateOld(ReferenceBackend):
    """get_state returns the copy that was made before the last update."""

    def put_state(self, state: State) -> State:
        self.__dict__["copy"] = None
        return super().put_state(state)

    def get_state(self, state: State) -> State:
        return vars(self)["copy"] or state

    def update(self, state: State, plan: Any, gradients: Any, coefficients: Any) -> State:
        self.__dict__["copy"] = state.copied()
        return super().update(state, plan, gradients, coefficients)


@mutant(
    "check_a_checkpoint_is_the_same_over_every_backend",
    "TensorFlow's SparseCore checkpoints hold the padded device layout: rows to multiples of 8 "
    "times the shards, columns to multiples of 8.",
)
class TablesHavePaddingRows(ReferenceBackend):
    """Tables and slots are returned with the rows that fill the device's tiles of 8."""

    def get_state(self, state: State) -> State:
        def padded(array: np.ndarray) -> np.ndarray:
            return np.concatenate([array, np.zeros((-len(array) % 8, array.shape[1]), np.float32)])

        weights = {name: padded(array) for name, array in state.weights.items()}
        slots = {
            name: {slot: padded(array) for slot, array in each.items()}
            for name, each in state.slots.items()
        }
        return replace(state, weights=weights, slots=slots)


@mutant(
    "check_a_checkpoint_moves_between_this_backend_and_the_reference",
    "Names of optimizer states that depend on how a table is sharded are not found again: "
    "https://github.com/meta-pytorch/torchrec/issues/2394",
)
class SlotsAreMadeByTheDevice(ReferenceBackend):
    """Slots begin at their initial values whenever tables are put on the device."""

    def put_state(self, state: State) -> State:
        for name, spec in state.specs.items():
            for slot in spec.optimizer.slots if spec.optimizer is not None else ():
                state.slots[name][slot.name][...] = slot.initial
        return super().put_state(state)


@mutant(
    "check_default_initial_values_depend_on_seed_and_name_alone",
    "Reason to expect it: every shard draws its own rows, with the same seed.",
)
class ShardsBeginAlike(ReferenceBackend):
    """Of two shards the second has the initial values of the first."""

    def put_state(self, state: State) -> State:
        if state.version == 0:
            for array in state.weights.values():
                half = len(array) // 2
                array[half : 2 * half] = array[:half]
        return super().put_state(state)


@mutant(
    "check_updates_in_flight_keep_the_rate_that_they_were_saved_with",
    "Reason to expect it: a number that is closed over when a step is compiled is a constant.",
)
class TheFirstRateServesForAll(ReferenceBackend):
    """A table's coefficients are those of its first update, as compiled."""

    def __init__(self) -> None:
        self.__dict__["compiled"] = {}

    def update(self, state: State, plan: Any, gradients: Any, coefficients: Any) -> State:
        constants = {
            name: vars(self)["compiled"].setdefault((name, *numbers), numbers)
            for name, numbers in coefficients.items()
        }
        return super().update(state, plan, gradients, constants)
