"""Two subjects that run one program side by side, up to the first number in which they differ."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .program import Apply, Call, Dequeue, Drain, Enqueue, Look, Program, Restore, Save, Setup
from .subject import Subject


@dataclass(frozen=True, eq=False)
class Parting:
    """Where two subjects part.

    Args:
      call: the index in program.calls.
      what: "activations of feature 0", "weights", "slot 'momenta'"; "raised", if only one of them
        could do the call.
      table: None if one raised.
      where: the place in that array, its row or sample first.
      in_a, in_b: the two numbers; or the two shapes; or what was raised, and "nothing".
      count: numbers of that array that differ.
    """

    call: int
    what: str
    table: str | None
    where: tuple[int, ...]
    in_a: Any
    in_b: Any
    count: int


def first_parting(
    pair: tuple[Subject, Subject], program: Program, bound: float | None
) -> Parting | None:
    """Run `program` on both; `bound`: relative to the largest number of a row, None: to the bit."""
    engines = _Engines(pair, program.setup, bound)
    number = 0
    try:
        for number, call in program.single_calls:
            for found in engines.do(call):
                return Parting(number, *found)
        for found in engines.end():
            return Parting(number, *found)
    finally:
        engines.close()
    return None


# what, table, where, in_a, in_b, count
_Found = tuple[str, str | None, tuple[int, ...], Any, Any, int]


@dataclass
class _Counts:
    """What decides whether a call can be served."""

    setup: Setup
    queue: deque[bool] = field(default_factory=deque[bool])  # of batches: training or not
    dequeued: int = 0
    submitted: int = 0
    start: int = 0
    drained: bool = True  # no training step was begun since the last drain
    saved: tuple[int, int] | None = None  # dequeued, start

    @property
    def waiting(self) -> int:
        return self.dequeued - self.submitted

    def legal(self, call: Call) -> bool:
        if isinstance(call, Enqueue):
            return len(self.queue) < self.setup.queue_capacity
        if isinstance(call, Dequeue) and self.queue and self.queue[0]:
            return self.setup.schedule.version_read(self.dequeued, self.start) <= self.submitted
        if isinstance(call, Dequeue):
            return bool(self.queue) and not self.waiting
        if isinstance(call, Apply):
            return self.waiting > 0
        if isinstance(call, Restore):
            return self.saved is not None and not self.queue and not self.waiting
        return not self.waiting

    def made(self, call: Call) -> None:
        if isinstance(call, Enqueue):
            self.queue.append(call.training)
            self.drained = self.drained and not call.training
        elif isinstance(call, Dequeue):
            self.dequeued += self.queue.popleft()
        elif isinstance(call, Apply):
            self.submitted += 1
        elif isinstance(call, Drain):
            self.start = self.dequeued
            self.drained = True
        elif isinstance(call, Save):
            self.saved = (self.dequeued, self.start)
        elif isinstance(call, Restore) and self.saved is not None:
            self.dequeued, self.start = self.saved
            self.submitted = self.dequeued
            self.drained = False


class _Engines:
    """The two engines, and what both may be asked for."""

    def __init__(self, pair: tuple[Subject, Subject], setup: Setup, bound: float | None) -> None:
        self.setup = setup
        self.bound = bound
        self.can = [subject.capabilities for subject in pair]
        self.looks = all(can.looks for can in self.can)
        self.counts = _Counts(setup)
        self.saves: list[Any] = []
        self.engines: list[Any] = []
        for subject in pair:
            try:
                self.engines.append(subject.start(setup))
            except Exception:
                self.close()
                raise

    def close(self) -> None:
        for engine in self.engines:
            engine.close()

    def do(self, call: Call) -> Iterator[_Found]:
        """One call on both, if it is offered and legal; then what differs."""
        if self._offered(call) and self.counts.legal(call):
            yield from self._on_both(call)

    def _on_both(self, call: Call) -> Iterator[_Found]:
        results: list[Any] = []
        raised: list[Exception | None] = []
        for side, engine in enumerate(self.engines):
            error: Exception | None = None
            try:
                results.append(self._made(call, engine, side))
            except Exception as found:
                error = found
                results.append(None)
            raised.append(error)
        if all(raised):
            return  # both refuse it
        if any(raised):
            in_a, in_b = ("nothing" if e is None else f"{type(e).__name__}: {e}" for e in raised)
            yield "raised", None, (), in_a, in_b, 1
            return
        if isinstance(call, Dequeue):
            yield from self._activations(results)
        if isinstance(call, Save):
            self.saves = results
        self.counts.made(call)
        if not self.counts.waiting and (self.looks or self.counts.drained):
            yield from self._state()

    def end(self) -> Iterator[_Found]:
        """Gradients of zero for steps that wait, and a drain if only then both may be looked at."""
        setup = self.setup
        zeros = [
            np.zeros(setup.activation_shape(i), np.float32) for i in range(len(setup.features))
        ]
        for _ in range(self.counts.waiting):
            yield from self._on_both(Apply(zeros))
        if not self.looks and not self.counts.drained and not self.counts.waiting:
            yield from self._on_both(Drain())

    def _offered(self, call: Call) -> bool:
        counts = self.counts
        if isinstance(call, Enqueue):
            if not call.training and not (self.looks and self._all_offer("inference")):
                return False
            return all(
                can.ahead >= self.setup.queue_capacity or len(counts.queue) < can.ahead
                for can in self.can
            )
        if isinstance(call, Dequeue) and counts.queue and counts.queue[0]:
            return all(counts.waiting < can.in_flight for can in self.can)
        if isinstance(call, Drain):
            return all(can.drain_points == "any" for can in self.can)
        if isinstance(call, Save | Restore):
            return self._all_offer("checkpoints")
        return True

    def _all_offer(self, name: str) -> bool:
        return all(can.offers(name) for can in self.can)

    def _made(self, call: Call, engine: Any, side: int) -> Any:
        makes: Mapping[type, Callable[[Any], Any]] = {
            Enqueue: lambda call: engine.enqueue(call.batch, call.training),
            Dequeue: lambda call: [np.asarray(each) for each in engine.dequeue()],
            Apply: lambda call: engine.apply_gradients(call.gradients),
            Drain: lambda call: engine.drain(),
            Look: lambda call: None,
            Save: lambda call: engine.save(),
            Restore: lambda call: engine.restore(self.saves[side]),
        }
        return makes[type(call)](call)

    # --- comparisons

    def _activations(self, results: list[Any]) -> Iterator[_Found]:
        for number, (in_a, in_b) in enumerate(zip(*results, strict=True)):
            table = str(self.setup.features[number].table.name)
            yield from self._parts(f"activations of feature {number}", table, in_a, in_b)

    def _state(self) -> Iterator[_Found]:
        """Tables, and the slots that both have."""
        tables = [engine.tables() for engine in self.engines]
        slots = [engine.slots() for engine in self.engines]
        for name in self.setup.tables:
            yield from self._parts("weights", name, *(np.asarray(each[name]) for each in tables))
            of_a, of_b = (each.get(name, {}) for each in slots)
            for slot in (slot for slot in of_a if slot in of_b):
                arrays = (np.asarray(each[slot]) for each in (of_a, of_b))
                yield from self._parts(f"slot {slot!r}", name, *arrays)

    def _parts(self, what: str, table: str, a: np.ndarray, b: np.ndarray) -> Iterator[_Found]:
        if a.shape != b.shape:
            yield f"shape of {what}", table, (), a.shape, b.shape, 1
            return
        with np.errstate(all="ignore"):
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            if self.bound is not None and not same.all():
                size = np.maximum(abs(a), abs(b)).max(axis=-1, keepdims=True)
                same |= np.isfinite(size) & (abs(a - b) <= self.bound * size)
        if not same.all():
            where = tuple(int(i) for i in np.argwhere(~same)[0])
            yield what, table, where, a[where], b[where], int((~same).sum())
