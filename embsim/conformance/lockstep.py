"""A subject and the definition, call by call, compared to the bit after each."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..definition import Definition
from ..errors import BackendError, BatchError, CapacityError, DeadlockError
from .adapter import EngineAdapter
from .difference import Difference, compare, compare_state, same_bits
from .program import (
    Apply,
    Batch,
    Call,
    Dequeue,
    Drain,
    Enqueue,
    Gradients,
    Look,
    Program,
    Restore,
    Save,
    Setup,
    source,
)
from .subject import Subject

REFUSALS = (DeadlockError, BackendError, BatchError, CapacityError)


def definition_of(setup: Setup) -> Definition:
    """The law of a setup, at its beginning."""
    schedule = setup.schedule
    return Definition(
        list(setup.features),
        {config: config.optimizer for config in setup.tables.values()},
        {config: setup.initial(name) for name, config in setup.tables.items()},
        staleness=schedule.staleness,
        drain_every=schedule.drain_every,
        warmup_steps=schedule.warmup_steps,
    )


def replay(subject: Subject, program: Program, *, watch: bool = True) -> None:
    """Do all calls on both. `watch`: also compare tables and slots after every call.

    Illegal calls must be refused and change nothing; where the subject declares no errors, or does
    not offer a call, it is left out on both sides.

    Raises:
      Difference: with the program up to the call after which they part.
    """
    pair = Lockstep(subject, program.setup, watch=watch)
    index = 0
    try:
        if subject.capabilities.output_shift:
            pair.run_shifted(program)
        else:
            for number, call in program.single_calls:
                index = number
                pair.do(call)
            pair.end()
    except Difference as difference:
        difference.call = index
        difference.args = (explained(difference.what, subject, program, index),)
        raise
    finally:
        pair.engine.close()


def explained(what: str, subject: Subject, program: Program, upto: int | None = None) -> str:
    """The message of a failure: what differs, and the program that shows it."""
    return f"{what}\nsubject: {subject.name}\n{source(program, upto)}"


@dataclass(frozen=True)
class _Saved:
    token: Any
    start: int
    steps: int
    versions: list[Any]


class Lockstep:
    """The subject's engine and the law side by side; `queue` holds what is enqueued."""

    def __init__(self, subject: Subject, setup: Setup, *, watch: bool = True) -> None:
        self.capabilities = subject.capabilities
        self.setup = setup
        self.watch = watch
        self.law = definition_of(setup)
        self.engine: EngineAdapter = subject.start(setup)
        self.queue: deque[tuple[Batch, bool]] = deque()
        self.saved: _Saved | None = None
        self.drained = True  # nothing was submitted since the last drain

    @property
    def submitted(self) -> int:
        return len(self.law.versions) - 1

    def do(self, call: Call) -> None:
        """One call on both sides, or its refusal by the subject, or nothing."""
        if not self._offered(call):
            return
        if self._legal(call):
            self._make(call)
        elif self.capabilities.errors:
            self._refused(call)
        else:
            return
        if self.watch and self._may_look():
            self.compare_state(type(call).__name__)

    def end(self) -> None:
        """Gradients of zero for steps that wait; then a drain, if need be; then all is compared."""
        while self.law.waiting:
            self._make(Apply([None] * len(self.setup.features)))
        if not self.capabilities.looks and not self.drained:
            self._make(Drain())
        self.compare_state("the end of the program")

    # --- what is legal

    def _offered(self, call: Call) -> bool:
        can = self.capabilities
        if isinstance(call, Enqueue):
            return (call.training or (can.looks and can.offers("inference"))) and (
                can.ahead >= self.setup.queue_capacity or len(self.queue) < can.ahead
            )
        if isinstance(call, Dequeue) and self.queue and self.queue[0][1]:
            return len(self.law.waiting) < can.in_flight
        if isinstance(call, Drain):
            return can.drain_points == "any"
        if isinstance(call, Look):
            return can.looks or self.drained
        if isinstance(call, Save | Restore):
            return can.offers("checkpoints")
        return True

    def _legal(self, call: Call) -> bool:
        if isinstance(call, Enqueue):
            return len(self.queue) < self.setup.queue_capacity
        if isinstance(call, Dequeue):
            if not self.queue:
                return False
            if not self.queue[0][1]:
                return not self.law.waiting
            return self.law.version_read(self.law.steps) <= self.submitted
        if isinstance(call, Apply):
            return bool(self.law.waiting)
        if isinstance(call, Restore):
            return self.saved is not None and not self.queue and not self.law.waiting
        return not self.law.waiting

    def _may_look(self) -> bool:
        return not self.law.waiting and (self.capabilities.looks or self.drained)

    # --- calls

    def _make(self, call: Call) -> None:
        try:
            self._on_both(call)
        except REFUSALS as error:
            name = type(call).__name__
            raise Difference(f"{name} is legal here, but was refused: {error}") from error

    def _on_both(self, call: Call) -> None:
        engine, law = self.engine, self.law
        if isinstance(call, Enqueue):
            engine.enqueue(call.batch, call.training)
            self.queue.append((call.batch, call.training))
        elif isinstance(call, Dequeue):
            self.compare_activations(engine.dequeue())
        elif isinstance(call, Apply):
            engine.apply_gradients(call.gradients)
            law.apply_gradients(call.gradients)
            self.drained = False
        elif isinstance(call, Drain):
            engine.drain()
            law.drain()
            self.drained = True
        elif isinstance(call, Look):
            self.compare_state("Look")
        elif isinstance(call, Save):
            token = engine.save()  # type: ignore[attr-defined]  # it offers checkpoints
            self.saved = _Saved(token, law.start, law.steps, list(law.versions))
        elif isinstance(call, Restore):
            assert self.saved is not None
            engine.restore(self.saved.token)  # type: ignore[attr-defined]
            law.start, law.steps = self.saved.start, self.saved.steps
            law.versions = list(self.saved.versions)

    def _refused(self, call: Call) -> None:
        """It could never be served: a RuntimeError, and nothing changes."""
        engine = self.engine
        if isinstance(call, Restore) and self.saved is None:
            return
        attempts: dict[type, Any] = {
            Enqueue: lambda: engine.enqueue(call.batch, call.training),  # type: ignore[union-attr]
            Dequeue: engine.dequeue,
            Apply: lambda: engine.apply_gradients(call.gradients),  # type: ignore[union-attr]
            Drain: engine.drain,
            Look: lambda: (engine.tables(), engine.slots()),
            Save: lambda: engine.save(),  # type: ignore[attr-defined]
            Restore: lambda: engine.restore(self.saved.token),  # type: ignore
        }
        try:
            attempts[type(call)]()
        except RuntimeError:
            return
        raise Difference(
            f"{type(call).__name__} could never be served here ({self._contents()}); it must raise "
            "a RuntimeError, but returned"
        )

    def _contents(self) -> str:
        kinds = ["training" if training else "inference" for _, training in self.queue]
        return f"queue: {kinds}, steps that wait for gradients: {len(self.law.waiting)}"

    def run_shifted(self, program: Program) -> None:
        """Train calls in loops whose outputs come `output_shift` dequeues late, drained between."""
        loop: list[tuple[Batch, Gradients]] = []
        batch: Batch | None = None
        for _, call in [*program.single_calls, (len(program.calls), Drain())]:
            if isinstance(call, Enqueue) and call.training:
                batch = call.batch
            elif isinstance(call, Apply) and batch is not None:
                loop.append((batch, call.gradients))
                batch = None
            elif isinstance(call, Drain):
                self._shifted_loop(loop)
                loop = []
                self._make(call)
                self.compare_state("Drain")

    def _shifted_loop(self, loop: Sequence[tuple[Batch, Gradients]]) -> None:
        shift = self.capabilities.output_shift
        for number in range(len(loop) + shift if loop else 0):
            if number < len(loop):
                self._make(Enqueue(loop[number][0]))
            if number < shift:
                early = self.engine.dequeue()
                if early is not None:
                    raise Difference(f"dequeue {number} of a loop must return None: {early!r}")
                continue
            self._make(Dequeue())
            self._make(Apply(loop[number - shift][1]))

    # --- comparisons

    def compare_activations(self, found: Sequence[Any] | None) -> None:
        batch, training = self.queue.popleft()
        step = self.law.steps if training else None
        version = self.law.version_read(self.law.steps) if training else self.submitted
        wanted = self.law.dequeue(batch, training)
        if found is None or len(found) != len(wanted):
            raise Difference(f"dequeue returned {found!r}; it must return {len(wanted)} arrays")
        got = [np.asarray(each) for each in found]
        if all(same_bits(a, b) for a, b in zip(got, wanted, strict=True)):
            return
        others = [v for v in range(len(self.law.versions)) if self._is_version(v, batch, got)]
        hint = (
            f"; these are the activations of version {others[-1]}, the law reads version {version}"
            if others
            else f"; it reads version {version}"
        )
        for number, (a, b) in enumerate(zip(got, wanted, strict=True)):
            table = str(self.setup.features[number].table.name)
            kind = f"training step {step}" if training else "an inference step"
            what = f"activations of {kind}, feature {number} (table {table!r})"
            compare(what, a, b, hint, table=table, step=step)

    def _is_version(self, version: int, batch: Batch, found: Sequence[np.ndarray]) -> bool:
        law = replace(self.law, versions=[self.law.versions[version]], waiting=[])
        wanted = law.dequeue(batch, training=False)
        return all(same_bits(a, b) for a, b in zip(found, wanted, strict=True))

    def compare_state(self, after: str) -> None:
        """All tables and slots with those of the newest version."""
        tables, slots = self.engine.tables(), self.engine.slots()
        compare_state(self.setup, self.law.versions[-1], tables, slots, after, self.submitted)
