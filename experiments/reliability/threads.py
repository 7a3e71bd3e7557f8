"""A loader, a trainer and a looker at once: is a step ever lost, doubled, or seen half done?

Three threads share one embedding and choose what they do next by their own random numbers:

    loader    enqueues numbered training batches, and batches of which it wants only a look
    trainer   dequeues, gives gradients, sometimes gives a step up and takes it again, or drains
    looker    takes snapshots, waiting for whole steps

Every training batch adds one to the row with the batch's number mod ROWS, in both of two tables.
So all is known at any time: a table's sum is the number of steps, the row of batch n is n // ROWS
or one more, both tables are equal, and what staleness k misses is at most the last k.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

import embsim
from embsim import DeadlockError

ROWS = 32
STALENESS = 2
PATIENCE = 60.0  # seconds after which a wait is a hang


@dataclass
class Counts:
    """Operations that were done, by name, and what was wrong with any of them."""

    done: dict[str, int] = field(default_factory=dict[str, int])
    wrong: list[str] = field(default_factory=list[str])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, name: str) -> None:
        with self.lock:
            self.done[name] = self.done.get(name, 0) + 1

    @property
    def total(self) -> int:
        return sum(self.done.values())

    def check(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.wrong.append(otherwise)


class World:
    """The embedding, what was enqueued, and when to stop."""

    def __init__(self, operations: int, seed: int, backend: str = "reference") -> None:
        tables = [
            embsim.TableConfig(ROWS, 4, lambda shape, dtype: np.zeros(shape, dtype), name=name)
            for name in "ab"
        ]
        self.features = {table.name: embsim.FeatureConfig(table) for table in tables}
        with embsim.TPUStrategy(1).scope():
            self.embedding = embsim.TPUEmbedding(
                self.features,
                embsim.SGD(1.0),
                schedule=embsim.stale(STALENESS),
                queue_capacity=4,
                backend=backend,
            )
        self.operations, self.seed = operations, seed
        self.kinds: deque[tuple[bool, int]] = deque()  # (training, number), as they were enqueued
        self.counts, self.ended = Counts(), threading.Event()
        self.trained = 0

    @property
    def is_over(self) -> bool:
        return self.counts.total >= self.operations or bool(self.counts.wrong)


def load(world: World) -> None:
    """Enqueues until enough was done; full queues are waited for, at times only shortly."""
    draw, number = np.random.default_rng([world.seed, 0]), 0
    while not world.is_over:
        training = bool(draw.random() < 0.8)
        wanted = number if training else int(draw.integers(ROWS))
        ids = np.array([wanted % ROWS], np.int32)
        patience = PATIENCE if draw.random() < 0.5 else 0.0005
        try:
            # Told before it is enqueued: the trainer may dequeue at once.
            world.kinds.append((training, wanted))
            batch = dict.fromkeys(world.features, ids)
            world.embedding.enqueue(batch, training=training, blocking=True, timeout=patience)
        except DeadlockError:
            world.kinds.pop()
            world.counts.count("enqueue refused, queue full")
            world.counts.check(patience < PATIENCE, "loader: the queue was full for a minute")
            continue
        number += training
        world.counts.count("enqueue")
    world.ended.set()


def train(world: World) -> None:
    """Dequeues what comes, in order, until the loader has ended and the queue is empty."""
    draw, embedding = np.random.default_rng([world.seed, 1]), world.embedding
    waits_since = time.monotonic()
    while not world.counts.wrong:
        over = world.ended.is_set()  # before the queue is looked at
        try:
            activations = embedding.dequeue()
        except DeadlockError:
            if over:
                return
            late = time.monotonic() - waits_since > PATIENCE
            world.counts.check(not late, "trainer: no batch came for a minute")
            time.sleep(1e-5)
            continue
        except RuntimeError:  # before the first enqueue the embedding is not built
            time.sleep(1e-3)
            continue
        _dequeued(world, draw, activations)
        waits_since = time.monotonic()


def _dequeued(world: World, draw: np.random.Generator, activations: dict[str, np.ndarray]) -> None:
    training, number = world.kinds[0]
    row, before = number % ROWS, world.trained
    full = before // ROWS + (row < before % ROWS)  # updates of this row so far
    missed = sum((before - 1 - j) % ROWS == row for j in range(min(STALENESS, before)))
    seen = {float(array[0, 0]) for array in activations.values()}
    least = full - missed if training else full  # a look at an inference batch is fresh
    world.counts.check(
        len(seen) == 1 and least <= min(seen) <= full,
        f"trainer: batch {number} saw {seen} in row {row}, {full} updates, {missed} may be missed",
    )
    if not training:
        world.kinds.popleft()
        world.counts.count("dequeue, look")
        return
    world.counts.count("dequeue")
    if draw.random() < 0.05:
        world.counts.check(world.embedding.abandon() == 1, "trainer: abandoned another number")
        world.counts.count("abandon")
        return  # it is the next to come
    gradients = {name: -np.ones_like(array) for name, array in activations.items()}
    world.embedding.apply_gradients(gradients)
    world.kinds.popleft()
    world.trained += 1
    world.counts.count("apply_gradients")
    if draw.random() < 0.02:
        world.embedding.drain()
        world.counts.count("drain")


def look(world: World) -> None:
    """Snapshots of whole steps: the sum of a table is the number of steps, and never falls."""
    draw, last = np.random.default_rng([world.seed, 2]), 0.0
    while not (world.ended.is_set() or world.counts.wrong):
        try:
            taken = world.embedding.snapshot(blocking=True, timeout=PATIENCE)
        except DeadlockError as error:
            world.counts.check(False, f"looker: {error}")
            return
        a, b = (array[:, 0] for array in taken.embedding_tables.values())
        steps = float(a.sum())
        expected = steps // ROWS + (np.arange(ROWS) < steps % ROWS)
        world.counts.check(
            bool((a == b).all() and (a == expected).all() and steps >= last),
            f"looker: after {last} steps: {a.tolist()} and {b.tolist()}",
        )
        last = steps
        world.counts.count("snapshot")
        time.sleep(draw.exponential(2e-4))


def run(operations: int, seed: int = 0, backend: str = "reference") -> Counts:
    """All three until so many operations are done; counts, and all that was wrong."""
    world = World(operations, seed, backend)
    errors: list[BaseException] = []

    def guarded(body: object) -> None:
        assert callable(body)
        try:
            body(world)
        except BaseException as error:
            errors.append(error)
            world.counts.wrong.append(f"{type(error).__name__}: {error}")
            world.ended.set()

    bodies = (load, train, look)
    threads = [threading.Thread(target=guarded, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    for thread, body in zip(threads, bodies, strict=True):
        thread.join(PATIENCE + operations / 100)
        world.counts.check(not thread.is_alive(), f"{body.__name__} hangs")
    if not world.counts.wrong:
        final = world.embedding.snapshot()
        sums = [float(array[:, 0].sum()) for array in final.embedding_tables.values()]
        kept = world.trained == sums[0] == sums[1] and not world.kinds
        world.counts.check(
            kept, f"in the end: {world.trained} trained, {sums} seen, {len(world.kinds)} lost"
        )
        world.embedding.drain()
        world.embedding.close()
    return world.counts


def report(counts: Counts, seconds: float) -> str:
    """What was done, and what was wrong."""
    lines = [f"{number:8,} {name}" for name, number in sorted(counts.done.items())]
    verdict = counts.wrong[0] if counts.wrong else "nothing lost, doubled or half done"
    return "\n".join([*lines, f"{counts.total:8,} operations in {seconds:.0f} s: {verdict}"])
