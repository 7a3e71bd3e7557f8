"""DeepFM over embedding activations: the dense half of a click-through-rate model, in plain JAX.

    logit = bias + sum_f <linear_f, e_f> + sum_{f<g} <e_f, e_g> + mlp([e_1 ... e_F])

with e_f the activations of feature f.

Guo et al. 2017, with the linear term read from the same embeddings. The embedding half (tables,
lookup, update, staleness) belongs to the caller, who hands in activations and takes back d loss / d
activations.
"""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Activations = dict[str, Any]
Parameters = dict[str, Any]

_INITIAL_ACCUMULATOR = 0.1


def init(seed: int, num_features: int, dim: int, hidden: tuple[int, ...]) -> Parameters:
    """Glorot-normal layers, zero biases, a linear term of 1 / dim."""
    rng = np.random.default_rng(seed)
    widths = (num_features * dim, *hidden, 1)
    layers = [
        {"weights": rng.normal(0.0, np.sqrt(2.0 / (m + n)), (m, n)), "bias": np.zeros(n)}
        for m, n in itertools.pairwise(widths)
    ]
    parameters = {
        "bias": np.zeros(()),
        "linear": np.full((num_features, dim), 1.0 / dim),
        "layers": layers,
    }
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), parameters)


def init_accumulators(parameters: Parameters) -> Parameters:
    """Adagrad's state for `train_step`."""
    return jax.tree.map(lambda x: jnp.full_like(x, _INITIAL_ACCUMULATOR), parameters)


def logits(parameters: Parameters, activations: Activations) -> jax.Array:
    """One logit per sample, from one [samples, dim] array per feature."""
    e = jnp.stack([activations[feature] for feature in sorted(activations)], axis=1)
    linear = jnp.einsum("sfd,fd->s", e, parameters["linear"])
    pairs = 0.5 * jnp.sum(jnp.sum(e, axis=1) ** 2 - jnp.sum(e**2, axis=1), axis=-1)
    return parameters["bias"] + linear + pairs + _mlp(parameters["layers"], e.reshape(len(e), -1))


def loss(parameters: Parameters, activations: Activations, labels: jax.Array):
    """(logistic loss, mean over the batch; logits)."""
    z = logits(parameters, activations)
    return jnp.mean(jax.nn.softplus(z) - labels * z), z


@partial(jax.jit, donate_argnums=(0, 1))
def train_step(
    parameters: Parameters,
    accumulators: Parameters,
    activations: Activations,
    labels: jax.Array,
    learning_rate: float,
) -> tuple[Parameters, Parameters, jax.Array, Activations]:
    """One step of Adagrad on the dense half.

    Returns (parameters, accumulators, logits, d loss / d activations).

    The logits are those before the update: scores of samples that the model has not seen.
    """
    backward = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (_, z), (gradients, activation_gradients) = backward(parameters, activations, labels)
    accumulators = jax.tree.map(lambda a, g: a + g * g, accumulators, gradients)
    parameters = jax.tree.map(
        lambda w, a, g: w - learning_rate * g / jnp.sqrt(a), parameters, accumulators, gradients
    )
    return parameters, accumulators, z, activation_gradients


def _mlp(layers: list[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["weights"] + layer["bias"])
    return (x @ layers[-1]["weights"] + layers[-1]["bias"])[:, 0]
