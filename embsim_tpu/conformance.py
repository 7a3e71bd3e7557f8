"""The training loop as a whole engine, for the conformance kit (the extra `conformance`):

embsim conformance embsim_tpu.conformance:PipelineEngine
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from embsim import RaggedTensor
from embsim.conformance import Capabilities, Setup
from embsim.conformance.adapter import arrays

from .backend import JaxBackend
from .embedding import Embedding
from .pipeline import Pipeline, Planned, TrainState


@dataclass(frozen=True, eq=False)
class Entry:
    planned: Planned
    training: bool


class PipelineEngine:
    """A `Pipeline` whose dense step returns the gradients that it is given.

    A training step is held back until the next batch is dequeued, so that every lookup that the
    schedule lets overlap does stand in one program with the dense step and the update before it.
    On a mesh, batches are filled up with empty bags to a multiple of its devices.
    """

    mesh: ClassVar[Mesh | None] = None
    capabilities: ClassVar[Capabilities] = Capabilities(in_flight=1, errors=False)

    @classmethod
    def on(cls, mesh: Mesh | None) -> type["PipelineEngine"]:
        """The engine on this mesh."""
        made = type("PipelineEngine", (cls,), {"mesh": mesh})
        made.capabilities = replace(cls.capabilities, **vars(JaxBackend(mesh).parity))
        return made

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        embedding = Embedding(list(setup.features), mesh=self.mesh)
        self._missing = -setup.samples % embedding.shards.size
        state = TrainState(embedding.init(), None)
        self.pipeline = Pipeline(embedding, given_gradients, state, setup.schedule)
        self._queue: list[Entry] = []
        self._dequeued: Planned | None = None
        self._gradients: Any = None

    def enqueue(self, batch: Any, training: bool = True) -> None:
        ids: list[RaggedTensor] = []
        weights: list[RaggedTensor | None] = []
        for values, splits, factors in arrays(batch):
            splits = np.concatenate([splits, np.full(self._missing, splits[-1])])
            ids.append(RaggedTensor(values, splits))
            weights.append(None if factors is None else RaggedTensor(factors, splits))
        given = None if all(each is None for each in weights) else weights
        self._queue.append(Entry(self.pipeline.planned((ids, None, given)), training))

    def dequeue(self) -> Sequence[Any]:
        entry = self._queue.pop(0)
        if not entry.training:
            self._settle()
            with self.pipeline.as_if_drained() as tables:
                found = self.pipeline.embedding.lookup(tables, entry.planned.plan)
                return self._cut(found)
        self._settle(entry.planned)
        self._dequeued = entry.planned
        return self._cut(self.pipeline.begin(entry.planned))

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        self._gradients = [None if g is None else self._filled(g) for g in gradients]

    def drain(self) -> None:
        self._settle()
        self.pipeline.drain()

    def tables(self) -> Mapping[str, Any]:
        self._settle()
        with self.pipeline.as_if_drained() as tables:
            return dict(self.pipeline.embedding.get(tables).weights)

    def slots(self) -> Mapping[str, Mapping[str, Any]]:
        self._settle()
        with self.pipeline.as_if_drained() as tables:
            return dict(self.pipeline.embedding.get(tables).slots)

    def save(self) -> TrainState:
        self._settle()
        state = self.pipeline.state
        return replace(state, tables=jax.tree.map(jnp.copy, state.tables))  # they are donated

    def restore(self, saved: TrainState) -> None:
        tables = jax.tree.map(jnp.copy, saved.tables)
        self.pipeline.restore(replace(saved, tables=tables))
        self._dequeued = self._gradients = None

    def close(self) -> None:
        """There is nothing to end."""

    def _settle(self, following: Planned | None = None) -> None:
        """Run the step that was held back."""
        if self._dequeued is not None and self._gradients is not None:
            self.pipeline.step(self._dequeued, following, self._gradients)
            self._dequeued = self._gradients = None

    def _filled(self, gradient: Any) -> jax.Array:
        array = np.asarray(gradient, np.float32)
        zeros = np.zeros((self._missing, *array.shape[1:]), np.float32)
        return self.pipeline.embedding.shards.put(np.concatenate([array, zeros]))

    def _cut(self, activations: Sequence[jax.Array]) -> list[np.ndarray]:
        return [np.asarray(each)[: self.setup.samples] for each in activations]


def given_gradients(carry: Any, activations: Any, inputs: Any) -> tuple[Any, Any, Any]:
    """A dense step without a model."""
    return carry, inputs, None


PipelineEngine.capabilities = PipelineEngine.on(None).capabilities
