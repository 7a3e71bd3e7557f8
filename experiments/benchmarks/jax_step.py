"""A whole step of embsim_tpu, lookup and update, beside two other spellings in JAX and the engine.

python -m experiments.benchmarks.jax_step [--workloads W1 W2 W3] [--contenders NAME ...]
    [--steps N] [--scale N] [--check] [--json]

Runs on the device that JAX finds. The spellings in JAX (jax_contenders.py) take turns on the same
batches and on one and the same tables, which they hand to each other, so that one set of tables is
held; the engine, of NumPy and Numba, has its own and takes its turn. A turn is two steps, of which
the second is timed: the first finds in the caches what another one left. Quote the ratios, not the
milliseconds, which move with whatever else the machine does. Before anything is timed, each is
held to the reference engine on small tables.

    plan       a batch checked, planned, padded and transferred by the host: in training a thread
               does it beforehand, so it is no part of embsim_tpu's step, nor here of the engine's
    put        of it: the transfer of what was planned
    of copy    the bytes that a step cannot do without by the time of the step, as a share of the
               bytes per second of an array that is read and written in place in the same run

Those bytes: each distinct row of a batch read by the lookup, read and written with its slots by
the update; activations written, their gradients read; each once.

The dense Adam updates every row, as optax does: another law than that of the others.
"""

import argparse
import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

import embsim
from embsim_tpu import Embedding
from experiments.benchmarks.cpu_step import ALPHAS, OPTIMIZERS, RATE, Clock
from experiments.benchmarks.jax_contenders import Contender, Optimizer, contenders
from experiments.benchmarks.jax_results import (
    Result,
    floor_bytes,
    machine,
    memory_table,
    time_table,
)
from experiments.benchmarks.workloads import WORKLOADS, Workload

NAMES = ("embsim_tpu", "sorted", "dense", "engine")
COPIED = 2**26  # numbers of the array whose copying is timed: far more than any cache
TOLERANCE = 1e-5  # of the largest number of an array: sums of some dozens of float32


