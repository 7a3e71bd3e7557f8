"""Faults of a backend's plans and updates: prefetches, buffers, memory, fast paths."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...plan import LookupPlan
from ...reference import ReferenceBackend
from ...state import State
from .mutant import mutant

Plans = Mapping[str, LookupPlan]


@mutant(
    "check_plans_may_be_put_long_before_they_are_used",
    "Rows that were prefetched before an update: "
    "https://github.com/NVIDIA/recsys-examples/issues/280",
)
class PlansHoldTheRowsOfTheirTime(ReferenceBackend):
    """put_plan prefetches its rows, and the lookup uses those."""

    newest: Any = None

    def put_state(self, state: State) -> State:
        self.newest = super().put_state(state)
        return self.newest

    def put_plan(self, plans: Plans) -> Any:
        held = {} if self.newest is None else self.newest.weights
        fetched = {name: array.copy() for name, array in held.items()}
        return {name: (each, fetched.get(name)) for name, each in plans.items()}

    def lookup(self, state: State, plan: Any) -> dict[str, np.ndarray]:
        weights = dict(state.weights)
        for name, (_, fetched) in plan.items():
            if fetched is not None and fetched.shape == weights[name].shape:
                weights[name] = fetched
        plans = {name: each for name, (each, _) in plan.items()}
        return super().lookup(replace(state, weights=weights), plans)

    def update(self, state: State, plan: Any, gradients: Any, coefficients: Any) -> State:
        plans = {name: each for name, (each, _) in plan.items()}
        return super().update(state, plans, gradients, coefficients)


@mutant(
    "check_plans_may_be_put_long_before_they_are_used",
    "A later prefetch evicts what an earlier one fetched: https://github.com/pytorch/FBGEMM/pull/1201",
)
class ThereIsOneBufferForPlans(ReferenceBackend):
    """A plan that is put takes the place of the one before it."""

    def put_plan(self, plans: Plans) -> Plans:
        self.newest = plans
        return plans

    def lookup(self, state: State, plan: Plans) -> dict[str, np.ndarray]:
        return super().lookup(state, self.newest)

    def update(self, state: State, plan: Plans, gradients: Any, coefficients: Any) -> State:
        return super().update(state, self.newest, gradients, coefficients)


@mutant(
    "check_small_states_compute_what_the_large_one_does",
    "Reason to expect it: device memory is found by the table's name.",
)
class StatesOfOneNameShareMemory(ReferenceBackend):
    """put_state writes into the memory of the first table that had this name."""

    def __init__(self) -> None:
        self.memory: dict[tuple[str, str], np.ndarray] = {}

    def put_state(self, state: State) -> State:
        weights = {name: self._kept(name, "", array) for name, array in state.weights.items()}
        slots = {
            name: {slot: self._kept(name, slot, array) for slot, array in each.items()}
            for name, each in state.slots.items()
        }
        return super().put_state(replace(state, weights=weights, slots=slots))

    def _kept(self, name: str, slot: str, array: np.ndarray) -> np.ndarray:
        held = self.memory.get((name, slot), array)
        if len(held) <= len(array) or held.shape[1] != array.shape[1]:
            self.memory[name, slot] = array
            return array
        held[: len(array)] = array
        return held[: len(array)]


@mutant(
    "check_what_is_given_to_an_update_is_only_read",
    "Buffers that are donated to a computation: https://github.com/jax-ml/jax/issues/1733",
)
class GradientsAreScratchMemory(ReferenceBackend):
    """The gradients' memory is used for something else, and holds zeros after the update."""

    def update(self, state: State, plan: Plans, gradients: Any, coefficients: Any) -> State:
        new = super().update(state, plan, gradients, coefficients)
        for array in gradients.values():
            array[...] = 0
        return new


@mutant(
    "check_what_is_given_to_an_update_is_only_read",
    "device_put that aliases its argument: https://github.com/jax-ml/jax/issues/37830",
)
class GradientsAreReadLater(ReferenceBackend):
    """An update runs when the state is used next, with what the gradients are then."""

    todo: Any = None

    def _done(self, state: State) -> State:
        todo, self.todo = self.todo, None
        if todo is not None:
            super().update(state, *todo)
        return state

    def get_state(self, state: State) -> State:
        return super().get_state(self._done(state))

    def lookup(self, state: State, plan: Plans) -> dict[str, np.ndarray]:
        return super().lookup(self._done(state), plan)

    def update(self, state: State, plan: Plans, gradients: Any, coefficients: Any) -> State:
        self._done(state)
        self.todo = plan, gradients, coefficients
        return replace(state, version=state.version + 1)


@mutant(
    "check_bags_may_be_ragged_or_sparse_of_any_rank",
    "Reason to expect it: a fast path for one id a sample, taken where the numbers agree.",
)
class AsManyIdsAsSamplesAreOneEach(ReferenceBackend):
    """A plan with as many ids as samples is taken for one id a sample."""

    def put_plan(self, plans: Plans) -> Plans:
        return {
            name: replace(each, splits=np.arange(each.samples + 1))
            if len(each.row) == each.samples
            else each
            for name, each in plans.items()
        }


@mutant(
    "check_dense_ragged_and_sparse_ids_say_the_same",
    "Reason to expect it: rows are sorted for the device, and not put back in order.",
)
class SingleIdsComeInTheOrderOfTheirRows(ReferenceBackend):
    """Activations of one id a sample are in the order of the rows."""

    def lookup(self, state: State, plan: Plans) -> dict[str, np.ndarray]:
        single = lambda each: np.array_equal(each.splits, np.arange(each.samples + 1))  # noqa: E731
        plans = {
            name: replace(each, row=np.sort(each.row)) if single(each) else each
            for name, each in plan.items()
        }
        return super().lookup(state, plans)


@mutant(
    "check_holes_of_a_sparse_sequence_stay_zero",
    "A bag without ids in the middle of a batch: https://github.com/pytorch/pytorch/issues/4169",
)
class EmptySamplesAreAtTheEnd(ReferenceBackend):
    """Samples without ids are skipped, so that those after them move up."""

    def lookup(self, state: State, plan: Plans) -> dict[str, np.ndarray]:
        found = super().lookup(state, plan)
        for name, each in plan.items():
            order = np.argsort(np.diff(each.splits) == 0, kind="stable")
            found[name] = found[name][order]
        return found


@mutant(
    "check_an_output_shape_reshapes_what_was_combined",
    "Reason to expect it: a kernel that writes whole tiles of 4 samples, once there are any.",
)
class TheLastPartialTileIsNotWritten(ReferenceBackend):
    """Of more than 4 samples, those beyond a multiple of 4 are zero."""

    def lookup(self, state: State, plan: Plans) -> dict[str, np.ndarray]:
        found = super().lookup(state, plan)
        for array in found.values():
            if len(array) > 4:
                array[len(array) // 4 * 4 :] = 0
        return found
