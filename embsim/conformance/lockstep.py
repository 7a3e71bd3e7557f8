"""A subject and the definition, call by call, compared to the bit after each."""

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..definition import Definition
from ..errors import BatchError, CapacityError
from .adapter import EngineAdapter
from .difference import Difference, compare, compare_state, raised, same_bits
from .program import (
    Apply,
    Batch,
    Call,
    Dequeue,
    Drain,
    Enqueue,
    Evaluate,
    Look,
    Program,
    Restore,
    Save,
    Setup,
    source,
)
from .shifted import run_shifted
from .subject import Subject
from .subnormals import SubnormalMet, WatchedDefinition

REFUSALS = (RuntimeError, BatchError, CapacityError)  # DeadlockError and BackendError are the first


def definition_of(setup: Setup, *, subnormals: bool = True) -> Definition:
    """The law of a setup, at its beginning; without `subnormals` it raises where it meets one."""
    schedule = setup.schedule
    return (Definition if subnormals else WatchedDefinition)(
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
      SubnormalMet: the subject has no subnormals, and the law meets one.
    """
    pair = Lockstep(subject, program.setup, watch=watch)
    try:
        if subject.capabilities.output_shift:
            run_shifted(pair, program)
        else:
            left_out = -1
            for pair.at, call in program.single_calls:
                made = pair.at != left_out and pair.do(call)
                if not made and isinstance(program.calls[pair.at], Evaluate):
                    left_out = pair.at  # with its dequeue
            pair.end()
    except Difference as difference:
        difference.call, difference.watched = pair.at, watch
        difference.program = Program(program.setup, program.calls[: pair.at + 1])
        difference.args = (explained(difference.what, subject, program, pair.at),)
        raise
    finally:
        pair.engine.close()


def explained(what: str, subject: Subject, program: Program, upto: int | None = None) -> str:
    """The message of a failure: what differs, and the program that shows it."""
    text = source(program, upto)
    if not program.calls:  # a check of the six functions, which is no program of calls
        text = text.partition("\nprogram = ")[0]
    return f"{what}\nsubject: {subject.name}\n{text}"


@dataclass(frozen=True)
class _Saved:
    token: Any
    start: int
    steps: int
    versions: list[Any]
    drained: bool


class Lockstep:
    """The subject's engine and the law side by side; `queue` holds what is enqueued."""

    def __init__(self, subject: Subject, setup: Setup, *, watch: bool = True) -> None:
        self.capabilities = subject.capabilities
        self.setup = setup
        self.watch = watch
        self.law = definition_of(setup, subnormals=subject.capabilities.subnormals)
        self.engine: EngineAdapter = subject.start(setup)
        self.queue: deque[tuple[Batch, bool]] = deque()
        self.dequeued: deque[Batch] = deque(maxlen=4)  # the newest last
        self.at = 0  # index of the program's call that is made
        self.saved: _Saved | None = None
        self.drained = True  # no training step was begun since the last drain

    @property
    def submitted(self) -> int:
        return len(self.law.versions) - 1

    def do(self, call: Call) -> bool:
        """One call on both sides, or its refusal by the subject; False: it is left out."""
        legal = self._legal(call)
        if not self._offered(call) or not (legal or self.capabilities.errors):
            return False
        if legal:
            self.make(call)
        else:
            self._refused(call)
        if self.watch and self.may_look:
            self.compare_state(type(call).__name__)
        return True

    def end(self) -> None:
        """Gradients of zero for steps that wait, then all is compared; before that a drain, where
        tables cannot be looked at without one, or where it is the only one that is offered.
        """
        self._give_zeros()
        only_now = self.capabilities.drain_points == "end"
        while only_now and self.queue:  # it is for after the last step
            self.make(Dequeue())
            self._give_zeros()
        if not self.drained and (only_now or not self.capabilities.looks):
            self.make(Drain())
        self.compare_state("the end of the program")

    def _give_zeros(self) -> None:
        shapes = [self.setup.activation_shape(i) for i in range(len(self.setup.features))]
        while self.law.waiting:
            self.make(Apply([np.zeros(shape, np.float32) for shape in shapes]))

    # --- what is legal

    def _offered(self, call: Call) -> bool:
        can = self.capabilities
        if isinstance(call, Enqueue):
            alone = self.drained and not self.queue and not self.law.waiting
            looked = can.offers("inference") and (can.looks or alone)
            room = can.ahead >= self.setup.queue_capacity or len(self.queue) < can.ahead
            return (call.training or looked) and room
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

    @property
    def may_look(self) -> bool:
        return not self.law.waiting and (self.capabilities.looks or self.drained)

    # --- calls

    def make(self, call: Call) -> None:
        """A legal call on both sides."""
        try:
            self._on_both(call)
        except REFUSALS as error:
            name = type(call).__name__
            raise Difference(f"{name} is legal here, but {raised(error)}") from error

    def _on_both(self, call: Call) -> None:
        engine, law = self.engine, self.law
        if isinstance(call, Enqueue):
            engine.enqueue(call.batch, call.training)
            self.queue.append((call.batch, call.training))
            self.drained = self.drained and not call.training
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
            self.saved = _Saved(token, law.start, law.steps, list(law.versions), self.drained)
        elif isinstance(call, Restore):
            assert self.saved is not None
            engine.restore(self.saved.token)  # type: ignore[attr-defined]
            law.start, law.steps = self.saved.start, self.saved.steps
            law.versions, self.drained = list(self.saved.versions), self.saved.drained

    def _refused(self, call: Call) -> None:
        """It could never be served: a RuntimeError, and nothing changes."""
        engine = self.engine
        if isinstance(call, Restore) and self.saved is None:
            return
        attempts: dict[type, list[Any]] = {
            Enqueue: [lambda: engine.enqueue(call.batch, call.training)],  # type: ignore[union-attr]
            Dequeue: [engine.dequeue],
            Apply: [lambda: engine.apply_gradients(call.gradients)],  # type: ignore[union-attr]
            Drain: [engine.drain],
            Look: [engine.tables, engine.slots],
            Save: [lambda: engine.save()],  # type: ignore[attr-defined]
            Restore: [lambda: engine.restore(self.saved.token)],  # type: ignore
        }
        for attempt in attempts[type(call)]:
            made = "returned"
            try:
                attempt()
            except RuntimeError:
                continue
            except Exception as error:
                made = f"raised {type(error).__name__}: {error}"
            raise Difference(
                f"{type(call).__name__} could never be served here ({self._contents()}); it must "
                f"raise a RuntimeError, but {made}"
            )

    def _contents(self) -> str:
        kinds = ["training" if training else "inference" for _, training in self.queue]
        return f"queue: {kinds}, steps that wait for gradients: {len(self.law.waiting)}"

    # --- comparisons

    def compare_activations(self, found: Sequence[Any] | None) -> None:
        """What a Dequeue returned with what the law says; the law's step is made by this."""
        batch, training = self.queue.popleft()
        step = self.law.steps if training else None
        version = self.law.version_read(self.law.steps) if training else self.submitted
        wanted = self.law.dequeue(batch, training)
        kind = f"training step {step}" if training else "an inference step"
        if not isinstance(found, list | tuple) or len(found) != len(wanted):
            what = f"dequeue of {kind} returned a {type(found).__name__}: {found!r}; it must return"
            raise Difference(f"{what} a list or tuple of {len(wanted)} arrays", step=step)
        got = [np.asarray(each) for each in found]
        for number, (a, b) in enumerate(zip(got, wanted, strict=True)):
            if not same_bits(a, b):
                hint = self._hint(kind, version, batch, got)
                table = str(self.setup.features[number].table.name)
                what = f"activations of {kind}, feature {number} (table {table!r})"
                compare(what, a, b, hint, table=table, step=step)
        self.dequeued.append(batch)

    def _hint(self, kind: str, version: int, batch: Batch, found: Sequence[np.ndarray]) -> str:
        """Which version was read, or else which other batch's activations these are."""
        others = [v for v in range(len(self.law.versions)) if self._is_version(v, batch, found)]
        if others:
            return f"; {kind} read version {others[-1]}, the law says {version}"
        near = [(-1 - k, each) for k, each in enumerate(reversed(self.dequeued))]
        near += [(1 + k, each) for k, (each, _) in enumerate(self.queue)]
        for place, other in near:
            if any(self._is_version(v, other, found) for v in range(len(self.law.versions))):
                side = "before" if place < 0 else "after"
                return f"; they equal the activations of the batch {abs(place)} {side} it"
        return f"; {kind} reads version {version}"

    def _is_version(self, version: int, batch: Batch, found: Sequence[np.ndarray]) -> bool:
        law = replace(self.law, versions=[self.law.versions[version]], waiting=[])
        with suppress(SubnormalMet):
            return all(map(same_bits, found, law.dequeue(batch, training=False)))
        return False

    def compare_state(self, after: str) -> None:
        """All tables and slots with those of the newest version."""
        try:
            tables, slots = self.engine.tables(), self.engine.slots()
        except REFUSALS as error:
            what = f"after {after} tables and slots may be read, but this was refused: {error}"
            raise Difference(what) from error
        compare_state(self.setup, self.law.versions[-1], tables, slots, after, self.submitted)
