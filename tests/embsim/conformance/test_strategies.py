"""What is drawn: everything that has ever broken an engine is reachable, and exact means exact."""

import itertools

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import embsim.definition
from embsim.conformance import LEVELS, Apply, Capabilities, Enqueue, Evaluate, Setup, Train
from embsim.conformance.adapter import BOUNDABLE, REFUSABLE, asked_for
from embsim.conformance.lockstep import definition_of
from embsim.conformance.machine import programs, training_loops
from embsim.conformance.strategies import (
    BAG,
    BUCKETS,
    batches,
    gradients,
    regimes,
    setups,
    to_the_bit,
)


def drawn(strategy, count):
    """The same `count` values every time."""
    found = []

    @settings(max_examples=count, phases=[Phase.generate], derandomize=True, database=None)
    @given(strategy)
    def collect(value):
        found.append(value)

    collect()
    return found


def bags_of(program):
    """(feature, bag) of every bag of every batch."""
    return [
        (feature, bag)
        for call in program.calls
        if isinstance(call, Train | Enqueue | Evaluate)
        for feature, bags in zip(program.setup.features, call.batch, strict=True)
        for bag in bags
    ]


def ids(bag):
    return [item[0] if isinstance(item, tuple) else item for item in bag]


def weights(bag):
    return [item[1] for item in bag if isinstance(item, tuple)]


def some_bag(predicate):
    return lambda program: any(predicate(feature, bag) for feature, bag in bags_of(program))


def a_batch_of_empty_bags(program):
    return any(
        isinstance(call, Train) and all(not bag for bags in call.batch for bag in bags)
        for call in program.calls
    )


def an_id_in_two_features_of_a_table(program):
    features = program.setup.features
    for call in program.calls:
        if isinstance(call, Train):
            seen = {}
            for number, (feature, bags) in enumerate(zip(features, call.batch, strict=True)):
                for row in {row for bag in bags for row in ids(bag)}:
                    seen.setdefault((id(feature.table), row), set()).add(number)
            if any(len(numbers) > 1 for numbers in seen.values()):
                return True
    return False


def a_table_without_lookups_beside_one_with(program):
    features = program.setup.features
    return any(
        isinstance(call, Train)
        and {feature.table for feature, bags in zip(features, call.batch, strict=True) if any(bags)}
        not in (set(), {feature.table for feature in features})
        for call in program.calls
    )


def a_queue_exactly_full(program):
    """By the enqueues at the beginning."""
    singles = [call for _, call in program.single_calls]
    first = itertools.takewhile(lambda call: isinstance(call, Enqueue), singles)
    return len(list(first)) == program.setup.queue_capacity


def a_gradient_of_none(program):
    return any(
        isinstance(call, Train | Apply) and any(g is None for g in call.gradients)
        for call in program.calls
    )


REACHABLE = {
    "an empty batch of bags": a_batch_of_empty_bags,
    "an empty bag": some_bag(lambda _, bag: not bag),
    "an id twice in a bag": some_bag(lambda _, bag: len(set(ids(bag))) < len(ids(bag))),
    "an id in two features of a table": an_id_in_two_features_of_a_table,
    "a table without lookups": a_table_without_lookups_beside_one_with,
    "dim 1": lambda program: any(t.dim == 1 for t in program.setup.tables.values()),
    "one row": lambda program: any(t.vocabulary_size == 1 for t in program.setup.tables.values()),
    "the last row": some_bag(
        lambda f, bag: f.table.vocabulary_size > 1 and f.table.vocabulary_size - 1 in ids(bag)
    ),
    "weight 0": some_bag(lambda _, bag: 0 in weights(bag)),
    "all weights 0": some_bag(lambda _, bag: len(bag) > 1 and set(weights(bag)) == {0}),
    "a negative weight": some_bag(lambda _, bag: any(w < 0 for w in weights(bag))),
    "a queue exactly full": a_queue_exactly_full,
    "a sequence longer than max_sequence_length": some_bag(
        lambda f, bag: 0 < f.max_sequence_length < len(bag)
    ),
    "gradients of None": a_gradient_of_none,
    "a bag as long as bags may be": some_bag(lambda _, bag: len(bag) == BAG),
}


@pytest.mark.parametrize("regime", ["exact", "real"])
def test_everything_that_breaks_engines_is_drawn(regime):
    """Within the examples of a check at level default."""
    examples = drawn(programs(regime=regime), LEVELS["default"] * 2)
    missing = [what for what, shows in REACHABLE.items() if not any(map(shows, examples))]
    assert missing == []


