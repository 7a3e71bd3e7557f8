"""Pending updates on these devices <-> on the host, as embsim has them, of all samples.

Of several processes each plans the samples of its own devices; a checkpoint holds the plan of all,
in the order in which the mesh has them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.experimental import multihost_utils

from embsim.nest import flatten_up_to, pack
from embsim.pending import PendingUpdate
from embsim.plan import LookupPlan as HostPlan
from embsim.plan import Output

from .embedding import Embedding
from .train_state import Pending, Planned

Plans = Mapping[str, HostPlan]


def to_host(embedding: Embedding, pending: Pending) -> PendingUpdate:
    """The update, with the gradients of each table stacked: [samples, dim]."""
    plans, outputs = whole_plans(embedding, pending.planned)
    leaves = flatten_up_to(embedding.feature_config, pending.gradients, "gradients")
    whole = [None if leaf is None else embedding.shards.whole(leaf) for leaf in leaves]
    by_table = stacked(embedding, outputs, whole)
    return PendingUpdate(pending.step, plans, None, by_table, pending.coefficients)


def to_devices(embedding: Embedding, update: PendingUpdate) -> Pending:
    """The inverse.

    An update does not ask which feature a sample is of: here the first feature of each table has
    all of them, filled up with empty ones to a multiple of the devices.
    """
    shards, plans, outputs, leaves = embedding.shards, dict[str, HostPlan](), [], []
    for name, plan in update.plans.items():
        missing = -plan.samples % shards.size
        splits = np.concatenate([plan.splits, np.full(missing, plan.splits[-1])])
        plans[name] = HostPlan(name, plan.num_rows, splits, plan.row, plan.gain)
    for f, name in enumerate(embedding.tables.of_feature):
        samples, gradients = plans[name].samples, None
        first = embedding.tables.of_feature.index(name) == f
        if first:
            gradients = np.zeros((samples, embedding.specs[name].dim), np.float32)
            gradients[: len(update.gradients[name])] = update.gradients[name]
        low = 0 if first else samples
        outputs.append(Output(name, low, samples, (samples - low,)))
        leaves.append(None if gradients is None else shards.put(gradients))
    planned = planned_again(embedding, plans, outputs)
    gradients = pack(embedding.feature_config, leaves)
    return Pending(update.step, planned, gradients, update.coefficients)


def planned_again(embedding: Embedding, plans: Plans, outputs: Sequence[Output]) -> Planned:
    """The plans of all samples, of which each process puts those of its devices."""
    shards, own = embedding.shards, embedding.shards.own
    if len(shards.processes) > 1:
        each = [_scaled(output, 1, shards.size) for output in outputs]
        plans = {
            name: _joined(
                plan,
                [(plan, o.lo * shards.size, o.hi - o.lo, p) for o in _of(name, each) for p in own],
            )
            for name, plan in plans.items()
        }
        outputs = [_scaled(output, len(own), 1) for output in each]
    plan = embedding.put_plan(plans, outputs)
    return Planned(plans, tuple(outputs), plan)


def whole_plans(embedding: Embedding, planned: Planned) -> tuple[Plans, Sequence[Output]]:
    """The plans of all samples. Of several processes all call it."""
    shards, each = embedding.shards, planned.plan.outputs
    if len(shards.processes) == 1:
        return planned.plans, planned.outputs
    owners = [device.process_index for device in shards.devices]
    counts = {process: owners.count(process) for process in owners}
    plans: dict[str, HostPlan] = {}
    for name, plan in planned.plans.items():
        parts = _of_all_processes(plan)
        pieces = [
            (parts[q], output.lo * counts[q], output.hi - output.lo, owners[:p].count(q))
            for output in _of(name, each)
            for p, q in enumerate(owners)
        ]
        plans[name] = _joined(plan, pieces)
    return plans, [_scaled(output, shards.size, 1) for output in each]


def stacked(
    embedding: Embedding, outputs: Sequence[Output], gradients: Sequence[Any]
) -> dict[str, np.ndarray]:
    """The gradients of each table's features one below the other, zeros for None."""
    made: dict[str, np.ndarray] = {}
    for name, spec in embedding.specs.items():
        samples = max(output.hi for output in outputs if output.table == name)
        made[name] = np.zeros((samples, spec.dim), np.float32)
    for output, gradient in zip(outputs, gradients, strict=True):
        if gradient is not None:
            rows = np.asarray(gradient).astype(np.float32)
            made[output.table][output.lo : output.hi] = rows.reshape(output.hi - output.lo, -1)
    return made


def _joined(plan: HostPlan, pieces: Iterable[tuple[HostPlan, int, int, int]]) -> HostPlan:
    """Of (plan, first, count, place) the samples of the place-th device, `count` each from `first`
    on, one after the other."""
    lengths, rows, gains = [np.zeros(0, np.int64)], [plan.row[:0]], [plan.gain[:0]]
    for source, first, count, place in pieces:
        splits = source.splits[first + place * count : first + (place + 1) * count + 1]
        lengths.append(np.diff(splits))
        rows.append(source.row[splits[0] : splits[-1]])
        gains.append(source.gain[splits[0] : splits[-1]])
    splits = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    return HostPlan(plan.table, plan.num_rows, splits, np.concatenate(rows), np.concatenate(gains))


def _of_all_processes(plan: HostPlan) -> list[HostPlan]:
    columns = (np.diff(plan.splits).astype(np.int32), plan.row, plan.gain)
    plans: list[HostPlan] = []
    for lengths, row, gain in zip(*map(_gathered, columns), strict=True):
        splits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        plans.append(HostPlan(plan.table, plan.num_rows, splits, row, gain))
    return plans


def _gathered(array: np.ndarray) -> list[np.ndarray]:
    """The array of each process."""
    sizes = multihost_utils.process_allgather(np.int32(len(array)))
    padded = np.zeros(int(sizes.max()), array.dtype)
    padded[: len(array)] = array
    found = np.asarray(multihost_utils.process_allgather(padded))
    return [found[q, :size] for q, size in enumerate(sizes)]


def _of(name: str, outputs: Iterable[Output]) -> list[Output]:
    return [output for output in outputs if output.table == name]


def _scaled(output: Output, times: int, over: int) -> Output:
    """That of so many times the samples of each feature."""
    first, *rest = output.shape
    return Output(
        output.table,
        output.lo * times // over,
        output.hi * times // over,
        (first * times // over, *rest),
    )
