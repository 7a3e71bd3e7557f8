"""What embsim computes, slowly, in plain Python and NumPy: everything else must agree with this.

    activations_t    = G_t . Q(W_r(t))                                      Definition.dequeue
    gradients_t      = d loss / d activations_t                             the caller's
    row_gradients_t  = G_t^T . gradients_t                                  .apply_gradients
    W_t+1, S_t+1     = update(W_t, S_t, row_gradients_t; coefficients_t)    on the rows of G_t
    every other row, and its slot variables, stay as they were              (but: non-lazy Adam)

W_v and S_v are the tables and slot variables after v training steps; G_t, samples x rows, holds the
gains of step t; Q is simulated quantization; r(t) is the version that step t reads: `version_read`.
All numbers are float32, and every operation is rounded. Read this file first.

One row, gradient 1, SGD with rate 1, five steps. What the lookups see under three schedules:

>>> from embsim.optimizers import SGD
>>> table = TableConfig(vocabulary_size=1, dim=1, combiner="sum")
>>> def lookups(**schedule):
...     law = Definition([FeatureConfig(table)], {table: SGD(1.0)}, {table: [[0.0]]}, **schedule)
...     program = [("train", [[[0]]], lambda activations: [[[1.0]]])] * 5
...     return [activations.item() for (activations,) in trajectory(law, program)]
>>> lookups()                               # sequential: r(t) = t
[0.0, -1.0, -2.0, -3.0, -4.0]
>>> lookups(staleness=1)                    # pipelined: r(t) = max(0, t - 1)
[0.0, 0.0, -1.0, -2.0, -3.0]
>>> lookups(staleness=1, drain_every=2)     # pipelined, drained at the end of every loop of two
[0.0, 0.0, -2.0, -2.0, -4.0]
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from embsim.config import FeatureConfig, QuantizationConfig, TableConfig
from embsim.optimizers import NumpyOps, Optimizer, learning_rate_at

F = np.float32
Bag = Sequence[Any]  # of ids, or of (id, weight); None is a hole in a sequence
Batch = Sequence[Sequence[Bag]]  # for each feature, for each sample, a bag
Version = dict[TableConfig, list[np.ndarray]]  # [W_v, *S_v]: each [rows, dim], or [rows, 1]


@dataclass
class Definition:
    """Tables in training. A batch, activations and gradients are lists in the order of `features`.

    dequeue is the lookup of the next training step, or of inference, which is not numbered;
    apply_gradients the update of the oldest step without one. A gradient of None is zero.
    """

    features: Sequence[FeatureConfig]
    optimizers: Mapping[TableConfig, Optimizer]
    tables: Mapping[TableConfig, Any]  # W_0
    staleness: int = 0
    drain_every: int | None = None  # steps in a loop
    warmup_steps: int = 0  # steps at staleness 0 before the pipelining begins
    start: int = 0  # training steps dequeued at the last drain
    steps: int = 0  # training steps dequeued
    waiting: list[Batch] = field(default_factory=list)  # dequeued, gradients still to come
    versions: list[Version] = field(default_factory=list)  # all that ever were, the newest last

    def __post_init__(self) -> None:
        if not self.versions:
            self.versions = [{t: initial(w, self.optimizers[t]) for t, w in self.tables.items()}]

    def version_read(self, step: int) -> int:
        """r(t): exact, not a bound; it never decreases."""
        if step < self.warmup_steps:
            return step
        loop = step // self.drain_every * self.drain_every if self.drain_every else 0
        return max(self.start, self.warmup_steps - 1, loop, step - self.staleness)

    @np.errstate(all="ignore")
    def dequeue(self, batch: Batch, training: bool = True) -> list[np.ndarray]:
        """activations = G . Q(W): W_r(t) for training step t, the newest W for inference."""
        version = self.versions[self.version_read(self.steps) if training else -1]
        if training:
            self.steps += 1
            self.waiting.append(batch)
        activations = []
        for feature, bags in zip(self.features, batch, strict=True):
            table, length = feature.table, feature.max_sequence_length
            result = np.zeros((len(bags), *([length] if length else []), table.dim), F)
            for place, row, gain in plan(feature, bags):
                values = quantized(version[table][0][row], table.quantization_config)
                result[place] = result[place] + gain * values
            activations.append(result)
        return activations

    @np.errstate(all="ignore")
    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        """row_gradients = G^T . gradients, and the next version: one for each training step."""
        step, batch = len(self.versions) - 1, self.waiting.pop(0)
        parts: dict[TableConfig, dict[int, list[np.ndarray]]] = {t: {} for t in self.tables}
        for feature, bags, g in zip(self.features, batch, gradients, strict=True):
            for place, row, gain in plan(feature, bags):
                slope = np.zeros(feature.table.dim, F) if g is None else np.asarray(g, F)[place]
                parts[feature.table].setdefault(row, []).append(gain * slope)
        asked = {table: optimizer.learning_rate for table, optimizer in self.optimizers.items()}
        callables = {id(rate): rate for rate in asked.values()}
        rates = {key: learning_rate_at(rate, step) for key, rate in callables.items()}  # once each
        new = {table: [a.copy() for a in arrays] for table, arrays in self.versions[-1].items()}
        for table, arrays in new.items():
            optimizer = self.optimizers[table]
            c = coefficients(optimizer, rates[id(asked[table])])
            every_row = getattr(optimizer, "updates_every_row", False)
            for row in range(table.vocabulary_size) if every_row else parts[table]:
                w, *slots = (array[row].copy() for array in arrays)
                w, slots = updated(optimizer, w, slots, parts[table].get(row, []), c)
                for array, value in zip(arrays, [w, *slots], strict=True):
                    array[row] = value
        self.versions.append(new)

    def drain(self) -> None:
        """Lookups after this see every update before it. Nothing else moves `start`."""
        assert not self.waiting, "drain: a dequeued training step still waits for its gradients"
        self.start = self.steps


def trajectory(law: Definition, program: Iterable[Any]) -> list[list[np.ndarray]]:
    """The activations of a whole program; the tables and slots it leaves are law.versions[-1].

    Events: ("train", batch, f), f: activations -> gradients; ("evaluate", batch); ("drain",).
    """
    seen = []
    for event, *arguments in program:
        if event == "drain":
            law.drain()
        else:
            seen.append(law.dequeue(arguments[0], training=event == "train"))
        if event == "train":
            law.apply_gradients(arguments[1](seen[-1]))
    return seen


def plan(feature: FeatureConfig, bags: Sequence[Bag]) -> Iterator[tuple[tuple[int, ...], int, Any]]:
    """G: (place in the activations, row, gain) of every lookup; a hole in a sequence is none."""
    length = feature.max_sequence_length
    for sample, bag in enumerate(bags):
        if length:
            yield from (((sample, p), r, F(1)) for p, r in enumerate(bag[:length]) if r is not None)
        else:
            pairs = [item if isinstance(item, tuple) else (item, 1) for item in bag]
            weights = gains([F(weight) for _, weight in pairs], feature.table.combiner)
            yield from (((sample,), r, gain) for (r, _), gain in zip(pairs, weights, strict=True))


def gains(weights: Sequence[Any], combiner: str) -> list[Any]:
    """sum: w;  mean: w / sum(w);  sqrtn: w / sqrt(sum(w * w)).   0 where the denominator is 0."""
    if combiner == "sum":
        return list(weights)
    d = sum((w if combiner == "mean" else w * w for w in weights), start=F(0))
    d = np.sqrt(d) if combiner == "sqrtn" else d
    return [F(0) if d == 0 else w / d for w in weights]


def quantized(x: np.ndarray, config: QuantizationConfig | None) -> np.ndarray:
    """Q: to the nearest of num_buckets levels from lower to upper, ties upwards."""
    if config is None:
        return x
    q = F((config.upper - config.lower) / (config.num_buckets - 1))
    x = within(x, config.lower, config.upper)
    return np.floor((x - F(config.lower)) / q + F(0.5)) * q + F(config.lower)


def updated(optimizer: Any, w: Any, slots: Any, parts: list[Any], c: Any) -> tuple[Any, Any]:
    """update, of one row: sum its contributions, clip g, decay w, the optimizer's rule, clip w."""
    if getattr(optimizer, "use_gradient_accumulation", True):
        parts = [sum(parts, start=np.zeros_like(w))]  # else each contribution is an update
    clip = getattr(optimizer, "clipvalue", None)
    limits = clip if isinstance(clip, tuple) else (None if clip is None else -clip, clip)
    for g in parts:
        w, slots = optimizer.rule(NumpyOps)(c.keep * w, within(g, *limits), slots, c)
        w = within(w, *(getattr(optimizer, f"clip_weight_{end}", None) for end in ("min", "max")))
    return w, slots


def within(x: Any, low: float | None, high: float | None) -> Any:
    """min(max(x, low), high), where there is such a limit; NaN stays NaN."""
    x = x if low is None else np.maximum(x, F(low))
    return x if high is None else np.minimum(x, F(high))


def coefficients(optimizer: Any, rate: float) -> SimpleNamespace:
    """The numbers of one update, computed in float64, each rounded once."""
    decay = getattr(optimizer, "weight_decay_factor", None) or 0.0
    if getattr(optimizer, "multiply_weight_decay_factor_by_learning_rate", None):
        decay = decay * rate
    numbers = optimizer.coefficients(rate)
    return SimpleNamespace(**{name: F(x) for name, x in numbers.items()}, keep=F(1 - decay))


def initial(table: Any, optimizer: Optimizer) -> list[np.ndarray]:
    """W_0 and S_0 of a table; a rowwise slot is one number wide."""
    rows, dim = np.shape(table)
    slots = [np.full((rows, 1 if s.rowwise else dim), s.initial, F) for s in optimizer.slots]
    return [np.array(table, F), *slots]