def test_shapes_come_from_at_most_twelve_buckets():
    assert len(BUCKETS) == len(set(BUCKETS)) <= 12


@pytest.mark.parametrize("regime", ["exact", "real"])
def test_a_setup_has_the_shapes_of_a_bucket(regime):
    seen = set()
    for setup in drawn(setups(regime=regime), 100):
        tables = [(t.vocabulary_size, t.dim) for t in setup.tables.values()]
        lengths = [f.max_sequence_length for f in setup.features]
        fitting = [
            number
            for number, bucket in enumerate(BUCKETS)
            if tables == [bucket.tables[i] for i in dict.fromkeys(t for t, _ in bucket.features)]
            and setup.samples == bucket.samples
            and lengths == [length for _, length in bucket.features]
        ]
        assert len(fitting) == 1
        assert setup.samples % setup.replicas == 0
        seen |= set(fitting)
    assert seen == set(range(len(BUCKETS)))


@pytest.mark.parametrize("name", REFUSABLE)
def test_what_is_refused_is_not_drawn(name):
    can = Capabilities(refuses={name: "to see"})
    for program in drawn(programs(can, "real", max_calls=3), 10):
        assert name not in asked_for(program.setup)
        if name == "weights":
            assert not any(weights(bag) for _, bag in bags_of(program))
        if name == "gradients of None":
            assert not a_gradient_of_none(program)
        if name == "inference":
            assert not any(isinstance(call, Evaluate) for call in program.calls)


def test_everything_that_may_be_refused_is_drawn_otherwise():
    found = set().union(*(asked_for(setup) for setup in drawn(setups(regime="real"), 200)))
    of_calls = {"weights", "gradients of None", "inference", "checkpoints"}  # see REACHABLE
    assert set(REFUSABLE) - found == of_calls


@pytest.mark.parametrize("name", BOUNDABLE)
def test_what_is_bounded_is_not_compared_to_the_bit_on_real_numbers(name):
    can = Capabilities(bitwise=True, bounded=(name,))
    assert set(drawn(regimes(can), 20)) == {"real", "exact"}
    assert to_the_bit(can, "exact") is can
    for setup in drawn(setups(to_the_bit(can, "real"), "real"), 10):
        assert name not in asked_for(setup)


def test_regimes_follow_from_what_is_to_the_bit():
    assert set(drawn(regimes(Capabilities(bitwise=True)), 5)) == {"real"}
    assert set(drawn(regimes(Capabilities(bounded=("FTRL",))), 5)) == {"exact"}


# --- the exact regime


def final_numbers(setup: Setup, steps):
    """Activations, tables and slots of a loop, by the definition."""
    law, seen = definition_of(setup), []
    for batch, slopes in steps:
        seen += law.dequeue(batch)
        law.apply_gradients(slopes)
    for arrays in law.versions[-1].values():
        seen += arrays
    return seen


@settings(max_examples=60)
@given(program=training_loops(max_steps=24))
def test_a_program_of_the_exact_regime_is_exact(program):
    """In float64, and with all sums in the other order, the numbers are the same."""
    steps = [(c.batch, c.gradients) for c in program.calls if isinstance(c, Train)]
    in_float32 = final_numbers(program.setup, steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embsim.definition, "F", np.float64)
        in_float64 = final_numbers(program.setup, steps)
    for a, b in zip(in_float32, in_float64, strict=True):
        assert np.array_equal(a, b)
    backwards = [
        ([[list(reversed(bag)) for bag in bags] for bags in batch], slopes)
        if not any(f.max_sequence_length for f in program.setup.features)
        else (batch, slopes)
        for batch, slopes in steps
    ]
    for a, b in zip(in_float32, final_numbers(program.setup, backwards), strict=True):
        assert np.array_equal(a, b)


@settings(max_examples=60)
@given(data=st.data())
def test_the_largest_numbers_of_the_exact_regime_have_24_bits(data):
    """Every operand of a step at its largest and finest, 24 times over, still fits float32."""
    setup = data.draw(setups(combiners=("mean",), quantized=False))
    batch, slopes = data.draw(batches(setup)), data.draw(gradients(setup))
    decays = any(getattr(t.optimizer, "weight_decay_factor", None) for t in setup.tables.values())
    steps = [(batch, slopes)] * (6 if decays else 24)
    for array in final_numbers(setup, steps):
        scaled = np.abs(array.astype(np.float64)) * 2.0**9
        assert (scaled == np.round(scaled)).all()
        assert (scaled < 2.0**24).all()
