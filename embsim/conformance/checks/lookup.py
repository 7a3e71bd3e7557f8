"""Section 2 of the semantics, lookups: what the ids and weights of a bag give."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...config import FeatureConfig, QuantizationConfig
from ...errors import CapacityError
from ...optimizers import SGD
from ..adapter import Capabilities
from ..check import Draw, check
from ..difference import Difference
from ..lockstep import explained, replay
from ..program import Evaluate, Program, Train
from ..single import engine_steps
from ..strategies import batches, gradients, setups
from ..subject import Subject
from . import _operands as operands
from ._operands import (
    alone,
    divides_exactly,
    in_order,
    one_table,
    plain_setups,
    replay_steps,
    sized,
    steps_of,
    touches_show,
    weighted,
)


def _hold(subject: Subject, draw: Draw, combiner: str, bags: operands.Bags, **options: Any) -> None:
    """Two training steps of such bags, in a table with this combiner."""
    can = subject.capabilities
    shapes = options.pop("shapes", one_table(can))
    setup = draw(plain_setups(can, shapes, combiners=(combiner,), **options), "setup")
    replay_steps(subject, setup, draw(steps_of(setup, bags), "steps"))


def _divides(can: Capabilities) -> bool:
    return len(operands.combiners_of(can)) > 1


@check("2.1", needs=("combiner='mean'", "weights"), when=divides_exactly, effort=0.5)
def check_mean_divides_by_the_sum_of_the_weights(subject: Subject, draw: Draw) -> None:
    """gain = w / sum(w): not w / (number of ids), nor 1 / (number of ids)."""
    _hold(subject, draw, "mean", weighted(operands.BY_MEAN))


@check("2.1", needs=("combiner='sqrtn'", "weights"), when=divides_exactly, effort=0.5)
def check_sqrtn_divides_by_the_root_of_the_sum_of_squares(subject: Subject, draw: Draw) -> None:
    """gain = w / sqrt(sum(w * w)): not by the sum of squares, nor by the root of a count."""
    _hold(subject, draw, "sqrtn", weighted(operands.BY_SQRTN))


@check("2.1", needs=("weights",), effort=0.5)
def check_sum_multiplies_by_the_weights_and_divides_by_nothing(
    subject: Subject, draw: Draw
) -> None:
    """gain = w, in the activation and in the row's gradient, also in a bag of one id."""
    _hold(subject, draw, "sum", weighted(operands.BY_SUM))


@check("2.1", effort=0.5)
def check_ids_without_weights_have_weight_1(subject: Subject, draw: Draw) -> None:
    """sum: gain 1; mean: 1 / n; sqrtn: 1 / sqrt(n), for n ids."""
    offered = operands.combiners_of(subject.capabilities)
    combiner = draw(st.sampled_from(offered), "combiner")
    lengths = {"sum": (1, 2, 3), "mean": (1, 2, 4), "sqrtn": (1, 4)}[combiner]
    _hold(subject, draw, combiner, sized(*lengths))


@check("2.1", needs=("weights",), when=_divides, effort=0.5)
def check_a_denominator_of_zero_gives_gain_zero(subject: Subject, draw: Draw) -> None:
    """Weights that cancel, or are all 0: activations are 0, never NaN, and no row is moved by the
    gradient.
    """
    offered = operands.combiners_of(subject.capabilities, ("mean", "sqrtn"))
    combiner = draw(st.sampled_from(offered), "combiner")
    _hold(subject, draw, combiner, weighted(operands.OF_NOTHING[combiner]))


@check("2.1", needs=("weights",), effort=0.5)
def check_negative_weights_are_plain_arithmetic(subject: Subject, draw: Draw) -> None:
    """They are neither dropped nor made positive, and count in the denominator as they are."""
    offered = operands.combiners_of(subject.capabilities)
    combiner = draw(st.sampled_from(offered), "combiner")
    _hold(subject, draw, combiner, weighted(operands.NEGATIVE[combiner]))


@check("2.1", "3.3", needs=("weights",), when=touches_show, effort=0.5)
def check_an_id_of_weight_zero_is_touched(subject: Subject, draw: Draw) -> None:
    """Its gain is 0, its gradient 0; but the optimizer's rule is applied to its row."""
    patterns = ((0.0,), (0.0, 1.0), (2.0, 0.0), (0.0, 0.0))
    _hold(subject, draw, "sum", weighted(patterns))


