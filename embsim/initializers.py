"""Initial values of tables: a function of (seed, table name, row, column) and of nothing else.

Not of replicas, shards, threads or backend. Element e = row * dim + column takes draw e of a
counter-based generator, so any range of rows can be made without the others. The bits are those of
every machine: only IEEE + - * / and sqrt are used, none of them inside a library function.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64

from ._memory import aligned_empty
from ._normal import centred_quantile
from ._threads import parallel, ranges

CHUNK = 2**18  # elements that one task makes
BLOCK = 2**16  # elements at a time: few calls, and temporaries that stay in the cache
CUT_MASS = 0.9544997361036416  # Phi(2) - Phi(-2): what two standard deviations leave

Initializer = Callable[..., Any]


@runtime_checkable
class RowInitializer(Protocol):
    """An initializer that can make any rows alone: it is asked for pieces, by several threads."""

    def values(
        self, seed: int, table_name: str, start_row: int, stop_row: int, dim: int
    ) -> Float32[np.ndarray, "rows dim"]: ...


def truncated_normal(
    mean: float = 0.0, stddev: float | None = None, seed: int | None = None
) -> "TruncatedNormal":
    """Normal, cut at two standard deviations; `stddev` None is 1/sqrt(dim). Every table's default.

    The realised standard deviation is 0.88 of `stddev`, as in TensorFlow. `seed` None takes the
    embedding's.

    >>> truncated_normal(stddev=0.5).values(0, "items", start_row=7, stop_row=8, dim=2)
    array([[-0.29512745,  0.29812762]], dtype=float32)
    """
    return TruncatedNormal(mean, stddev, seed)


def uniform(low: float = -0.05, high: float = 0.05, seed: int | None = None) -> "Uniform":
    """Uniform from `low` to `high`."""
    return Uniform(low, high, seed)


def constant(value: float = 0.0) -> "Constant":
    """The same value everywhere."""
    return Constant(value)


def row_id(offset: float = 0) -> "RowId":
    """table[i, :] = offset + i: shows which row was read. TensorFlow's RowIdInitializer.

    >>> row_id(10)((2, 3), np.float32)
    array([[10., 10., 10.],
           [11., 11., 11.]], dtype=float32)
    """
    return RowId(offset)


def initial_table(
    initializer: Initializer | None, vocabulary_size: int, dim: int, seed: int, table_name: str
) -> Float32[np.ndarray, "rows dim"]:
    """[vocabulary_size, dim], its own memory, aligned. None is `truncated_normal()`.

    A RowInitializer is asked for pieces; any other is called once, with (vocabulary_size, dim) and
    np.float32.

    Raises:
      ValueError: a class in place of an instance; a result of another shape, or that is no array of
        real numbers.
    """
    if isinstance(initializer, type):
        raise ValueError(
            f"table {table_name!r}: initializer is the class {initializer.__name__}; it must be an "
            f"instance, {initializer.__name__}(...), or a function of (shape, dtype)"
        )
    chosen = TruncatedNormal() if initializer is None else initializer
    table = aligned_empty((vocabulary_size, dim), np.float32)
    if not isinstance(chosen, RowInitializer):
        table[...] = _from_user(chosen, table.shape, table_name)
        return table
    pieces = ranges(vocabulary_size, max(1, CHUNK // dim))

    def fill(low: int, high: int) -> None:
        values = chosen.values(seed, table_name, low, high, dim)
        table[low:high] = _checked(
            values, (high - low, dim), f"rows {low}..{high - 1} of table {table_name!r}"
        )

    parallel([lambda low=low, high=high: fill(low, high) for low, high in pieces])
    return table


@dataclass(frozen=True)
class TruncatedNormal:
    """See `truncated_normal`."""

    mean: float = 0.0
    stddev: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_number("truncated_normal: mean", self.mean)
        if self.stddev is not None:
            _check_number("truncated_normal: stddev", self.stddev, minimum=0.0)
        _check_seed("truncated_normal", self.seed)

    def values(
        self, seed: int, table_name: str, start_row: int, stop_row: int, dim: int
    ) -> Float32[np.ndarray, "rows dim"]:
        """mean + stddev * z in float64, rounded once; z by inverse CDF, one draw an element."""
        mean = float(self.mean)
        stddev = 1 / math.sqrt(dim) if self.stddev is None else float(self.stddev)

        def transform(u: Float64[np.ndarray, " block"]) -> None:
            u -= 0.5
            u *= CUT_MASS
            centred_quantile(u)
            u *= stddev
            u += mean

        own = seed if self.seed is None else self.seed
        return _draw(own, table_name, start_row, stop_row, dim, transform)

    def __call__(self, shape: Sequence[int], dtype: Any = np.float32) -> np.ndarray:
        return _whole(self, shape, dtype)


@dataclass(frozen=True)
class Uniform:
    """See `uniform`."""

    low: float = -0.05
    high: float = 0.05
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_number("uniform: low", self.low)
        _check_number("uniform: high", self.high, minimum=self.low)
        _check_seed("uniform", self.seed)

    def values(
        self, seed: int, table_name: str, start_row: int, stop_row: int, dim: int
    ) -> Float32[np.ndarray, "rows dim"]:
        """low + (high - low) * u in float64, rounded once, 0 <= u < 1."""
        low, width = float(self.low), float(self.high) - float(self.low)

        def transform(u: Float64[np.ndarray, " block"]) -> None:
            u *= width
            u += low

        own = seed if self.seed is None else self.seed
        return _draw(own, table_name, start_row, stop_row, dim, transform)

    def __call__(self, shape: Sequence[int], dtype: Any = np.float32) -> np.ndarray:
        return _whole(self, shape, dtype)


@dataclass(frozen=True)
class Constant:
    """See `constant`."""

    value: float = 0.0

    def __post_init__(self) -> None:
        _check_number("constant: value", self.value)

    def values(
        self, seed: int, table_name: str, start_row: int, stop_row: int, dim: int
    ) -> Float32[np.ndarray, "rows dim"]:
        return np.full((stop_row - start_row, dim), self.value, np.float32)

    def __call__(self, shape: Sequence[int], dtype: Any = np.float32) -> np.ndarray:
        return _whole(self, shape, dtype)


@dataclass(frozen=True)
class RowId:
    """See `row_id`."""

    offset: float = 0

    def __post_init__(self) -> None:
        _check_number("row_id: offset", self.offset)

    def values(
        self, seed: int, table_name: str, start_row: int, stop_row: int, dim: int
    ) -> Float32[np.ndarray, "rows dim"]:
        rows = (np.arange(start_row, stop_row) + float(self.offset)).astype(np.float32)
        return np.repeat(rows, dim).reshape(len(rows), dim)

    def __call__(self, shape: Sequence[int], dtype: Any = np.float32) -> np.ndarray:
        return _whole(self, shape, dtype)


def _draw(
    seed: int,
    table_name: str,
    start_row: int,
    stop_row: int,
    dim: int,
    transform: Callable[[np.ndarray], None],
) -> Float32[np.ndarray, "rows dim"]:
    """Draws start_row * dim .. stop_row * dim of the table's stream, block by block into values."""
    out = np.empty((stop_row - start_row, dim), np.float32)
    flat, first = out.reshape(-1), start_row * dim
    lead = first % 4  # a Philox counter gives four draws
    stream = f"embsim.initializers\0{seed}\0{table_name}".encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(stream).digest()
    philox = np.random.Philox(key=int.from_bytes(digest[:16], "little"), counter=first // 4)
    generator = np.random.Generator(philox)
    generator.random(lead)
    buffer = np.empty(min(BLOCK, len(flat)))
    for low, high in ranges(len(flat), BLOCK):
        block = buffer[: high - low]
        generator.random(out=block)  # (64 random bits >> 11) * 2**-53
        transform(block)
        flat[low:high] = block
    return out


def _whole(initializer: RowInitializer, shape: Sequence[int], dtype: Any) -> np.ndarray:
    """For an initializer that is called directly: a table of no name, of seed 0 if it has none."""
    if not shape:
        raise ValueError(f"{initializer}: shape is {shape}; a table has the shape (rows, dim)")
    rows, dim = math.prod(shape[:-1]), shape[-1]
    return initializer.values(0, "", 0, rows, dim).reshape(shape).astype(dtype, copy=False)


def _from_user(initializer: Initializer, shape: tuple[int, ...], table_name: str) -> np.ndarray:
    try:
        result = initializer(shape, np.float32)
    except Exception as error:
        error.add_note(
            f"embsim called the initializer of table {table_name!r} as "
            f"initializer({shape}, np.float32)"
        )
        raise
    return _checked(result, shape, f"table {table_name!r}")


def _checked(result: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    if not isinstance(result, np.ndarray):
        result = result.detach() if hasattr(result, "detach") else result
        result = np.asarray(result.numpy() if hasattr(result, "numpy") else result)
    if result.dtype.kind not in "biuf" and not result.dtype.name.startswith(("bfloat", "float")):
        raise ValueError(
            f"{what}: initializer returned {result.dtype}; it must return real numbers of shape "
            f"{shape}"
        )
    if result.shape != shape:
        raise ValueError(f"{what}: initializer returned shape {result.shape}; it must be {shape}")
    return result


def _check_number(what: str, value: Any, minimum: float = -math.inf) -> None:
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or value < minimum:
        required = "a finite number" if minimum == -math.inf else f"a finite number >= {minimum}"
        raise ValueError(f"{what} is {value!r}; it must be {required}")


def _check_seed(what: str, seed: Any) -> None:
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int | np.integer)):
        raise ValueError(
            f"{what}: seed is {seed!r}; it must be an int, or None for the embedding's"
        )
