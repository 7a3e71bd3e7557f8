"""The law of the generator: against NumPy with tables, written apart, and against arithmetic.

A bound of 5 standard errors fails once in two million; seeds are fixed.
"""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2
from sklearn.metrics import roc_auc_score

from experiments.data import synthetic
from experiments.data.synthetic import Synthetic, permuted, stream, zipf_ranks

PILOT = (1.05,) * 6

# facebookresearch/dlrm_datasets, embedding_bag/locality_stats.txt (MIT licence), 856 tables of
# fbgemm_t856_bs65536.pt: reads, distinct rows, and the share of reads of rows that were read
# 1, 2, 3..4, 5..8, ... 16385..32768 and more times.
META_READS, META_DISTINCT, META_TABLES = 887_017_990, 128_435_723, 856
META_REUSE = (
    *(0.069, 0.044, 0.068, 0.101, 0.121, 0.104, 0.073, 0.058, 0.052),
    *(0.050, 0.049, 0.048, 0.048, 0.043, 0.031, 0.023, 0.019),
)


class TestOracle:
    def test_auc_is_that_of_the_law_with_tables(self) -> None:
        """The mean over worlds, and the pilot's 0.823 to 0.826 in the midst of them."""
        found = np.array([oracle_auc(Synthetic(alphas=PILOT, seed=s)) for s in range(40)])
        expected = np.array([auc(*with_tables(s)) for s in range(40)])
        error = np.sqrt((found.var() + expected.var()) / 40)
        assert abs(found.mean() - expected.mean()) < 5 * error
        assert abs(np.log(found.std() / expected.std())) < 5 / np.sqrt(40)  # 1/sqrt(2n) each
        low, high = np.quantile(found, [0.05, 0.95])
        assert low < 0.823 < 0.826 < high

    @pytest.mark.parametrize("preset", synthetic.PRESETS)
    def test_labels_are_drawn_with_the_logits_probabilities(self, preset: str) -> None:
        for held_out in (False, True):
            examples, logits = stream(preset).draw(100_000, 50_000, held_out)
            p = 1 / (1 + np.exp(-logits))
            for some in np.array_split(np.argsort(p), 10):
                error = np.sqrt((p[some] * (1 - p[some])).sum())
                assert abs((examples.labels[some] - p[some]).sum()) < 5 * error

    def test_logits_are_those_of_the_batches(self) -> None:
        world = stream(num_held_out=100)
        [examples] = world.held_out(100)
        same, logits = world.draw(0, 100, held_out=True)
        assert (examples.ids == same.ids).all() and (examples.labels == same.labels).all()
        assert logits.dtype == np.float64 and len(np.unique(logits)) > 50


