"""activations = G.W, and its adjoint row_gradients = G^T.gradients. All in the written order."""

import numpy as np
from jaxtyping import Float32

from ._memory import aligned_empty
from ._numba import kernel
from ._sums import weighted_sums
from ._threads import Task, even_ranges, parallel
from .config import QuantizationConfig
from .plan import LookupPlan

CHUNK = 2**18  # floats of rows that a task goes through


def lookup(
    table: Float32[np.ndarray, "rows dim"],
    plan: LookupPlan,
    quantization: QuantizationConfig | None = None,
) -> Float32[np.ndarray, "samples dim"]:
    """G @ Q(table): for each sample, acc = 0; acc = acc + gain_j * row_j in position order.

    An empty bag gives zeros.

    Q is the identity, or the simulated quantization of each looked-up row.
    """
    out = aligned_empty((plan.samples, table.shape[1]), np.float32)
    parallel(lookup_tasks(table, plan, quantization, out), len(plan.row) * table.shape[1])
    return out


def row_gradients(
    gradients: Float32[np.ndarray, "samples dim"], plan: LookupPlan
) -> Float32[np.ndarray, "unique dim"]:
    """G.T @ gradients, restricted to the plan's unique rows.

    Duplicate ids are summed here, before the optimizer: rules are not linear in the gradient. A row
    that was looked up with gain 0 is present, with gradient 0.
    """
    rows, dim = plan.by_row, gradients.shape[1]
    out = aligned_empty((len(rows.unique), dim), np.float32)
    parallel(
        [
            lambda lo=lo, hi=hi: weighted_sums(
                lo, hi, rows.starts, rows.sample, rows.gain, gradients, out
            )
            for lo, hi in even_ranges(rows.starts, max(1, CHUNK // dim))
        ],
        len(plan.row) * dim,
    )
    return out


def lookup_tasks(
    table: np.ndarray, plan: LookupPlan, quantization: QuantizationConfig | None, out: np.ndarray
) -> list[Task]:
    """The lookup into `out` as independent pieces, so that a step's tables share one round of
    threads.
    """
    pieces = even_ranges(plan.splits, max(1, CHUNK // table.shape[1]))
    if quantization is None:
        return [
            lambda lo=lo, hi=hi: weighted_sums(lo, hi, plan.splits, plan.row, plan.gain, table, out)
            for lo, hi in pieces
        ]
    lower, upper, q = quantization_constants(quantization)
    return [
        lambda lo=lo, hi=hi: _sum_quantized_bags(
            lo, hi, plan.splits, plan.row, plan.gain, table, lower, upper, q, np.float32(0.5), out
        )
        for lo, hi in pieces
    ]


def quantization_constants(
    quantization: QuantizationConfig,
) -> tuple[np.float32, np.float32, np.float32]:
    """(lower, upper, width of a bucket), computed in float64 and rounded once."""
    width = (quantization.upper - quantization.lower) / (quantization.num_buckets - 1)
    return np.float32(quantization.lower), np.float32(quantization.upper), np.float32(width)


@kernel
def _sum_quantized_bags(lo, hi, splits, row, gain, table, lower, upper, q, half, out):
    dim = table.shape[1]
    for sample in range(lo, hi):
        acc = out[sample]
        for d in range(dim):
            acc[d] = np.float32(0.0)
        for j in range(splits[sample], splits[sample + 1]):
            w, k = table[row[j]], gain[j]
            for d in range(dim):
                x = w[d]
                if x < lower:
                    x = lower
                if x > upper:
                    x = upper
                x = np.float32(np.floor((x - lower) / q + half)) * q + lower
                acc[d] = acc[d] + k * x
