"""The law against numbers worked out by hand. Most sums, roots and quotients here are exact."""

from dataclasses import dataclass

import numpy as np
import pytest

from embsim.config import FeatureConfig, QuantizationConfig, TableConfig
from embsim.definition import Definition, coefficients, gains, plan, quantized, trajectory, updated
from embsim.optimizers import FTRL, SGD, Adagrad, AdagradMomentum, Adam, RowwiseAdagrad, Slot

F = np.float32


def law_of(combiner="sum", optimizer=None, rows=4, dim=2, features=1, **options):
    """One table T[i] = (2i + 1, 2i + 2), looked up by `features` features."""
    q = options.pop("quantization", None)
    table = TableConfig(rows, dim, combiner=combiner, quantization_config=q)
    configs = [FeatureConfig(table, **options.pop("feature", {})) for _ in range(features)]
    initial = np.arange(1, rows * dim + 1, dtype=F).reshape(rows, dim)
    return Definition(configs, {table: optimizer or SGD(1.0)}, {table: initial}, **options)


def table_of(law, version=-1):
    (arrays,) = law.versions[version].values()
    return arrays[0].tolist()


def slots_of(law, version=-1):
    (arrays,) = law.versions[version].values()
    return [slot.tolist() for slot in arrays[1:]]


class TestLookup:
    def test_sum_counts_duplicates_and_weights(self):
        (activations,) = law_of("sum").dequeue([[[0, 1], [], [2, 2], [(3, 0.5), (0, -1.0)]]])
        assert activations.tolist() == [[4, 6], [0, 0], [10, 12], [2.5, 2.0]]
        assert activations.dtype == np.float32

    def test_mean_divides_by_the_sum_of_the_weights(self):
        (activations,) = law_of("mean").dequeue([[[0, 1], [(0, 1.0), (1, 3.0)], [1, 1]]])
        assert activations.tolist() == [[2, 3], [2.5, 3.5], [3, 4]]

    def test_sqrtn_divides_by_the_root_of_the_sum_of_squares(self):
        bags = [[0, 0, 0, 0], [(1, 3.0), (1, 4.0)]]
        (activations,) = law_of("sqrtn").dequeue([bags])
        assert activations[0].tolist() == [2, 4]
        # gains 3/5 and 4/5, each rounded once; the sum of two rounded products
        by_hand = F(F(F(3) / F(5)) * F(3)) + F(F(F(4) / F(5)) * F(3))
        assert activations[1, 0] == by_hand

    @pytest.mark.parametrize("combiner, weights", [("mean", [-1.0, 1.0]), ("sqrtn", [0.0, 0.0])])
    def test_a_denominator_of_zero_gives_gain_zero(self, combiner, weights):
        law = law_of(combiner)
        (activations,) = law.dequeue([[[(0, weights[0]), (1, weights[1])]]])
        assert activations.tolist() == [[0, 0]]

    def test_negative_weights_are_plain_arithmetic(self):
        assert [g.item() for g in gains([F(-1), F(2)], "mean")] == [-1, 2]
        (activations,) = law_of("mean").dequeue([[[(1, -1.0), (2, 2.0)]]])
        assert activations.tolist() == [[7, 8]]

    def test_denominators_are_summed_in_position_order(self):
        big, one = F(2**24), F(1)
        assert gains([big, one, one], "mean")[0] == 1  # 2^24 + 1 + 1 stays 2^24
        assert gains([one, one, big], "mean")[2] == big / F(2**24 + 2)

    def test_a_bag_is_summed_in_position_order(self):
        table, big = TableConfig(3, 1, combiner="sum"), 2.0**24
        law = Definition([FeatureConfig(table)], {table: SGD()}, {table: [[big], [1.0], [-big]]})
        (activations,) = law.dequeue([[[0, 1, 2], [0, 2, 1]]])
        assert activations.tolist() == [[0], [1]]

    def test_a_sequence_is_not_combined(self):
        law = law_of("mean", feature={"max_sequence_length": 3})
        (activations,) = law.dequeue([[[1, 1], [None, 2], [], [0, 1, 2, 3]]])
        assert activations.tolist() == [
            [[3, 4], [3, 4], [0, 0]],
            [[0, 0], [5, 6], [0, 0]],
            [[0, 0], [0, 0], [0, 0]],
            [[1, 2], [3, 4], [5, 6]],
        ]

    def test_quantization_is_per_row_before_the_combiner_with_ties_upwards(self):
        config = QuantizationConfig(num_buckets=5, lower=-1, upper=1)
        x = np.arange(-2, 2.25, 0.25, dtype=F)
        by_hand = [-1] * 5 + [-0.5, -0.5, 0, 0, 0.5, 0.5] + [1] * 6
        assert quantized(x, config).tolist() == by_hand
        law = law_of("sum", quantization=QuantizationConfig(num_buckets=2, lower=0.0, upper=4.0))
        (activations,) = law.dequeue([[[0, 0, 0]]])  # row (1, 2) -> (0, 4), three times
        assert activations.tolist() == [[0, 12]]

    def test_quantization_never_touches_the_table_or_the_gradient(self):
        law = law_of("sum", quantization=QuantizationConfig(num_buckets=2, lower=0.0, upper=4.0))
        law.dequeue([[[0]]])
        law.apply_gradients([[[0.25, 0.5]]])
        assert table_of(law)[0] == [0.75, 1.5]

    def test_quantization_keeps_nan(self):
        assert np.isnan(quantized(np.array([np.nan], F), QuantizationConfig(2, 0.0, 1.0))).all()