class TestIds:
    @pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0, 1.05, 1.2])
    def test_zipf_is_the_inverse_of_the_cdf(self, alpha: float) -> None:
        rows = 200_000
        cdf = np.cumsum(np.arange(1, rows + 1.0) ** -alpha)
        ranks = np.concatenate([np.arange(2000), np.arange(2000, rows, 97), [rows - 1]])
        below = np.where(ranks > 0, cdf[ranks - 1], 0.0)
        middle = (below + (cdf[ranks] - below) / 2) / cdf[-1]
        assert (zipf_ranks(middle, alpha, rows) == ranks).all()

    @given(
        alpha=st.floats(0, 2),
        rows=st.integers(1, 2**31 - 1),
        uniform=st.lists(st.floats(2.0**-53, 1 - 2.0**-53), min_size=1),
    )
    def test_zipf_stays_in_the_table_and_never_falls(self, alpha, rows, uniform) -> None:
        edges = [2.0**-53, 1 - 2.0**-53]
        ranks = zipf_ranks(np.sort([*uniform, *edges]), alpha, rows)
        assert (np.diff(ranks) >= 0).all()
        assert ranks[0] == 0 or alpha < 1
        assert ranks[0] >= 0 and ranks[-1] <= rows - 1
        if alpha < 1.0:
            assert ranks[-1] >= (rows - 1) * (1 - 1e-6)

    @given(rows=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
    def test_permuted_is_a_bijection(self, rows: int, key: int) -> None:
        assert sorted(permuted(np.arange(rows), rows, key).tolist()) == list(range(rows))

    def test_permutations_differ_and_spread(self) -> None:
        """Hot ranks fall into every 64th of a large table alike: chi-square, 63 degrees."""
        rows = 10**7
        one, other = (permuted(np.arange(20_000), rows, key) for key in (1, 2))
        assert np.mean(one == other) < 0.01 and len(np.unique(one)) == len(one)
        counts = np.bincount(one * 64 // rows, minlength=64)
        assert chi2.sf(np.sum((counts - 312.5) ** 2 / 312.5), 63) > 1e-6

    def test_frequencies_are_zipf_in_every_field(self) -> None:
        """Chi-square over ranks of equal mass, as the permutation orders them."""
        world, samples = stream(seed=4), 200_000
        ids = world.draw(0, samples)[0].ids
        for field, rows in enumerate(world.vocabulary_sizes):
            p = np.arange(1, rows + 1.0) ** -world.alpha(field)
            p /= p.sum()
            count = np.bincount(ids[:, field], minlength=rows)
            count = count[world.row_of_rank(field, np.arange(rows))]
            cell = np.minimum((np.cumsum(p) * 50).astype(int), 49)
            expected, found = (np.bincount(cell, weights=w) for w in (p * samples, count))
            expected, found = expected[expected > 0], found[expected > 0]
            chi = np.sum((found - expected) ** 2 / expected)
            assert chi2.sf(chi, len(expected) - 1) > 1e-6, (field, chi)

    def test_alphas_are_drawn_per_field_unless_given(self) -> None:
        alphas = [Synthetic(seed=s).alpha(f) for s in range(50) for f in range(6)]
        assert len(set(alphas)) == 300 and min(alphas) > 0.9 and max(alphas) < 1.2
        assert abs(np.mean(alphas) - 1.05) < 5 * 0.3 / np.sqrt(12 * 300)
        assert Synthetic(alphas=PILOT).alpha(3) == 1.05

    def test_reuse_of_meta2021_like_is_the_published_one(self) -> None:
        world, rng = stream("meta2021-like"), np.random.default_rng(0)
        reads = round(META_READS / META_TABLES)
        shares, distinct = np.zeros(17), 0.0
        for field, rows in enumerate(world.vocabulary_sizes):
            count = np.bincount(zipf_ranks(rng.random(reads), world.alpha(field), rows))
            bins = np.minimum(np.ceil(np.log2(count[count > 0])).astype(int), 16)
            shares += np.bincount(bins, weights=count[count > 0], minlength=17) / reads
            distinct += np.mean(count > 0) * len(count) / reads
        fields = len(world.vocabulary_sizes)
        assert np.abs(shares / fields - META_REUSE).max() < 0.01
        assert abs(distinct / fields - META_DISTINCT / META_READS) < 0.01


class TestDrift:
    def test_one_pair_of_ids_turns_twice_a_period(self) -> None:
        """<u_1(t), u_2(t)> = c + a cos(4πt/τ) + b sin(4πt/τ): three numbers fit all times."""
        world = Synthetic((1, 1), drift_period=400, num_samples=2000)
        logits, t = world.draw(0, 800)[1], np.arange(800)
        angle = 4 * np.pi * t / 400
        basis = np.stack([np.ones(800), np.cos(angle), np.sin(angle)], axis=1)
        fit, *_ = np.linalg.lstsq(basis, logits)
        assert np.abs(basis @ fit - logits).max() < 1e-12
        assert np.hypot(*fit[1:]) > 0.01
        assert (logits[:400] == logits[400:]).all()

    def test_without_a_period_nothing_moves(self) -> None:
        assert len(np.unique(Synthetic((1, 1)).draw(0, 100)[1])) == 1

    def test_held_out_samples_are_of_the_end_of_the_pass(self) -> None:
        world = Synthetic((1, 1), drift_period=400, num_samples=1234)
        at_the_end = world.draw(1234, 1)[1].item()
        assert set(world.draw(0, 50, held_out=True)[1].tolist()) == {at_the_end}


class TestCampaign:
    LIFETIME, ACTIVE = 500, 5

    def world(self, rows: int = 1000) -> Synthetic:
        return Synthetic(
            (50, rows), campaign_lifetime=self.LIFETIME, campaign_field=1, campaign_active=5
        )

    def test_an_id_lives_once_for_its_lifetime(self) -> None:
        ids = self.world().draw(0, 20_000)[0].ids[:, 1]
        lives = {}
        for t, campaign in enumerate(ids.tolist()):
            first, _ = lives.get(campaign, (t, t))
            lives[campaign] = first, t
        spans = [last - first + 1 for first, last in lives.values()]
        assert max(spans) <= self.LIFETIME
        assert np.median(spans) > 0.8 * self.LIFETIME
        assert len(lives) == self.ACTIVE * (20_000 // self.LIFETIME + 1) - 1  # one started at 0
        for t in range(0, 20_000, 97):
            assert sum(first <= t <= last for first, last in lives.values()) <= self.ACTIVE

    def test_a_row_of_a_dead_campaign_stands_for_a_new_one(self) -> None:
        """Two rows for one campaign at a time, next to one id of the other field."""
        world = Synthetic((1, 2), campaign_lifetime=10, campaign_field=1, campaign_active=1)
        examples, logits = world.draw(0, 40)
        assert len(np.unique(logits)) == 4
        ids = examples.ids[::10, 1]
        assert ids[0] == ids[2] != ids[1] == ids[3]

    def test_popularity_stays_with_the_slot(self) -> None:
        """Slot 0 has the Zipf share of the first of five."""
        world = self.world()
        ids = world.draw(0, 10_000)[0].ids[:, 1]
        for first in range(0, 10_000, self.LIFETIME):  # slot 0 changes at multiples
            share = np.bincount(ids[first : first + self.LIFETIME]).max() / self.LIFETIME
            p = 1 / np.sum(np.arange(1, 6.0) ** -world.alpha(1))
            assert abs(share - p) < 5 * np.sqrt(p * (1 - p) / self.LIFETIME)


class TestSession:
    def test_users_repeat_and_the_rest_does_not(self) -> None:
        world, n, rho = stream("session"), 100_000, 0.97
        again = np.mean(np.diff(world.draw(0, n)[0].ids, axis=0) == 0, axis=0)
        for field, rows in enumerate(world.vocabulary_sizes):
            p = np.arange(1, rows + 1.0) ** -world.alpha(field)
            by_chance = np.sum((p / p.sum()) ** 2)
            expected = rho + (1 - rho) * by_chance if field == 0 else by_chance
            error = np.sqrt(expected * (1 - expected) / n)
            # Neighbouring pairs share a sample: at most three times the variance.
            assert abs(again[field] - expected) < 5 * np.sqrt(3) * error, field

    def test_64_samples_hold_about_three_users(self) -> None:
        """As in MovieLens in order of time: 1 + 63 (1 - rho) sessions, some of the same user."""
        users = stream("session").draw(0, 64 * 2000)[0].ids[:, 0].reshape(2000, 64)
        sessions, error = 1 + 63 * 0.03, np.sqrt(63 * 0.03 * 0.97 / 2000)
        found = np.mean([len(np.unique(row)) for row in users])
        assert 2.5 < found < sessions + 5 * error

    def test_held_out_samples_are_in_none(self) -> None:
        ids = stream("session").draw(0, 10_000, held_out=True)[0].ids
        assert np.mean(np.diff(ids[:, 0]) == 0) < 0.2


class TestWorld:
    def test_memory_is_that_of_the_batch(self) -> None:
        world = stream(vocabulary_sizes=(10**7,) * 4)
        world.draw(0, 8)
        tracemalloc.start()
        try:
            ids = world.draw(10**9, 512)[0].ids
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert ids.max() > 9 * 10**6
        assert peak < 10**6  # a byte for every row would be 10 times as much

    def test_a_seed_is_a_world(self) -> None:
        one, same, other = (stream(seed=s).draw(0, 1000) for s in (1, 1, 2))
        assert (one[0].ids == same[0].ids).all() and (one[1] == same[1]).all()
        assert np.mean(one[0].ids[:, 0] == other[0].ids[:, 0]) < 0.1
        trained, held_out = (stream().draw(0, 1000, h)[0].ids[:, 0] for h in (False, True))
        assert np.mean(trained == held_out) < 0.2

    def test_splitmix64_is_the_published_one(self) -> None:
        """Seed 1234567, as on Rosetta Code."""
        found = synthetic._bits(1234567, np.arange(3)).tolist()
        assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]

    def test_rows_scale_all_tables(self) -> None:
        assert stream(rows=10**7).vocabulary_sizes == (
            *(10_000_000, 2_500_000, 500_000),
            *(100_000, 25_000, 5_000),
        )
        assert stream("drift", seed=3) == Synthetic(drift_period=200_000, seed=3)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"vocabulary_sizes": (5,)}, r"is \(5,\); it must be two or more"),
            ({"vocabulary_sizes": (5, 0)}, r"is \(5, 0\); .* from 1 to"),
            ({"alphas": (1.0,)}, r"alphas is \(1.0,\); .* each of 6 fields"),
            ({"alphas": (-1.0,) * 6}, "a number >= 0"),
            ({"seed": -1}, "seed is -1, .* >= 0"),
            ({"drift_period": 0}, r"\(800000, 65536, 0, None\); .* >= 1"),
            ({"drift_period": 9, "num_samples": None}, "must have an end"),
            ({"campaign_lifetime": 9, "num_samples": None}, "must have an end"),
            ({"campaign_lifetime": 9, "campaign_active": 501}, "is 501, .* two rows or more"),
            ({"campaign_lifetime": 9, "campaign_field": 6}, "campaign_field 6 .* two rows or more"),
            ({"session_rho": 1.0}, "session_rho is 1.0, .* below 1"),
            ({"session_field": 6}, "session_field 6 of"),
            ({"preset": "none"}, "preset is 'none'; it must be one of .*'meta2021-like'"),
        ],
    )
    def test_what_cannot_be_is_refused(self, changes, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            stream(**changes)


def oracle_auc(world: Synthetic, samples: int = 20_000) -> float:
    examples, logits = world.draw(0, samples)
    return auc(examples.labels, logits)


def auc(labels: np.ndarray, logits: np.ndarray) -> float:
    return float(roc_auc_score(labels, logits))


def with_tables(seed: int, samples: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """(labels, logits) of the static world of the pilot: every latent in a table, pair by pair."""
    rng = np.random.default_rng(seed)
    logits, vectors = np.full(samples, -1.2), []
    for rows in (20_000, 5_000, 1_000, 200, 50, 10):
        p = np.arange(1, rows + 1) ** -1.05
        ids = rng.choice(rows, samples, p=p / p.sum())
        a, b = rng.normal(size=(2, rows, 3))
        phase = rng.uniform(0, 2 * np.pi, (rows, 1))
        vectors.append((np.cos(phase) * a + np.sin(phase) * b)[ids])
        logits += rng.normal(0, 0.35, rows)[ids]
    for g in range(6):
        for f in range(g):
            logits += 1.3 * np.sum(vectors[f] * vectors[g], axis=1) / np.sqrt(15 * 3)
    return (rng.random(samples) < 1 / (1 + np.exp(-logits))).astype(np.float32), logits
