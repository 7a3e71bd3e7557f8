"""What a case costs a TPU: bundles per row, in its loops over rows and around them.

Bundles are a lower bound on cycles: nothing in them waits for memory. They rank variants of the
same arithmetic and tell of a change; they are no throughput.

All bundles that a program executes for its batch, by the turns of its loops, are divided by its
rows. Of a kernel the case itself says how many rows a turn of each loop handles, so that what is
done once for a chunk of rows, and what stands around it in the program, is told apart.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from . import compile_for, target
from .bundles import Function, flags, program

UNCERTAIN = 0.05  # above it a number is marked as a lower bound: see Executed
NOTHING = 0.5  # below it the TensorCore leaves rows to the SparseCore
Calls = list[tuple[str, Function, int | None]]  # of a program: see bundles.program
SPARSECORE = "CORE_TYPE_SC"  # in the text of programs that use it; no bundles of it are written


@dataclass(frozen=True)
class Program:
    """What is compiled: a function, its arguments as jax.ShapeDtypeStructs with shardings, those
    of them that it is given for good."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donate: tuple[int, ...] = ()


@dataclass(frozen=True)
class Kernel:
    """A Pallas kernel in a program.

    Args:
      name: what pallas_call was given; the compiler adds a number.
      rows: of each innermost loop, in their order, how many rows a turn handles; 0 for a loop that
        does not turn in a full chunk, which is left out.
      chunk: the rows of a turn of the loop around them, that over the grid.
    """

    name: str
    rows: tuple[int, ...]
    chunk: int


@dataclass(frozen=True)
class Case:
    """Something to be counted.

    Args:
      name: unique.
      kind: whose code it is: "pallas", "xla" or the name of a library.
      build: the program for so many rows on a mesh of one device.
      large: bytes of its table; a copy of so much is reported.
      reads: of each row, how often memory is read at least; fewer mean that a loop was missed.
      rows: of the batch.
      kernel: of a program whose rows are handled by one.
      needs: a module without which it cannot be built.
    """

    name: str
    kind: str
    build: Callable[[int, Mesh], Program]
    large: int
    reads: int = 1
    rows: int = 2**16
    kernel: Kernel | None = None
    needs: str | None = None

    @property
    def installed(self) -> bool:
        return self.needs is None or find_spec(self.needs) is not None


@dataclass(frozen=True)
class Cost:
    """Bundles per row of a case on a target.

    Args:
      bundles: in the loops over rows; None if that cannot be known.
      chunk: those that are executed once for a chunk, and around a kernel.
      at_least: whether turns are left out whose number depends on data.
      sparsecore: whether the SparseCore does a part, of which nothing is known.
      copies: of a whole table that the program makes.
      refused: why the compiler does not compile it for this target.
      unknown: why `bundles` is not known.
      loops: all that were found.
    """

    bundles: float | None = None
    chunk: float = 0.0
    at_least: bool = False
    sparsecore: bool = False
    copies: int = 0
    refused: str = ""
    unknown: str = ""
    loops: Sequence[Mapping[str, Any]] = ()

    def __str__(self) -> str:
        if self.refused or self.bundles is None:
            return "–" if self.refused else "?"
        parts = [f"{'≥ ' if self.at_least else ''}{self.bundles:.1f}"]
        if self.chunk >= 0.05:
            parts.append(f"{self.chunk:.1f}")
        if self.sparsecore:
            parts = [*(parts if self.bundles >= NOTHING else ()), "SC"]
        return " + ".join(parts) + "*" * bool(self.copies)


@dataclass(frozen=True)
class Executed:
    """What a program executes: bundles; those of them in loops that turn we know not how often,
    counted once; whether such a loop stands alone and is always entered; how many of each kind."""

    bundles: int
    uncertain: int
    unbounded: bool
    counts: Counter[str]

    @staticmethod
    def of(functions: Iterable[tuple[Function, int]]) -> "Executed":
        """Of functions, each so many times."""
        bundles, uncertain, unbounded, counts = 0, 0, False, Counter[str]()
        for function, calls in functions:
            bundles += calls * function.own
            counts.update({kind: calls * n for kind, n in function.counts.items()})
            for loop in function.loops:
                turns, known = function.times(loop)
                bundles += calls * turns * loop.own
                uncertain += 0 if known else calls * turns * loop.own
                unbounded |= loop.turns is None and loop.depth == 1 and not loop.optional
                counts.update({kind: calls * turns * n for kind, n in loop.counts.items()})
        return Executed(bundles, uncertain, unbounded, counts)


class UnknownError(Exception):
    """Why the bundles per row cannot be known."""


def measure(name: str, on: str, cases: str) -> Cost:
    """The cost of a case of `cases`, "package.module:attribute", in a process of its own: libtpu
    reads once, when it is loaded, where to write bundles."""
    with tempfile.TemporaryDirectory(prefix="embsim-bundles-") as directory:
        command = [sys.executable, "-m", "embsim_tpu.aot", "bundles"]
        command += ["--cases", cases, "--case", name, "--target", on, "--dump", directory]
        done = subprocess.run(
            command, env=_environment(Path(directory)), capture_output=True, text=True
        )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return Cost(unknown=f"the process that compiles it ended: {said[-1]}")
    return Cost(**json.loads(lines[-1]))


