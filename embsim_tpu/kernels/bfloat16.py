"""float32 <-> bfloat16, which is a float32's upper half, as whole numbers.

XLA has a type for it, but its conversions flush subnormal numbers on some platforms, and on CPU it
computes a scatter of bfloat16 on a copy of the table.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

HALF, UPPER = np.int32(16), np.int32(-(2**16))  # 0xffff0000
MAGNITUDE, INFINITY, QUIET = np.int32(0x7FFFFFFF), np.int32(0x7F800000), np.int32(0x7FC00000)


def nearest(x: jax.Array) -> jax.Array:
    """int32 whose upper halves are x, float32, rounded to nearest, ties to even; the lower halves
    mean nothing. A NaN gives the quiet one of its sign."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    odd = lax.shift_right_logical(bits, HALF) & 1
    nan = (bits & MAGNITUDE) > INFINITY
    return jnp.where(nan, bits & ~MAGNITUDE | QUIET, bits + jnp.int32(0x7FFF) + odd)


def rounded(x: Any, xp: Any = jnp) -> Any:
    """float32 -> uint16. `xp` is numpy or jax.numpy.

    >>> widened(rounded(np.float32([1 + 2**-8, 1 + 3 * 2**-8]), np), np).tolist()
    [1.0, 1.015625]
    """
    if xp is np:
        with np.errstate(invalid="ignore"):  # of a NaN
            return x.astype(jnp.bfloat16).view(np.uint16)
    return lax.shift_right_logical(nearest(x), HALF).astype(jnp.uint16)


def widened(x: Any, xp: Any = jnp) -> Any:
    """uint16 -> float32, which is exact; float32 stays as it is."""
    if x.dtype == jnp.float32:
        return x
    return as_type(x.astype(xp.uint32) << 16, np.float32, xp)


def words(low: jax.Array, high: jax.Array) -> jax.Array:
    """int32 of the upper halves of two."""
    return lax.shift_right_logical(low, HALF) | (high & UPPER)


def paired(x: Any, xp: Any) -> Any:
    """float32 [n, 2m or 2m - 1, ...] -> int32 [n, m, ...]: place k has number k in its lower half
    and number m + k, or 0, in its upper one."""
    bits = rounded(x, xp).astype(xp.uint32)
    m = -(-x.shape[1] // 2)
    missing = ((0, 0), (0, 2 * m - x.shape[1]), *((0, 0),) * (x.ndim - 2))
    bits = xp.pad(bits, missing)
    return as_type(bits[:, :m] | bits[:, m:] << 16, np.int32, xp)


def parted(x: Any, xp: Any) -> Any:
    """int32 [n, m, ...] -> float32 [n, 2m, ...]: the inverse."""
    return as_type(xp.concatenate([x << HALF, x & UPPER], axis=1), np.float32, xp)


def as_type(x: Any, dtype: Any, xp: Any = jnp) -> Any:
    """The same bits."""
    return x.view(dtype) if xp is np else lax.bitcast_convert_type(x, dtype)
