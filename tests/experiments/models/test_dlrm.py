"""The models against NumPy written apart, with small integers: every order of summation gives the
same bits, so results must be equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models import dlrm as models

SAMPLES, FIELDS, DIM = 40, 3, 4


def small_dcnv2(num_dense, num_fields, dim, bottom, top):
    return models.dcnv2(num_dense, num_fields, dim, bottom, top, num_cross_layers=2, rank=3)


def plain_dlrm(p, dense, embeddings):
    """Sample by sample, pair by pair."""
    inputs = []
    for row in vectors(p, dense, embeddings):
        products = [row[i] @ row[j] for i in range(len(row)) for j in range(i)]
        inputs.append([*(row[0] if dense.shape[1] else []), *products])
    return mlp(p["top"], np.array(inputs), last_is_linear=True)[:, 0]


def plain_dcnv2(p, dense, embeddings):
    inputs = []
    for row in vectors(p, dense, embeddings):
        x0 = x = np.concatenate(row)
        for layer in p["cross"]:
            x = x0 * ((layer["u"] @ layer["v"].T) @ x + layer["bias"]) + x
        inputs.append(x)
    return mlp(p["top"], np.array(inputs), last_is_linear=True)[:, 0]


@pytest.mark.parametrize("num_dense", [0, 2])
@pytest.mark.parametrize(
    ("build", "plain"), [(models.dlrm, plain_dlrm), (small_dcnv2, plain_dcnv2)]
)
def test_logits_are_those_of_plain_numpy(build, plain, num_dense: int) -> None:
    rng = np.random.default_rng(0)
    model = build(num_dense, FIELDS, DIM, (6,), (5, 2))
    shapes = np.zeros((SAMPLES, num_dense)), np.zeros((SAMPLES, FIELDS, DIM))
    arguments = integers((model.init(0), *shapes), rng)
    found = model.apply(*jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), arguments))
    assert plain(*jax.tree.map(np.abs, arguments)).max() < 2**24  # so no sum is ever rounded
    expected = plain(*arguments)
    assert len(set(expected.tolist())) > 5  # most units are alive
    assert found.dtype == jnp.float32 and np.asarray(found).tolist() == expected.tolist()


def integers(tree, rng):
    """-1, 0 and 1 in its shapes."""
    return jax.tree.map(lambda x: rng.integers(-1, 2, x.shape), tree)


def vectors(p, dense, embeddings):
    """One list of vectors per sample."""
    rows = [list(sample) for sample in embeddings]
    if dense.shape[1]:
        first = mlp(p["bottom"], dense, last_is_linear=False)
        rows = [[x, *row] for x, row in zip(first, rows, strict=True)]
    return rows


def mlp(layers, x, last_is_linear):
    for i, layer in enumerate(layers):
        x = x @ layer["weights"] + layer["bias"]
        if not (last_is_linear and i == len(layers) - 1):
            x = np.where(x > 0, x, 0)
    return x


@pytest.mark.parametrize("build", [models.dlrm, small_dcnv2])
@pytest.mark.parametrize("num_dense", [0, 2])
def test_trains_under_jit(build, num_dense: int) -> None:
    """Every parameter and embedding gets a gradient, all finite, none zero throughout."""
    model = build(num_dense, FIELDS, DIM, (16,), (16, 8))
    rng = np.random.default_rng(1)
    parameters = model.init(3)
    dense = jnp.asarray(rng.normal(size=(64, num_dense)), jnp.float32)
    embeddings = jnp.asarray(rng.normal(size=(64, FIELDS, DIM)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 2, 64), jnp.float32)

    @jax.jit
    def step(parameters, embeddings):
        def loss(parameters, embeddings):
            logits = model.apply(parameters, dense, embeddings)
            return models.log_loss(logits, labels, jnp.ones(64, bool))

        return jax.value_and_grad(loss, argnums=(0, 1))(parameters, embeddings)

    value, gradients = step(parameters, embeddings)
    assert np.isfinite(value) and value.shape == ()
    for (path, gradient), like in zip(
        jax.tree_util.tree_leaves_with_path(gradients),
        jax.tree.leaves((parameters, embeddings)),
        strict=True,
    ):
        assert gradient.shape == like.shape and gradient.dtype == jnp.float32
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, path


@pytest.mark.parametrize("build", [models.dlrm, small_dcnv2])
def test_init_is_a_function_of_the_seed(build) -> None:
    model = build(2, FIELDS, DIM, (6,), (5, 2))
    one, same, other = (jax.tree.leaves(model.init(seed)) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    assert not all((a == b).all() for a, b in zip(one, other, strict=True))


def test_widths_are_those_of_mlperf() -> None:
    """13 numeric features, 26 fields, dim 128: bottom 512-256-128, top 1024-1024-512-256-1."""
    shapes = jax.tree.map(jnp.shape, models.dlrm(13, 26, 128).init(0))
    bottom = [layer["weights"] for layer in shapes["bottom"]]
    top = [layer["weights"] for layer in shapes["top"]]
    assert bottom == [(13, 512), (512, 256), (256, 128)]
    assert top == [(128 + 27 * 26 // 2, 1024), (1024, 1024), (1024, 512), (512, 256), (256, 1)]
    shapes = jax.tree.map(jnp.shape, models.dcnv2(13, 26, 128).init(0))
    assert (
        shapes["cross"] == [{"u": (27 * 128, 512), "v": (27 * 128, 512), "bias": (27 * 128,)}] * 3
    )
    assert shapes["top"][0]["weights"] == (27 * 128, 1024)


def test_initial_weights_are_glorot_normal() -> None:
    layer = models.dlrm(13, 26, 128).init(0)["top"][1]
    deviation, n = np.sqrt(2 / 2048), 1024 * 1024
    assert abs(np.std(layer["weights"]) - deviation) < 5 * deviation / np.sqrt(2 * n)
    assert not layer["bias"].any()


def test_shapes_that_do_not_fit_are_refused() -> None:
    model = models.dlrm(2, FIELDS, DIM)
    with pytest.raises(ValueError, match=r"\(5, 1\) and \(5, 3, 4\); .* \(2,\) and \(3, 4\)"):
        model.apply(model.init(0), jnp.zeros((5, 1)), jnp.zeros((5, FIELDS, DIM)))
    with pytest.raises(ValueError, match=r"0 numeric features and 1 fields; .* two"):
        models.dlrm(0, 1, 4)


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("logit", [-1e4, -90.0, -20.0, -1.0, 0.0, 1.0, 20.0, 90.0, 1e4])
def test_log_loss_is_exact_far_from_zero(logit: float, label: float) -> None:
    z = -logit if label else logit
    expected = max(z, 0) + np.log1p(np.exp(-abs(z)))  # softplus in float64
    one = jnp.ones(1)
    value, gradient = jax.value_and_grad(models.log_loss)(logit * one, label * one, one > 0)
    # 8 ulp: on CPU XLA's exp is off by up to 2, its log by up to 4, and two operations round once
    # each; subnormals are flushed
    np.testing.assert_allclose(value, expected, rtol=8 * 2.0**-23, atol=2.0**-126)
    sigmoid = np.exp(min(logit, 0)) / (1 + np.exp(-abs(logit)))
    assert np.isfinite(gradient).all()
    # sigmoid - label in float32: the difference of two numbers up to 1
    np.testing.assert_allclose(gradient[0], sigmoid - label, rtol=0, atol=4 * 2.0**-23)


def test_log_loss_is_the_mean_of_what_the_mask_lets_in() -> None:
    logits = jnp.asarray([3.0, jnp.nan, -1.0, jnp.inf])
    labels, mask = jnp.asarray([1.0, 0, 1, 0]), jnp.asarray([True, False, True, False])
    value, gradient = jax.value_and_grad(models.log_loss)(logits, labels, mask)
    kept = models.log_loss(logits[::2], labels[::2], mask[::2])
    assert value == kept and value > 0
    assert (np.asarray(gradient) != 0).tolist() == [True, False, True, False]
    value, gradient = jax.value_and_grad(models.log_loss)(logits, labels, mask & False)
    assert value == 0 and not gradient.any()
