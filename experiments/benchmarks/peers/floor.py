"""The memory traffic of a step alone, timed in turn like a peer: what no step can be faster than.

    lookup    each distinct row of the batch read once, in the order in which ids first name it; as
              many numbers written as there are activations
    update    each distinct row and its slots read and written once, in the order of the table; as
              many numbers read as there are gradients

No sorting, no sums, no roots; rows are asked for ahead of time (prefetch), and all threads work.
"""

import importlib.metadata
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .job import Batches, Job

AHEAD = 16  # rows


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("numba", "numpy")}


def prepare(job: Job, batches: Batches, threads: int) -> "Traffic":
    return Traffic(job, batches, threads)


class Traffic:
    def __init__(self, job: Job, batches: Batches, threads: int) -> None:
        w = job.workload
        self._threads, self._pool = threads, ThreadPoolExecutor(threads)
        widths = [w.dim, *(1 if slot.rowwise else w.dim for slot in job.law.slots)]
        self._arrays = [_aligned(w.tables * w.rows * width) for width in widths]
        self._widths = widths
        self._seen = [_first_seen(ids, w.rows) for ids in batches.ids]
        self._sorted = [np.sort(seen) for seen in self._seen]
        self._activations = _aligned(batches.gradients.size)
        self._gradients = _aligned(batches.gradients.size)

    def plan(self, k: int) -> None:
        pass

    def lookup(self, k: int) -> None:
        read = _read_rows(self._widths[0])
        self._split(
            self._seen[k], self._activations, lambda rows, line: read(self._arrays[0], rows, line)
        )

    def update(self, k: int) -> None:
        def part(rows: np.ndarray, line: np.ndarray) -> None:
            for array, width in zip(self._arrays, self._widths, strict=True):
                _write_rows(width)(array, rows)
            _sum_of(line)

        self._split(self._sorted[k], self._gradients, part)

    def _split(self, rows: np.ndarray, line: np.ndarray, part: Any) -> None:
        parts = [np.array_split(array, self._threads) for array in (rows, line)]
        list(self._pool.map(part, *parts))

    def read(self) -> dict[str, np.ndarray]:
        return {}


def _first_seen(ids: np.ndarray, rows: int) -> np.ndarray:
    """Rows of all tables, counted on from one table to the next, each once."""
    flat = (ids.astype(np.int64) + rows * np.arange(len(ids))[:, None, None]).reshape(-1)
    _, first = np.unique(flat, return_index=True)
    return flat[np.sort(first)]


def _aligned(size: int) -> np.ndarray:
    """Zeros that start at a cache line, in memory that is there."""
    raw = np.empty(size + 16, np.float32)
    raw[:] = 0
    start = (-raw.ctypes.data % 64) // 4
    return raw[start : start + size]


_compiled: dict[tuple[str, int], Any] = {}


def _read_rows(width: int) -> Any:
    """(array, rows, line): the width is a constant of the loops, as it is of a good kernel."""

    def read(array: Any, rows: Any, line: Any) -> None:
        base = array.ctypes.data
        kept = np.empty(width, np.float32)
        for i in range(len(rows)):
            _ask_for(base, rows[min(i + AHEAD, len(rows) - 1)], width)
            start = np.uint64(rows[i]) * np.uint64(width)
            for d in range(np.uint64(width)):
                kept[d] = array[start + d]
        line[:] = kept[0]

    return _once("read", width, read)


def _write_rows(width: int) -> Any:
    def write(array: Any, rows: Any) -> None:
        base = array.ctypes.data
        for i in range(len(rows)):
            _ask_for(base, rows[min(i + AHEAD, len(rows) - 1)], width)
            start = np.uint64(rows[i]) * np.uint64(width)
            for d in range(np.uint64(width)):
                array[start + d] = array[start + d] * np.float32(0.5)

    return _once("write", width, write)


def _once(name: str, width: int, function: Any) -> Any:
    if (name, width) not in _compiled:
        _compiled[name, width] = numba.njit(nogil=True, error_model="numpy")(function)
    return _compiled[name, width]


@numba.njit(nogil=True, error_model="numpy", fastmath=True)
def _sum_of(line: Any) -> Any:
    total = np.float32(0)
    for x in line:
        total += x
    return total


@numba.njit(nogil=True, error_model="numpy", inline="always")
def _ask_for(base: Any, row: Any, width: Any) -> None:
    for offset in range(0, 4 * width, 64):
        _prefetch(base + row * 4 * width + offset)  # pyright: ignore[reportCallIssue]


@intrinsic
def _prefetch(_: Any, address: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        place = builder.inttoptr(arguments[0], byte)
        builder.call(function, [place, number(1), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.intp), code
