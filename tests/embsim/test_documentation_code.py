"""The code of TensorFlow's TPUEmbedding page (r2.4), with embsim's names and JAX's autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import embsim

BATCH, REPLICAS, STEPS = 8, 2, 5
jax.config.update("jax_platforms", "cpu")


def make_feature_config() -> dict[str, embsim.FeatureConfig]:
    table_config_one = embsim.TableConfig(vocabulary_size=32, dim=4)
    table_config_two = embsim.TableConfig(vocabulary_size=16, dim=2)
    return {
        "feature_one": embsim.FeatureConfig(table=table_config_one),
        "feature_two": embsim.FeatureConfig(table=table_config_one),
        "feature_three": embsim.FeatureConfig(table=table_config_two),
    }


def examples(rng: np.random.Generator, size: int) -> tuple[dict[str, object], np.ndarray]:
    lengths = rng.integers(0, 4, size)
    ragged = embsim.RaggedTensor.from_row_lengths(rng.integers(0, 32, lengths.sum()), lengths)
    columns = np.array([[sample, 0] for sample in range(size)])
    sparse = embsim.SparseTensor(columns, rng.integers(0, 16, size), (size, 3))
    features = {
        "feature_one": ragged,
        "feature_two": rng.integers(0, 32, (size, 1)),
        "feature_three": sparse,
    }
    return features, rng.integers(0, 2, size).astype(np.float32)


def dataset_fn(context: embsim.InputContext):
    rng = np.random.default_rng(7)
    size = context.get_per_replica_batch_size(BATCH)
    while True:
        features, labels = examples(rng, size)
        yield features, labels


@jax.jit
def model(params: jax.Array, activations: dict[str, jax.Array]) -> jax.Array:
    x = jnp.concatenate([activations[name] for name in sorted(activations)], axis=1)
    return x @ params


@jax.jit
def loss_fn(params: jax.Array, activations: dict[str, jax.Array], labels: jax.Array) -> jax.Array:
    logits = model(params, activations)
    return jnp.mean(jnp.logaddexp(0.0, logits) - labels * logits) / REPLICAS


@pytest.mark.parametrize("pipelined", [False, True])
def test_training_evaluation_checkpoint_and_cpu_restore(pipelined: bool, tmp_path) -> None:
    feature_config = make_feature_config()
    strategy = embsim.TPUStrategy(num_replicas=REPLICAS)
    with strategy.scope():
        embedding = embsim.TPUEmbedding(
            feature_config=feature_config,
            optimizer=embsim.SGD(0.1),
            pipeline_execution_with_tensor_core=pipelined,
        )
    distributed_dataset = strategy.distribute_datasets_from_function(
        dataset_fn=dataset_fn,
        options=embsim.InputOptions(experimental_prefetch_to_device=False),
    )
    dataset_iterator = iter(distributed_dataset)
    params = {"w": np.linspace(-1, 1, 10, dtype=np.float32)}

    def training_step(dataset_iterator, num_steps: int) -> list[float]:
        def tpu_step(labels):
            activations = embedding.dequeue()
            loss, (dense, embedding_gradients) = jax.value_and_grad(loss_fn, (0, 1))(
                params["w"], activations, labels
            )
            embedding.apply_gradients(embedding_gradients)
            return loss, embsim.all_reduce(dense, "sum")

        losses = []
        for _ in range(num_steps):
            embedding_features, tpu_features = next(dataset_iterator)
            embedding.enqueue(embedding_features, training=True)
            loss, dense = strategy.run(tpu_step, args=(tpu_features,))
            params["w"] = params["w"] - 0.1 * np.asarray(dense.values[0])
            losses.append(float(strategy.reduce("sum", loss)))
        return losses

    def evaluation_step(dataset_iterator, num_steps: int) -> list[np.ndarray]:
        def tpu_step():
            activations = embedding.dequeue()
            return model(params["w"], activations)

        outputs = []
        for _ in range(num_steps):
            embedding_features, _ = next(dataset_iterator)
            embedding.enqueue(embedding_features, training=False)
            outputs.append(np.concatenate(strategy.run(tpu_step).values))
        return outputs

    losses = training_step(dataset_iterator, STEPS)
    assert losses[0] > losses[-1] > 0
    assert [output.shape for output in evaluation_step(dataset_iterator, 2)] == [(BATCH,)] * 2

    checkpoint = embsim.Checkpoint(model=params, embedding=embedding)
    checkpoint.save(tmp_path)
    trained = {config: table.copy() for config, table in embedding.embedding_tables.items()}

    # On CPU: no strategy; the pending update of a pipelined run is in the tables that are read.
    reader = embsim.TPUEmbedding(
        feature_config=feature_config, batch_size=1024, optimizer=embsim.SGD(0.1)
    )
    checkpoint = embsim.Checkpoint(model={"w": np.zeros(10, np.float32)}, embedding=reader)
    restored = checkpoint.restore(tmp_path)
    np.testing.assert_array_equal(restored["model"]["w"], params["w"])
    tables = reader.embedding_tables
    assert list(tables) == list(trained)
    for config, table in tables.items():
        np.testing.assert_array_equal(table, trained[config])

    features, _ = examples(np.random.default_rng(11), BATCH)
    served = embsim.serving_embedding_lookup(features, None, tables, feature_config)
    embedding.enqueue(features, training=False)
    looked_up = embedding.dequeue()
    for name, activations in looked_up.items():
        np.testing.assert_array_equal(served[name], activations)


def test_the_pipelined_run_differs_only_by_staleness() -> None:
    """Same data, same seed: step 1 already reads another table than the sequential run does."""
    seen = {}
    for pipelined in (False, True):
        strategy = embsim.TPUStrategy(1)
        with strategy.scope():
            embedding = embsim.TPUEmbedding(make_feature_config(), embsim.SGD(0.1), pipelined)
        seen[pipelined] = []
        rng = np.random.default_rng(3)
        features, _ = examples(rng, BATCH)
        for _ in range(3):
            embedding.enqueue(features)
            activations = embedding.dequeue()
            seen[pipelined].append(activations["feature_two"])
            ones = jax.tree.map(np.ones_like, activations)
            embedding.apply_gradients(ones)
    np.testing.assert_array_equal(seen[True][0], seen[False][0])
    np.testing.assert_array_equal(seen[True][1], seen[False][0])
    np.testing.assert_array_equal(seen[True][2], seen[False][1])
    assert (seen[False][1] != seen[False][0]).all()
