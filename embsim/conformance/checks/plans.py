"""The contract of a backend's six functions, without an engine: plans and updates."""

import numpy as np

from ..._queue import by_feature
from ...optimizers import updates_every_row
from ...pending import compact_state
from ...plan import LookupPlan
from ..bench import Bench
from ..check import Draw, check
from ..difference import compare
from ..lockstep import definition_of
from ..program import Program
from ..subject import Subject
from ._benches import backend_of, compare_states, numbers_of, one_step, tall, told_step
from ._operands import plain_setups, sized, steps_of, told


@check("1.1", backend=True, effort=0.5)
def check_small_states_compute_what_the_large_one_does(subject: Subject, draw: Draw) -> None:
    """The rows of a plan alone, in tables of their own and without the tables that it does not
    name, give the same activations and the same rows; and the large state is not disturbed.
    """
    setup, batch, gradient = one_step(subject, draw)
    bench = Bench(backend_of(subject), setup)
    backend, before = bench.backend, bench.read()
    plans, outputs = bench.plans(batch)
    rows = {name: _rows(bench, name, plan) for name, plan in plans.items()}
    with told_step(subject, setup, batch, gradient):
        small = backend.put_state(compact_state(backend, bench.state, bench.specs, rows))
        kept = {name: plan.with_rows(rows[name]) for name, plan in plans.items() if len(rows[name])}
        put = backend.put_plan(kept)
        found = {name: np.array(array) for name, array in backend.lookup(small, put).items()}
        stacked = bench.gradients_by_table(plans, outputs, gradient)
        given = {name: stacked[name] for name in kept}
        small = backend.get_state(backend.update(small, put, given, numbers_of(bench, kept)))
        compare_states("after an update of a small state", setup, bench.read(), before, "it was of "
                       "another state")  # fmt: skip
        wanted = backend.lookup(bench.state, backend.put_plan(plans))
        for name in kept:
            what = f"of table {name!r}, in a state of rows {rows[name].tolist()} alone"
            compare(f"activations {what}", found[name], np.asarray(wanted[name]), table=name)
        bench.update(batch, gradient)
        tables, slots = bench.read()
        for name in kept:
            what = f"updated row of table {name!r}, in a state of rows {rows[name].tolist()} alone"
            compare(what, np.asarray(small.weights[name]), tables[name][rows[name]], table=name)
            for slot, array in slots[name].items():
                compare(f"slot {slot!r}, {what}", np.asarray(small.slots[name][slot]),
                        array[rows[name]], table=name, slot=slot)  # fmt: skip


def _rows(bench: Bench, name: str, plan: LookupPlan) -> np.ndarray:
    if updates_every_row(bench.specs[name].optimizer):
        return np.arange(plan.num_rows, dtype=np.int32)
    return plan.unique


@check("5.3", "1.1", backend=True, effort=0.5)
def check_plans_may_be_put_long_before_they_are_used(subject: Subject, draw: Draw) -> None:
    """Several at once, and again after other updates: a plan holds no numbers of a table, and no
    plan takes another's place.
    """
    setup = draw(plain_setups(subject.capabilities, tall(subject)), "setup")
    steps = draw(steps_of(setup, sized(1, 2), 3), "steps")
    bench, law = Bench(backend_of(subject), setup), definition_of(setup)
    made = [bench.plans(step.batch) for step in steps]
    put = [bench.backend.put_plan(plans) for plans, _ in made]
    with told(subject, Program(setup, (*steps, *steps))):
        for number in (0, 1, 2, 0):
            plans, outputs = made[number]
            found = by_feature(outputs, bench.backend.lookup(bench.state, put[number]))
            wanted = law.dequeue(steps[number].batch)
            for i, array in enumerate(found):
                compare(f"activations of plan {number}, feature {i}", array, wanted[i])
            given = bench.gradients_by_table(plans, outputs, steps[number].gradients)
            numbers = numbers_of(bench, plans)
            bench.state = bench.backend.update(bench.state, put[number], given, numbers)
            law.apply_gradients(steps[number].gradients)
            wanted = {name: law.versions[-1][config] for name, config in setup.tables.items()}
            for name, table in bench.read()[0].items():
                compare(f"table {name!r} after the update of plan {number}", table, wanted[name][0])


@check("1.1", "10.11", backend=True, effort=0.5)
def check_what_is_given_to_an_update_is_only_read(subject: Subject, draw: Draw) -> None:
    """Gradients and plans keep their numbers; and the gradients, which may be overwritten as soon
    as the call returns, have been read by then.
    """
    setup = draw(plain_setups(subject.capabilities, tall(subject)), "setup")
    (step,) = draw(steps_of(setup, sized(1, 2), 1), "step")
    bench = Bench(backend_of(subject), setup)
    plans, outputs = bench.plans(step.batch)
    parts = {name: (plan.row, plan.gain, plan.splits) for name, plan in plans.items()}
    copies = {name: [array.copy() for array in arrays] for name, arrays in parts.items()}
    given = bench.gradients_by_table(plans, outputs, step.gradients)
    before = {name: array.copy() for name, array in given.items()}
    law = definition_of(setup)
    law.dequeue(step.batch)
    law.apply_gradients(step.gradients)
    with told(subject, Program(setup, (step,))):
        put = bench.backend.put_plan(plans)
        bench.backend.lookup(bench.state, put)
        bench.state = bench.backend.update(bench.state, put, given, numbers_of(bench, plans))
        for name, array in given.items():
            compare(f"gradients given for table {name!r}, after update", array, before[name])
            array[...] = np.nan
            for kind, a, b in zip(
                ("row", "gain", "splits"), parts[name], copies[name], strict=True
            ):
                assert np.array_equal(a, b), f"plan.{kind} of table {name!r} was {b}, became {a}"
        for name, table in bench.read()[0].items():
            wanted = law.versions[-1][setup.tables[name]][0]
            compare(f"table {name!r}, read after its gradients were overwritten", table, wanted)
