"""DeepFM as the dense model of a replay."""

from functools import lru_cache
from typing import Any

import jax
import numpy as np
import optax

from embsim.simulation.replay import Dense

from . import deepfm


def dense(
    seed: int,
    features: int,
    dim: int,
    hidden: tuple[int, ...],
    optimizer: optax.GradientTransformation,
) -> Dense:
    """Inputs of a batch are its labels; the score is the logits, float32 [samples], before the
    update."""
    model = deepfm.init(seed, features, dim, hidden)
    descend = jax.jit(lambda state, slopes: _descend(optimizer, state, slopes))

    def gradients(state: Any, activations: Any, labels: Any) -> tuple[Any, Any, Any]:
        (_, z), (slopes, found) = _backward()(state[0], dict(activations), labels)
        return np.asarray(z), found, slopes

    return Dense((model, optimizer.init(model)), gradients, descend)


def _descend(optimizer: optax.GradientTransformation, state: Any, slopes: Any) -> Any:
    parameters, memory = state
    changes, memory = optimizer.update(slopes, memory, parameters)
    return optax.apply_updates(parameters, changes), memory


@lru_cache(maxsize=1)
def _backward() -> Any:
    return jax.jit(jax.value_and_grad(deepfm.loss, argnums=(0, 1), has_aux=True))
