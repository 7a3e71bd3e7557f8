"""embsim's JAX backend on a CPU: a jitted lookup, and a jitted update that takes the state over."""

import importlib.metadata
import os
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # JAX reads it when it is imported

import jax
import numpy as np

from embsim_tpu import Embedding

from .in_embsim import bags, of_state
from .job import Batches, Job


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("embsim", "jax", "jaxlib", "numpy")}


def prepare(job: Job, batches: Batches, threads: int) -> "Jitted":
    """Its threads are as many as the cores it may use."""
    return Jitted(job, batches)


class Jitted:
    """`plan` is the host's part: ids checked, sorted by row, padded, transferred. In training a
    thread does it while the step before runs."""

    def __init__(self, job: Job, batches: Batches) -> None:
        self._embedding = Embedding(job.workload.configs(), job.law)
        self._state = self._embedding.init()
        self._ids = [bags(batches, k) for k in range(len(batches.ids))]
        self._gradients = [jax.device_put(g) for g in batches.gradients]
        self._lookup = jax.jit(self._embedding.lookup)
        self._update = jax.jit(self._embedding.update, donate_argnums=0)
        self._steps = 0
        self._plan: Any = None
        self._found: Any = None

    def plan(self, k: int) -> None:
        self._plan = jax.block_until_ready(self._embedding.plan(self._ids[k]))

    def lookup(self, k: int) -> None:
        self._found = jax.block_until_ready(self._lookup(self._state, self._plan))

    def update(self, k: int) -> None:
        numbers = self._embedding.coefficients(self._steps)
        made = self._update(self._state, self._plan, self._gradients, numbers)
        self._state = jax.block_until_ready(made)
        self._steps += 1

    def read(self) -> dict[str, np.ndarray]:
        return of_state(list(self._found), self._embedding.get(self._state))
