"""The contract of a backend's six functions, without an engine: states and lookups."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ..._queue import by_feature
from ...optimizers import updates_every_row
from ...state import State
from ..bench import Bench
from ..check import Draw, check
from ..difference import Difference, compare
from ..lockstep import definition_of, explained
from ..program import Evaluate, Program
from ..rules import optimizers
from ..strategies import batches, gradients, setups
from ..subject import Subject
from ._benches import backend_of, compare_states, one_step, stored, tall, told_step
from ._operands import batch_of, moving, plain_setups, sized, steps_of


@check("1.1", backend=True, effort=0.5)
def check_put_state_and_get_state_keep_every_number(subject: Subject, draw: Draw) -> None:
    """Tables and slots come back as they went in: every row, in its place, without padding; NaN,
    infinities and subnormals too.
    """
    setup = draw(setups(subject.capabilities, "real"), "setup")
    tables, slots = draw(stored(setup), "tables and slots")
    found = Bench(backend_of(subject), setup, tables, slots).read()
    compare_states("get_state", setup, found, (tables, slots), "nothing was updated")


@check("1.1", backend=True, effort=0.5)
def check_read_rows_gives_copies_of_the_rows_that_are_asked_for(
    subject: Subject, draw: Draw
) -> None:
    """In their order, with their slots, and not changed by a later update."""
    setup = draw(setups(subject.capabilities, "real", shapes=tall(subject)), "setup")
    tables, slots = draw(stored(setup), "tables and slots")
    bench = Bench(backend_of(subject), setup, tables, slots)
    name = draw(st.sampled_from(sorted(setup.tables)), "table")
    count = setup.tables[name].vocabulary_size
    low = draw(st.integers(0, count - 1), "first row")
    spread = st.sets(st.integers(low, count - 1), min_size=1).map(sorted)
    run = st.integers(low + 1, count).map(lambda high: list(range(low, high)))
    rows = np.array(draw(st.one_of(run, spread), "rows"), np.int32)
    found = bench.backend.read_rows(bench.state, name, rows)
    every_row = batch_of(setup, lambda f: st.just(list(range(f.table.vocabulary_size))))
    if draw(st.booleans(), "update after it"):
        bench.update(draw(every_row), draw(moving(setup)))
    what = f"read_rows of table {name!r}, rows {rows.tolist()}"
    compare(what, np.asarray(found.weights), np.asarray(tables[name])[rows], table=name)
    assert set(found.slots) == set(slots[name]), f"{what}: slots {sorted(found.slots)}"
    for slot, array in slots[name].items():
        compare(f"{what}, slot {slot!r}", np.asarray(found.slots[slot]), np.asarray(array)[rows])


@check("1.2", backend=True, effort=0.5)
def check_every_update_makes_one_version(subject: Subject, draw: Draw) -> None:
    """`version` of get_state is that of put_state and 1 for each update, one with an empty plan
    too; a lookup makes none.
    """
    setup = draw(plain_setups(subject.capabilities, tall(subject)), "setup")
    bench = Bench(backend_of(subject), setup)
    first = draw(st.sampled_from((0, 3, 2**31)), "version that is put")
    state = bench.backend.get_state(bench.state).copied()
    own = {name: np.array(array) for name, array in state.weights.items()}
    slots = {name: {s: np.array(a) for s, a in each.items()} for name, each in state.slots.items()}
    bench.state = bench.backend.put_state(replace(state, weights=own, slots=slots, version=first))
    for number in range(3):
        found = bench.backend.get_state(bench.state).version
        assert found == first + number, (
            f"version is {found} after put_state of version {first} and {number} updates; it must "
            f"be {first + number}"
        )
        (step,) = draw(steps_of(setup, sized(0, 2), 1), "step")
        bench.lookup(step.batch)
        bench.update(step.batch, step.gradients)


@check("1.1", backend=True, effort=0.3)
def check_a_table_without_optimizer_is_looked_up(subject: Subject, draw: Draw) -> None:
    """One that is not trained has no slots; all but update works with it."""
    setup = draw(plain_setups(subject.capabilities, tall(subject)), "setup")
    batch = draw(batch_of(setup, sized(1, 2)), "batch")
    bench = Bench(backend_of(subject), setup)
    backend = bench.backend
    specs = {name: replace(spec, optimizer=None) for name, spec in bench.specs.items()}
    tables = {name: setup.initial(name) for name in specs}
    bench.state = backend.put_state(State(specs, tables, {name: {} for name in specs}))
    with told_step(subject, setup, batch, []):
        wanted = definition_of(setup).dequeue(batch)
        for i, array in enumerate(bench.lookup(batch)):
            compare(f"activations of feature {i}, of a table without optimizer", array, wanted[i])
        for name, array in backend.get_state(bench.state).weights.items():
            what = f"table {name!r}, which has no optimizer"
            compare(what, np.asarray(array), setup.initial(name), table=name)


@check("1.1", "5.5", backend=True, effort=0.5)
def check_a_lookup_leaves_the_state_as_it_was(subject: Subject, draw: Draw) -> None:
    """Tables and slots have their bits after it, and the same lookup gives the same again."""
    setup, batch, gradient = one_step(subject, draw)
    bench = Bench(backend_of(subject), setup)
    before = bench.read()
    with told_step(subject, setup, batch, gradient):
        first = [np.array(array) for array in bench.lookup(batch)]
        compare_states("after a lookup", setup, bench.read(), before, "a lookup changes nothing")
        for i, (again, array) in enumerate(zip(bench.lookup(batch), first, strict=True)):
            compare(f"the same lookup, a second time, feature {i}", np.asarray(again), array)


@check("1.1", backend=True, effort=0.5)
def check_a_later_update_does_not_reach_into_activations(subject: Subject, draw: Draw) -> None:
    """What lookup returned is of the state that it was given, also where it is read only after the
    update.
    """
    setup = draw(plain_setups(subject.capabilities, tall(subject)), "setup")
    size = setup.samples

    def in_a_row(feature: Any) -> st.SearchStrategy[Any]:
        return st.just([[i % feature.table.vocabulary_size] for i in range(size)])

    rows = st.tuples(*(in_a_row(feature) for feature in setup.features)).map(list)
    batch = draw(st.one_of(rows, batch_of(setup, sized(1, 2))), "batch")
    gradient = draw(moving(setup), "gradients")
    bench = Bench(backend_of(subject), setup)
    plans, outputs = bench.plans(batch)
    with told_step(subject, setup, batch, gradient):
        found = bench.backend.lookup(bench.state, bench.backend.put_plan(plans))
        bench.update(batch, gradient)
        wanted = definition_of(setup).dequeue(batch)
        for i, array in enumerate(by_feature(outputs, found)):
            compare(f"activations of feature {i}, read after an update", array, wanted[i])


@check("1.1", backend=True, effort=0.5)
def check_a_later_lookup_does_not_reach_into_activations(subject: Subject, draw: Draw) -> None:
    """What lookup returned stays as it was when others are looked up: no memory is used again."""
    setup = draw(plain_setups(subject.capabilities, tall(subject)), "setup")
    batches = [draw(batch_of(setup, sized(1, 2)), f"batch {i}") for i in range(3)]
    bench = Bench(backend_of(subject), setup)
    law = definition_of(setup)
    found = [bench.lookup(batch) for batch in batches]
    for number, (batch, activations) in enumerate(zip(batches, found, strict=True)):
        for i, (array, wanted) in enumerate(
            zip(activations, law.dequeue(batch, False), strict=True)
        ):
            what = f"activations of batch {number}, feature {i}, read after all three lookups"
            try:
                compare(what, array, wanted)
            except Difference as difference:
                program = Program(setup, tuple(Evaluate(each) for each in batches))
                difference.args = (explained(difference.what, subject, program),)
                raise


@check("1.1", backend=True, effort=0.5)
def check_an_update_touches_only_the_rows_of_its_plan(subject: Subject, draw: Draw) -> None:
    """Every other row, and its slots, keep their bits, whatever they hold; under every optimizer
    but a non-lazy one.
    """
    can = subject.capabilities
    rules = optimizers(can, "real").filter(lambda rule: not updates_every_row(rule))
    setup = draw(setups(can, "real", rules=rules), "setup")
    tables, slots = draw(stored(setup), "tables and slots")
    batch = draw(batches(setup, can, "real"), "batch")
    gradient = draw(gradients(setup, can, "real"), "gradients")
    bench = Bench(backend_of(subject), setup, tables, slots)
    before = bench.read()
    bench.update(batch, gradient)
    after = bench.read()
    plans, _ = bench.plans(batch)
    for name, plan in plans.items():  # touched rows are no matter of this check
        for array, old in [
            (after[0][name], before[0][name]),
            *((after[1][name][slot], before[1][name][slot]) for slot in before[1][name]),
        ]:
            array[plan.unique] = old[plan.unique]
    with told_step(subject, setup, batch, gradient):
        compare_states("after an update", setup, after, before, "the plan does not name this row")


@check("1.2", "2.3", backend=True, effort=0.5)
def check_an_empty_plan_gives_zeros_and_changes_nothing(subject: Subject, draw: Draw) -> None:
    """Bags without ids: activations are zero, and an update with any gradients keeps every bit."""
    can = subject.capabilities
    rules = optimizers(can, "real").filter(lambda rule: not updates_every_row(rule))
    setup = draw(setups(can, "real", rules=rules), "setup")
    bench = Bench(backend_of(subject), setup, *draw(stored(setup), "tables and slots"))
    batch = draw(batch_of(setup, sized(0)), "batch")
    gradient, before = draw(moving(setup), "gradients"), bench.read()
    with told_step(subject, setup, batch, gradient):
        for i, array in enumerate(bench.lookup(batch)):
            compare(f"activations of feature {i}, of empty bags", array, np.zeros_like(array))
        bench.update(batch, gradient)
        compare_states("after an empty plan", setup, bench.read(), before, "it names no row")
