"""Operands that make one decision visible: tables of which no two rows are equal, bags of one kind,
gradients that are nowhere zero. All numbers are those of the exact regime.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...config import FeatureConfig, QuantizationConfig, TableConfig
from ...optimizers import SGD
from ...schedule import Schedule, sequential
from ..adapter import Capabilities, asked_of_optimizer
from ..difference import Difference, same_bits
from ..lockstep import explained, replay
from ..program import Batch, Program, Setup, Train, Values
from ..rules import Counting
from ..strategies import Bucket, buckets, tables_of
from ..subject import Subject

COMBINERS = ("sum", "mean", "sqrtn")
NONZERO = (1.0, -1.0, 2.0, -2.0)
Bags = Callable[[FeatureConfig], st.SearchStrategy[Any]]  # of each feature: one bag

# Weights of a bag whose denominator is a power of two, and is not the number of ids.
BY_MEAN = ((1.0, 3.0), (2.0, 2.0), (2.0,), (1.0, 2.0, 1.0), (0.5, 1.5), (4.0,), (3.0, 1.0))
BY_SQRTN = ((1.0,) * 4, (2.0,) * 4, (2.0,), (4.0,), (0.5,) * 4, (3.0, 2.0, 1.0, 1.0, 1.0))
BY_SUM = ((2.0,), (1.0, 3.0), (0.5,), (2.0, 1.0, 2.0), (0.25, 0.5))
NEGATIVE = {
    "sum": ((-1.0, 2.0), (-2.0,), (-1.0, -1.0)),
    "mean": ((-1.0, 2.0), (3.0, -1.0), (-1.0, -1.0), (-2.0,), (1.0, 2.0, -1.0)),
    "sqrtn": ((-1.0, 1.0, 1.0, -1.0), (-2.0,), (-2.0, 2.0, 2.0, 2.0)),
}
OF_NOTHING = {  # whose denominator is 0
    "mean": ((0.0,), (1.0, -1.0), (0.0, 0.0), (2.0, -1.0, -1.0), (-1.0, 0.0, 1.0)),
    "sqrtn": ((0.0,), (0.0, 0.0), (0.0, 0.0, 0.0)),
}


def in_order(can: Capabilities) -> bool:
    """Activations come back from the dequeue of their own batch."""
    return can.output_shift == 0


def alone(can: Capabilities) -> bool:
    """One step at a time can be seen."""
    return in_order(can) and can.drain_points == "any"


def divides_exactly(can: Capabilities) -> bool:
    """A quotient by a power of two, and the root of one of four, are exact."""
    return can.ulps <= 0.5


def combiners_of(can: Capabilities, wanted: Sequence[str] = COMBINERS) -> list[str]:
    """Those that are offered and exact."""
    exact = [each for each in wanted if each == "sum" or divides_exactly(can)]
    return [each for each in exact if can.offers(f"combiner={each!r}")]


def touches_show(can: Capabilities) -> bool:
    """Some exact optimizer moves a touched row that has gradient 0."""
    return bool(_touching(can))


def _touching(can: Capabilities) -> list[Any]:
    decay = SGD(1.0, weight_decay_factor=0.5)
    return [rule for rule in (Counting(1.0), decay) if can.offers(*asked_of_optimizer(rule))]


def quiet_schedule(can: Capabilities) -> Schedule:
    """The sequential one, or the first that is offered."""
    return sequential() if can.schedules is None else can.schedules[0]


def one_table(can: Capabilities, *, length: bool = False, rows: int = 3) -> list[Bucket]:
    """Shapes of one table with one feature, and at least so many rows."""
    return [
        each
        for each in buckets(can)
        if len(each.features) == 1 and each.tables[0][0] >= rows
        if bool(each.features[0][1]) == length
    ]


def shared(can: Capabilities) -> list[Bucket]:
    """Shapes with several features; such on one table, if they may be."""
    several = [each for each in buckets(can) if len(each.features) > 1]
    return [each for each in several if len(each.tables) < len(each.features)] or several


@st.composite
def plain_setups(
    draw: Any,
    can: Capabilities,
    shapes: Sequence[Bucket],
    *,
    combiners: Sequence[str] = ("sum",),
    rules: Sequence[Any] | None = None,
    row_0: Sequence[float] = (),
    quantization: QuantizationConfig | None = None,
) -> Setup:
    """A Setup in one of `shapes`, with counting rows if it may.

    Rows are first, first + 1, ... by element; row 0 is one of `row_0`, if given.
    """
    bucket = draw(st.sampled_from(list(shapes)))
    first = draw(st.sampled_from((1.0, -60.0, 7.0)))
    offered = combiners_of(can, combiners)
    tables: list[TableConfig] = []
    for i, (rows, dim) in enumerate(bucket.tables):
        values = first + 10 * i + np.arange(rows * dim, dtype=np.float32).reshape(rows, dim)
        if row_0:
            values[0] = draw(st.sampled_from(list(row_0)))
        if quantization is not None:
            values = draw(tables_of((rows, dim), np.arange(-3.0, 3.5, 0.5).tolist()))
        rule = draw(st.sampled_from(list(rules or _touching(can) or [SGD(1.0)])))
        combiner = draw(st.sampled_from(offered))
        tables.append(
            TableConfig(
                *(rows, dim, Values(values), rule, combiner, f"t{i}"),
                quantization_config=quantization,
            )
        )
    counts = [n for n in can.replicas if bucket.samples % n == 0]
    return Setup(
        tuple(FeatureConfig(tables[table], length) for table, length in bucket.features),
        quiet_schedule(can),
        samples=bucket.samples,
        replicas=draw(st.sampled_from(counts)),
    )


@st.composite
def steps_of(draw: Any, setup: Setup, bags: Bags, count: int = 2) -> list[Train]:
    """Training steps whose bags are all of this kind, and whose gradients are nowhere 0."""
    return [Train(draw(batch_of(setup, bags)), draw(moving(setup))) for _ in range(count)]


@st.composite
def batch_of(draw: Any, setup: Setup, bags: Bags) -> Batch:
    size = setup.samples
    return [
        draw(st.lists(bags(feature), min_size=size, max_size=size)) for feature in setup.features
    ]


@st.composite
def moving(draw: Any, setup: Setup) -> list[np.ndarray]:
    """Gradients that are nowhere 0."""
    shapes = [setup.activation_shape(number) for number in range(len(setup.features))]
    return [draw(tables_of(shape, NONZERO)) for shape in shapes]


def ids_of(feature: FeatureConfig) -> st.SearchStrategy[int]:
    return st.integers(0, feature.table.vocabulary_size - 1)


def weighted(patterns: Sequence[tuple[float, ...]]) -> Bags:
    """Bags with weights of one of these patterns."""

    def bags(feature: FeatureConfig) -> st.SearchStrategy[Any]:
        ids = ids_of(feature)
        return st.sampled_from(list(patterns)).flatmap(
            lambda pattern: st.tuples(*(st.tuples(ids, st.just(w)) for w in pattern)).map(list)
        )

    return bags


def sized(*lengths: int) -> Bags:
    """Bags of so many ids, without weights."""

    def bags(feature: FeatureConfig) -> st.SearchStrategy[Any]:
        of_length = lambda n: st.lists(ids_of(feature), min_size=n, max_size=n)  # noqa: E731
        return st.sampled_from(lengths).flatmap(of_length)

    return bags


def replay_steps(subject: Subject, setup: Setup, steps: Sequence[Train]) -> None:
    """These training steps against the law."""
    replay(subject, Program(setup, tuple(steps)))


@contextmanager
def told(subject: Subject, program: Program) -> Generator[None]:
    """A Difference inside gets the program that shows it."""
    try:
        yield
    except Difference as difference:
        difference.args = (explained(difference.what, subject, program),)
        raise


Outcome = dict[str, np.ndarray]  # by what it is


def outcome(subject: Subject, setup: Setup, steps: Sequence[Train]) -> Outcome:
    """What these steps give: activations of each, tables and slots after a drain. No law."""
    engine = subject.start(setup)
    found: Outcome = {}
    try:
        for number, each in enumerate(steps):
            engine.enqueue(each.batch, True)
            for feature, array in enumerate(engine.dequeue() or ()):
                found[f"activations of step {number}, feature {feature}"] = np.array(array)
            engine.apply_gradients(each.gradients)
        engine.drain()
        for name, table in engine.tables().items():
            found[f"table {name!r}"] = np.array(table)
        for name, slots in engine.slots().items():
            found |= {f"slot {slot!r} of table {name!r}": np.array(a) for slot, a in slots.items()}
    finally:
        engine.close()
    return found


def check_agree(
    subject: Subject, program: Program, change: str, found: Outcome, wanted: Outcome
) -> None:
    """Raises Difference unless two outcomes that must be equal are, to the bit."""
    for what in wanted.keys() | found.keys():
        one, other = wanted.get(what), found.get(what)
        if one is None or other is None:
            raise Difference(explained(f"{what}: only with or without {change}", subject, program))
        if same_bits(one, other):
            continue
        if one.shape != other.shape:
            text = f"{what} has shape {other.shape} {change}, {one.shape} without"
            raise Difference(explained(text, subject, program))
        first = tuple(int(i) for i in np.argwhere(one != other)[0])
        text = (
            f"{what}: at {list(first)} found {other[first]!s} {change}, {one[first]!s} without; "
            "they must be equal to the bit"
        )
        place: dict[str, Any] = {"row": first[0], "found": other[first], "wanted": one[first]}
        raise Difference(explained(text, subject, program), **place)
