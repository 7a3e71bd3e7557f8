"""Section 3 of the semantics, gradients: what reaches each row, and which rows count as touched."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...config import FeatureConfig
from ...optimizers import SGD
from ..check import Draw, check
from ..difference import Difference
from ..lockstep import explained
from ..program import Program, Train
from ..strategies import batches, buckets
from ..subject import Subject
from . import _operands as operands
from ._operands import (
    COMBINERS,
    batch_of,
    in_order,
    moving,
    one_table,
    plain_setups,
    replay_steps,
    shared,
    sized,
    steps_of,
    touches_show,
)

ONES = (SGD(1.0),)


@check("3.1", effort=0.5)
def check_gradients_are_summed_and_never_averaged(subject: Subject, draw: Draw) -> None:
    """Over samples, features on the table, occurrences and replicas: a row that was looked up n
    times with gradient 1 moves by n.
    """
    can = subject.capabilities
    shapes = [each for each in buckets(can) if each.samples > 1]
    setup = draw(plain_setups(can, shapes, rules=ONES), "setup")
    bags = lambda feature: st.sampled_from(([0], [0, 0], [0, 0, 0]))  # noqa: E731
    batch = draw(batch_of(setup, bags), "batch")
    ones = [np.ones(setup.activation_shape(i), np.float32) for i in range(len(setup.features))]
    replay_steps(subject, setup, [Train(batch, ones)])


@check("3.1", needs=("shared tables",), effort=0.5)
def check_features_on_one_table_add_their_gradients(subject: Subject, draw: Draw) -> None:
    """A row that several features look up moves once, by the sum of what they give."""
    can = subject.capabilities
    setup = draw(plain_setups(can, shared(can)), "setup")
    steps = draw(steps_of(setup, lambda feature: st.sampled_from(([0], [1, 0], [0, 0])), 1), "step")
    replay_steps(subject, setup, steps)


@check("3.2", effort=0.5)
def check_the_combiner_is_differentiated(subject: Subject, draw: Draw) -> None:
    """A row gets gain * gradient: the gain of its lookup, with its divisor and sign, neither the
    bare weight nor 1.
    """
    can = subject.capabilities
    setup = draw(plain_setups(can, one_table(can), combiners=COMBINERS, rules=ONES), "setup")
    combiner = setup.features[0].table.combiner
    bags = sized({"sum": 3, "mean": 4, "sqrtn": 4}[combiner])
    if can.offers("weights"):
        given = {"sum": ((3.0, -1.0),), "mean": operands.BY_MEAN, "sqrtn": operands.BY_SQRTN}
        bags = operands.weighted(given[combiner])
    replay_steps(subject, setup, draw(steps_of(setup, bags), "steps"))


@check("3.3", needs=("gradients of None",), when=touches_show, effort=0.5)
def check_a_gradient_of_none_is_zero_and_touches(subject: Subject, draw: Draw) -> None:
    """The optimizer's rule is applied to the rows that were looked up, as with explicit zeros; for
    one feature of several, or for all.
    """
    can = subject.capabilities
    setup = draw(plain_setups(can, buckets(can)), "setup")
    steps = draw(steps_of(setup, sized(1, 2)), "steps")
    without = [
        Train(
            each.batch,
            [None if draw(_mostly, "None") else gradient for gradient in each.gradients],
        )
        for each in steps
    ]
    replay_steps(subject, setup, without)


_mostly = st.sampled_from((True, True, False))


@check("3.1", "2.6", needs=("max_sequence_length",), effort=0.5)
def check_unused_positions_get_no_gradient(subject: Subject, draw: Draw) -> None:
    """Bags shorter than the sequence: positions without an id are zero, and the gradient that is
    given for them moves no row, row 0 neither.
    """

    def bags(feature: FeatureConfig) -> st.SearchStrategy[Any]:
        others = st.integers(1, feature.table.vocabulary_size - 1)
        return st.lists(others, max_size=feature.max_sequence_length - 1)

    can = subject.capabilities
    setup = draw(plain_setups(can, one_table(can, length=True)), "setup")
    replay_steps(subject, setup, draw(steps_of(setup, bags), "steps"))


@check("1.1", "3.1", "3.2", when=in_order, effort=0.5)
def check_the_update_is_the_adjoint_of_the_lookup(subject: Subject, draw: Draw) -> None:
    """<G W, x> = <W, G^T x> for each table: SGD with rate 1 shows G^T x as the table's change."""
    can = subject.capabilities
    setup = draw(plain_setups(can, buckets(can), combiners=COMBINERS, rules=ONES), "setup")
    batch = draw(batches(setup, can), "batch")
    step = Train(batch, draw(moving(setup), "gradients"))
    found = operands.outcome(subject, setup, [step])
    for name in setup.tables:
        before = setup.initial(name).astype(np.float64)
        moved = before - found[f"table {name!r}"]
        right = float(np.sum(before * moved))
        left = 0.0
        for i, feature in enumerate(setup.features):
            if feature.table.name == name:
                activations = found[f"activations of step 0, feature {i}"].astype(np.float64)
                left += float(np.sum(activations * step.gradients[i]))
        if left != right:
            text = f"table {name!r}, step 0: <G W, x> is {left}, <W, G^T x> is {right}"
            place: dict[str, Any] = {"table": name, "step": 0, "found": right, "wanted": left}
            raise Difference(explained(text, subject, Program(setup, (step,))), **place)
