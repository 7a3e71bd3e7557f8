"""Lookups and updates on the SparseCores of a TPU v5p, v6e or 7x, as Pallas kernels.

A table and its slots are one array of records, [physical rows, streams * lanes], as XLA lays it out
anyway. Stream 0 is the weights, stream 1 the first slot, and so on; rows narrower than 128 share a
physical row. With dim 32 and one slot, row 4p has columns 0..31 and 128..159:

    w of row 4p | w of 4p+1 | w of 4p+2 | w of 4p+3 | slot of 4p | of 4p+1 | of 4p+2 | of 4p+3

Each kernel is one body; a Machine says how many workers run it and how they reach rows. Pallas's
interpreter knows no indirect streams: there each row is a copy of its own. On a TPU the bodies have
been compiled and never run. What has run is the same bodies, interpreted.

Inside a shard_map they need check_vma=False.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .sparsecore_machine import LANES, PADDING, Interpret, every, machine, run, windows, write
from .sparsecore_machine import Blocks as Blocks
from .sparsecore_machine import Machine as Machine
from .sparsecore_machine import Records as Records
from .sparsecore_machine import Rule as Rule
from .sparsecore_machine import rule_of as rule_of
from .sparsecore_machine import sqrt as sqrt


def lookup(
    array: jax.Array,
    ids: jax.Array,
    offsets: jax.Array,
    gains: jax.Array,
    records: Records,
    *,
    blocks: Blocks | None = None,
    interpret: Interpret = None,
) -> jax.Array:
    """[samples, width]: for each sample acc = 0; acc = acc + gain_j * row_j in position order.

    Sample s has the positions offsets[s] .. offsets[s + 1] of `ids` and `gains`; an empty bag gives
    zeros. `offsets` is [samples + 1], int32; ids that are in the table are the caller's care.

    Raises BackendError: a TPU without SparseCores, or rows too wide for their memory.
    """
    on, samples = machine(interpret), len(offsets) - 1
    blocks = blocks or Blocks.of(records, on.words)
    steps = max(1, -(-samples // (blocks.samples * on.workers)))
    lines = max(1, -(-samples // (8 * records.pack * steps * on.workers))) * 8
    n, size, padded = (
        blocks.positions,
        lines * records.pack,
        lines * records.pack * steps * on.workers,
    )
    assert n % on.lanes == 0 and n <= LANES and size <= blocks.samples, blocks
    operands = (
        array,
        jnp.pad(ids, (0, n + on.lanes), constant_values=PADDING),
        jnp.pad(gains, (0, n + on.lanes)),
        jnp.pad(offsets, (0, padded + on.lanes - len(offsets)), mode="edge"),
    )
    window = (3 * (n + on.lanes),)
    scratch = [pltpu.VMEM((size + on.lanes,), jnp.int32), pltpu.VMEM(window, jnp.int32)]
    scratch += [pltpu.VMEM(window, jnp.float32), pltpu.VMEM((2, n), jnp.int32)]
    scratch += [
        pltpu.VMEM(shape, jnp.float32) for shape in ((2, n, records.lanes), (lines, records.lanes))
    ]
    scratch += [pltpu.SemaphoreType.DMA((3,)), pltpu.SemaphoreType.DMA((2,))]
    result = jax.ShapeDtypeStruct((padded // records.pack, records.lanes), jnp.float32)
    made = run(on, partial(_lookup, on, records, n, size, steps), result, operands, scratch)
    return made.reshape(padded, records.width)[:samples]


def update(
    array: jax.Array,
    rows: jax.Array,
    gradients: jax.Array,
    rule: Rule,
    coefficients: jax.Array,
    records: Records,
    *,
    mask: jax.Array | None = None,
    count: jax.Array | None = None,
    blocks: Blocks | None = None,
    interpret: Interpret = None,
) -> jax.Array:
    """`array` with rule(w, g, slots, c) in the physical rows that `rows` names, in place.

    Args:
      rows: [n], int32, without duplicates; those beyond the array are padding.
      gradients: [n, lanes]; a physical row's, of all rows that share it.
      rule: of vectors; see rule_of.
      coefficients: [coefficients], float32, which become the vectors `c`.
      mask: [n, lanes], int32: 0 where a lane keeps its bits. Rows that share one need it.
      count: int32; what stands beyond it in `rows` is padding, too.

    Raises BackendError: as lookup.
    """
    on = machine(interpret, LANES)
    if len(rows) == 0:
        return array
    blocks = blocks or Blocks.of(records, on.words)
    n, more = blocks.rows, -len(rows) % blocks.rows
    assert n % 8 == 0 and n <= LANES, blocks
    real = jnp.asarray(len(rows) if count is None else count, jnp.int32)
    rows = jnp.where((jnp.arange(len(rows)) < real) & (rows < len(array)), rows, PADDING)
    by_row = [gradients] if mask is None else [gradients, mask]
    operands = (
        array,
        jnp.pad(rows, (0, more), constant_values=PADDING),
        jnp.full(on.lanes, real),
        jnp.repeat(jnp.append(coefficients, jnp.float32(0)), on.lanes),
        *(jnp.pad(each, ((0, more), (0, 0))) for each in by_row),
    )
    scratch = [pltpu.VMEM((on.lanes,), jnp.int32), pltpu.VMEM(operands[3].shape, jnp.float32)]
    scratch += [pltpu.VMEM((4, n), jnp.int32), pltpu.VMEM((3, n, array.shape[1]), jnp.float32)]
    scratch += [pltpu.VMEM((2, n, records.lanes), each.dtype) for each in by_row]
    scratch += [pltpu.SemaphoreType.DMA((ring,)) for ring in (4, 3, 2, 3)]
    return run(on, partial(_update, on, records, n, rule), None, operands, scratch)


def _lookup(
    on: Machine, records: Records, n: int, size: int, steps: int, worker: Any, *refs: Any
) -> None:
    """A worker's samples, in `steps` blocks of `size`: the sums of windows of n positions."""
    array, ids, gains, offsets, out, ends, ids_v, gains_v, at, rows_v, sums, sems, row_sems = refs
    lanes, lines = on.lanes, size // records.pack
    shift = jnp.full(lanes, records.pack.bit_length() - 1, jnp.int32)

    @pl.loop(0, steps)
    def _(step: Any) -> None:
        block = worker * steps + step
        pltpu.sync_copy(offsets.at[pl.ds(pl.multiple_of(block * size, 8), size + lanes)], ends)
        first, last = ends[pl.ds(0, lanes)][0], ends[pl.ds(size, lanes)][0]
        start = lax.shift_left(lax.shift_right_logical(first, 3), 3)

        def inputs(w: Any) -> list[Any]:
            slot, place = lax.rem(w, 3), pl.ds(pl.multiple_of(start + w * n, 8), n)
            here = pl.ds(pl.multiple_of(slot * (n + lanes), 8), n)
            pairs = (ids.at[place], ids_v.at[here]), (gains.at[place], gains_v.at[here])
            return [pltpu.make_async_copy(*pair, sems.at[slot]) for pair in pairs]

        def rows(w: Any) -> Any:
            slot = lax.rem(w, 2)
            return on.gather(array, at.at[slot], records.lanes, rows_v.at[slot], row_sems.at[slot])

        def ask(w: Any) -> None:
            every("wait", inputs(w))
            for c in range(0, n, lanes):
                found = ids_v[pl.ds(lax.rem(w, 3) * (n + lanes) + c, lanes)]
                at[lax.rem(w, 2), pl.ds(c, lanes)] = lax.shift_right_arithmetic(found, shift)
            rows(w).start()

        def use(w: Any, bag: Any) -> Any:
            rows(w).wait()
            window = lax.rem(w, 3) * (n + lanes), lax.rem(w, 2), start + w * n
            span = jnp.maximum(window[2], first), jnp.minimum(window[2] + n, last)
            refs = ends, ids_v, gains_v, rows_v, sums
            return _add(lanes, records, window, span, bag, *refs)

        @pl.loop(0, lines)
        def _(line: Any) -> None:
            for c in range(0, records.lanes, lanes):
                sums[line, pl.ds(c, lanes)] = jnp.zeros(lanes, jnp.float32)

        windows(lax.div(last - start + (n - 1), n), inputs, ask, use, jnp.int32(0))
        write(on, sums, out.at[pl.ds(pl.multiple_of(block * lines, 8), lines)])


