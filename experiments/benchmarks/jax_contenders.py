"""One step of lookup and update in JAX, in three spellings, of the same tables and slots.

Each takes (state, batch, targets, numbers) and returns (activations, state). Between the two stands
the smallest dense model there is: the loss is half the squared distance of the activations to
targets, so that gradients = activations - targets.

    embsim_tpu    ids sorted and made unique on the host beforehand
    sorted        ids sorted on the device: segment sum of equal ids' gradients; the rule on those
                  rows, gathered and scattered
    dense         jnp.take, jax.value_and_grad and optax: every row of every table has a gradient
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import embsim
from embsim_tpu import Embedding
from embsim_tpu.state import State
from experiments.benchmarks.workloads import Workload

Optimizer = embsim.SGD | embsim.Adagrad | embsim.Adam
Step = Callable[[State, Any, Any, Any], tuple[list[jax.Array], State]]


@dataclass(frozen=True)
class Contender:
    """
    Args:
      put: a batch, to the device.
      numbers: what `step` needs of a training step's number.
      law: the optimizer of a reference engine that computes the same.
      x64: `step` is lowered with 64-bit numbers.
    """

    name: str
    step: Step
    put: Callable[[Sequence[embsim.RaggedTensor]], Any]
    numbers: Callable[[int], Any]
    law: Optimizer
    x64: bool = False

    def compiled(self, *arguments: Any) -> Any:
        """The step for arguments of these shapes; it takes over the state that it is given."""
        with jax.enable_x64(self.x64):
            return jax.jit(self.step, donate_argnums=0).lower(*arguments).compile()


def contenders(workload: Workload, optimizer: Optimizer, embedding: Embedding) -> list[Contender]:
    """`embedding` is that of the workload's features and this optimizer."""
    return [
        Contender(
            "embsim_tpu", _planned(embedding), embedding.plan, embedding.coefficients, optimizer
        ),
        Contender(
            "sorted",
            _sorted(workload, optimizer),
            ids_on_device(workload),
            embedding.coefficients,
            optimizer,
            x64=True,
        ),
        Contender(
            "dense",
            _dense(workload, optimizer),
            ids_on_device(workload),
            np.int32,
            every_row(optimizer),
        ),
    ]


def ids_on_device(workload: Workload) -> Callable[[Sequence[embsim.RaggedTensor]], Any]:
    """By table [batch, pooling]."""
    shape = workload.batch, workload.pooling
    return lambda bags: {
        f"table_{t}": jax.device_put(each.values.reshape(shape)) for t, each in enumerate(bags)
    }


def _planned(embedding: Embedding) -> Step:
    def step(state: State, plan: Any, targets: Any, numbers: Any) -> Any:
        activations = embedding.lookup(state, plan)
        return activations, embedding.update(state, plan, _minus(activations, targets), numbers)

    return step


def _sorted(workload: Workload, optimizer: Optimizer) -> Step:
    def step(state: State, ids: Any, targets: Any, numbers: Any) -> Any:
        bag = jnp.repeat(jnp.arange(workload.batch, dtype=jnp.int32), workload.pooling)
        activations: list[jax.Array] = []
        weights: dict[str, jax.Array] = {}
        slots: dict[str, dict[str, jax.Array]] = {}
        gain = jnp.float32(1 / workload.pooling if workload.combiner == "mean" else 1)
        for (name, table), target in zip(state.weights.items(), targets, strict=True):
            rows = table.at[ids[name].reshape(-1)].get(mode="clip")
            found = gain * jax.ops.segment_sum(rows, bag, workload.batch, indices_are_sorted=True)
            activations.append(found)
            weights[name], slots[name] = _sorted_update(
                table,
                state.slots[name],
                (ids[name].reshape(-1), bag),
                gain * (found - target),
                optimizer,
                numbers[name],
            )
        return activations, State(weights, slots)

    return step


