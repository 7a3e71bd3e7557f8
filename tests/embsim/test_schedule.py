"""Which version each lookup reads: the law's formula, monotony, the order of events, refusals."""

import inspect
import re

import jaxtyping
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import embsim
from embsim import DeadlockError, Schedule
from embsim.definition import Definition
from embsim.schedule import (
    Progress,
    agreed,
    check_gradients_expected,
    check_nothing_waits,
    check_training_dequeue,
    checked,
    schedule_of,
    visible,
)

SCHEDULES = st.builds(
    Schedule,
    staleness=st.integers(0, 5),
    drain_every=st.none() | st.integers(1, 5),
    warmup_steps=st.integers(0, 5),
)
PRESETS = [
    (embsim.sequential(), Schedule(0, None, 0), [0, 1, 2, 3, 4, 5, 6]),
    (embsim.tpu_embedding_pipelined(), Schedule(1, None, 0), [0, 0, 1, 2, 3, 4, 5]),
    (embsim.sparsecore_loop(1), Schedule(1, 1, 0), [0, 1, 2, 3, 4, 5, 6]),
    (embsim.sparsecore_loop(2), Schedule(1, 2, 0), [0, 0, 2, 2, 4, 4, 6]),
    (embsim.sparsecore_loop(3), Schedule(1, 3, 0), [0, 0, 1, 3, 3, 4, 6]),
    (embsim.semi_sync(0), Schedule(1, None, 0), [0, 0, 1, 2, 3, 4, 5]),
    (embsim.semi_sync(3), Schedule(1, None, 3), [0, 1, 2, 2, 3, 4, 5]),
    (embsim.stale(0), Schedule(0, None, 0), [0, 1, 2, 3, 4, 5, 6]),
    (embsim.stale(3), Schedule(3, None, 0), [0, 0, 0, 0, 1, 2, 3]),
    (Schedule(3, 4, 2), Schedule(3, 4, 2), [0, 1, 1, 1, 4, 4, 4]),
]


