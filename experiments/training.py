"""Click-through training: embeddings by embsim_tpu, the dense half by optax, scores on the side."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.metrics import log_loss as mean_log_loss
from sklearn.metrics import roc_auc_score

import embsim
from embsim_tpu import Embedding, Example, Pipeline, TrainState

from .data.streams import Examples, Stream
from .models.dlrm import Model, log_loss


@dataclass(frozen=True)
class Scores:
    """On the held-out samples. `auc` is NaN where they are of one class."""

    auc: float
    log_loss: float
    samples: int


def mesh_of(devices: str) -> jax.sharding.Mesh | None:
    """So many of the devices that JAX finds, or "all"; None for one.

    Raises SystemExit: another word, or more than there are.
    """
    there = jax.devices()
    count = len(there) if devices == "all" else int(devices) if devices.isdecimal() else 0
    if not 1 <= count <= len(there):
        raise SystemExit(
            f"--devices {devices}: it must be 'all' or from 1 to {len(there)}: {there}; "
            "--virtual N makes N of one CPU"
        )
    return None if count == 1 else jax.sharding.Mesh(np.array(there[:count]), ("shards",))


def embedding_of(
    stream: Stream, dim: int, optimizer: Any, mesh: jax.sharding.Mesh | None = None
) -> Embedding:
    """One table per categorical field, named after it."""
    return Embedding(
        {
            name: embsim.FeatureConfig(
                embsim.TableConfig(rows, dim, optimizer=optimizer, combiner="sum", name=name)
            )
            for name, rows in zip(stream.names, stream.vocabulary_sizes, strict=True)
        },
        mesh=mesh,
    )


def check_batch_size(samples: int, embedding: Embedding) -> None:
    """Raises SystemExit: not a positive multiple of the devices."""
    devices = embedding.shards.size
    if samples < 1 or samples % devices:
        raise SystemExit(
            f"--batch-size {samples}: it must be a multiple of the {devices} devices that train"
        )


def example_of(stream: Stream, examples: Examples) -> Example:
    """What `pipeline.train` takes of a batch."""
    ids = {name: examples.ids[:, field] for field, name in enumerate(stream.names)}
    inputs = {
        "dense": examples.dense,
        "labels": examples.labels,
        "mask": examples.mask.astype(np.float32),
    }
    return Example(ids, inputs)


def initial_state(
    embedding: Embedding, model: Model, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """Tables, dense parameters and the dense optimizer's state, on the embedding's devices."""
    parameters = model.init(seed)
    carry = parameters, optimizer.init(parameters)
    put = embedding.shards.put_replicated
    return TrainState(embedding.init(seed), jax.tree.map(lambda x: put(np.array(x)), carry))


@lru_cache(maxsize=8)
def dense_step(model: Model, optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """A dense step for `pipeline.train`; the metric is the batch's mean log loss."""

    def step(carry: Any, activations: Any, inputs: Any) -> tuple[Any, Any, jax.Array]:
        parameters, state = carry

        def loss(parameters: Any, activations: Any) -> jax.Array:
            return log_loss(_logits(model, parameters, activations, inputs), **_answers(inputs))

        value, (slopes, gradients) = jax.value_and_grad(loss, argnums=(0, 1))(
            parameters, activations
        )
        changes, state = optimizer.update(slopes, state, parameters)
        return (optax.apply_updates(parameters, changes), state), gradients, value

    return step


def evaluate(
    pipeline: Pipeline, model: Model, stream: Stream, batch_size: int, batches: int | None = None
) -> Scores:
    """Of the tables with every submitted update in them. Changes nothing."""
    logits: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    with pipeline.as_if_drained() as tables:
        parameters, _ = pipeline.carry
        for examples in _first(stream.held_out(batch_size), batches):
            planned = pipeline.planned(example_of(stream, examples))
            found = _scored(pipeline.embedding.functions, model)(
                tables, parameters, planned.plan, planned.inputs
            )
            logits.append(pipeline.embedding.shards.whole(found)[examples.mask])
            labels.append(examples.labels[examples.mask])
    return _scores(np.concatenate(logits), np.concatenate(labels))


def _scores(logits: np.ndarray, labels: np.ndarray) -> Scores:
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    auc = roc_auc_score(labels, logits) if len(np.unique(labels)) == 2 else math.nan
    return Scores(auc, mean_log_loss(labels, probabilities, labels=[0, 1]), len(labels))


@lru_cache(maxsize=8)
def _scored(functions: Any, model: Model) -> Any:
    def logits(tables: Any, parameters: Any, plan: Any, inputs: Any) -> jax.Array:
        return _logits(model, parameters, functions.lookup(tables, plan), inputs)

    return jax.jit(logits)


def _logits(model: Model, parameters: Any, activations: Any, inputs: Any) -> jax.Array:
    vectors = jnp.stack([activations[name] for name in sorted(activations)], axis=1)
    return model.apply(parameters, inputs["dense"], vectors)


def _answers(inputs: Any) -> dict[str, Any]:
    return {"labels": inputs["labels"], "mask": inputs["mask"]}


def _first(items: Iterator[Examples], count: int | None) -> Iterator[Examples]:
    for number, item in enumerate(items):
        if count is not None and number >= count:
            return
        yield item