@check("2.2", effort=0.5)
def check_duplicates_count_as_often_as_they_occur(subject: Subject, draw: Draw) -> None:
    """In the sum, in the denominator and in the row's gradient: ids [a, a, a, b] are four ids."""

    def bags(feature: FeatureConfig) -> st.SearchStrategy[Any]:
        length = {"sum": 3, "mean": 4, "sqrtn": 4}[feature.table.combiner]
        ids = st.lists(operands.ids_of(feature), min_size=2, max_size=2, unique=True)
        weights = st.just((1.0,) * length)
        if feature.table.combiner != "sum" and subject.capabilities.offers("weights"):
            weights = st.sampled_from(((1.0,) * 4, (-1.0, 1.0, 1.0, 1.0), (2.0,) * 4))
            if feature.table.combiner == "mean":
                weights = st.sampled_from(((1.0,) * 4, (2.0, 1.0, 0.5, 0.5), (2.0,) * 4))
        return st.tuples(ids, weights).map(
            lambda both: _with_weights([both[0][0]] * (length - 1) + [both[0][1]], both[1])
        )

    can = subject.capabilities
    setup = draw(plain_setups(can, one_table(can), combiners=operands.COMBINERS), "setup")
    replay_steps(subject, setup, draw(steps_of(setup, bags), "steps"))


def _with_weights(ids: list[int], weights: tuple[float, ...]) -> list[Any]:
    """The bag; without weights if all are 1."""
    return ids if set(weights) == {1.0} else list(zip(ids, weights, strict=True))


@check("2.2", "2.9", effort=0.5)
def check_no_id_of_a_large_bag_is_dropped(subject: Subject, draw: Draw) -> None:
    """Many ids in a bag: an engine whose buffers are too small for them may refuse the batch with a
    CapacityError, and drops nothing.
    """

    def bags(feature: FeatureConfig) -> st.SearchStrategy[Any]:
        rows, start, stride = feature.table.vocabulary_size, operands.ids_of(feature), (1, 3, 7)
        return st.builds(
            lambda n, low, by: [(low + by * i) % rows for i in range(n)],
            *(st.sampled_from((24, 31)), start, st.sampled_from(stride)),
        )

    try:
        _hold(subject, draw, "sum", bags)
    except Difference as difference:
        if not isinstance(difference.__cause__, CapacityError):
            raise


@check("2.3", effort=0.5)
def check_an_empty_bag_gives_zeros_and_touches_nothing(subject: Subject, draw: Draw) -> None:
    """Whatever row 0 holds, NaN too; the gradient at its sample moves no row."""

    def bags(feature: FeatureConfig) -> st.SearchStrategy[Any]:
        others = st.integers(1, feature.table.vocabulary_size - 1)
        return st.one_of(st.just([]), st.lists(others, min_size=2, max_size=2))

    offered = operands.combiners_of(subject.capabilities, ("sum", "mean"))
    combiner = draw(st.sampled_from(offered), "combiner")
    kind = sized(0) if draw(st.booleans(), "all bags are empty") else bags
    _hold(subject, draw, combiner, kind, row_0=(5.0, float("nan"), float("inf"), -7.0))


@check("2.6", needs=("max_sequence_length",), effort=0.5)
def check_position_p_of_a_sequence_holds_the_p_th_id(subject: Subject, draw: Draw) -> None:
    """Nothing is combined; each position gives its own gradient to its own row."""
    shapes = one_table(subject.capabilities, length=True)
    _hold(subject, draw, "sum", sized(1, 2), shapes=shapes)


@check("2.6", needs=("max_sequence_length",), when=touches_show, effort=0.5)
def check_positions_beyond_the_sequence_touch_nothing(subject: Subject, draw: Draw) -> None:
    """The first L ids are kept; rows that only later positions name stay as they are."""

    def bags(feature: FeatureConfig) -> st.SearchStrategy[Any]:
        kept, dropped = st.integers(0, 1), st.integers(2, feature.table.vocabulary_size - 1)
        length = feature.max_sequence_length
        heads = st.lists(kept, min_size=length, max_size=length)
        return st.builds(lambda a, b: a + b, heads, st.lists(dropped, max_size=2))

    _hold(subject, draw, "sum", bags, shapes=one_table(subject.capabilities, length=True))


