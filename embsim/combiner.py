"""Weights of a bag -> gains: the factor with which each of its rows enters the activation."""

import numpy as np
from jaxtyping import Float32, Int64

from ._numba import kernel

MOST_ONES = 2**24  # 1 + 1 + ... in float32 stops here


def gains(
    weights: Float32[np.ndarray, " nnz"] | None,
    splits: Int64[np.ndarray, " samples_plus_1"],
    combiner: str | None,
) -> Float32[np.ndarray, " nnz"]:
    """sum: w;  mean: w / sum(w);  sqrtn: w / sqrt(sum(w * w)), sums in position order; 0 where the
    denominator is 0.

    `weights` None means 1 everywhere; `combiner` None means no combining: every gain is 1.
    Duplicates in a bag are counted as often as they occur.

    >>> splits = np.array([0, 2, 2, 5])
    >>> gains(None, splits, "mean")
    array([0.5       , 0.5       , 0.33333334, 0.33333334, 0.33333334],
          dtype=float32)
    >>> gains(np.float32([1, 3, -1, 0, 1]), splits, "mean")
    array([0.25, 0.75, 0.  , 0.  , 0.  ], dtype=float32)
    """
    nnz = int(splits[-1])
    if combiner is None or (combiner == "sum" and weights is None):
        return np.ones(nnz, np.float32)
    if weights is not None:
        if combiner == "sum":
            return weights
        out = np.empty(nnz, np.float32)
        with np.errstate(all="ignore"):
            _weighted(splits, weights, combiner == "sqrtn", out)
        return out
    lengths = np.diff(splits)
    total = np.maximum(np.minimum(lengths, MOST_ONES), 1).astype(np.float32)
    denominator = np.sqrt(total) if combiner == "sqrtn" else total
    return np.repeat(np.float32(1.0) / denominator, lengths)


@kernel
def _weighted(splits, weights, squared, out):
    zero = np.float32(0.0)
    for sample in range(len(splits) - 1):
        total = zero
        for j in range(splits[sample], splits[sample + 1]):
            total = total + (weights[j] * weights[j] if squared else weights[j])
        if squared:
            total = np.sqrt(total)
        for j in range(splits[sample], splits[sample + 1]):
            if total == zero:
                out[j] = zero
            else:
                out[j] = weights[j] / total
