"""FBGEMM on a CPU: table-batched embedding bags, the optimizer fused into the backward pass.

One instance keeps one core busy, whatever torch is told (docs/performance.md). Its best case,
`in_fbgemm_pair`, is two instances with half of the tables each, on two threads of Python.
"""

import importlib.metadata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import numpy as np

from .job import Batches, Job, NotOfferedError, named

KINDS = {
    "SGD": "EXACT_SGD",
    "Adagrad": "EXACT_ADAGRAD",
    "RowwiseAdagrad": "EXACT_ROWWISE_ADAGRAD",
}


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("fbgemm_gpu_cpu", "torch", "numpy")}


def prepare(job: Job, batches: Batches, threads: int) -> "Batched":
    return Batched(job, batches, threads, instances=1)


class Batched:
    def __init__(self, job: Job, batches: Batches, threads: int, instances: int) -> None:
        if job.optimizer not in KINDS:
            raise NotOfferedError(f"FBGEMM refuses {job.optimizer} on a CPU")
        torch: Any = import_module("torch")
        torch.set_num_threads(max(1, threads // instances))
        self._law, self._instances = job.law, instances
        self._pool = ThreadPoolExecutor(instances)
        tables = np.array_split(np.arange(job.workload.tables), instances)
        self._layers = [_layer(torch, job, len(mine)) for mine in tables]
        self._ids = [
            [torch.from_numpy(ids[mine].reshape(-1)).long() for mine in tables]
            for ids in batches.ids
        ]
        w = job.workload
        self._offsets = [torch.arange(len(mine) * w.batch + 1) * w.pooling for mine in tables]
        self._gradients = [
            torch.from_numpy(np.concatenate(list(batches.gradients[mine]), axis=1))
            for mine in tables
        ]
        self._found: list[Any] = []

    def plan(self, k: int) -> None:
        pass

    def lookup(self, k: int) -> None:
        ids = self._ids[k]
        self._found = self._each(lambda i: self._layers[i](ids[i], self._offsets[i]))

    def update(self, k: int) -> None:
        self._each(lambda i: self._found[i].backward(self._gradients[i]))

    def _each(self, work: Callable[[int], Any]) -> list[Any]:
        if self._instances == 1:
            return [work(0)]
        return list(self._pool.map(work, range(self._instances)))

    def read(self) -> dict[str, np.ndarray]:
        found = [part.detach().numpy() for part in self._found]
        activations = [
            columns
            for part, layer in zip(found, self._layers, strict=True)
            for columns in np.split(part, len(layer.split_embedding_weights()), axis=1)
        ]
        tables = [
            table.detach().numpy()
            for each in self._layers
            for table in each.split_embedding_weights()
        ]
        slots: dict[str, list[Any]] = {}
        if self._law.slots:
            states = [s for each in self._layers for s in each.split_optimizer_states()]
            slots = {self._law.slots[0].name: [state.numpy() for (state,) in states]}
        return named(activations, tables, slots)


def _layer(torch: Any, job: Job, tables: int) -> Any:
    library = "fbgemm_gpu.split_table_batched_embeddings_ops"
    common, training = import_module(f"{library}_common"), import_module(f"{library}_training")
    kinds = import_module("fbgemm_gpu.split_embedding_configs").EmbOptimType
    w, law = job.workload, job.law
    place = common.EmbeddingLocation.HOST, training.ComputeDevice.CPU
    layer = training.SplitTableBatchedEmbeddingBagsCodegen(
        [(w.rows, w.dim, *place)] * tables,
        optimizer=kinds[KINDS[job.optimizer]],
        pooling_mode=common.PoolingMode[w.combiner.upper()],
        learning_rate=law.learning_rate,
        eps=getattr(law, "epsilon", 0.0),
        stochastic_rounding=False,
        device=torch.device("cpu"),
    )
    initial = torch.from_numpy(job.initial())
    for table in layer.split_embedding_weights():
        table.copy_(initial)
    for slot in law.slots:
        for (state,) in layer.split_optimizer_states():
            state.fill_(slot.initial)
    return layer
