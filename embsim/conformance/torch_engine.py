"""The second example of an adapter: an engine that shares nothing with embsim, in plain PyTorch.

    run_checks(TorchEngine).passed

Copy it to hold an engine of your own to the definition, and put your engine where PyTorch is:

    lookup             F.embedding_bag, mode "sum", with the gains as per_sample_weights
    row gradients      autograd, sparse, coalesced
    update             torch.optim, one optimizer for each table
    pipeline           an update waits, and the lookups of the next `staleness` steps come first

What it does not do, it says in `capabilities`; the kit then does not ask for it.
"""

import copy
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..optimizers import learning_rate_at
from ..schedule import sequential, stale, tpu_embedding_pipelined
from .adapter import Capabilities, arrays
from .program import Batch, Setup

_RULE = "torch.optim has another formula"
_DENSE = "torch.optim does it to all rows, and not for sparse gradients"


class TorchEngine:
    """EmbeddingBags that are trained with lookups 0, 1 or 2 steps old."""

    capabilities = Capabilities(
        bitwise=False,  # embedding_bag may fuse multiply and add
        schedules=(sequential(), tpu_embedding_pipelined(), stale(2)),
        refuses={
            "RowwiseAdagrad": "torch.optim has none",
            "AdagradMomentum": "torch.optim has none",
            "FTRL": "torch.optim has none",
            "Adam": _RULE,
            "a user's optimizer": "rules are those of torch.optim",
            "quantization_config": "embedding_bag reads rows as they are",
            "clipvalue": "clip_grad_value_ is for dense gradients",
            "clip_weight": "torch.optim has none",
            "weight_decay_factor": _DENSE,
            "use_gradient_accumulation=False": "sparse gradients are coalesced",
        },
    )

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.staleness = setup.schedule.staleness
        self.model = _Model(setup)
        self.queue: deque[tuple[Batch, bool]] = deque()
        self.waiting: deque[list[Any]] = deque()  # activations whose gradients are still to come

    def enqueue(self, batch: Batch, training: bool = True) -> None:
        for feature, (ids, _, _) in zip(self.setup.features, arrays(batch), strict=True):
            rows = feature.table.vocabulary_size
            if np.any((ids < 0) | (ids >= rows)):
                raise ValueError(
                    f"enqueue: ids {ids.min()}..{ids.max()} for a table of {rows} rows"
                )
        if len(self.queue) >= self.setup.queue_capacity:
            raise RuntimeError(f"enqueue: {len(self.queue)} batches wait, which is all that may")
        self.queue.append((batch, training))

    def dequeue(self) -> Sequence[Any]:
        if not self.queue:
            raise RuntimeError("dequeue: nothing is enqueued")
        batch, training = self.queue[0]
        if training:
            self._catch_up()
            outputs = self.model.lookup(batch)
            self.waiting.append(outputs)
        else:
            outputs = self._drained("dequeue of an inference step").lookup(batch)
        self.queue.popleft()
        return [output.detach().numpy() for output in outputs]

    def _catch_up(self) -> None:
        """Apply the updates that the next lookup must see, and no others."""
        step = self.model.submitted + len(self.waiting)
        if step - self.staleness > self.model.submitted:
            raise RuntimeError(f"dequeue of step {step}: gradients of earlier steps are missing")
        while self.model.applied < step - self.staleness:
            self.model.apply_oldest()

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        wanted = [self.setup.activation_shape(i) for i in range(len(self.setup.features))]
        found = [w if g is None else np.shape(g) for g, w in zip(gradients, wanted, strict=True)]
        if found != wanted:
            raise ValueError(f"apply_gradients: shapes are {found}; they must be {wanted}")
        if not self.waiting:
            raise RuntimeError("apply_gradients: no step waits for gradients")
        self.model.submit(self.waiting[0], gradients)
        self.waiting.popleft()

    def drain(self) -> None:
        self.model = self._drained("drain")

    def tables(self) -> Mapping[str, Any]:
        weights = self._drained("tables").weights
        return {name: weight.detach().numpy().copy() for name, weight in weights.items()}

    def slots(self) -> Mapping[str, Mapping[str, Any]]:
        model = self._drained("slots")
        sums = {
            name: model.optimizers[name].state[weight].get("sum")  # of squares: Adagrad's
            for name, weight in model.weights.items()
        }
        return {
            name: {} if each is None else {"accumulators": each.numpy().copy()}
            for name, each in sums.items()
        }

    def save(self) -> Any:
        self._drained("save")
        return copy.deepcopy(self.model)

    def restore(self, saved: Any) -> None:
        if self.queue or self.waiting:
            raise RuntimeError("restore: batches are enqueued, or steps wait for gradients")
        self.model = copy.deepcopy(saved)

    def close(self) -> None:
        self.queue.clear()
        self.waiting.clear()

    def _drained(self, call: str) -> "_Model":
        """The model with all updates applied; the one in training stays as it is."""
        if self.waiting:
            raise RuntimeError(f"{call}: {len(self.waiting)} steps wait for gradients")
        model = copy.deepcopy(self.model) if self.model.pending else self.model
        while model.pending:
            model.apply_oldest()
        return model


