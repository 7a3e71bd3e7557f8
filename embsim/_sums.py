"""Weighted sums of rows in a written order: the inner loop of lookup, of its adjoint and of update.

    out = 0;  out = out + gain[j] * rows[index[j]]    for j = first, ..., end - 1

`weighted_sum` says in Python what is computed, and is what runs where Numba is off. In compiled
kernels LLVM code stands for it that keeps a tile of `out` in registers while it goes through all j,
and asks for rows ahead of their turn. Every number takes the same roundings in the same order (a
product, a sum: nothing is contracted), so the bits are the same; test_sums.py holds the one against
the other. A lookup of eight tables of a million rows of 64 numbers, 20 ids a bag, takes a third of
the time that Numba's loops take.

All that `weighted_sums` means stands in this file, as `_numba.py` demands of kernels that are kept;
generated kernels are named by its text (`_codegen.py`).
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import overload

from ._numba import kernel

intrinsic: Any = numba_intrinsic  # what it makes is called without the typing context
AHEAD = 24  # rows that a sum asks for before it needs them
AHEAD_TO_WRITE = 12  # of table and slots, which an update holds in L1 together with them
LINE = 64  # bytes that memory hands over at once
TILES = ((16, 4), (16, 1), (4, 1), (1, 1))  # (floats a vector, vectors a tile), the widest first


def weighted_sum(out, i, rows, index, gain, first, end):
    """out[i] = the sum of gain[j] * rows[index[j]] over first <= j < end, in that order, from 0."""
    for d in range(rows.shape[1]):
        out[i, d] = 0
    for j in range(first, end):
        for d in range(rows.shape[1]):
            out[i, d] = out[i, d] + gain[j] * rows[index[j], d]


def prefetch(rows, r):
    """rows[r] will be read and written soon: a hint to the processor, without any effect."""


@kernel
def weighted_sums(lo, hi, splits, index, gain, rows, out):
    """out[lo:hi] of G @ rows, where row i of G has gain[j] at column index[j], splits[i] <= j <
    splits[i + 1].
    """
    for i in range(lo, hi):
        weighted_sum(out, i, rows, index, gain, splits[i], splits[i + 1])


@overload(weighted_sum)
def _compiled_sum(out, i, rows, index, gain, first, end):
    assert all(array.layout == "C" for array in (out, rows, index, gain))
    assert [array.dtype for array in (out, rows, gain)] == [types.float32] * 3
    return lambda out, i, rows, index, gain, first, end: _tiled_sum(
        out, rows, index, gain, types.intp(i), types.intp(first), types.intp(end)
    )


@overload(prefetch)
def _compiled_prefetch(rows, r):
    assert rows.layout == "C"
    return lambda rows, r: _ask_for_row(rows, types.intp(r))


@intrinsic
def _tiled_sum(typing, out, rows, index, gain, i, first, end):
    def emit(context: Any, b: Any, signature: Any, args: Any) -> Any:
        made = [
            context.make_array(t)(context, b, a)
            for t, a in zip(signature.args[:4], args[:4], strict=True)
        ]
        to, source, row_of, gains = (array.data for array in made)
        i, first, end = args[4:]
        dim = cgutils.unpack_tuple(b, made[1].shape)[1]
        last = b.sub(cgutils.unpack_tuple(b, made[2].shape)[0], _int(1))

        def piece(j: Any, d: Any) -> Any:
            row = b.sext(b.load(b.gep(row_of, [j])), _int(1).type)
            return b.gep(source, [b.add(b.mul(row, dim), d)])

        for width, count in TILES:
            kind = ir.VectorType(ir.FloatType(), width)
            sums = [cgutils.alloca_once(b, kind) for _ in range(count)]  # LLVM: registers
            with _tiles(b, dim, width * count) as d:
                for total in sums:
                    b.store(ir.Constant(kind, [0.0] * width), total)
                with cgutils.for_range_slice(b, first, end, _int(1)) as (j, _):
                    later = b.add(j, _int(AHEAD))
                    later = b.select(b.icmp_signed("<", later, last), later, last)
                    _ask_for(b, piece(later, d), width * count, write=False)
                    here, k = piece(j, d), _all_of(b, b.load(b.gep(gains, [j])), kind)
                    for n, total in enumerate(sums):
                        term = b.fmul(k, b.load(_vector(b, here, n, kind), align=4))
                        b.store(b.fadd(b.load(total), term), total)
                here = b.gep(to, [b.add(b.mul(i, dim), d)])
                for n, total in enumerate(sums):
                    b.store(b.load(total), _vector(b, here, n, kind), align=4)
        return context.get_dummy_value()

    return types.void(out, rows, index, gain, i, first, end), emit


@intrinsic
def _ask_for_row(typing, rows, r):
    def emit(context: Any, b: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, b, args[0])
        width = cgutils.unpack_tuple(b, array.shape)[1]
        row, line = b.gep(array.data, [b.mul(args[1], width)]), LINE // 4
        with cgutils.for_range_slice(b, _int(0), width, _int(line)) as (d, _):
            _ask_for(b, b.gep(row, [d]), line, write=True)
        return context.get_dummy_value()

    return types.void(rows, r), emit


@contextmanager
def _tiles(b: Any, dim: Any, width: int) -> Generator[Any]:
    """The loop over the places of whole tiles that wider ones have left over: d, d + width, ..."""
    wider = [w * n for w, n in TILES if w * n > width]
    start = _int(0) if not wider else b.mul(b.sdiv(dim, _int(wider[-1])), _int(wider[-1]))
    end = b.mul(b.sdiv(dim, _int(width)), _int(width))
    with cgutils.for_range_slice(b, start, end, _int(width)) as (d, _):
        yield d


def _ask_for(b: Any, start: Any, floats: int, *, write: bool) -> None:
    address, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [address, flag, flag, flag])
    function = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    for n in range(0, floats, LINE // 4):
        place = b.bitcast(b.gep(start, [_int(n)]), address)
        b.call(function, [place, flag(int(write)), flag(3), flag(1)])  # 3: keep, 1: data


def _vector(b: Any, start: Any, n: int, kind: Any) -> Any:
    return b.bitcast(b.gep(start, [_int(n * kind.count)]), kind.as_pointer())


def _all_of(b: Any, number: Any, kind: Any) -> Any:
    whole = b.insert_element(ir.Constant(kind, ir.Undefined), number, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    return b.shuffle_vector(whole, ir.Constant(kind, ir.Undefined), zeros)


def _int(value: int) -> Any:
    return ir.Constant(ir.IntType(64), value)
