"""Operations: what is built, its order, and the resources that are taken."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embsim.simulation.operations import Builder, Operation, Resource, Stage

READ = Stage("read", "disk", reads=True)
WORK = Stage("work", "core")
WRITE = Stage("write", "disk", writes=True, shared=True)


def built(workers=1, batches=3):
    made = Builder((READ, WORK, WRITE))
    for worker in range(workers):
        steps = np.arange(worker, batches, workers)
        reads, works, writes = (made.add(s.name, steps, worker) for s in (READ, WORK, WRITE))
        made.wait(works, reads)
        made.wait(writes, works)
    return made.build()


def test_operations_stand_by_batch_then_by_stage_then_by_worker():
    assert [str(each) for each in built(2)] == [
        *("read(0)", "work(0)", "write(0)"),
        *("read(1, worker 1)", "work(1, worker 1)", "write(1, worker 1)"),
        *("read(2)", "work(2)", "write(2)"),
    ]


def test_waits_go_with_their_operations():
    operations = built(2)
    waits = {
        str(each): [str(operations[j]) for j in operations.waits_of(i)]
        for i, each in enumerate(operations)
    }
    assert waits["read(2)"] == []
    assert waits["work(2)"] == ["read(2)"]
    assert waits["write(1, worker 1)"] == ["work(1, worker 1)"]


@given(st.lists(st.tuples(st.integers(-1, 8), st.integers(-1, 8)), max_size=30))
def test_every_wait_is_kept_and_no_operation_is_none(pairs):
    made = Builder((WORK,))
    steps = np.random.default_rng(0).permutation(9)
    named = made.add("work", steps)
    for who, whom in pairs:
        made.wait(
            named[[who]] if who >= 0 else np.array([-1]),
            np.array([-1 if whom < 0 else named[whom]]),
        )
    operations = made.build()
    found = [(i, int(j)) for i in range(9) for j in operations.waits_of(i)]
    wanted = [(steps[a], steps[b]) for a, b in pairs if a >= 0 and b >= 0]
    assert sorted(found) == sorted(wanted)


def test_each_worker_has_resources_of_its_own_but_for_shared_ones():
    operations = built(2)
    assert set(operations.resources) == {
        Resource("disk", None),
        *(Resource(name, worker) for name in ("disk", "core") for worker in (0, 1)),
    }
    taken = [operations.resources[k] for k in operations.resource]
    for each, resource in zip(operations, taken, strict=True):
        owner = None if each.stage.shared else each.worker
        assert resource == Resource(each.stage.resource, owner)


def test_what_reads_and_writes_is_found_by_its_stage():
    operations = built()
    assert [operations[i] for i in operations.of("write")] == [
        Operation(WRITE, b) for b in range(3)
    ]
    assert np.flatnonzero(operations.reads).tolist() == operations.of("read").tolist()
    assert np.flatnonzero(operations.writes).tolist() == operations.of("write").tolist()


def test_nothing_is_a_run_too():
    operations = Builder((READ,)).build()
    assert len(operations) == 0 and list(operations) == []


def test_stages_are_named_once_and_must_be_there():
    with pytest.raises(ValueError, match=r"names must be unique, found \['read', 'read'\]"):
        Builder((READ, READ))
    with pytest.raises(ValueError, match=r"no stage 'send'; it must be one of \('read', 'work'"):
        Builder((READ, WORK)).add("send", range(2))