@pytest.fixture
def as_users_run_it():
    """Without the check of embsim's annotations, which would come before its own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("schedule, same, versions", PRESETS, ids=str)
def test_a_constructor_is_data_and_reads_these_versions(schedule, same, versions):
    assert (schedule, hash(schedule)) == (same, hash(same))
    assert [schedule.version_read(step) for step in range(7)] == versions


def test_five_steps_of_unit_gradients():
    """SGD of rate 1 on a row that starts at 0: what each lookup sees is minus the version."""

    def reads(schedule):
        return [-schedule.version_read(step) for step in range(5)]

    assert reads(embsim.sequential()) == [0, -1, -2, -3, -4]
    assert reads(embsim.tpu_embedding_pipelined()) == [0, 0, -1, -2, -3]
    assert reads(embsim.sparsecore_loop(2)) == [0, 0, -2, -2, -4]


@given(SCHEDULES, st.integers(0, 30), st.data())
def test_version_read_is_the_law_s(schedule, step, data):
    start = data.draw(st.integers(0, step), label="start")
    law = Definition(
        [], {}, {}, schedule.staleness, schedule.drain_every, schedule.warmup_steps, start
    )
    version = schedule.version_read(step, start)
    assert version == law.version_read(step)
    assert 0 <= version <= step
    assert version >= step - schedule.staleness
    if schedule.drain_every is None and schedule.warmup_steps == 0:
        assert version == max(start, step - schedule.staleness)  # exact, not a bound


@given(SCHEDULES, st.data())
def test_version_read_never_decreases_also_across_drains(schedule, data):
    start, before = 0, 0
    for step in range(data.draw(st.integers(1, 20), label="steps")):
        if data.draw(st.booleans(), label=f"drain before step {step}"):
            start = step
        version = schedule.version_read(step, start)
        assert before <= version <= step
        assert version == step or start < step
        before = version


@given(SCHEDULES, st.integers(0, 15))
def test_events_are_every_lookup_and_update_each_as_late_as_the_law_allows(schedule, steps):
    events = list(schedule.events(steps))
    for name in ("lookup", "update"):
        assert [step for kind, step in events if kind == name] == list(range(steps))
    for step in range(steps):
        before = events[: events.index(("lookup", step))]
        updates = sum(kind == "update" for kind, _ in before)
        assert updates == schedule.version_read(step), f"before lookup {step}"


def test_events_by_hand():
    def text(schedule):
        return " ".join(f"{kind[0]}{step}" for kind, step in schedule.events(4))

    assert text(embsim.sequential()) == "l0 u0 l1 u1 l2 u2 l3 u3"
    assert text(embsim.tpu_embedding_pipelined()) == "l0 l1 u0 l2 u1 l3 u2 u3"
    assert text(embsim.sparsecore_loop(2)) == "l0 l1 u0 u1 l2 l3 u2 u3"
    assert text(embsim.semi_sync(2)) == "l0 u0 l1 l2 u1 l3 u2 u3"
    assert list(embsim.stale(2).events(0)) == []


@given(SCHEDULES, st.data())
def test_visible_updates_are_those_that_every_later_lookup_sees(schedule, data):
    dequeued = data.draw(st.integers(0, 12), label="dequeued")
    start = data.draw(st.integers(0, dequeued), label="start")
    submitted = data.draw(st.integers(start, dequeued), label="submitted")
    progress = Progress(dequeued, submitted, start)
    later = [schedule.version_read(step, start) for step in range(dequeued, dequeued + 20)]
    assert visible(schedule, progress) == min(submitted, *later)


class TestRefusals:
    @pytest.mark.usefixtures("as_users_run_it")
    @pytest.mark.parametrize(
        "make, message",
        [
            (lambda: Schedule(-1), "staleness is -1; it must be an int >= 0"),
            (lambda: embsim.stale(-2), "staleness is -2; it must be an int >= 0"),
            (lambda: embsim.stale(1.0), "staleness is 1.0; it must be an int >= 0"),
            (lambda: embsim.stale(True), "staleness is True; it must be an int >= 0"),
            (lambda: embsim.stale(None), "staleness is None; it must be an int >= 0"),
            (lambda: embsim.sparsecore_loop(0), "drain_every is 0; it must be an int >= 1"),
            (lambda: embsim.sparsecore_loop("2"), "drain_every is '2'; it must be an int >= 1"),
            (lambda: embsim.semi_sync(-1), "warmup_steps is -1; it must be an int >= 0"),
        ],
    )
    def test_what_is_no_schedule_is_a_value_error(self, make, message):
        with pytest.raises(ValueError, match=f"^Schedule: {re.escape(message)}$"):
            make()

    @pytest.mark.usefixtures("as_users_run_it")
    def test_only_a_schedule_is_a_schedule(self):
        assert checked(None) == embsim.sequential()
        assert checked(embsim.stale(2)) == embsim.stale(2)
        for wrong in ("sequential", 1, embsim.stale):
            with pytest.raises(
                ValueError, match=r"^schedule is .*; it must be one of .*stale\(k\)"
            ):
                checked(wrong)

    @pytest.mark.usefixtures("as_users_run_it")
    def test_the_flag_and_the_schedule_must_agree(self):
        pipelined = embsim.tpu_embedding_pipelined()
        assert agreed(False, None) is None
        assert agreed(True, None) == pipelined
        for schedule in (pipelined, embsim.sparsecore_loop(2), embsim.semi_sync(4)):
            assert agreed(True, schedule) is schedule
        for schedule in (embsim.sequential(), embsim.stale(2)):
            assert agreed(False, schedule) is schedule
            message = f"tables one step old, but schedule is {re.escape(str(schedule))}"
            with pytest.raises(ValueError, match=message):
                agreed(True, schedule)
        with pytest.raises(TypeError, match="with_tensor_core is 1; it must be True or False"):
            agreed(1, None)

    def test_a_step_whose_gradients_can_never_come_is_a_deadlock(self):
        for schedule, dequeued, submitted in ((Schedule(), 3, 2), (embsim.stale(2), 4, 1)):
            message = (
                rf"dequeue of training step {dequeued}: it reads version "
                rf"{schedule.version_read(dequeued)}, but gradients were given for {submitted} "
                rf"steps \(THE QUEUE\); missing call: apply_gradients for training step {submitted}"
            )
            with pytest.raises(DeadlockError, match=message):
                check_training_dequeue(schedule, Progress(dequeued, submitted), "THE QUEUE")
            check_training_dequeue(schedule, Progress(dequeued, submitted + 1), "")

    def test_looking_waits_for_gradients(self):
        check_nothing_waits("drain", Progress(3, 3), "")
        message = r"^drain: training step 1 was dequeued and waits for gradients \(THE QUEUE\);"
        with pytest.raises(DeadlockError, match=message):
            check_nothing_waits("drain", Progress(3, 1), "THE QUEUE")

    def test_gradients_wait_for_a_dequeue(self):
        check_gradients_expected(Progress(3, 2), "")
        message = r"no dequeued training step waits for gradients \(THE QUEUE\); missing call: deq"
        with pytest.raises(DeadlockError, match=message):
            check_gradients_expected(Progress(3, 3), "THE QUEUE")


@pytest.mark.usefixtures("as_users_run_it")
def test_numpy_s_integers_are_integers():
    schedule = Schedule(np.int64(2), np.int32(3), np.uint8(1))
    assert schedule == Schedule(2, 3, 1)
    assert {type(x) for x in vars(schedule).values()} == {int}


def test_a_schedule_is_frozen_and_shows_itself():
    schedule = embsim.sparsecore_loop(4)
    with pytest.raises(AttributeError):
        schedule.staleness = 2
    assert repr(schedule) == "Schedule(staleness=1, drain_every=4, warmup_steps=0)"


def test_each_constructor_names_what_it_needs():
    needs = {
        embsim.sequential: [],
        embsim.tpu_embedding_pipelined: [],
        embsim.sparsecore_loop: ["n"],
        embsim.semi_sync: ["start_batch"],
        embsim.stale: ["k"],
    }
    for constructor, names in needs.items():
        assert list(inspect.signature(constructor).parameters) == names


# --- by name, for command lines


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("sequential", embsim.sequential()),
        ("sequential()", embsim.sequential()),
        (" tpu_embedding_pipelined ", embsim.tpu_embedding_pipelined()),
        ("sparsecore_loop(7)", embsim.sparsecore_loop(7)),
        ("semi_sync( 3 )", embsim.semi_sync(3)),
        ("stale(2)", embsim.stale(2)),
    ],
)
def test_a_schedule_has_the_name_of_its_constructor(text, schedule):
    assert schedule_of(text) == schedule


WRONG = ["", "fresh", "stale", "stale()", "stale(x)", "stale(1", "stale 1)", "stale(-1)"]


@pytest.mark.parametrize("text", [*WRONG, "sequential(1)", "stale(1, 2)", "sparsecore_loop(0)"])
def test_another_name_is_refused_with_those_that_there_are(text):
    with pytest.raises(ValueError, match=r"one of sequential, tpu_embedding_pipelined"):
        schedule_of(text)
