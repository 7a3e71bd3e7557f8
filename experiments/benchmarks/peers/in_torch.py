"""PyTorch on a CPU: one nn.EmbeddingBag over all tables, torch.optim on its sparse gradient."""

import importlib.metadata
from importlib import import_module
from typing import Any

import numpy as np

import embsim

from .job import Batches, Job, NotOfferedError, named

STATES = {"accumulators": "sum", "momenta": "exp_avg", "velocities": "exp_avg_sq"}


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "numpy")}


def prepare(job: Job, batches: Batches, threads: int) -> "Bags":
    return Bags(job, batches, threads)


class Bags:
    """Tables stand below each other in one parameter: faster than a layer for each."""

    def __init__(self, job: Job, batches: Batches, threads: int) -> None:
        torch: Any = import_module("torch")
        torch.set_num_threads(threads)
        torch.sparse.check_sparse_tensor_invariants.disable()  # torch warns unless it is told
        w = job.workload
        self._job, self._steps = job, 0
        weight = torch.from_numpy(job.initial()).repeat(w.tables, 1)
        self._bag = torch.nn.EmbeddingBag(
            *weight.shape, mode=w.combiner, sparse=True, _weight=weight
        )
        self._optimizer = _optimizer(torch, job.law, [self._bag.weight])
        beyond = (np.arange(w.tables) * w.rows)[:, None, None]
        self._ids = [torch.from_numpy((ids + beyond).reshape(-1, w.pooling)) for ids in batches.ids]
        self._gradients = torch.from_numpy(batches.gradients.reshape(-1, w.dim))
        self._found: Any = None

    def plan(self, k: int) -> None:
        pass

    def lookup(self, k: int) -> None:
        self._found = self._bag(self._ids[k])

    def update(self, k: int) -> None:
        self._optimizer.zero_grad()
        self._found.backward(self._gradients)
        self._steps += 1
        if isinstance(self._job.law, embsim.Adam):  # SparseAdam corrects the bias: undo it
            b1, b2 = self._job.law.beta_1**self._steps, self._job.law.beta_2**self._steps
            rate: Any = self._job.law.learning_rate
            self._optimizer.param_groups[0]["lr"] = rate * (1 - b1) / (1 - b2) ** 0.5
        self._optimizer.step()

    def read(self) -> dict[str, np.ndarray]:
        def by_table(tensor: Any) -> list[np.ndarray]:
            return np.split(tensor.detach().numpy(), self._job.workload.tables)

        state = self._optimizer.state[self._bag.weight]
        slots = {s.name: by_table(state[STATES[s.name]]) for s in self._job.law.slots}
        return named(by_table(self._found), by_table(self._bag.weight), slots)


def _optimizer(torch: Any, law: Any, parameters: list[Any]) -> Any:
    rate = law.learning_rate
    if isinstance(law, embsim.SGD):
        return torch.optim.SGD(parameters, lr=rate)
    if isinstance(law, embsim.Adagrad):
        first = law.initial_accumulator_value
        return torch.optim.Adagrad(parameters, rate, initial_accumulator_value=first, eps=0.0)
    if isinstance(law, embsim.Adam):
        betas = law.beta_1, law.beta_2
        return torch.optim.SparseAdam(parameters, rate, betas, eps=law.epsilon)
    raise NotOfferedError(f"torch.optim has no {type(law).__name__}")
