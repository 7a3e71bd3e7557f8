"""Changes of a program that change no result: a subject is compared with itself.

Numbers are those of the exact regime, so that sums may be taken in any order.
"""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from ...optimizers import SGD
from ..adapter import Capabilities
from ..check import Draw, check
from ..program import Program, Setup, Train
from ..strategies import batches, buckets
from ..subject import Subject
from . import _operands as operands
from ._operands import (
    COMBINERS,
    in_order,
    one_table,
    outcome,
    plain_setups,
    sized,
    steps_of,
    weighted,
)

ONES = (SGD(1.0),)


@check("1.1", "2.1", when=in_order, effort=0.5)
def check_the_order_of_a_bag_changes_nothing(subject: Subject, draw: Draw) -> None:
    """Ids permuted together with their weights give the same activations, tables and slots."""
    can = subject.capabilities
    setup = draw(plain_setups(can, one_table(can), combiners=COMBINERS), "setup")
    bags = sized(4)
    if can.offers("weights"):
        given = {"sum": ((3.0, -1.0, 2.0),), "mean": operands.BY_MEAN, "sqrtn": operands.BY_SQRTN}
        bags = weighted(given[setup.features[0].table.combiner])
    steps = draw(steps_of(setup, bags), "steps")
    other = [
        Train(
            [[draw(st.permutations(bag), "order") for bag in bags] for bags in each.batch],
            each.gradients,
        )
        for each in steps
    ]
    found = outcome(subject, setup, other)
    program = Program(setup, tuple(other))
    how = "with the bags in another order"
    operands.check_agree(subject, program, how, found, outcome(subject, setup, steps))


@check("1.1", "2.1", "3.1", when=in_order, effort=0.5)
def check_half_a_batch_gives_half_of_the_activations(subject: Subject, draw: Draw) -> None:
    """A batch in two halves, one step each: every sample gets the activations that it gets in the
    whole; and SGD makes the same tables of the halves' gradients as of their sum.
    """
    can = subject.capabilities
    counts = {size: [n for n in can.replicas if size % n == 0] for size in (1, 2, 4)}
    shapes = [each for each in buckets(can) if each.samples % 2 == 0 and counts[each.samples // 2]]
    setup = draw(plain_setups(can, shapes, combiners=COMBINERS, rules=ONES), "setup")
    (whole,) = draw(_exact_steps(setup, can, 1), "step")
    size = setup.samples // 2
    half = replace(setup, samples=size, replicas=draw(st.sampled_from(counts[size]), "replicas"))
    parts = [
        Train([bags[part] for bags in whole.batch], [g[part] for g in whole.gradients])
        for part in (slice(None, half.samples), slice(half.samples, None))
    ]
    wanted = outcome(subject, setup, [whole])
    together = outcome(subject, half, parts)
    program = Program(half, tuple(parts))
    tables = {what: array for what, array in wanted.items() if not what.startswith("activations")}
    found = {what: array for what, array in together.items() if what in tables}
    operands.check_agree(subject, program, "after the two halves", found, tables)
    for place, part in enumerate((slice(None, half.samples), slice(half.samples, None))):
        seen = outcome(subject, half, [parts[place]])
        activations = {what: array[part] for what, array in wanted.items() if what not in tables}
        kept = {what: array for what, array in seen.items() if what in activations}
        operands.check_agree(
            subject, Program(half, (parts[place],)), f"in half {place}", kept, activations
        )


@st.composite
def _exact_steps(draw: Any, setup: Setup, can: Capabilities, count: int = 2) -> list[Train]:
    return [Train(draw(batches(setup, can)), draw(operands.moving(setup))) for _ in range(count)]
