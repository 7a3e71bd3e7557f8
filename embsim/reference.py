"""ReferenceBackend: NumPy arrays and Numba kernels. Its results are the definition, to the bit."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ._codegen import update_kernel
from ._memory import aligned_empty, keep_freed_memory
from ._threads import Task, parallel
from .backend import Parity
from .lookup import lookup_tasks
from .plan import LookupPlan
from .state import Rows, State
from .update import update_tasks, work


@dataclass(frozen=True)
class ReferenceBackend:
    """The tables as they are, updated in place. A step's tables share one round of threads."""

    parity: ClassVar[Parity] = Parity(bitwise=True)

    def put_state(self, state: State) -> State:
        keep_freed_memory()
        for spec in state.specs.values():
            if spec.optimizer is not None:
                update_kernel(spec.optimizer)  # a rule that cannot be compiled is refused here
        return state

    def get_state(self, state: State) -> State:
        return state

    def read_rows(self, state: State, table: str, rows: np.ndarray) -> Rows:
        slots = {name: array[rows] for name, array in state.slots[table].items()}
        return Rows(state.weights[table][rows], slots)

    def put_plan(self, plans: Mapping[str, LookupPlan]) -> Mapping[str, LookupPlan]:
        return plans

    def lookup(self, state: State, plan: Mapping[str, LookupPlan]) -> dict[str, np.ndarray]:
        tasks: list[Task] = []
        activations: dict[str, np.ndarray] = {}
        for name, table_plan in plan.items():
            weights = state.weights[name]
            shape = table_plan.samples, weights.shape[1]
            out = activations[name] = aligned_empty(shape, np.float32)
            tasks += lookup_tasks(weights, table_plan, state.specs[name].quantization, out)
        parallel(tasks, sum(len(p.row) * state.specs[name].dim for name, p in plan.items()))
        return activations

    def update(
        self,
        state: State,
        plan: Mapping[str, LookupPlan],
        gradients: Mapping[str, np.ndarray],
        coefficients: Mapping[str, Mapping[str, np.float32]],
    ) -> State:
        tasks: list[Task] = []
        size = 0
        for name, table_plan in plan.items():
            optimizer = state.specs[name].optimizer
            assert optimizer is not None, "a table without optimizer is only looked up"
            slots = list(state.slots[name].values())
            tasks += update_tasks(
                state.weights[name],
                slots,
                table_plan,
                gradients[name],
                optimizer,
                coefficients[name],
            )
            size += work(state.weights[name], table_plan, optimizer)
        parallel(tasks, size)
        return replace(state, version=state.version + 1)