class TestGradients:
    def test_duplicates_samples_and_features_add_up(self):
        law = law_of("sum", features=2)
        law.dequeue([[[0, 0], [1]], [[1], [0, (2, 0.5)]]])
        law.apply_gradients([[[1, 0], [2, 0]], [[4, 0], [8, 0]]])
        assert table_of(law) == [[1 - 10, 2], [3 - 6, 4], [5 - 4, 6], [7, 8]]

    def test_the_combiner_is_differentiated(self):
        law = law_of("mean")
        law.dequeue([[[0, (1, 3.0)]]])
        law.apply_gradients([[[4, 8]]])
        assert table_of(law)[:2] == [[0, 0], [0, -2]]

    def test_contributions_come_by_feature_then_sample_then_position(self):
        table = TableConfig(1, 1, combiner="sum")
        features = [FeatureConfig(table), FeatureConfig(table)]

        def row_gradient(first, second):
            law = Definition(features, {table: SGD(1.0)}, {table: [[0.0]]})
            law.dequeue([[[0]] * len(first), [[0]] * len(second)])
            law.apply_gradients([[[g] for g in first], [[g] for g in second]])
            return -table_of(law)[0][0]

        big = 2.0**24
        assert row_gradient([big, 1, -big], [1]) == 1
        assert row_gradient([big, -big, 1], [1]) == 2
        assert row_gradient([1], [big, 1, -big]) == 0
        law = law_of("sum", rows=1, dim=1)
        law.dequeue([[[(0, big), (0, 1.0), (0, -big)]]])
        law.apply_gradients([[[1.0]]])
        assert table_of(law) == [[1.0]]

    def test_a_sequence_gets_the_gradient_of_its_real_positions(self):
        law = law_of("mean", feature={"max_sequence_length": 2})
        law.dequeue([[[0, None], [None, 1], [2, 2, 3]]])
        law.apply_gradients([[[[1, 0], [9, 9]], [[9, 9], [2, 0]], [[4, 0], [8, 0]]]])
        assert table_of(law) == [[0, 2], [1, 4], [-7, 6], [7, 8]]

    def test_none_is_zero_and_touches(self):
        law = law_of("sum", Adam(1.0, 0.5, 0.75, epsilon=1.0), features=2)
        law.versions[0] = {t: [w, m + 2, v + 4] for t, (w, m, v) in law.versions[0].items()}
        law.dequeue([[[0]], [[1]]])
        law.apply_gradients([None, [[0.0, 0.0]]])
        momenta, velocities = slots_of(law)
        assert momenta == [[1, 1], [1, 1], [2, 2], [2, 2]]
        assert velocities == [[3, 3], [3, 3], [4, 4], [4, 4]]
        assert table_of(law) == [[0.5, 1.5], [2.5, 3.5], [5, 6], [7, 8]]  # 1 / sqrt(3 + 1)

    def test_gain_zero_touches(self):
        law = law_of("mean", FTRL(learning_rate=1.0))
        law.dequeue([[[(0, 1.0), (1, -1.0)]]])
        law.apply_gradients([[[5.0, 5.0]]])
        assert table_of(law) == [[0, 0], [0, 0], [5, 6], [7, 8]]

    def test_gradients_of_float64_are_rounded_once_before_anything(self):
        law = law_of("sum")
        law.dequeue([[[0]]])
        law.apply_gradients([np.array([[1 + 2.0**-40, 0.0]])])
        assert table_of(law)[0] == [0, 2]


