"""A training step as ticks, each one compiled straight-line program. All by the schedule's law.

    tick                         reads, in this order
    lookup 3                     activations of step 3
    lookup 3, dense 2            both at once: neither needs the other
    lookup 3, dense 2, update u  both at once, then update u, of step 2 itself or an older one
    dense 2                      where the lookup of step 3 must see an update that is not there yet
    update u                     alone, before a lookup that must see it
    lookup 2, dense 2, update 2  a whole step one after the other, where nothing can overlap

A schedule has at most five of these kinds.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from embsim.schedule import Schedule


@dataclass(frozen=True)
class Tick:
    """One program: the lookup of step `lookup`, the dense step `dense`, then the update of step
    `update`; None is absent.

    The lookup reads the tables as they are before the update. Where lookup == dense the dense step
    takes its activations from it, else from an earlier tick.
    """

    lookup: int | None = None
    dense: int | None = None
    update: int | None = None

    @property
    def kind(self) -> str:
        """The same for ticks that run the same program."""
        whole = self.lookup is not None and self.lookup == self.dense
        own = self.update is not None and self.update == self.dense
        names = [
            "lookup" * (self.lookup is not None),
            "its " * whole + "dense" * (self.dense is not None),
            "own " * own + "update" * (self.update is not None),
        ]
        return ", ".join(name for name in names if name)


@dataclass(frozen=True)
class Place:
    """Where a run is: `step` is the next training step, `version` the updates in the tables,
    `start` as at the last drain, `looked_up` whether the step's activations are there."""

    step: int = 0
    version: int = 0
    start: int = 0
    looked_up: bool = False


def lookup_ticks(schedule: Schedule, place: Place) -> list[Tick]:
    """Before the dense step: updates that its lookup must see, and the lookup."""
    if place.looked_up:
        return []
    reads = schedule.version_read(place.step, place.start)
    updates = [Tick(update=u) for u in range(place.version, reads)]
    return [*updates, Tick(lookup=place.step)]


def dense_ticks(schedule: Schedule, place: Place, following: bool) -> list[Tick]:
    """The dense step, whose activations are there, with the next lookup if `following` and the law
    lets it not wait; then the updates that no later lookup may miss."""
    step = place.step
    reads = schedule.version_read(step + 1, place.start)
    if not following or reads > step:
        return [Tick(dense=step)]
    late = [Tick(update=u) for u in range(place.version, reads)]  # after a step without `following`
    visible = min(step + 1, schedule.version_read(step + 2, place.start))
    alone = reads == step and schedule.staleness > 1  # for want of a sixth kind
    first = None if visible == reads or alone else reads
    rest = range(reads if first is None else reads + 1, visible)
    both = Tick(lookup=step + 1, dense=step, update=first)
    return [*late, both, *(Tick(update=u) for u in rest)]


def step_ticks(schedule: Schedule, place: Place, following: bool) -> list[Tick]:
    """All of one training step."""
    before = lookup_ticks(schedule, place)
    there = after(place, before)
    waits = schedule.version_read(place.step + 1, place.start) == place.step + 1
    if schedule.staleness <= 1 and waits and before and there.version == place.step:
        return [*before[:-1], Tick(place.step, place.step, place.step)]
    return [*before, *dense_ticks(schedule, there, following)]


def after(place: Place, ticks: list[Tick]) -> Place:
    """Where the run is when these are done."""
    step, version, looked_up = place.step, place.version, place.looked_up
    for tick in ticks:
        if tick.lookup is not None:
            looked_up = True
        if tick.dense is not None:
            step, looked_up = tick.dense + 1, tick.lookup == tick.dense + 1
        if tick.update is not None:
            version = tick.update + 1
    return Place(step, version, place.start, looked_up)


def ticks(schedule: Schedule, steps: int) -> Iterator[Tick]:
    """Of a whole run, at whose end everything is drained.

    >>> from embsim import tpu_embedding_pipelined
    >>> [tick.kind for tick in ticks(tpu_embedding_pipelined(), 3)]
    ['lookup', 'lookup, dense, own update', 'lookup, dense, own update', 'dense', 'update']
    """
    place = Place()
    for step in range(steps):
        made = step_ticks(schedule, place, following=step + 1 < steps)
        yield from made
        place = after(place, made)
    for update in range(place.version, steps):
        yield Tick(update=update)
