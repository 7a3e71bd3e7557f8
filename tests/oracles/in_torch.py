"""PyTorch on a CPU: nn.EmbeddingBag with its gradient, and torch.optim on sparse gradients."""

import importlib.metadata

import numpy as np


def versions():
    return {name: importlib.metadata.version(name) for name in ("torch", "numpy")}


def lookup(case):
    """One bag layer a feature; all share one parameter."""
    import torch

    weight = torch.nn.Parameter(torch.tensor(case.table))
    results, loss = {}, 0
    for i, feature in enumerate(case.features):
        bag = torch.nn.EmbeddingBag(*case.table.shape, mode=case.combiner, include_last_offset=True)
        bag.weight = weight
        ids, offsets = _flat(torch, feature.bags)
        weights = None
        if feature.weights is not None:
            weights = torch.tensor([x for one in feature.weights for x in one])
        found = bag(ids, offsets, per_sample_weights=weights)
        results[f"activations {i}"] = found.detach().numpy()
        loss = loss + (found * torch.tensor(feature.gradients)).sum()
    loss.backward()
    return results | {"row gradients": weight.grad.numpy()}


def _flat(torch, bags):
    ids = torch.tensor([i for bag in bags for i in bag], dtype=torch.int64)
    return ids, torch.tensor(np.cumsum([0, *map(len, bags)]), dtype=torch.int64)


def train(case, eps=None):
    """Each step looks its rows up in a bag layer and goes back through it: a sparse gradient."""
    import torch

    torch.sparse.check_sparse_tensor_invariants.enable()  # torch warns unless it is told
    bag = torch.nn.EmbeddingBag(*case.table.shape, mode="sum", sparse=True)
    bag.weight = torch.nn.Parameter(torch.tensor(case.table))
    optimizer, names = _optimizer(torch, case, [bag.weight], eps)
    states = {"w": [], **{name: [] for name in case.slots}}
    for rows, gradients in zip(case.rows, case.gradients, strict=True):
        optimizer.zero_grad()
        found = bag(torch.tensor(rows)[:, None])
        found.backward(torch.tensor(gradients))
        optimizer.step()
        states["w"].append(bag.weight.detach().numpy().copy())
        for slot, name in names.items():
            states[slot].append(optimizer.state[bag.weight][name].numpy().copy())
    return {name: np.stack(arrays) for name, arrays in states.items()}


def _optimizer(torch, case, parameters, eps):
    o, rate = case.options, case.options["learning_rate"]
    if case.optimizer == "SGD":
        return torch.optim.SGD(parameters, lr=rate), {}
    if case.optimizer == "Adagrad":
        first = o["initial_accumulator_value"]
        made = torch.optim.Adagrad(parameters, rate, initial_accumulator_value=first, eps=eps)
        return made, {"accumulators": "sum"}
    betas = (o.get("beta_1", 0.9), o.get("beta_2", 0.999))
    made = torch.optim.SparseAdam(parameters, rate, betas, eps=o.get("epsilon", 1e-7))
    return made, {"momenta": "exp_avg", "velocities": "exp_avg_sq"}


def refusals():
    """What nn.EmbeddingBag does not offer, by the name of its exception."""
    import torch

    found = {}
    ids, weights = torch.tensor([[1, 2]]), torch.tensor([[1.0, 3.0]])
    for name, attempt in {
        "weights with mode mean": lambda: torch.nn.EmbeddingBag(4, 2, mode="mean")(
            ids, per_sample_weights=weights
        ),
        "mode sqrtn": lambda: torch.nn.EmbeddingBag(4, 2, mode="sqrtn")(ids),
    }.items():
        try:
            attempt()
        except Exception as error:
            found[name] = type(error).__name__
    return found
