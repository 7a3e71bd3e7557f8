"""What kernels for SparseCores stand on: how rows lie and are reached, who runs them, and rules.

Pallas's interpreter knows no indirect streams: there each row is a copy of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, signature
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import tpu_sc as plsc

from embsim.errors import BackendError
from embsim.optimizers import Optimizer, row_update

from ..ops import Ops

LANES = 128  # a stream has so many or a multiple: what is gathered from an array as it stands
PADDING = -1  # a row that is neither read nor written
Rule = Callable[[Any, Any, Any, Any], tuple[Any, Sequence[Any]]]
Interpret = pltpu.InterpretParams | None  # None compiles


@dataclass(frozen=True)
class Records:
    """Where the rows of a table lie: `width` lanes of each of `streams` streams."""

    width: int
    streams: int

    @staticmethod
    def of(dim: int, slots: int) -> "Records":
        """For rows of `dim` numbers with so many slots of the same dim."""
        narrow = max(16, 1 << (dim - 1).bit_length())
        return Records(narrow if dim <= LANES else -(-dim // LANES) * LANES, 1 + slots)

    @property
    def lanes(self) -> int:
        return max(self.width, LANES)

    @property
    def pack(self) -> int:
        """Rows in a physical row."""
        return self.lanes // self.width

    def shape(self, rows: int) -> tuple[int, int]:
        return -(-rows // self.pack), self.streams * self.lanes


@dataclass(frozen=True)
class Blocks:
    """What a worker holds: twice `positions` looked-up rows, the sums of `samples`, and three times
    `rows` records to be updated."""

    positions: int
    samples: int
    rows: int

    @staticmethod
    def of(records: Records, words: int) -> "Blocks":
        """The largest that fit into so many 32-bit words."""
        each = records.lanes * (3 * records.streams + 4)
        rows = [rows for rows in (64, 32, 16, 8) if rows * each <= words]
        if not rows:
            what = f"8 records of {records.streams} x {records.lanes} numbers need {8 * each} words"
            raise BackendError(f"SparseCore: {what}, a worker has {words}; use the kernels 'xla'")
        positions = max(p for p in (64, 32, 16) if p == 16 or p * records.lanes * 4 <= words)
        return Blocks(positions, positions * records.pack, rows[0])


def rule_of(optimizer: Optimizer, names: tuple[str, ...]) -> Rule:
    """An optimizer's update of one vector, with coefficients in the order of `names`.

    Raises BackendError: a slot of one number a row; where it is traced, ops.mean and ops.power.
    """

    def lacks(what: str) -> Any:
        who = type(optimizer).__name__
        raise BackendError(f"{who}: SparseCores have no {what}; use the kernels 'xla'")

    if any(slot.rowwise for slot in optimizer.slots):
        lacks("sum over the lanes, which a slot of one number a row needs")
    plain = Ops(exact=False)
    ops = SimpleNamespace(
        sqrt=sqrt,
        minimum=plain.minimum,
        maximum=plain.maximum,
        where=plain.where,
        mean=lambda x: lacks("ops.mean"),
        power=lambda x, exponent: lacks("ops.power"),
    )
    row = row_update(optimizer, ops)
    return lambda w, g, slots, c: row(w, g, slots, plain.coefficients(names, c))


def sqrt(x: Any) -> Any:
    """Rounded once, of +, - and * that are: the compiler of JAX 0.10 has no root on SparseCores.

    Newton's y = 1 / √x from a guess; s = x y; s + (x - s²) y / 2, where s² is exact in two parts.
    """
    small = x < 1  # scaled by powers of 4, so that no part of s² is lost or too large
    scaled = x * jnp.where(small, 2.0**64, 2.0**-24)
    half = lax.shift_right_logical(lax.bitcast_convert_type(scaled, jnp.int32), 1)
    y = lax.bitcast_convert_type(0x5F375A86 - half, jnp.float32)
    for _ in range(3):
        y = y * (1.5 - ((0.5 * scaled) * y) * y)
    s = scaled * y
    high = s * 4097.0 - (s * 4097.0 - s)
    low, square = s - high, s * s
    rest = ((high * high - square) + (2.0 * high) * low) + low * low
    s = s + ((scaled - square) - rest) * (0.5 * y)
    s = s * jnp.where(small, 2.0**-32, 2.0**12)
    return jnp.where((x > 0) & (x < jnp.inf), s, jnp.where(x < 0, jnp.nan, x))


@dataclass(frozen=True)
class Machine:
    """So many workers with vectors of `lanes` and a memory of `words` each.

    gather, scatter: (array, rows, columns, buffer, semaphore) -> a copy, with start and wait.
    """

    workers: int
    lanes: int
    words: int
    gather: Callable[..., Any]
    scatter: Callable[..., Any]
    interpret: Interpret


def machine(interpret: Interpret, lanes: int = 16) -> Machine:
    """Two interpreted workers of so many lanes, or the SparseCores that are compiled for."""
    if interpret is not None:
        late = interpret.dma_execution_mode == "eager" and not interpret.detect_races
        gather, scatter = (partial(_copies, away, late) for away in (False, True))
        return Machine(2, lanes, 2**16, gather, scatter, interpret)
    cores = pltpu.get_tpu_info().sparse_core
    if cores is None:
        raise BackendError("this TPU has no SparseCores; use the kernels 'xla'")
    words, workers = cores.vmem_capacity_bytes // 5, cores.num_cores * cores.num_subcores
    return Machine(
        workers, cores.num_lanes, words, partial(_stream, False), partial(_stream, True), None
    )


def run(on: Machine, body: Any, result: Any, operands: Any, scratch: Any) -> jax.Array:
    """What body(worker, operands, result, scratch) makes; without a result, its first operand."""
    n = len(operands)

    def interpreted(*refs: Any) -> None:
        changed = refs if result is not None else (refs[n], *refs[1:n], *refs[n + 1 :])
        body(pl.program_id(0), *changed)

    if on.interpret is not None:
        anywhere = pl.BlockSpec(memory_space=pl.ANY)
        return pl.pallas_call(
            interpreted,
            grid=(on.workers,),
            in_specs=[anywhere] * n,
            out_specs=anywhere,
            out_shape=operands[0] if result is None else result,
            scratch_shapes=scratch,
            input_output_aliases={0: 0} if result is None else {},
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
            interpret=on.interpret,
        )(*operands)
    mesh = plsc.VectorSubcoreMesh(core_axis_name="core", subcore_axis_name="subcore")

    def compiled(*refs: Any) -> None:
        body(lax.axis_index("subcore") * mesh.num_cores + lax.axis_index("core"), *refs)

    # The compiler's layout passes know no loop without a bound.
    params = pltpu.CompilerParams(needs_layout_passes=False)
    kind: Any = () if result is None else result
    made: Any = pl.kernel(compiled, kind, mesh=mesh, scratch_types=scratch, compiler_params=params)
    if result is not None:
        return made(*operands)
    changed = jax.new_ref(operands[0])
    made(changed, *operands[1:])
    return jax.freeze(changed)


def _stream(away: bool, array: Any, rows: Any, columns: int, buffer: Any, semaphore: Any) -> Any:
    there = array.at[plsc.Indices(rows, ignored_value=PADDING), pl.ds(0, columns)]
    return pltpu.make_async_copy(*((buffer, there) if away else (there, buffer)), semaphore)


def _copies(away: bool, late: bool, *stream: Any) -> Any:
    """As _stream, a copy of each row. If `late`, all happens in its wait, until which a stream may
    still read which rows these are; other copies happen at once in that mode."""
    array, rows, columns, buffer, semaphore = stream

    def each(*acts: str) -> None:
        @pl.loop(0, rows.shape[0])
        def _(i: Any) -> None:
            row = rows[pl.ds(i, 1)][0]

            @pl.when(row != PADDING)
            def _() -> None:
                there, here = array.at[pl.ds(row, 1), pl.ds(0, columns)], buffer.at[pl.ds(i, 1)]
                copy = pltpu.make_async_copy(*((here, there) if away else (there, here)), semaphore)
                for act in acts:
                    getattr(copy, act)()

    if late:
        return SimpleNamespace(start=lambda: None, wait=partial(each, "start", "wait"))
    return SimpleNamespace(start=partial(each, "start"), wait=partial(each, "wait"))


def write(on: Machine, source: Any, target: Any) -> None:
    """From JAX 0.12 on a SparseCore's copy to its TPU's memory has no semaphore of its own."""
    make: Any = pltpu.make_async_copy
    if on.interpret is not None or signature(make).parameters["sem"].default is Parameter.empty:
        pltpu.sync_copy(source, target)
    else:
        make(source, target).start()
        make(source, target).wait()


def windows(count: Any, inputs: Any, ask: Any, use: Any, carry: Any = 0) -> Any:
    """carry = use(w, carry) for each window w, while the rows of w + 1 are on their way, and before
    them the inputs of w + 2."""

    def ahead(w: Any) -> None:
        pl.when(w + 1 < count)(lambda: ask(w + 1))
        pl.when(w + 2 < count)(lambda: every("start", inputs(w + 2)))

    def turn(w: Any, carry: Any) -> Any:
        ahead(w)
        return use(w, carry)

    pl.when(count > 0)(lambda: every("start", inputs(0)))
    ahead(-1)
    return lax.fori_loop(0, count, turn, carry)


def every(act: str, copies: Sequence[Any]) -> None:
    for copy in copies:
        getattr(copy, act)()
