"""The order of lookups, dense steps and updates in ticks, against the law of embsim.schedule."""

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embsim import (
    Schedule,
    semi_sync,
    sequential,
    sparsecore_loop,
    stale,
    tpu_embedding_pipelined,
)
from embsim_tpu._ticks import Place, Tick, after, dense_ticks, lookup_ticks, step_ticks, ticks

SCHEDULES = [
    Schedule(*each) for each in itertools.product(range(6), (None, *range(1, 8)), range(6))
]
STEPS = 24


@dataclass
class Run:
    """What ticks do, one after the other, each part as soon as it is legal or not at all."""

    version: int = 0
    dense: int = 0
    read: dict[int, int] = field(default_factory=dict)  # by step: the version that its lookup read

    def do(self, tick):
        if tick.lookup is not None:
            self.read[tick.lookup] = self.version
        if tick.dense is not None:
            assert tick.dense == self.dense, "dense steps come in order, each once"
            assert tick.dense in self.read, "activations are there"
            self.dense += 1
        if tick.update is not None:
            assert tick.update == self.version, "updates come in order, each once"
            assert tick.update < self.dense, "its gradients are there"
            self.version += 1


def ran(schedule, steps=STEPS):
    run = Run()
    for tick in ticks(schedule, steps):
        if tick.lookup is not None:
            assert tick.lookup not in run.read, "a step is looked up once"
        run.do(tick)
    return run


def versions_of_events(schedule, steps):
    updates, read = 0, {}
    for name, step in schedule.events(steps):
        if name == "update":
            updates += 1
        else:
            read[step] = updates
    return read


@pytest.mark.parametrize("steps", [0, 1, 2, 3, STEPS])
def test_every_lookup_reads_the_version_that_the_law_names(steps):
    for schedule in SCHEDULES:
        run = ran(schedule, steps)
        law = {step: schedule.version_read(step) for step in range(steps)}
        assert run.read == law == versions_of_events(schedule, steps), schedule
        assert run.dense == run.version == steps, schedule


def test_a_schedule_has_at_most_five_kinds_of_ticks():
    for schedule in SCHEDULES:
        kinds = {tick.kind for tick in ticks(schedule, STEPS)}
        assert len(kinds) <= 5, (schedule, kinds)


def test_a_kind_is_a_program():
    """Its parts, and whether dense step and update are of the step that is looked up."""
    programs, steps = {}, (None, 3, 4)
    for lookup, dense, update in itertools.product(steps, steps, steps):
        tick = Tick(lookup, dense, update)
        parts = [each is not None for each in (lookup, dense, update)]
        own = [None not in (a, dense) and a == dense for a in (lookup, update)]
        programs.setdefault(tick.kind, set()).add((*parts, *own))
    assert all(len(each) == 1 for each in programs.values())
    assert len({program for each in programs.values() for program in each}) == len(programs)


@pytest.mark.parametrize("staleness", [1, 2, 5])
@pytest.mark.parametrize("warmup", [0, 3])
def test_lookup_dense_step_and_update_stand_in_one_tick(staleness, warmup):
    """From the step on where there is an update to do, to the last but one."""
    made = list(ticks(Schedule(staleness, None, warmup), STEPS))
    by_dense = {tick.dense: tick for tick in made if tick.dense is not None}
    for step in range(warmup + staleness - 1, STEPS - 1):
        assert by_dense[step] == Tick(step + 1, step, step + 1 - staleness), step


def test_the_next_lookup_overlaps_wherever_the_law_lets_it():
    for schedule in SCHEDULES:
        by_dense = {tick.dense: tick for tick in ticks(schedule, STEPS) if tick.dense is not None}
        for step in range(STEPS - 1):
            may = schedule.version_read(step + 1) <= step
            assert (by_dense[step].lookup == step + 1) == may, (schedule, step)


CALLS = st.sampled_from(["step", "step", "step", "pause", "look up", "drain"])


@given(st.sampled_from(SCHEDULES), st.lists(CALLS, max_size=30))
def test_pauses_and_looks_change_no_version_and_drains_as_the_law_says(schedule, calls):
    """A lookup that a drain makes stale is made again."""
    run, place, kinds = Run(), Place(), set()
    for call in calls:
        if call == "drain":
            made = [Tick(update=u) for u in range(place.version, place.step)]
        elif call == "look up":
            made = lookup_ticks(schedule, place)
        else:
            plan = dense_ticks if place.looked_up else step_ticks
            made = plan(schedule, place, following=call == "step")
        for tick in made:
            kinds.add(tick.kind)
            run.do(tick)
        step, place = place.step, after(place, made)
        assert (place.version, place.step) == (run.version, run.dense)
        if call == "drain":
            place = Place(step, run.version, start=step)
        elif place.step > step:
            assert run.read[step] == schedule.version_read(step, place.start)
            assert place.looked_up == (step + 1 in run.read)
        else:
            assert place.looked_up
    assert len(kinds) <= 5


@pytest.mark.parametrize("staleness", [1, 2, 4])
def test_after_a_pause_lookups_overlap_again(staleness):
    schedule, place = stale(staleness), Place()
    for step in range(2 * staleness + 3):
        made = step_ticks(schedule, place, following=step != staleness)
        if place.looked_up:
            made = dense_ticks(schedule, place, following=step != staleness)
        place = after(place, made)
        if step > staleness:
            assert made[-1] == Tick(step + 1, step, step + 1 - staleness), step


@pytest.mark.parametrize(
    "schedule, kinds",
    [
        (sequential(), ["lookup, its dense, own update"] * 3),
        (
            tpu_embedding_pipelined(),
            ["lookup", *["lookup, dense, own update"] * 2, "dense", "update"],
        ),
        (
            sparsecore_loop(2),
            ["lookup", "lookup, dense, own update", "dense", "update", "lookup", "dense", "update"],
        ),
        (sparsecore_loop(1), ["lookup, its dense, own update"] * 3),
        (
            semi_sync(2),
            [
                "lookup, its dense, own update",
                "lookup",
                "lookup, dense, own update",
                "dense",
                "update",
            ],
        ),
        (
            stale(2),
            ["lookup", "lookup, dense", "lookup, dense, update", "dense", "update", "update"],
        ),
    ],
    ids=str,
)
def test_worked_examples(schedule, kinds):
    assert [tick.kind for tick in ticks(schedule, 3)] == kinds
