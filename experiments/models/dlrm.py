"""DLRM and DCNv2: the dense half of two click-through-rate models, in plain JAX.

    v_0 = bottom_mlp(dense), v_f = e_f              vectors of length dim
    DLRM    logit = top_mlp([v_0, <v_i, v_j> for i > j])
    DCNv2   x_0 = [v_0 .. v_F]    x_l+1 = x_0 ⊙ (U_l V_l^T x_l + b_l) + x_l    logit = top_mlp(x_L)

with e_f the activations of field f. Without numeric features there is no bottom MLP: v starts with
e_1, and DLRM's top MLP sees the products alone. All layers but the last of the top MLP are relu.

Naumov et al. 2019 (arXiv 1906.00091) and Wang et al. 2020 (arXiv 2008.13535), stacked, low rank.
The embedding half (tables, lookup, update, staleness) belongs to the caller, who hands in
activations and takes d loss / d activations.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float32

Parameters = dict[str, Any]
Dense = Float32[Array, "samples dense"]
Embeddings = Float32[Array, "samples fields dim"]
Logits = Float32[Array, " samples"]
Mask = Bool[Array, " samples"] | Float32[Array, " samples"]


class Model(NamedTuple):
    """Two pure functions: parameters from a seed, logits from parameters and inputs."""

    init: Callable[[int], Parameters]
    apply: Callable[[Parameters, Dense, Embeddings], Logits]


def dlrm(
    num_dense: int,
    num_fields: int,
    dim: int,
    bottom: tuple[int, ...] = (512, 256),
    top: tuple[int, ...] = (1024, 1024, 512, 256),
) -> Model:
    """Pairwise dot products.

    Args:
      num_dense: numeric features; 0 leaves out the bottom MLP and its vector.
      num_fields: categorical fields.
      dim: of every embedding.
      bottom, top: widths of hidden layers; the bottom MLP ends with dim, the top MLP with 1. The
        defaults with dim 128 are those of MLPerf.
    """
    inputs = _Inputs(num_dense, num_fields, dim)
    vectors = inputs.num_vectors
    if vectors < 2:
        raise ValueError(
            f"dlrm: found {num_dense} numeric features and {num_fields} fields; there must be two "
            "vectors or more to multiply"
        )
    pairs = np.tril_indices(vectors, k=-1)
    width = (dim if num_dense else 0) + len(pairs[0])

    def init(seed: int) -> Parameters:
        rng = np.random.default_rng(seed)
        parameters = {"bottom": inputs.bottom(rng, bottom), "top": _mlp(rng, (width, *top, 1))}
        return _as_jax(parameters)

    def apply(parameters: Parameters, dense: Dense, embeddings: Embeddings) -> Logits:
        v_0, v = inputs.vectors(parameters, dense, embeddings)
        products = jnp.einsum("sid,sjd->sij", v, v)[:, *pairs]
        return _top(parameters["top"], jnp.concatenate([v_0, products], axis=1))

    return Model(init, apply)


def dcnv2(
    num_dense: int,
    num_fields: int,
    dim: int,
    bottom: tuple[int, ...] = (512, 256),
    top: tuple[int, ...] = (1024, 1024, 512, 256),
    num_cross_layers: int = 3,
    rank: int = 512,
) -> Model:
    """Low-rank cross layers.

    Args:
      num_dense, num_fields, dim, bottom, top: as for `dlrm`.
      num_cross_layers, rank: U and V are [(fields + 1) · dim, rank]. The defaults are MLPerf's.
    """
    inputs = _Inputs(num_dense, num_fields, dim)
    width = inputs.num_vectors * dim

    def init(seed: int) -> Parameters:
        rng = np.random.default_rng(seed)
        cross = [
            {
                "u": _glorot_normal(rng, width, rank),
                "v": _glorot_normal(rng, width, rank),
                "bias": np.zeros(width),
            }
            for _ in range(num_cross_layers)
        ]
        parameters = {"bottom": inputs.bottom(rng, bottom), "top": _mlp(rng, (width, *top, 1))}
        return _as_jax(parameters | {"cross": cross})

    def apply(parameters: Parameters, dense: Dense, embeddings: Embeddings) -> Logits:
        _, v = inputs.vectors(parameters, dense, embeddings)
        x_0 = x = v.reshape(len(v), width)
        for layer in parameters["cross"]:
            x = x_0 * (x @ layer["v"] @ layer["u"].T + layer["bias"]) + x
        return _top(parameters["top"], x)

    return Model(init, apply)


def log_loss(logits: Logits, labels: Logits, mask: Mask) -> Float32[Array, ""]:
    """Mean logistic loss of the samples where mask is not 0; 0 if there are none.

    The others add nothing to loss and gradient, whatever their logits.
    """
    kept = mask != 0
    losses = optax.losses.sigmoid_binary_cross_entropy(jnp.where(kept, logits, 0.0), labels)
    return jnp.sum(jnp.where(kept, losses, 0.0)) / jnp.maximum(jnp.sum(kept), 1)


@dataclass(frozen=True)
class _Inputs:
    num_dense: int
    num_fields: int
    dim: int

    @property
    def num_vectors(self) -> int:
        return self.num_fields + (self.num_dense > 0)

    def bottom(self, rng: np.random.Generator, hidden: tuple[int, ...]) -> list[Parameters]:
        return _mlp(rng, (self.num_dense, *hidden, self.dim)) if self.num_dense else []

    def vectors(
        self, parameters: Parameters, dense: Dense, embeddings: Embeddings
    ) -> tuple[jax.Array, jax.Array]:
        """(the bottom MLP's [samples, dim or 0], all [samples, vectors, dim])."""
        expected = ((self.num_dense,), (self.num_fields, self.dim))
        if (dense.shape[1:], embeddings.shape[1:]) != expected:
            raise ValueError(
                f"dense and embeddings have shapes {dense.shape} and {embeddings.shape}; after the "
                f"samples they must be {expected[0]} and {expected[1]}"
            )
        if not self.num_dense:
            return dense, embeddings
        x = dense
        for layer in parameters["bottom"]:
            x = jax.nn.relu(x @ layer["weights"] + layer["bias"])
        return x, jnp.concatenate([x[:, None], embeddings], axis=1)


def _mlp(rng: np.random.Generator, widths: tuple[int, ...]) -> list[Parameters]:
    """Glorot-normal weights, zero biases."""
    return [
        {"weights": _glorot_normal(rng, m, n), "bias": np.zeros(n)}
        for m, n in itertools.pairwise(widths)
    ]


def _top(layers: list[Parameters], x: jax.Array) -> jax.Array:
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["weights"] + layer["bias"])
    return (x @ layers[-1]["weights"] + layers[-1]["bias"])[:, 0]


def _glorot_normal(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    return rng.normal(0.0, np.sqrt(2.0 / (m + n)), (m, n))


def _as_jax(parameters: Parameters) -> Parameters:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), parameters)