class TestOrderOfOneUpdate:
    def test_accumulate_clip_decay_rule_clip(self):
        optimizer = SGD(1.0, clipvalue=(-1.0, 2.0), weight_decay_factor=0.5, clip_weight_min=-1.0)
        law = law_of("sum", optimizer)
        law.dequeue([[[0], [0], [1]]])
        law.apply_gradients([[[4, -8], [-3, 4], [8, 8]]])  # row 0: (1, -4), row 1: (8, 8)
        assert table_of(law) == [[0.5 - 1, 1 + 1], [1.5 - 2, 2 - 2], [5, 6], [7, 8]]

    def test_weights_are_clipped_after_the_rule_and_slots_never(self):
        optimizer = Adagrad(1.0, 7.0, clip_weight_min=0.75, clip_weight_max=1.5)
        law = law_of("sum", optimizer)
        law.dequeue([[[0]]])
        law.apply_gradients([[[3, 3]]])  # a = 16; w = (1, 2) - 3/4
        assert table_of(law)[0] == [0.75, 1.25]
        assert slots_of(law)[0][0] == [16, 16]

    def test_a_scalar_clipvalue_is_symmetric_and_one_side_may_be_open(self):
        for clipvalue, w in (
            (2.0, [1 - 2, 2 + 2]),
            ((None, 2.0), [1 - 2, 2 + 8]),
            ((-2.0, None), [1 - 8, 2 + 2]),
        ):
            law = law_of("sum", SGD(1.0, clipvalue=clipvalue))
            law.dequeue([[[0]]])
            law.apply_gradients([[[8, -8]]])
            assert table_of(law)[0] == w

    def test_nan_passes_every_clip(self):
        law = law_of("sum", SGD(1.0, clipvalue=1.0, clip_weight_min=-1.0, clip_weight_max=1.0))
        law.dequeue([[[0]]])
        law.apply_gradients([[[np.nan, 0.0]]])
        assert np.isnan(table_of(law)[0][0])

    def test_decay_times_rate(self):
        by_rate = {"multiply_weight_decay_factor_by_learning_rate": True}
        law = law_of("sum", SGD(0.5, weight_decay_factor=0.5, **by_rate))
        law.dequeue([[[0]]])
        law.apply_gradients([None])
        assert table_of(law)[0] == [0.75, 1.5]

    def test_keep_is_computed_in_float64_and_rounded_once(self):
        by_rate = {"multiply_weight_decay_factor_by_learning_rate": True}
        c = coefficients(SGD(0.1, weight_decay_factor=0.3, **by_rate), 0.1)
        assert c.keep == F(1 - 0.3 * 0.1) and c.keep.dtype == np.float32

    def test_without_accumulation_each_contribution_is_an_update(self):
        law = law_of("sum", Adagrad(1.0, 7.0, use_gradient_accumulation=False))
        law.dequeue([[[0], [0]]])
        law.apply_gradients([[[3, 0], [3, 0]]])  # a: 7, 16, 25
        first = F(1) - F(3) / F(4)
        assert table_of(law)[0] == [first - F(3) / F(5), 2]
        assert slots_of(law)[0][0] == [25, 7]

    def test_without_accumulation_decay_and_weight_clip_come_each_time(self):
        options = {"weight_decay_factor": 0.5, "clip_weight_max": 1.0}
        law = law_of("sum", SGD(1.0, use_gradient_accumulation=False, **options))
        law.dequeue([[[1, 1]]])
        law.apply_gradients([[[-4, 0]]])
        # 3 -> 1.5 + 4 -> 1 -> 0.5 + 4 -> 1, and 4 -> 2 -> 1 -> 0.5
        assert table_of(law)[1] == [1, 0.5]

    def test_non_lazy_adam_moves_every_row_also_for_an_empty_plan(self):
        law = law_of("sum", Adam(1.0, 0.5, 0.75, epsilon=1.0, lazy_adam=False))
        law.versions[0] = {t: [w, m + 2, v + 4] for t, (w, m, v) in law.versions[0].items()}
        law.dequeue([[[], []]])
        law.apply_gradients([np.zeros((2, 2))])
        assert table_of(law) == [[0.5, 1.5], [2.5, 3.5], [4.5, 5.5], [6.5, 7.5]]
        assert slots_of(law) == [[[1, 1]] * 4, [[3, 3]] * 4]

    def test_a_user_s_own_optimizer_needs_only_four_things(self):
        @dataclass(frozen=True)
        class Signed:
            learning_rate: float = 0.5
            slots = (Slot("count", 1.0, rowwise=True),)

            def coefficients(self, learning_rate):
                return {"lr": learning_rate, "one": 1.0}

            def rule(self, ops):
                def rule(w, g, slots, c):
                    g = ops.maximum(ops.minimum(g, c.one), -c.one)
                    return w - c.lr * g, (slots[0] + c.one,)

                return rule

        law = law_of("sum", Signed())
        law.dequeue([[[0], [0]]])
        law.apply_gradients([[[5, -5], [5, -5]]])
        assert table_of(law)[0] == [0.5, 2.5]
        assert slots_of(law) == [[[2], [1], [1], [1]]]


