"""Training under any schedule, by replays: what studies share.

One table per feature, DeepFM, logistic loss; each batch is scored before the model trains on it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import optax
from sklearn.metrics import roc_auc_score

import embsim
from embsim.simulation.pipelines import Pipeline
from embsim.simulation.replay import Replayed, replay
from embsim.simulation.timeline import Timeline, run

from .data.samples import Samples
from .models import deepfm
from .models.deepfm_dense import dense


@dataclass(frozen=True)
class Setup:
    """What stays the same when the schedule changes.

    Args:
      optimizer: of the tables.
      dense_optimizer: of the dense model.
      batch_size: samples.
      initial_stddev: of the tables' weights.
      backend: of the tables.
    """

    optimizer: Any
    dense_optimizer: optax.GradientTransformation
    batch_size: int = 64
    dim: int = 16
    hidden: tuple[int, ...] = (64, 32)
    initial_stddev: float = 0.03
    backend: str = "reference"


def adagrad(rate: float) -> optax.GradientTransformation:
    """Of the dense model, as deepfm.train_step has it."""
    return optax.adagrad(rate, initial_accumulator_value=0.1)


def train(
    setup: Setup, pipeline: Pipeline, data: Samples, seed: int, timeline: Timeline | None = None
) -> Replayed:
    """One pass over the data, in its order; samples that fill no batch are dropped.

    Args:
      seed: of all initial values.
      timeline: of as many batches; by default every operation takes a second.
    """
    steps = len(data) // setup.batch_size
    return replay(
        timeline or run(pipeline.operations(steps), 1.0),
        pipeline,
        _features(setup, data.vocabulary_sizes, seed),
        setup.optimizer,
        _batches(data, setup.batch_size, steps),
        dense(seed, len(data.features), setup.dim, setup.hidden, setup.dense_optimizer),
        backend=setup.backend,
        seed=seed,
    )


def scored(result: Replayed, data: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits, [steps, samples], of the batches that were trained."""
    scores = np.stack(result.scores)
    return data.labels[: scores.size].reshape(scores.shape), scores


def held_out_auc(result: Replayed, data: Samples) -> float:
    """Of samples that were not trained, by what the tables are in the end."""
    activations = {name: result.state.weights[name][data.ids[name]] for name in data.features}
    return auc(data.labels, np.asarray(deepfm.logits(result.parameters[0], activations)))


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """NaN where a score is no number."""
    if not np.isfinite(scores).all():
        return float("nan")
    return float(roc_auc_score(labels.ravel(), scores.ravel()))


def _features(setup: Setup, sizes: dict[str, int], seed: int) -> dict[str, embsim.FeatureConfig]:
    def config(place: int, name: str) -> embsim.FeatureConfig:
        def initializer(shape: Any, dtype: Any) -> np.ndarray:
            rng = np.random.default_rng([seed, place])
            return rng.normal(0.0, setup.initial_stddev, shape).astype(dtype)

        table = embsim.TableConfig(sizes[name], setup.dim, initializer, name=name)
        return embsim.FeatureConfig(table, name=name)

    return {name: config(place, name) for place, name in enumerate(sizes)}


def _batches(data: Samples, size: int, steps: int) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    for step in range(steps):
        part = slice(step * size, (step + 1) * size)
        yield {name: data.ids[name][part] for name in data.features}, data.labels[part]