def _add(lanes: int, records: Records, window: Any, span: Any, bag: Any, *refs: Any) -> Any:
    """Adds the positions of `span` to the sums, from those of `bag` on; the bag that goes on."""
    ends, ids, gains, rows, sums = refs
    at, slot, low = window
    width = records.width

    def add_row(i: Any, acc: Any) -> Any:
        gain = gains[pl.ds(at + i, lanes)][0]
        column = lax.rem(ids[pl.ds(at + i, lanes)][0], records.pack) * width
        found = (rows[slot, i, pl.ds(column + c, lanes)] for c in range(0, width, lanes))
        return tuple(a + gain * row for a, row in zip(acc, found, strict=True))

    def add_bag(carry: Any) -> Any:
        bag, position = carry
        end = ends[pl.ds(bag + 1, lanes)][0]
        stop = jnp.minimum(end, span[1])
        line, column = lax.div(bag, records.pack), lax.rem(bag, records.pack) * width
        places = [pl.ds(column + c, lanes) for c in range(0, width, lanes)]
        acc = tuple(sums[line, place] for place in places)
        acc = lax.fori_loop(position - low, stop - low, add_row, acc)
        for place, a in zip(places, acc, strict=True):
            sums[line, place] = a
        return jnp.where(end <= span[1], bag + 1, bag), stop

    return lax.while_loop(lambda carry: carry[1] < span[1], add_bag, (bag, span[0]))[0]


