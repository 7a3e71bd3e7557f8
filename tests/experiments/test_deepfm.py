"""The dense model against a plain NumPy restatement, and its step against JAX's own gradient."""

import jax
import numpy as np

from experiments.models import deepfm


def example():
    rng = np.random.default_rng(0)
    activations = {name: rng.normal(size=(5, 4)).astype(np.float32) for name in ("b", "a", "c")}
    return deepfm.init(3, 3, 4, (6, 2)), activations, np.float32([0, 1, 1, 0, 1])


def test_logits_are_bias_linear_pairs_and_mlp() -> None:
    parameters, activations, _ = example()
    parameters = jax.tree.map(lambda x: x + 0.1, parameters)
    e = np.stack([activations[name] for name in "abc"], axis=1).astype(np.float64)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), parameters)
    expected = p["bias"] + np.einsum("sfd,fd->s", e, p["linear"])
    for f in range(3):
        for g in range(f):
            expected = expected + (e[:, f] * e[:, g]).sum(axis=1)
    x = e.reshape(5, -1)
    for layer in p["layers"][:-1]:
        x = np.maximum(x @ layer["weights"] + layer["bias"], 0)
    expected = expected + (x @ p["layers"][-1]["weights"] + p["layers"][-1]["bias"])[:, 0]
    found = deepfm.logits(parameters, activations)
    # every logit is a sum of some 60 products of numbers below 20 in float32
    np.testing.assert_array_less(np.abs(found - expected), 60 * 20 * 2.0**-23 * 4)


def test_a_step_scores_before_it_learns_and_hands_back_the_gradient() -> None:
    parameters, activations, labels = example()
    accumulators = deepfm.init_accumulators(parameters)
    expected = jax.grad(lambda a: deepfm.loss(parameters, a, labels)[0])(activations)
    scores = deepfm.logits(parameters, activations)
    before = float(deepfm.loss(parameters, activations, labels)[0])
    new, _, z, gradients = deepfm.train_step(parameters, accumulators, activations, labels, 0.1)
    assert float(deepfm.loss(new, activations, labels)[0]) < before
    # the same program compiled alone and within the step: a few roundings of numbers below 8
    np.testing.assert_array_less(np.abs(z - scores), 8 * 16 * 2.0**-23)
    for name, gradient in gradients.items():
        np.testing.assert_array_less(np.abs(gradient - expected[name]), 8 * 16 * 2.0**-23)