QUANTIZATION = QuantizationConfig(5, -2.0, 2.0)


@check("2.8", needs=("quantization_config",), effort=0.5)
def check_quantization_rounds_ties_up_and_clips_to_its_limits(subject: Subject, draw: Draw) -> None:
    """x = floor((x - lower) / q + 0.5) * q + lower, of each row before the combiner."""
    _hold(subject, draw, "sum", sized(1, 2), quantization=QUANTIZATION, rules=(SGD(1.0), SGD(0.5)))


@check("2.8", needs=("quantization_config",), effort=0.5)
def check_quantization_never_touches_the_table_or_the_gradient(
    subject: Subject, draw: Draw
) -> None:
    """Forward only: the gradient passes straight through, also where x was clipped, and is
    subtracted from the float32 number.
    """
    rules = (SGD(0.5), SGD(0.25))
    _hold(subject, draw, "sum", sized(1), quantization=QUANTIZATION, rules=rules)


@check("2.9", effort=0.5)
def check_the_first_and_the_last_row_are_rows_like_any_other(subject: Subject, draw: Draw) -> None:
    """Row 0 is no padding, row vocabulary_size - 1 is inside: both are read and trained."""

    def bags(feature: FeatureConfig) -> st.SearchStrategy[Any]:
        last = feature.table.vocabulary_size - 1
        return st.sampled_from(([0], [last], [0, last], [last, last, 0]))

    _hold(subject, draw, "sum", bags, shapes=one_table(subject.capabilities, rows=1))


@check("2.9", when=lambda can: can.errors and in_order(can), effort=0.5)
def check_an_id_outside_its_table_is_refused(subject: Subject, draw: Draw) -> None:
    """Nothing is clamped, wrapped or dropped: a batch with such an id is a ValueError."""
    can = subject.capabilities
    setup = draw(plain_setups(can, one_table(can)), "setup")
    rows = setup.features[0].table.vocabulary_size
    bad = draw(st.sampled_from((-1, rows, -rows, rows + 3, 2**31 - 1)), "the id outside the table")
    bag = draw(st.permutations([0, bad]), "bag")
    batch = [[*([[]] * (setup.samples - 1)), bag]]
    engine = subject.start(setup)
    try:
        engine.enqueue(batch, True)
        found = engine.dequeue() or ()
        seen = str([np.asarray(each)[-1].tolist() for each in found])
    except ValueError:
        return
    except Exception as error:
        seen = repr(error)
    finally:
        engine.close()
    what = f"id {bad} of a table of {rows} rows must be a ValueError at enqueue; bag {bag} gave"
    step = Train(batch, [None])
    raise Difference(explained(f"{what} {seen}", subject, Program(setup, (step,))), table="t0")


@check("5.5", "2.1", needs=("inference",), when=lambda can: can.looks and in_order(can), effort=0.5)
def check_a_lookup_repeated_gives_the_same_and_changes_nothing(
    subject: Subject, draw: Draw
) -> None:
    """Inference of one batch, again and again: same activations, same tables and slots."""
    can = subject.capabilities
    setup = draw(plain_setups(can, one_table(can)), "setup")
    look, train = draw(steps_of(setup, sized(1, 2, 3)), "steps")
    again = (Evaluate(look.batch),) * 2
    replay(subject, Program(setup, (*again, train, *again)))


@check("8.5", "2.1", when=alone)
def check_a_lookup_of_real_numbers_is_within_its_computed_bound(
    subject: Subject, draw: Draw
) -> None:
    """Each activation is at most gamma(n) * sum |gain * w| from exact arithmetic, and float32."""
    can = subject.capabilities
    setup = draw(setups(can, "real", rules=st.just(SGD(0.1))), "setup")
    steps = [(draw(batches(setup, can, "real"), "batch"), draw(gradients(setup, can, "real"), "g"))]
    engine_steps(subject, setup, steps)