def _update(on: Machine, records: Records, n: int, rule: Rule, worker: Any, *refs: Any) -> None:
    """Of the windows of n rows before the count every on.workers-th, from `worker` on.

    While one is computed, the records of the next are on their way, and those of the last two back.
    """
    array, rows, count, coefficients, *more = refs
    k, lanes = len(more) // 2 - 4, on.lanes
    by_row, (count_v, c_v, at, records_v) = more[:k], more[k : k + 4]
    by_row_v, (row_sems, sems, by_row_sems, back_sems) = more[k + 4 : -4], more[-4:]
    pltpu.sync_copy(count, count_v)
    pltpu.sync_copy(coefficients, c_v)
    total = lax.div(count_v[pl.ds(0, lanes)][0] + (n - 1), n)
    mine = lax.div(total - worker + (on.workers - 1), on.workers)
    columns = records.streams * records.lanes

    def place(w: Any) -> Any:
        return pl.ds(pl.multiple_of((worker + w * on.workers) * n, 8), n)

    def inputs(w: Any) -> list[Any]:
        slot = lax.rem(w, 4)
        return [pltpu.make_async_copy(rows.at[place(w)], at.at[slot], row_sems.at[slot])]

    def loads(w: Any) -> list[Any]:
        slot, other = lax.rem(w, 3), lax.rem(w, 2)
        found = on.gather(array, at.at[lax.rem(w, 4)], columns, records_v.at[slot], sems.at[slot])
        pairs = [(x.at[place(w)], x_v.at[other]) for x, x_v in zip(by_row, by_row_v, strict=True)]
        return [found, *(pltpu.make_async_copy(*pair, by_row_sems.at[other]) for pair in pairs)]

    def stores(w: Any) -> Any:
        slot = lax.rem(w, 3)
        where = records_v.at[slot], back_sems.at[slot]
        return on.scatter(array, at.at[lax.rem(w, 4)], columns, *where)

    def ask(w: Any) -> None:
        pl.when(w >= 3)(lambda: stores(w - 3).wait())
        every("wait", inputs(w))
        every("start", loads(w))

    def use(w: Any, carry: Any) -> Any:
        every("wait", loads(w))
        here = records_v.at[lax.rem(w, 3)], *(each.at[lax.rem(w, 2)] for each in by_row_v)
        _apply(rule, records, lanes, c_v, *here)
        stores(w).start()
        return carry

    windows(mine, inputs, ask, use)
    pl.loop(jnp.maximum(mine - 3, 0), mine)(lambda w: stores(w).wait())


def _apply(
    rule: Rule, records: Records, lanes: int, coefficients: Any, found: Any, *by_row: Any
) -> None:
    c = tuple(coefficients[pl.ds(i, lanes)] for i in range(0, coefficients.shape[0] - lanes, lanes))

    @pl.loop(0, found.shape[0])
    def _(i: Any) -> None:
        @pl.loop(0, records.lanes // lanes)
        def _(piece: Any) -> None:
            first = piece * lanes
            places = [pl.ds(s * records.lanes + first, lanes) for s in range(records.streams)]
            old = [found[i, place] for place in places]
            gradient, *mask = (each[i, pl.ds(first, lanes)] for each in by_row)
            w, slots = rule(old[0], gradient, tuple(old[1:]), c)
            for place, before, new in zip(places, old, (w, *slots), strict=True):
                found[i, place] = jnp.where(mask[0] != 0, new, before) if mask else new