class Bench:
    """The contenders of one workload, ready to take turns."""

    def __init__(
        self, workload: Workload, optimizer: Optimizer, alpha: float, names: Sequence[str] = NAMES
    ) -> None:
        rng = np.random.default_rng(0)
        self.workload, self.optimizer, self.alpha = workload, optimizer, alpha
        self.batches = [workload.ids(rng, alpha) for _ in range(3)]
        self.targets = far_targets(workload, rng)
        self.clock, self.planning = Clock(), Clock()
        embedding = Embedding(workload.configs(), optimizer)
        self.state = embedding.init()
        self.held = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))
        self.programs: dict[str, Any] = {}
        self.turns: list[Callable[[int], None]] = [self._copy()]
        for each in contenders(workload, optimizer, embedding):
            if each.name == "embsim_tpu":
                self._time_planning(embedding)
            if each.name in names:
                self.turns.append(self._turn(each))
        if "engine" in names:
            engine = embsim.Engine(workload.configs(), optimizer)
            self.turns.append(lambda step: self._engine_step(engine, step))

    def run(self, steps: int) -> list[Result]:
        """A turn to warm up, then `steps`; each time another one begins."""
        for number in range(steps + 1):
            if number == 1:
                self.clock.seconds.clear()
            first = number % len(self.turns)
            for turn in self.turns[first:] + self.turns[:first]:
                turn(2 * number)
                turn(2 * number + 1)
        for seconds in self.clock.seconds.values():
            del seconds[::2]
        return [self._result(name) for name in NAMES if name in self.clock.seconds]

    def _turn(self, contender: Contender) -> Callable[[int], None]:
        batches = [jax.block_until_ready(contender.put(batch)) for batch in self.batches]
        targets = [jax.device_put(target) for target in self.targets]
        program = contender.compiled(self.state, batches[0], targets, contender.numbers(0))
        self.programs[contender.name] = program

        def turn(step: int) -> None:
            numbers = contender.numbers(step)
            with self.clock.phase(contender.name):
                found = program(self.state, batches[step % 3], targets, numbers)
                jax.block_until_ready(found)
            self.state = found[1]

        return turn

    def _engine_step(self, engine: embsim.Engine, step: int) -> None:
        engine.enqueue(engine.make_batch(self.batches[step % 3]))
        with self.clock.phase("engine"):
            engine_step(engine, self.targets)

    def _copy(self) -> Callable[[int], None]:
        array = [jnp.ones(min(COPIED, self.held // 4), jnp.float32)]
        self.copied = 2 * array[0].nbytes
        program = jax.jit(jnp.negative, donate_argnums=0)

        def turn(_: int) -> None:
            with self.clock.phase("copy"):
                array[0] = jax.block_until_ready(program(array[0]))

        return turn

    def _time_planning(self, embedding: Embedding) -> None:
        for batch in [self.batches[0], *self.batches]:  # the first compiles the planner
            with self.planning.phase("plan"):
                plan = jax.block_until_ready(embedding.plan(batch))
            arrays = jax.tree.map(np.array, plan)
            with self.planning.phase("put"):
                jax.block_until_ready(jax.device_put(arrays))
        for seconds in self.planning.seconds.values():
            del seconds[0]

    def _result(self, name: str) -> Result:
        seconds, step = self.clock.seconds[name], self.clock.median(name)
        floor = floor_bytes(self.workload, self.optimizer, self.batches)
        result = Result(
            self.workload.name,
            self.workload.rows,
            type(self.optimizer).__name__,
            f"Zipf {self.alpha}" if self.alpha else "uniform",
            name,
            len(seconds),
            step,
            1e3 * min(seconds),
            1e3 * max(seconds),
            self.planning.median("plan"),
            self.planning.median("put"),
            floor,
            floor / step / (self.copied / self.clock.median("copy")),
            self.held,
        )
        if name not in self.programs:
            return result
        sizes = self.programs[name].memory_analysis()
        return replace(
            result,
            arguments=sizes.argument_size_in_bytes,
            outputs=sizes.output_size_in_bytes,
            aliased=sizes.alias_size_in_bytes,
            temporaries=sizes.temp_size_in_bytes,
        )


def engine_step(engine: embsim.Engine, targets: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Lookup and update of the batch that is enqueued."""
    activations = list(engine.dequeue())
    pairs = zip(activations, targets, strict=True)
    engine.apply_gradients([found - target for found, target in pairs])
    return activations


def far_targets(workload: Workload, rng: np.random.Generator) -> list[np.ndarray]:
    """Far from all activations, so that no sum of gradients cancels and rounding stays small."""
    shape = workload.batch, workload.dim
    return [rng.uniform(60, 68, shape).astype(np.float32) for _ in range(workload.tables)]


def check(workload: Workload, optimizer: Optimizer, alpha: float) -> None:
    """Three steps of each contender in JAX beside the reference engine, on small tables.

    Raises:
      AssertionError: activations, tables or slots of a contender that are not the engine's.
    """
    small = replace(workload, tables=2, rows=500, batch=32)
    rng = np.random.default_rng(1)
    batches, targets = [small.ids(rng, alpha) for _ in range(3)], far_targets(small, rng)
    embedding = Embedding(small.configs(), optimizer)
    for each in contenders(small, optimizer, embedding):
        engine = embsim.Engine(small.configs(), each.law)
        state = embedding.init()
        for step, batch in enumerate(batches):
            engine.enqueue(engine.make_batch(batch))
            wanted = engine_step(engine, targets)
            given = each.put(batch)
            program = each.compiled(state, given, targets, each.numbers(step))
            found, state = program(state, given, targets, each.numbers(step))
            _assert_near(f"{each.name}: activations of step {step}", list(found), wanted)
        mine, theirs = embedding.get(state), engine.read()
        _assert_near(f"{each.name}: tables", mine.weights, theirs.weights)
        _assert_near(f"{each.name}: slots", mine.slots, theirs.slots)


def _assert_near(what: str, mine: Any, theirs: Any) -> None:
    """Trees of the same arrays, within the tolerance."""
    theirs = jax.tree.map(np.asarray, theirs)
    for (path, array), wanted in zip(
        jax.tree.leaves_with_path(mine), jax.tree.leaves(theirs), strict=True
    ):
        np.testing.assert_allclose(
            np.asarray(array),
            wanted,
            rtol=0,
            atol=TOLERANCE * float(np.abs(wanted).max()),
            err_msg=f"{what} {jax.tree_util.keystr(path)}",
        )


def main(arguments: list[str] | None = None) -> list[Result]:
    options = _parse(arguments)
    runs = [(w, o(RATE), a) for w in options.workloads for o in OPTIMIZERS[w] for a in ALPHAS]
    console, results = Console(width=118), list[Result]()
    shown = track(runs, "measuring", console=Console(stderr=True), transient=True)
    for name, optimizer, alpha in shown:
        workload = WORKLOADS[name]
        workload = replace(workload, rows=max(1, workload.rows // options.scale))
        check(workload, optimizer, alpha)
        if options.check:
            continue
        made = Bench(workload, optimizer, alpha, options.contenders).run(options.steps)
        results += made
        gc.collect()  # its turns hold it and it holds them, with gigabytes of tables
        if options.json:
            for each in made:
                print(json.dumps({**asdict(each), "beyond": each.beyond, **machine()}), flush=True)
    if options.check:
        console.print(f"{len(runs)} runs: every contender computes what the engine computes")
    elif not options.json:
        console.print(time_table(results), memory_table(results))
    return results


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--workloads", nargs="+", choices=sorted(WORKLOADS), default=["W1", "W2", "W3"]
    )
    parser.add_argument("--contenders", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--steps", type=int, default=9, help="timed steps of each")
    parser.add_argument(
        "--scale", type=int, default=1, help="tables this many times smaller, batches as they are"
    )
    parser.add_argument("--check", action="store_true", help="compare the numbers, time nothing")
    parser.add_argument("--json", action="store_true", help="JSON lines, one per contender")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
