"""Lookup, update and whole step of the reference engine on three workloads, beside plain NumPy.

python -m experiments.benchmarks.cpu_step [--workloads W1 W2 W3] [--quick] [--repeats N]

Both sides go through the same batches in turn, step by step, in one process: quote the ratios, not
the milliseconds, which move with whatever else the machine does. `plan` (validation, sorting) is
part of the engine's step and has no counterpart in NumPy, where sorting is part of the update.
Before anything is timed, the two are compared after two steps.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import embsim
from experiments.benchmarks.plain_numpy import PlainNumpy
from experiments.benchmarks.workloads import WORKLOADS, Workload

Optimizer = embsim.SGD | embsim.Adagrad | embsim.Adam
OPTIMIZERS: dict[str, tuple[Callable[[float], Optimizer], ...]] = {
    "W1": (embsim.Adagrad,),
    "W2": (embsim.Adagrad,),
    "W3": (embsim.SGD, embsim.Adam),
}
RATE = 0.01
ALPHAS = (0.0, 1.05)
PHASES = ("plan", "lookup", "update", "step")


@dataclass
class Clock:
    """Seconds of each phase, step by step."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        start = time.perf_counter()
        yield
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)

    def median(self, name: str) -> float:
        """Milliseconds; the step is the sum of its phases."""
        if name == "step":
            return 1e3 * statistics.median(map(sum, zip(*self.seconds.values(), strict=True)))
        return 1e3 * statistics.median(self.seconds[name]) if name in self.seconds else 0.0


def measure(
    workload: Workload, optimizer: Optimizer, alpha: float, repeats: int
) -> tuple[Clock, Clock]:
    """(engine, plain NumPy), interleaved step by step on the same batches."""
    rng = np.random.default_rng(0)
    batches = [workload.ids(rng, alpha) for _ in range(3)]
    shape = (workload.batch, workload.dim)
    gradients = [rng.integers(-8, 9, shape).astype(np.float32) / 64 for _ in range(workload.tables)]
    engine = embsim.Engine(workload.configs(), optimizer)
    tables = [table.copy() for table in engine.read().weights.values()]
    plain = PlainNumpy(tables, optimizer, workload.combiner)
    clocks = Clock(), Clock()
    for step in range(repeats + 2):
        if step == 2:
            check_equal(engine, plain)
            clocks = Clock(), Clock()
        batch = batches[step % len(batches)]
        engine_step(engine, batch, gradients, clocks[0])
        ids = [bags.values.reshape(workload.batch, workload.pooling) for bags in batch]
        with clocks[1].phase("lookup"):
            plain.lookup(ids)
        with clocks[1].phase("update"):
            plain.update(ids, gradients)
    return clocks


def engine_step(
    engine: embsim.Engine,
    batch: list[embsim.RaggedTensor],
    gradients: list[np.ndarray],
    clock: Clock,
) -> None:
    with clock.phase("plan"):
        engine.enqueue(engine.make_batch(batch))
    with clock.phase("lookup"):
        engine.dequeue()
    with clock.phase("update"):
        engine.apply_gradients(gradients)


def check_equal(engine: embsim.Engine, plain: PlainNumpy) -> None:
    """Both have the same tables, to the bit: gradients are such that every sum of them is exact."""
    for (name, mine), theirs in zip(engine.read().weights.items(), plain.tables, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=f"table {name!r} after two steps")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--workloads", nargs="+", choices=sorted(WORKLOADS), default=["W1", "W2", "W3"]
    )
    parser.add_argument("--quick", action="store_true", help="tables and batches 16 times smaller")
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each side")
    options = parser.parse_args(arguments)
    table = Table(
        title=f"engine: milliseconds, median of {options.repeats}, {embsim.num_threads()} threads; "
        "x: plain NumPy / engine"
    )
    for column in ("workload", "optimizer", "ids", *PHASES, "x lookup", "x update", "x step"):
        side = "left" if column in ("workload", "optimizer", "ids") else "right"
        table.add_column(column, justify=side, no_wrap=True)
    runs = [(w, o, a) for w in options.workloads for o in OPTIMIZERS[w] for a in ALPHAS]
    console = Console(width=100)
    for name, optimizer, alpha in track(runs, "measuring", console=console, transient=True):
        workload = WORKLOADS[name].scaled(16) if options.quick else WORKLOADS[name]
        mine, plain = measure(workload, optimizer(RATE), alpha, options.repeats)
        ids = f"Zipf {alpha}" if alpha else "uniform"
        ratios = [plain.median(p) / mine.median(p) for p in ("lookup", "update", "step")]
        table.add_row(
            name,
            optimizer.__name__,
            ids,
            *(f"{mine.median(phase):.2f}" for phase in PHASES),
            *(f"{ratio:.1f}" for ratio in ratios),
        )
    console.print(table)


if __name__ == "__main__":
    main()
