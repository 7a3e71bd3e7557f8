"""Mistakes that are planted in schedules, one by one."""

from dataclasses import replace

import numpy as np
import pytest

from embsim.simulation.hazards import KINDS, hazards
from embsim.simulation.operations import Builder, Stage
from embsim.simulation.pipelines import accumulate, sequential, stale
from embsim.simulation.timeline import run

STAGES = (
    Stage("lookup", "sparse", reads=True),
    Stage("dense", "dense"),
    Stage("update", "sparse", writes=True),
)
BATCHES = 6


def found(*, plant=lambda made, rows: None, chain=True, rule=None, updates=range(BATCHES)):
    """Of a sequential schedule with something planted."""
    made = Builder(STAGES)
    rows = {name: made.add(name, range(BATCHES)) for name in ("lookup", "dense")}
    rows["update"] = made.add("update", updates)
    made.wait(rows["dense"], rows["lookup"])
    made.wait(rows["update"], rows["dense"][list(updates)])
    if chain:
        made.wait(rows["lookup"][1:], rows["update"][: BATCHES - 1])
    plant(made, rows)
    operations = made.build()
    return hazards(run(operations, 1.0), rule or sequential().rule)


def test_a_sequential_schedule_has_none():
    assert found() == []


def test_without_the_wait_updates_are_missing():
    hazard, *rest = found(chain=False)
    assert hazard.kind == "missing update"
    assert str(hazard) == (
        "missing update: lookup(1) begins before update(0) has ended, which it must see"
    )
    assert rest


def test_a_lookup_that_is_too_fresh_sees_what_it_must_not():
    hazard, *_ = found(rule=stale(2).rule)
    assert hazard.kind == "early update"
    assert "lookup(1) begins after update(0) has ended, which it must not see" in hazard.text


def test_an_update_before_its_lookup():
    def plant(made, rows):
        made.add("update", [BATCHES])
        made.wait(made.add("lookup", [BATCHES]), rows["update"][-1:])

    hazard = found(plant=plant)[-1]
    assert hazard.kind == "early update"
    assert "update(6) begins before lookup(6) of batch 6 has ended: there are no" in hazard.text


def test_an_update_that_is_left_out_is_lost_and_at_the_end_undrained():
    def kinds(updates):
        rule = replace(sequential().rule, at_least=np.zeros_like)
        return [hazard.kind for hazard in found(chain=False, updates=updates, rule=rule)]

    assert kinds([0, 1, 3, 4, 5]) == ["lost update"]
    assert kinds([0, 1, 2, 3]) == ["undrained end"] * 2
    assert kinds([]) == ["undrained end"] * BATCHES


def test_a_batch_that_is_updated_twice():
    def plant(made, rows):
        made.wait(made.add("update", [2]), rows["update"][2:3])

    (hazard,) = [each for each in found(plant=plant) if each.kind == "double update"]
    assert hazard.text == "batch 2 is updated 2 times"


def test_of_accumulated_gradients_one_update_is_enough():
    pipeline = accumulate(3)
    timeline = run(pipeline.operations(7), 1.0)
    assert hazards(timeline, pipeline.rule) == []
    lost = [each for each in hazards(timeline, sequential().rule) if each.kind == "lost update"]
    assert [each.text.split(" ")[0] for each in lost] == [f"lookup({t})" for t in (0, 1, 3, 4, 6)]


def test_every_kind_is_planted_here():
    assert set(KINDS) == {
        "missing update",
        "early update",
        "lost update",
        "undrained end",
        "double update",
    }


@pytest.mark.parametrize("batches", [0, 1])
def test_of_nothing_nothing_is_wrong(batches):
    assert hazards(run(sequential().operations(batches), 1.0), sequential().rule) == []