class TestRules:
    """One step of each rule, worked by hand, on row 0 = (1, 2) with gradient (4, 0)."""

    CASES = (
        (SGD(0.5), [-1, 2], []),
        (Adagrad(1.0, 48.0), [1 - 4 / 8, 2], [[64, 48]]),
        (RowwiseAdagrad(1.0, 8.0, epsilon=0.0), [0, 2], [[16]]),
        (AdagradMomentum(1.0, 0.5, epsilon=48.0), [0.5, 2], [[16, 0], [0.5, 0]]),
        (AdagradMomentum(1.0, 0.5, True, epsilon=48.0), [0.25, 2], [[16, 0], [0.5, 0]]),
        (AdagradMomentum(1.0, 0.5, False, 1, 0.5, 8.0), [0.75, 2], [[8, 0], [0.25, 0]]),
        (Adam(2.0, 0.5, 0.75, 2.0**-20), [-1, 2], [[2, 0], [4, 0]]),
        (Adam(3.0, 0.5, 0.75, 1.0, sum_inside_sqrt=False), [-1, 2], [[2, 0], [4, 0]]),
        # z = 4 - (5 - 3) * 1 = 2;  w = -2 / ((5 + beta) + 2 * l2), or (1 - 2) / ... with l1 = 1
        (FTRL(1.0, -0.5, 0.0, 1.0, 1.0, 9.0), [-0.25, 0], [[25, 9], [2, 0]]),
        (FTRL(1.0, -0.5, 1.0, 0.0, 3.0, 9.0), [-0.125, 0], [[25, 9], [2, 0]]),
        # z = 1/4 * 4 - 2 * 1 = -1;  w = (1 - 1/8) / ((5 + 1/2) + 2 * 1/4 * 3), l1 * lr = 1/8
        (
            FTRL(0.25, -0.5, 0.5, 3.0, 0.5, 9.0, multiply_linear_by_learning_rate=True),
            [0.125, 0],
            [[25, 9], [-1, 0]],
        ),
        # power 1: z = 4 - 16 * 1 = -12;  w = 12 / (16.5 + beta)
        (FTRL(1.0, -1.0, 0.0, 0.0, 7.5, 0.5), [0.5, 0], [[16.5, 0.5], [-12, 0]]),
    )

    @pytest.mark.parametrize("optimizer, row, slots", CASES, ids=lambda x: type(x).__name__)
    def test_one_step(self, optimizer, row, slots):
        law = law_of("sum", optimizer)
        law.dequeue([[[0]]])
        law.apply_gradients([[[4, 0]]])
        assert table_of(law)[0] == row
        assert [slot[0] for slot in slots_of(law)] == slots
        assert table_of(law)[1:] == table_of(law, 0)[1:]
        assert [slot[1:] for slot in slots_of(law)] == [slot[1:] for slot in slots_of(law, 0)]