def _environment(directory: Path) -> dict[str, str]:
    # XLA_FLAGS are about this process; a program from a cache is not compiled and dumps nothing.
    left_out = {"XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"}
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    path = os.pathsep.join(each or os.getcwd() for each in sys.path)
    return kept | {
        "LIBTPU_INIT_ARGS": flags(directory),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": path,
    }


def registered(cases: str) -> dict[str, Case]:
    """The list of cases that "package.module:attribute" names, by name.

    Raises:
      ValueError: no list of cases is there.
    """
    module, _, attribute = cases.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"cases {cases!r}: {error}; name them package.module:LIST") from error
    return {case.name: case for case in found}


def cost(case: Case, on: str, directory: Path) -> Cost:
    """In a process whose libtpu writes bundles to `directory`."""
    mesh = target(on)
    try:
        given = case.build(case.rows, mesh)
        report = compile_for(
            given.function, *given.arguments, large=case.large, donate=given.donate
        )
    except Exception as error:  # of whatever kind: the compiler's own, JAX's, the library's
        return Cost(refused=_first_line(error))
    made = Cost(sparsecore=SPARSECORE in report.text, copies=len(report.copies))
    try:
        calls = program(directory, on)
    except KeyError as error:
        return replace(made, unknown=f"libtpu wrote no bundles of {error}")
    made = replace(made, loops=_described(calls))
    try:
        return replace(made, **_per_row(case, calls, made.sparsecore, _cores(mesh)))
    except UnknownError as error:
        return replace(made, unknown=str(error))


def _cores(mesh: Mesh) -> int:
    """Of each device, between which the compiler may share a loop."""
    return getattr(mesh.devices.flat[0], "num_cores", 1)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def _per_row(case: Case, calls: Calls, sparsecore: bool, cores: int) -> dict[str, Any]:
    """`bundles`, `chunk` and `at_least` of a Cost."""
    kernel = None if case.kernel is None else _kernel(case.kernel, calls, case.reads)
    if kernel is not None:
        calls = [each for each in calls if each[0] != kernel.name]
    found = Executed.of(_called(calls))
    if found.unbounded:
        raise UnknownError("how often a loop turns is not a constant")
    bundles, at_least = found.bundles / case.rows, found.uncertain > UNCERTAIN * found.bundles
    if kernel is not None:
        return {
            "bundles": kernel.bundles,
            "chunk": kernel.chunk + bundles,
            "at_least": at_least and bundles > UNCERTAIN * kernel.bundles,
        }
    reads = found.counts["reads"] / case.rows
    if not sparsecore and reads < 0.9 * case.reads / cores:
        raise UnknownError(f"a row is read {reads:.2f} times, and must be {case.reads} times")
    return {"bundles": bundles, "at_least": at_least}


def _called(calls: Calls) -> list[tuple[Function, int]]:
    for name, _, times in calls:
        if times is None:
            raise UnknownError(f"{name} stands in a loop that turns we know not how often")
    return [(function, times or 1) for _, function, times in calls]


class _Counted(NamedTuple):
    """A kernel's full name; its bundles per row, and those per row that a chunk needs once."""

    name: str
    bundles: float
    chunk: float


def _kernel(kernel: Kernel, calls: Calls, reads: int) -> _Counted:
    found = [(name, each) for name, each, _ in calls if name.startswith(kernel.name)]
    if len(found) != 1:
        raise UnknownError(f"{len(found)} kernels are called {kernel.name!r}; there must be one")
    name, function = found[0]
    inner = [loop for loop in function.loops if not loop.inner]
    sizes = ", ".join(str(loop.own) for loop in inner)
    if len(inner) != len(kernel.rows):
        raise UnknownError(
            f"kernel {kernel.name!r} has {len(inner)} innermost loops, of {sizes} bundles; "
            f"the case names the rows of {len(kernel.rows)}"
        )
    over_rows = [(loop, rows) for loop, rows in zip(inner, kernel.rows, strict=True) if rows]
    for loop, rows in over_rows:
        if loop.turns and loop.turns * rows != kernel.chunk:
            raise UnknownError(
                f"kernel {kernel.name!r}: a loop of {loop.own} bundles turns {loop.turns} times; "
                f"with {rows} rows each that is no chunk of {kernel.chunk}"
            )
    if (each := sum(loop.counts["reads"] / rows for loop, rows in over_rows)) < 0.9 * reads:
        raise UnknownError(f"a row is read {each:.2f} times, and must be {reads} times")
    chunk = sum(loop.own for loop in function.loops if loop.inner)
    per_row = sum(loop.own / rows for loop, rows in over_rows)
    return _Counted(name, per_row, chunk / kernel.chunk)


def _described(calls: Calls) -> list[dict[str, Any]]:
    return [
        {"function": name} | asdict(loop) for name, function, _ in calls for loop in function.loops
    ]
