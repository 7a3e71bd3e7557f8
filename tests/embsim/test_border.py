"""Global arrays, per-replica values and replicas' own calls are the same batch."""

from collections.abc import Callable

import numpy as np
import pytest

import embsim
from embsim import FeatureConfig, PerReplica, RaggedTensor, TableConfig, TPUEmbedding

REPLICAS = 2
BAGS = [[3, 1], [], [3], [2, 2, 0]]
IDS = np.array([1, 0, 1, 4])
WEIGHTS = [[0.5, 2.0], [], [1.0], [1.0, 0.25, 3.0]]


def make() -> tuple[embsim.TPUStrategy, TPUEmbedding, TableConfig]:
    table = TableConfig(5, 2, name="t")
    strategy = embsim.TPUStrategy(REPLICAS)
    with strategy.scope():
        nest = (FeatureConfig(table), [FeatureConfig(table)])
        return strategy, TPUEmbedding(nest, embsim.Adagrad(0.5)), table


def ragged(rows, dtype) -> RaggedTensor:
    return RaggedTensor.from_lists(rows, dtype)


def inputs(lo: int, hi: int):
    features = (ragged(BAGS[lo:hi], np.int64), [IDS[lo:hi]])
    weights = (ragged(WEIGHTS[lo:hi], np.float32), [None])
    return features, weights


def gradient_of(activations):
    first, (second,) = activations
    return (first + 1, [2 * second - 1])


def globally(strategy: embsim.TPUStrategy, embedding: TPUEmbedding) -> None:
    embedding.enqueue(*inputs(0, 4))
    embedding.apply_gradients(gradient_of(embedding.dequeue()))


def as_per_replica_values(strategy: embsim.TPUStrategy, embedding: TPUEmbedding) -> None:
    (f0, w0), (f1, w1) = inputs(0, 2), inputs(2, 4)
    features = (PerReplica((f0[0], f1[0])), [PerReplica((f0[1][0], f1[1][0]))])
    weights = (PerReplica((w0[0], w1[0])), [None])
    embedding.enqueue(features, weights)
    first, (second,) = gradient_of(embedding.dequeue())
    halves = [PerReplica(tuple(np.split(g, REPLICAS))) for g in (first, second)]
    embedding.apply_gradients((halves[0], [halves[1]]))


def in_a_run(strategy: embsim.TPUStrategy, embedding: TPUEmbedding) -> None:
    def body() -> None:
        replica = embsim.get_replica_context().replica_id_in_sync_group
        embedding.enqueue(*inputs(2 * replica, 2 * replica + 2))
        embedding.apply_gradients(gradient_of(embedding.dequeue()))

    strategy.run(body)


def by_device(strategy: embsim.TPUStrategy, embedding: TPUEmbedding) -> None:
    for replica in (1, 0):
        features, weights = inputs(2 * replica, 2 * replica + 2)
        embedding.enqueue(features, weights, device=f"TPU:{replica}")
    embedding.apply_gradients(gradient_of(embedding.dequeue()))


def test_four_ways_to_give_a_batch_have_the_same_bits() -> None:
    results = []
    ways: list[Callable[[embsim.TPUStrategy, TPUEmbedding], None]]
    ways = [globally, as_per_replica_values, in_a_run, by_device]
    for way in ways:
        strategy, embedding, table = make()
        for _ in range(3):
            way(strategy, embedding)
        slots = embedding.slot_variables[table]["accumulators"]
        results.append((embedding.embedding_tables[table].tobytes(), slots.tobytes()))
    assert results == results[:1] * len(ways)


def test_plain_values_beside_per_replica_ones_are_refused() -> None:
    _, embedding, _ = make()
    (f0, _), (f1, _) = inputs(0, 2), inputs(2, 4)
    mixed = (PerReplica((f0[0], f1[0])), [IDS])
    with pytest.raises(ValueError, match="ndarray stands beside per-replica values"):
        embedding.enqueue(mixed)
    three = (PerReplica((f0[0],) * 3), [PerReplica((IDS[:2],) * 3)])
    with pytest.raises(ValueError, match="a PerReplica of 2 values"):
        embedding.enqueue(three)


def test_replicas_that_disagree_on_training_are_refused() -> None:
    strategy, embedding, _ = make()

    def body() -> None:
        replica = embsim.get_replica_context().replica_id_in_sync_group
        embedding.enqueue(*inputs(0, 2), training=replica == 0)

    with pytest.raises(ValueError, match=r"training is \[True, False\] by replica"):
        strategy.run(body)


def test_a_replicas_gradient_must_have_its_own_shape() -> None:
    strategy, embedding, _ = make()

    def body() -> None:
        embedding.enqueue(*inputs(0, 2))
        embedding.dequeue()
        whole = np.ones((4, 2), np.float32)
        embedding.apply_gradients((whole, [whole]))

    with pytest.raises(ValueError, match=r"feature '0' has shape \(4, 2\).*shape \(2, 2\)"):
        strategy.run(body)
