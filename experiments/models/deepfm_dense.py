"""DeepFM as the dense model of a replay."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from embsim.simulation.replay import Dense

from . import deepfm


def dense(seed: int, features: int, dim: int, hidden: tuple[int, ...], rate: float) -> Dense:
    """Under Adagrad of this learning rate. Inputs of a batch are its labels; the score is the
    logits, float32 [samples], before the update."""
    backward, descend = _programs()
    model = deepfm.init(seed, features, dim, hidden)

    def gradients(parameters: Any, activations: Any, labels: Any) -> tuple[Any, Any, Any]:
        (_, z), (slopes, found) = backward(parameters[0], dict(activations), labels)
        return np.asarray(z), found, slopes

    def update(parameters: Any, slopes: Any) -> Any:
        return descend(*parameters, slopes, rate)

    return Dense((model, deepfm.init_accumulators(model)), gradients, update)


@lru_cache(maxsize=1)
def _programs() -> tuple[Any, Any]:
    def descend(parameters: Any, accumulators: Any, slopes: Any, rate: float) -> Any:
        accumulators = jax.tree.map(lambda a, g: a + g * g, accumulators, slopes)
        parameters = jax.tree.map(
            lambda w, a, g: w - rate * g / jnp.sqrt(a), parameters, accumulators, slopes
        )
        return parameters, accumulators

    return jax.jit(jax.value_and_grad(deepfm.loss, argnums=(0, 1), has_aux=True)), jax.jit(descend)