class _Model:
    """Tables, their optimizers, and the updates that wait. A deep copy of it is a checkpoint."""

    def __init__(self, setup: Setup) -> None:
        torch = _torch()
        self.features = setup.features
        self.weights = {
            name: torch.nn.Parameter(torch.tensor(setup.initial(name))) for name in setup.tables
        }
        self.rates = {name: config.optimizer.learning_rate for name, config in setup.tables.items()}
        self.optimizers = {
            name: _optimizer(config.optimizer, self.weights[name])
            for name, config in setup.tables.items()
        }
        self.pending: deque[dict[str, tuple[Any, float]]] = deque()  # {table: (gradient, rate)}
        self.applied = 0

    @property
    def submitted(self) -> int:
        return self.applied + len(self.pending)

    def lookup(self, batch: Batch) -> list[Any]:
        """Activations of each feature, with the graph that leads back to the tables."""
        torch = _torch()
        outputs: list[Any] = []
        for feature, (ids, splits, weights) in zip(self.features, arrays(batch), strict=True):
            table, row = self.weights[str(feature.table.name)], torch.tensor(ids)
            samples, length = len(splits) - 1, feature.max_sequence_length
            lengths = np.diff(splits)
            sample = torch.tensor(np.repeat(np.arange(samples), lengths))
            if length:
                position = torch.arange(len(ids)) - torch.tensor(splits)[sample]
                kept = position < length
                places = (sample[kept], position[kept])
                looked_up = torch.nn.functional.embedding(row[kept], table, sparse=True)
                zeros = torch.zeros(samples, length, feature.table.dim)
                outputs.append(zeros.index_put(places, looked_up))
                continue
            w = torch.ones(len(ids)) if weights is None else torch.tensor(weights)
            outputs.append(
                torch.nn.functional.embedding_bag(
                    row,
                    table,
                    torch.tensor(splits, dtype=row.dtype),
                    mode="sum",
                    sparse=True,
                    per_sample_weights=_gains(w, sample, samples, feature.table.combiner),
                    include_last_offset=True,
                )
            )
        return outputs

    def submit(self, outputs: Sequence[Any], gradients: Sequence[Any]) -> None:
        """The update of these activations, with its own learning rates, to be applied later."""
        torch = _torch()
        slopes = [
            torch.zeros_like(output) if g is None else torch.tensor(np.asarray(g, np.float32))
            for output, g in zip(outputs, gradients, strict=True)
        ]
        by_table = torch.autograd.grad(outputs, list(self.weights.values()), slopes)
        once = {id(rate): rate for rate in self.rates.values()}  # a callable is called once a step
        now = {key: learning_rate_at(rate, self.submitted) for key, rate in once.items()}
        self.pending.append(
            {
                name: (g.coalesce(), now[id(self.rates[name])])
                for name, g in zip(self.weights, by_table, strict=True)
            }
        )

    def apply_oldest(self) -> None:
        unchecked = _torch().sparse.check_sparse_tensor_invariants(enable=False)
        for name, (gradient, rate) in self.pending.popleft().items():
            self.weights[name].grad = gradient
            self.optimizers[name].param_groups[0]["lr"] = rate
            with unchecked:  # without a word, PyTorch warns that Adagrad's tensors are not checked
                self.optimizers[name].step()
            self.weights[name].grad = None
        self.applied += 1


def _gains(w: Any, sample: Any, samples: int, combiner: str) -> Any:
    """Weights after the combiner: w, w / sum(w) or w / sqrt(sum(w * w)); 0 where that is 0."""
    torch = _torch()
    if combiner == "sum":
        return w
    d = torch.zeros(samples).index_add(0, sample, w if combiner == "mean" else w * w)[sample]
    d = d.sqrt() if combiner == "sqrtn" else d
    return torch.where(d == 0, torch.zeros_like(w), w / d)


def _optimizer(optimizer: Any, weight: Any) -> Any:
    torch = _torch()
    if type(optimizer).__name__ == "SGD":
        return torch.optim.SGD([weight], lr=1.0)
    initial = optimizer.initial_accumulator_value
    return torch.optim.Adagrad([weight], lr=1.0, initial_accumulator_value=initial, eps=0.0)


def _torch() -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("TorchEngine needs PyTorch: pip install torch") from error
    return torch