class TestSchedule:
    def reads(self, steps=10, **schedule):
        law = law_of(**schedule)
        return [law.version_read(t) for t in range(steps)]

    def test_version_read(self):
        assert self.reads(5) == [0, 1, 2, 3, 4]
        assert self.reads(5, staleness=1) == [0, 0, 1, 2, 3]
        assert self.reads(6, staleness=3) == [0, 0, 0, 0, 1, 2]
        assert self.reads(7, staleness=1, drain_every=3) == [0, 0, 1, 3, 3, 4, 6]
        assert self.reads(5, staleness=1, drain_every=1) == [0, 1, 2, 3, 4]
        assert self.reads(7, staleness=2, warmup_steps=3) == [0, 1, 2, 2, 2, 3, 4]
        assert self.reads(8, staleness=3, warmup_steps=2, drain_every=4) == [0, 1, 1, 1, 4, 4, 4, 4]

    def test_r_never_decreases_and_never_exceeds_t(self):
        for s in range(5):
            for drain_every in (None, 1, 2, 3, 7):
                for warmup in range(5):
                    law = law_of(staleness=s, drain_every=drain_every, warmup_steps=warmup)
                    reads = [law.version_read(t) for t in range(20)]
                    assert reads == sorted(reads)
                    assert all(max(0, t - s) <= r <= t for t, r in enumerate(reads))

    def test_a_drain_moves_start_and_nothing_else_does(self):
        def unit(activations):
            return [[[1.0]]]

        train, evaluate, drain = ("train", [[[0]]], unit), ("evaluate", [[[0]]]), ("drain",)

        def seen(*program):
            law = law_of(rows=1, dim=1, staleness=1)
            law.versions[0] = {t: [w * 0] for t, (w,) in law.versions[0].items()}
            return [a.item() for (a,) in trajectory(law, program)]

        assert seen(train, train, train, train) == [0, 0, -1, -2]
        assert seen(train, train, drain, train, train) == [0, 0, -2, -2]
        assert seen(train, evaluate, train, evaluate, train) == [0, -1, 0, -2, -1]

    def test_steps_dequeued_ahead_read_the_same_versions(self):
        ahead, just_in_time = law_of(staleness=2), law_of(staleness=2)
        batch = [[[0, 1]]]
        by_time = []
        for _ in range(6):
            by_time += just_in_time.dequeue(batch)
            just_in_time.apply_gradients([[[1, 1]]])
        early = [ahead.dequeue(batch)[0] for _ in range(3)]
        for _ in range(3):
            ahead.apply_gradients([[[1, 1]]])
            early.append(ahead.dequeue(batch)[0])
        assert np.array_equal(by_time, early)

    def test_learning_rates_belong_to_the_step_of_their_gradients(self):
        rates = {0: 1.0, 1: 2.0, 2: 4.0}
        law = law_of(optimizer=SGD(lambda step: rates[step]), staleness=2)
        for _ in range(3):
            law.dequeue([[[0]]])
        for _ in range(3):
            law.apply_gradients([[[1, 0]]])
        assert [table_of(law, version)[0][0] for version in range(4)] == [1, 0, -2, -6]

    def test_a_callable_that_two_tables_share_is_called_once_per_step(self):
        calls = []

        def rate():
            calls.append(None)
            return 1.0

        tables = [TableConfig(1, 1), TableConfig(1, 1)]
        features = [FeatureConfig(table) for table in tables]
        optimizers = {tables[0]: SGD(rate), tables[1]: Adagrad(rate)}
        law = Definition(features, optimizers, {table: [[0.0]] for table in tables})
        for _ in range(3):
            law.dequeue([[[0]], [[]]])
            law.apply_gradients([[[1.0]], [[1.0]]])
        assert len(calls) == 3


def test_a_plan_names_place_row_and_gain():
    feature = FeatureConfig(TableConfig(9, 1, combiner="mean"))
    mean = [((0,), 3, 0.5), ((0,), 7, 0.5), ((2,), 3, 1.0)]
    assert list(plan(feature, [[3, 7], [], [3]])) == mean
    sequence = FeatureConfig(TableConfig(9, 1), max_sequence_length=2)
    positions = [((0, 0), 3, 1.0), ((1, 0), 1, 1.0), ((1, 1), 2, 1.0)]
    assert list(plan(sequence, [[3, None], [1, 2, 4]])) == positions


def test_updated_leaves_its_arguments_alone():
    w, g = np.array([1.0, 2.0], F), np.array([1.0, 1.0], F)
    optimizer = Adagrad(1.0)
    a = np.array([3.0, 3.0], F)
    updated(optimizer, w, [a], [g, g], coefficients(optimizer, 1.0))
    assert (w.tolist(), g.tolist(), a.tolist()) == ([1, 2], [1, 1], [3, 3])


def test_all_versions_are_kept():
    law = law_of()
    for _ in range(2):
        law.dequeue([[[0]]])
        law.apply_gradients([[[1, 1]]])
    assert [table_of(law, v)[0] for v in range(3)] == [[1, 2], [0, 1], [-1, 0]]