def _sorted_update(
    table: jax.Array, slots: Any, ids: Any, gradients: jax.Array, optimizer: Any, numbers: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`ids` are rows and bags. Packed in one number they sort several times faster on CPU."""
    row, bag = ids
    key = lax.sort(row.astype(jnp.int64) << 32 | bag.astype(jnp.int64))
    row, bag = (key >> 32).astype(jnp.int32), key.astype(jnp.int32)
    first = jnp.concatenate([jnp.ones(1, bool), row[1:] != row[:-1]])
    place = jnp.cumsum(first, dtype=jnp.int32) - 1
    sums = jax.ops.segment_sum(
        gradients.at[bag].get(mode="clip"), place, len(row), indices_are_sorted=True
    )
    rows = len(table) + jnp.arange(len(row), dtype=jnp.int32)  # beyond the table: dropped
    rows = rows.at[place].set(row, indices_are_sorted=True)

    def read(array: jax.Array) -> jax.Array:
        return array.at[rows].get(mode="clip", indices_are_sorted=True, unique_indices=True)

    def write(array: jax.Array, values: jax.Array) -> jax.Array:
        return array.at[rows].set(values, mode="drop", indices_are_sorted=True, unique_indices=True)

    names = [slot.name for slot in optimizer.slots]
    rule = optimizer.rule(jnp)  # which has all that a rule may use
    new, made = rule(
        read(table), sums, tuple(read(slots[name]) for name in names), SimpleNamespace(**numbers)
    )
    pairs = zip(names, made, strict=True)
    return write(table, new), {name: write(slots[name], values) for name, values in pairs}


OPTAX_NAMES = {"accumulators": "sum_of_squares", "momenta": "mu", "velocities": "nu"}


def _dense(workload: Workload, optimizer: Optimizer) -> Step:
    rule = _optax(optimizer)
    combine = jnp.mean if workload.combiner == "mean" else jnp.sum

    def loss(weights: Any, ids: Any, targets: Any) -> Any:
        found = [
            combine(jnp.take(table, ids[name], axis=0, mode="clip"), axis=1)
            for name, table in weights.items()
        ]
        return sum(0.5 * jnp.sum(d * d) for d in _minus(found, targets)), found

    def step(state: State, ids: Any, targets: Any, number: Any) -> Any:
        weights = dict(state.weights)
        names = {s.name: OPTAX_NAMES[s.name] for s in optimizer.slots}
        given = {
            theirs: {name: slots[mine] for name, slots in state.slots.items()}
            for mine, theirs in names.items()
        }
        if "nu" in given:
            given["count"] = number
        inner = optax.tree_utils.tree_set(jax.eval_shape(rule.init, weights), **given)
        (_, activations), gradients = jax.value_and_grad(loss, has_aux=True)(weights, ids, targets)
        changes, inner = rule.update(gradients, inner, weights)
        made = {mine: optax.tree_utils.tree_get(inner, theirs) for mine, theirs in names.items()}
        slots = {name: {mine: made[mine][name] for mine in names} for name in weights}
        new: Any = optax.apply_updates(weights, changes)
        return activations, State(new, slots)

    return step


def _optax(optimizer: Optimizer) -> optax.GradientTransformation:
    if isinstance(optimizer, embsim.Adagrad):
        start = optimizer.initial_accumulator_value
        return optax.adagrad(optimizer.learning_rate, start, eps=0.0)
    if isinstance(optimizer, embsim.Adam):
        b1, b2 = optimizer.beta_1, optimizer.beta_2
        return optax.adam(optimizer.learning_rate, b1, b2, eps=optimizer.epsilon)
    return optax.sgd(optimizer.learning_rate)


def every_row(optimizer: Optimizer) -> Optimizer:
    """The law of optax's dense step: its Adam moves every row and corrects its bias. The others
    leave rows with gradient 0 alone."""
    if not isinstance(optimizer, embsim.Adam):
        return optimizer
    rate, b1, b2 = optimizer.learning_rate, optimizer.beta_1, optimizer.beta_2
    assert not callable(rate)

    def corrected(step: int) -> float:
        return rate * (1 - b2 ** (step + 1)) ** 0.5 / (1 - b1 ** (step + 1))

    return replace(optimizer, learning_rate=corrected, lazy_adam=False, sum_inside_sqrt=False)


def _minus(activations: Any, targets: Any) -> list[Any]:
    return [found - target for found, target in zip(activations, targets, strict=True)]
