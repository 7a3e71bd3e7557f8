"""The first example of an adapter: embsim's own TPUEmbedding, over any backend."""

import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import Backend, Parity
from ..config import FeatureConfig
from ..ragged import RaggedTensor
from ..strategy import TPUStrategy
from ..tpu_embedding import TPUEmbedding
from .adapter import Capabilities, arrays
from .program import Batch, Setup


class EmbsimEngine:
    """A TPUEmbedding under a TPUStrategy of setup.replicas, in global calls.

    To change what it does, override a method: the mutants of this kit are made so.
    """

    capabilities = Capabilities(bitwise=True, replicas=(1, 2, 4))
    backend: Any = "reference"

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._folder: Path | None = None
        self._saves = 0
        features = self.features(setup)
        self.strategy = TPUStrategy(num_replicas=setup.replicas)
        with self.strategy.scope():
            self.embedding = TPUEmbedding(
                features,
                schedule=setup.schedule,
                backend=self.backend,
                queue_capacity=setup.queue_capacity,
                batch_size=setup.samples // setup.replicas,
            )
        self.embedding.build()

    def features(self, setup: Setup) -> list[FeatureConfig]:
        """What is trained."""
        return list(setup.features)

    def enqueue(self, batch: Batch, training: bool = True) -> None:
        ids: list[RaggedTensor] = []
        weights: list[RaggedTensor | None] = []
        for values, splits, factors in arrays(batch):
            ids.append(RaggedTensor(values, splits))
            weights.append(None if factors is None else RaggedTensor(factors, splits))
        given = None if all(each is None for each in weights) else weights
        self.embedding.enqueue(ids, given, training=training)

    def dequeue(self) -> Sequence[Any] | None:
        return self.embedding.dequeue()

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        arrays = [None if g is None else np.asarray(g, np.float32) for g in gradients]
        self.embedding.apply_gradients(arrays)

    def drain(self) -> None:
        self.embedding.drain()

    def tables(self) -> Mapping[str, Any]:
        tables = self.embedding.embedding_tables
        return {str(config.name): array for config, array in tables.items()}

    def slots(self) -> Mapping[str, Mapping[str, Any]]:
        slots = self.embedding.slot_variables
        return {str(config.name): each for config, each in slots.items()}

    def save(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="embsim_"))
        path = self._folder / str(self._saves)
        self.embedding.save(path)
        self._saves += 1
        return path

    def restore(self, saved: Path) -> None:
        self.embedding.restore(saved)

    def close(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of work given up, which is what is wanted
            self.embedding.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def engine_on(backend: str | Backend, parity: Parity) -> type[EmbsimEngine]:
    """embsim's engine on this backend, with what the backend says of itself."""
    made = type("EmbsimEngine", (EmbsimEngine,), {"backend": backend})
    made.capabilities = replace(EmbsimEngine.capabilities, **vars(parity))
    return made
