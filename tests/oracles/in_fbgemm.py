"""FBGEMM on a CPU: table-batched embedding bags with an optimizer fused into the backward pass."""

import importlib.metadata

import numpy as np


def versions():
    return {name: importlib.metadata.version(name) for name in ("fbgemm_gpu_cpu", "torch", "numpy")}


def lookup(case):
    """Features are padded with empty bags to one batch size. SGD of rate -1 on a table of zeros
    leaves the row gradients in the table.
    """
    import torch

    features = case.features
    samples = max(len(feature.bags) for feature in features)
    ids, lengths, weights = [], [], []
    for feature in features:
        padding = [[]] * (samples - len(feature.bags))
        bags = [*feature.bags, *padding]
        ids += [i for bag in bags for i in bag]
        lengths += [len(bag) for bag in bags]
        given = feature.weights or [[1.0] * len(bag) for bag in feature.bags]
        weights += [x for bag in given for x in bag]
    arguments = [torch.tensor(ids), torch.tensor(np.cumsum([0, *lengths]))]
    if any(feature.weights is not None for feature in features):
        arguments.append(torch.tensor(weights))
    dim = case.table.shape[1]
    gradients = np.zeros((samples, len(features), dim), np.float32)
    for i, feature in enumerate(features):
        gradients[: len(feature.bags), i] = feature.gradients
    found = _bags(case.table, case.combiner, len(features), "EXACT_SGD", 1.0)(*arguments)
    zeros = np.zeros_like(case.table)
    layer = _bags(zeros, case.combiner, len(features), "EXACT_SGD", -1.0)
    layer(*arguments).backward(torch.tensor(gradients.reshape(samples, -1)))
    results = {"row gradients": _weights(layer)}
    for i, feature in enumerate(features):
        columns = found.detach().numpy()[:, i * dim : (i + 1) * dim]
        results[f"activations {i}"] = columns[: len(feature.bags)].copy()
    return results


def train(case, eps=0.0):
    import torch

    kind = {"SGD": "EXACT_SGD", "Adagrad": "EXACT_ADAGRAD"}
    kind = kind.get(case.optimizer, "EXACT_ROWWISE_ADAGRAD")
    layer = _bags(case.table, "sum", 1, kind, case.options["learning_rate"], eps)
    for array in case.slots.values():
        ((slot,),) = layer.split_optimizer_states()
        slot.copy_(torch.tensor(array).reshape(slot.shape))
    states = {"w": [], **{name: [] for name in case.slots}}
    for rows, gradients in zip(case.rows, case.gradients, strict=True):
        offsets = torch.arange(len(rows) + 1)
        layer(torch.tensor(rows), offsets).backward(torch.tensor(gradients))
        states["w"].append(_weights(layer))
        for name, array in case.slots.items():
            ((slot,),) = layer.split_optimizer_states()
            states[name].append(slot.numpy().copy().reshape(array.shape))
    return {name: np.stack(arrays) for name, arrays in states.items()}


def _bags(table, combiner, features, kind, rate, eps=0.0):
    import torch
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    layer = SplitTableBatchedEmbeddingBagsCodegen(
        [(*table.shape, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        feature_table_map=[0] * features,
        optimizer=EmbOptimType[kind],
        pooling_mode=PoolingMode[combiner.upper()],
        learning_rate=rate,
        eps=eps,
        stochastic_rounding=False,
        device=torch.device("cpu"),
    )
    (weights,) = layer.split_embedding_weights()
    weights.copy_(torch.tensor(table))
    return layer


def _weights(layer):
    (weights,) = layer.split_embedding_weights()
    return weights.detach().numpy().copy()


def refusals():
    """Weights' poolings and optimizers that the CPU has not, by the name of the exception."""
    import torch
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode

    found = {}
    if "SQRTN" not in PoolingMode.__members__:
        found["pooling sqrtn"] = "absent"
    for kind in ("ADAM", "LAMB", "PARTIAL_ROWWISE_ADAM"):
        try:
            layer = _bags(np.zeros((2, 4), np.float32), "sum", 1, kind, 0.1)
            layer(torch.tensor([0]), torch.tensor([0, 1])).sum().backward()
        except Exception as error:
            found[kind] = type(error).__name__
    return found
