"""What the TensorCore kernels share: rows move in chunks, each row by a copy of its own.

All copies of a chunk count on one semaphore, and one wait takes the whole chunk; while a chunk is
worked on, the next one is under way.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .records import LANES

# The caller has checked every id: a check costs more than the copy of a row does.
UNCHECKED = pltpu.CompilerParams(
    dimension_semantics=("arbitrary",),
    has_side_effects=True,
    disable_bounds_checks=True,
    disable_semaphore_checks=True,
)
ANYWHERE = pl.BlockSpec(memory_space=pl.ANY)


def scalars(chunk: int, index: Callable[..., Any]) -> pl.BlockSpec:
    """One chunk of an array [chunks, 1, chunk], in scalar memory."""
    return pl.BlockSpec((1, 1, chunk), lambda c, *_: (index(c), 0, 0), memory_space=pltpu.SMEM)


def each(count: Any, unroll: int, body: Callable[[Any, Any], Any], carry: Any = 0) -> Any:
    """body(i, carry) for i = 0 .. count - 1, in order. `unroll` is a power of two."""

    def several(i: Any, carry: Any) -> Any:
        for u in range(unroll):
            carry = body(i * unroll + u, carry)
        return carry

    whole = lax.shift_right_logical(count, jnp.int32(unroll.bit_length() - 1))
    carry = lax.fori_loop(0, whole, several, carry)
    return lax.fori_loop(whole * unroll, count, body, carry)


def start_each(count: Any, unroll: int, copies: Callable[[Any], Any]) -> None:
    """Start the copies of each row of a chunk."""

    def body(i: Any, carry: Any) -> Any:
        for copy in copies(i):
            copy.start()
        return carry

    each(count, unroll, body)


def wait_all(count: Any, buffers: Any, semaphore: Any) -> None:
    """Wait for the copies of `count` rows into or out of `buffers`, [chunk, ...] each.

    A wait takes as many bytes off the semaphore as its copy has, wherever these come from.
    """
    chunk = buffers[0].shape[0]

    @pl.when(count == chunk)
    def _() -> None:
        for buffer in buffers:
            pltpu.make_async_copy(buffer, buffer, semaphore).wait()

    @pl.when(count < chunk)
    def _() -> None:
        def body(_: Any, carry: Any) -> Any:
            for buffer in buffers:
                one = buffer.at[pl.ds(0, 1)]
                pltpu.make_async_copy(one, one, semaphore).wait()
            return carry

        lax.fori_loop(0, count, body, 0)


def in_chunks(array: jax.Array, chunk: int) -> jax.Array:
    """[n] -> [chunks, 1, chunk]; n is a multiple of chunk."""
    return array.reshape(-1, 1, chunk)


def padded(array: jax.Array, multiple: int, value: Any = 0) -> jax.Array:
    """Of a length that is a multiple, filled up with `value`."""
    missing = -len(array) % multiple
    if not missing:
        return array
    return jnp.pad(array, ((0, missing), *((0, 0),) * (array.ndim - 1)), constant_values=value)


def lines_shape(rows: int, lines: int) -> tuple[int, ...]:
    """Of a buffer of rows of so many lines: of one line two-dimensional, as vectors are."""
    return (rows, LANES) if lines == 1 else (rows, lines, LANES)
