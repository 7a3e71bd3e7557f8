"""TensorFlow on a CPU: embedding_lookup_sparse and its gradient, then the raw optimizer ops.

Lazy Adam is spelled in raw ops, as tensorflow_addons did: Keras' Adam is not lazy.
"""

import importlib.metadata
import os
from importlib import import_module
from typing import Any

import numpy as np

import embsim

from .job import Batches, Job, NotOfferedError, named


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("tensorflow_cpu", "numpy")}


def prepare(job: Job, batches: Batches, threads: int) -> "Graph":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    tf: Any = import_module("tensorflow")
    if tf.config.threading.get_intra_op_parallelism_threads() != threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    return Graph(tf, job, batches)


class Graph:
    def __init__(self, tf: Any, job: Job, batches: Batches) -> None:
        if isinstance(job.law, embsim.RowwiseAdagrad):
            raise NotOfferedError("TensorFlow has no RowwiseAdagrad")
        w = job.workload
        self._tf, self._job = tf, job
        initial = tf.constant(job.initial())
        self._tables = [tf.Variable(initial) for _ in range(w.tables)]
        self._slots = [
            [tf.Variable(tf.fill(initial.shape, slot.initial)) for slot in job.law.slots]
            for _ in range(w.tables)
        ]
        bag, place = np.divmod(np.arange(w.batch * w.pooling), w.pooling)
        self._places = tf.constant(np.stack([bag, place], axis=1))
        self._ids = [[tf.constant(ids.reshape(-1), tf.int64) for ids in k] for k in batches.ids]
        self._gradients = [tf.constant(g) for g in batches.gradients]
        self._lookup, self._update = tf.function(self._looked_up), tf.function(self._updated)
        self._found: list[Any] = []

    def plan(self, k: int) -> None:
        pass

    def lookup(self, k: int) -> None:
        self._found = self._lookup(self._ids[k])

    def update(self, k: int) -> None:
        self._update(self._ids[k], self._gradients)

    def read(self) -> dict[str, np.ndarray]:
        slots = {
            slot.name: [of_table[i].numpy() for of_table in self._slots]
            for i, slot in enumerate(self._job.law.slots)
        }
        found = [array.numpy() for array in self._found]
        return named(found, [table.numpy() for table in self._tables], slots)

    def _looked_up(self, ids: Any) -> list[Any]:
        w, tf = self._job.workload, self._tf
        return [
            tf.nn.embedding_lookup_sparse(
                table,
                tf.SparseTensor(self._places, values, (w.batch, w.pooling)),
                None,
                combiner=w.combiner,
                allow_fast_lookup=True,
            )
            for table, values in zip(self._tables, ids, strict=True)
        ]

    def _updated(self, ids: Any, gradients: Any) -> None:
        """The graph keeps of the lookup only what its gradient needs."""
        tf = self._tf
        with tf.GradientTape() as tape:
            found = self._looked_up(ids)
        sparse = tape.gradient(found, self._tables, output_gradients=gradients)
        for table, slots, each in zip(self._tables, self._slots, sparse, strict=True):
            rows, place = tf.unique(each.indices)
            sums = tf.math.unsorted_segment_sum(each.values, place, tf.size(rows))
            _apply(tf, self._job.law, table, slots, rows, sums)


def _apply(tf: Any, law: Any, table: Any, slots: Any, rows: Any, g: Any) -> None:
    rate, ops = law.learning_rate, tf.raw_ops
    if isinstance(law, embsim.SGD):
        ops.ResourceScatterSub(resource=table.handle, indices=rows, updates=rate * g)
    elif isinstance(law, embsim.Adagrad):
        ops.ResourceSparseApplyAdagradV2(
            var=table.handle, accum=slots[0].handle, lr=rate, epsilon=0.0, grad=g, indices=rows
        )
    else:
        m, v = (tf.gather(slot, rows) for slot in slots)
        m = law.beta_1 * m + (1 - law.beta_1) * g
        v = law.beta_2 * v + (1 - law.beta_2) * g * g
        for slot, new in zip(slots, (m, v), strict=True):
            ops.ResourceScatterUpdate(resource=slot.handle, indices=rows, updates=new)
        step = rate * m / (tf.sqrt(v) + law.epsilon)
        ops.ResourceScatterSub(resource=table.handle, indices=rows, updates=step)
