"""Hypothesis strategies: setups, batches and gradients, drawn whole, so that failures shrink.

Two regimes (semantics 8.5):

    exact   every sum, product and quotient of a program is exact in float32, in any order: what
            differs is wrong, on any machine. Small integers, gains that are dyadic, SGD and
            Counting.
    real    numbers whose sums depend on their order, every optimizer.

Why a program of the exact regime is exact: gains are multiples of 1/4 up to 2, gradients integers
up to 2, rates 1 or 1/2, at most 96 contributions to a row. So after 24 updates without decay tables
are multiples of 2^-3 below 2^14 and activations multiples of 2^-5 below 2^17: 22 bits of 24. Decay
halves the unit with each update; with decay programs have at most 6.

>>> from embsim.conformance import Capabilities
>>> can = Capabilities(refuses={"max_sequence_length": "not written yet"})
>>> setup = setups(can, regime="exact").example()  # doctest: +SKIP
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ..config import FeatureConfig, QuantizationConfig, TableConfig
from ..schedule import Schedule
from .adapter import ALL, Capabilities
from .program import Setup, Values
from .rules import optimizers


@dataclass(frozen=True)
class Bucket:
    """Everything that a compiled program's shapes depend on, but for the number of ids.

    tables: (vocabulary_size, dim); features: (table, max_sequence_length); samples of each.
    """

    tables: tuple[tuple[int, int], ...]
    features: tuple[tuple[int, int], ...]
    samples: int


# Few, because engines that compile do so for each: one row, dim 1, shared tables, a sequence on a
# table of its own and on one that is also combined, several tables, rows that no batch reaches.
BUCKETS = (
    Bucket(((1, 1),), ((0, 0),), 1),
    Bucket(((4, 2),), ((0, 0),), 2),
    Bucket(((6, 3),), ((0, 0), (0, 0)), 2),
    Bucket(((4, 2),), ((0, 2),), 2),
    Bucket(((5, 1), (3, 2)), ((0, 0), (1, 0)), 2),
    Bucket(((3, 1),), ((0, 0),), 4),
    Bucket(((1, 3),), ((0, 0),), 2),
    Bucket(((8, 8),), ((0, 0),), 4),
    Bucket(((4, 2), (2, 3)), ((0, 0), (0, 3), (1, 0)), 4),
    Bucket(((5, 2), (5, 2), (2, 1)), ((0, 0), (1, 0), (2, 0), (0, 0)), 2),
    Bucket(((17, 5),), ((0, 0), (0, 1)), 4),
    Bucket(((40, 2),), ((0, 0),), 8),
)

BAG = 4  # ids, at most
INTEGERS = (0.0, 1.0, -1.0, 2.0, -2.0)
# Sums of these depend on their order; 1e-30 squared is 0, so that denominators vanish.
NUMBERS = (0.0, 1.0, -1.0, 0.5, 2.0, 0.1, -0.3, 3.0, 1 / 3, 1e-3, -70.0, 1e4, 2.0**24, 1e-30)
WILD = (*NUMBERS, float("nan"), float("inf"), -3e38)
MODEST = (0.0, 1.0, -1.0, 0.5, 2.0, 0.1, -0.3, 3.0, 1 / 3, 1e-3, -7.0, 11.0)


def tables_of(shape: tuple[int, ...], numbers: Sequence[float]) -> st.SearchStrategy[np.ndarray]:
    """float32 arrays of this shape, of these numbers."""
    elements = st.sampled_from([np.float32(x) for x in numbers])
    return hnp.arrays(np.float32, shape, elements=elements, fill=elements)


def schedules(can: Capabilities = ALL) -> st.SearchStrategy[Schedule]:
    """Of those that the subject can be started with."""
    if can.schedules is not None:
        return st.sampled_from(can.schedules)
    return st.builds(
        Schedule,
        staleness=st.sampled_from((0, 1, 2, 3)),
        drain_every=st.sampled_from((None, None, 1, 2, 3)),
        warmup_steps=st.sampled_from((0, 0, 1, 2)),
    )


def regimes(can: Capabilities) -> st.SearchStrategy[str]:
    """Of numbers that may be compared to the bit in whole programs: real ones where the subject is
    bitwise; exact ones where it is not, and for what is `bounded`.
    """
    if not can.bitwise:
        return st.just("exact")
    return st.sampled_from(("real", "exact")) if can.bounded else st.just("real")


def to_the_bit(can: Capabilities, regime: str) -> Capabilities:
    """What may be asked for in this one of `regimes`."""
    return can if regime == "exact" else can.to_the_bit


def buckets(can: Capabilities = ALL) -> list[Bucket]:
    """Those whose shapes the subject does not refuse, and whose samples its replicas divide."""
    offered = [bucket for bucket in BUCKETS if can.offers(*_asked(bucket))]
    fit = [each for each in offered if any(each.samples % n == 0 for n in can.replicas)]
    least = min(can.replicas)
    return fit or [replace(each, samples=least * each.samples) for each in offered]


def _asked(bucket: Bucket) -> list[str]:
    tables = [table for table, _ in bucket.features]
    asked = ["several tables"] if len(bucket.tables) > 1 else []
    asked += ["shared tables"] if len(set(tables)) < len(tables) else []
    return asked + (["max_sequence_length"] if any(n for _, n in bucket.features) else [])


@st.composite
def setups(
    draw: Any,
    can: Capabilities = ALL,
    regime: str = "exact",
    *,
    shapes: Sequence[Bucket] | None = None,
    rules: st.SearchStrategy[Any] | None = None,
    schedule: st.SearchStrategy[Schedule] | None = None,
    combiners: Sequence[str] = ("sum", "mean", "sqrtn"),
    quantized: bool = True,
) -> Setup:
    """A Setup in one of `shapes`, with tables of at most three optimizers of `rules`."""
    bucket = draw(st.sampled_from(shapes or buckets(can)))
    rules = optimizers(can, regime) if rules is None else rules
    numbers = INTEGERS if regime == "exact" else MODEST
    offered = [each for each in combiners if can.offers(f"combiner={each!r}")]
    tables: list[TableConfig] = []
    for i, shape in enumerate(bucket.tables):
        quantization = st.none()
        if quantized and can.offers("quantization_config"):
            quantization = st.sampled_from((None, None, _QUANTIZATION[regime]))
        tables.append(
            TableConfig(
                *shape,
                initializer=Values(draw(tables_of(shape, numbers))),
                optimizer=draw(rules),
                combiner=draw(st.sampled_from(offered)),
                name=f"t{i}",
                quantization_config=draw(quantization),
            )
        )
    counts = [n for n in can.replicas if bucket.samples % n == 0]
    capacities = [n for n in (8, 1, 2) if n > can.output_shift]
    return Setup(
        tuple(FeatureConfig(tables[table], length) for table, length in bucket.features),
        draw(schedules(can) if schedule is None else schedule),
        samples=bucket.samples,
        replicas=draw(st.sampled_from(counts)),
        queue_capacity=draw(st.sampled_from(capacities)) if can.errors else 8,
    )


_QUANTIZATION = {
    "exact": QuantizationConfig(5, -2.0, 2.0),
    "real": QuantizationConfig(100, -0.3, 0.7),
}


def _weight_patterns(squared: bool) -> list[tuple[float, ...]]:
    """Weights of a bag whose gains are multiples of 1/4 up to 2, and their sums exact."""
    found: list[tuple[float, ...]] = []
    for length in range(1, BAG + 1):
        for weights in itertools.product((1.0, 0.0, -1.0, 2.0), repeat=length):
            d = sum(w * w if squared else w for w in weights)
            d = d**0.5 if squared else d
            if d == 0 or (abs(d) in (1.0, 2.0, 4.0) and all(abs(w / d) <= 2 for w in weights)):
                found.append(weights)
    return found


_PATTERNS = {
    "mean": _weight_patterns(squared=False),
    "sqrtn": _weight_patterns(squared=True),
}
_LENGTHS = {"sum": (0, 1, 2, 3, 4), "mean": (0, 1, 2, 4), "sqrtn": (0, 1, 4)}


_SOMETIMES = st.sampled_from((False, False, False, False, True))


def bags(feature: FeatureConfig, regime: str, weighted: bool) -> st.SearchStrategy[Any]:
    """One bag of `feature`: a list of ids, or of (id, weight)."""
    ids = st.integers(0, feature.table.vocabulary_size - 1)
    combiner = feature.table.combiner
    if feature.max_sequence_length:
        return st.lists(ids, max_size=BAG)
    if regime == "exact" and weighted and combiner in _PATTERNS:
        filled = st.sampled_from(_PATTERNS[combiner]).flatmap(
            lambda weights: st.tuples(*(st.tuples(ids, st.just(w)) for w in weights)).map(list)
        )
        return st.one_of(st.just([]), filled)
    if regime == "exact" and not weighted:
        lengths = st.sampled_from(_LENGTHS[combiner])
        return lengths.flatmap(lambda n: st.lists(ids, min_size=n, max_size=n))
    numbers = (1.0, 0.0, -1.0, 2.0) if regime == "exact" else MODEST
    if regime == "wild":
        numbers = WILD
    if not weighted:
        return st.lists(ids, max_size=BAG)
    weights = st.sampled_from([float(np.float32(x)) for x in numbers])
    zero = st.lists(st.tuples(ids, st.just(0.0)), min_size=1, max_size=BAG)
    any_weights = st.lists(st.tuples(ids, weights), max_size=BAG)
    return _SOMETIMES.flatmap(lambda seldom: zero if seldom else any_weights)


@st.composite
def batches(draw: Any, setup: Setup, can: Capabilities = ALL, regime: str = "exact") -> Any:
    """A global batch: for each feature, for each sample, a bag. Features may carry weights."""
    batch: list[Any] = []
    for feature in setup.features:
        may = can.offers("weights") and not feature.max_sequence_length
        weighted = may and draw(st.booleans())
        size = setup.samples
        bag = st.just([]) if draw(_SOMETIMES) else bags(feature, regime, weighted)
        batch.append(draw(st.lists(bag, min_size=size, max_size=size)))
    return batch


@st.composite
def gradients(draw: Any, setup: Setup, can: Capabilities = ALL, regime: str = "exact") -> Any:
    """For each feature an array of its activations' shape, or None."""
    numbers = {"exact": INTEGERS, "real": MODEST, "wild": WILD}[regime]
    found: list[Any] = []
    for number in range(len(setup.features)):
        values = tables_of(setup.activation_shape(number), numbers)
        none = st.none() if can.offers("gradients of None") else st.nothing()
        found.append(draw(st.one_of(values, none)))
    return found
