"""What reads missed, against a count of every batch and row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embsim
from embsim.simulation.pipelines import pipeline_of
from tests.embsim.simulation.replay import world
from tests.embsim.simulation.replay.test_run import touched

TABLES = {"users": ("user",), "items": ("item", "seller")}
SHARED = ["sequential()", "stale(2)", "sparsecore_loop(4, 2)", "accumulate(3)"]
SHARED += ["bounded_async(3, 1)", "full_async(3)", "hybrid(2, 2)"]


@pytest.mark.parametrize("schedule", SHARED)
@settings(max_examples=5)
@given(seed=st.integers(0, 99))
def test_missed_are_updates_of_earlier_batches_not_yet_made(schedule, seed):
    """tau(t, r) = #{j < t: r in batch j, whose update has not ended as lookup t begins}."""
    count, pipeline = 12, pipeline_of(schedule)
    timeline, data = world.timeline_of(pipeline, count, seed), world.batches(count, seed)
    operations = timeline.operations
    ended = dict(
        zip(operations.batch[operations.writes], timeline.ended[operations.writes], strict=True)
    )
    applied = pipeline.rule.applied(np.arange(count))
    rows: dict[tuple[str, int], list[int]] = {}
    for t, begin in enumerate(timeline.began[operations.of("lookup")]):
        waiting = [j for j in range(t) if ended[applied[j]] > begin]
        for table, names in TABLES.items():
            others = [touched(data[j][0], names) for j in waiting]
            for row in touched(data[t][0], names):
                rows.setdefault((table, row), []).append(sum(row in each for each in others))
    account = world.replayed(schedule, count, seed).account
    wanted = sorted((len(m), sum(m), sum(x > 0 for x in m)) for m in rows.values())
    found = zip(account.reads, account.missed, account.stale, strict=True)
    assert sorted(tuple(map(int, each)) for each in found) == wanted


def one_row(schedule, count, values, **options):
    """Batches of three ids, all of row 1 of one table."""
    table = embsim.TableConfig(4, 2, name="t", combiner="sum")
    model = world.Dense(
        None, lambda p, a, i: (None, {"f": np.full((1, 2), i, np.float32)}, None), lambda p, g: None
    )
    pipeline = pipeline_of(schedule)
    return world.replay(
        world.timeline_of(pipeline, count),
        pipeline,
        {"f": embsim.FeatureConfig(table, name="f")},
        embsim.SGD(learning_rate=1.0),
        [({"f": [[1, 1, 1]]}, value) for value in values],
        model,
        **options,
    )


def test_shares_of_gradient_mass():
    """Batch t of stale(1) misses one update but for the first; norms are 3 sqrt(2) |g|."""
    account = one_row("stale(1)", 4, [1.0, -2.0, 0.0, 5.0]).account
    assert (account.reads.tolist(), account.lookups.tolist()) == ([4], [12])
    assert (account.stale.tolist(), account.stale_lookups.tolist()) == ([3], [9])
    assert (account.conflict, account.stale_share, account.mean_missed) == (0.75, 0.75, 0.75)
    np.testing.assert_allclose(account.mass, [3 * np.sqrt(2) * 8], rtol=1e-12)
    np.testing.assert_allclose(account.stale_mass_share, 7 / 8, rtol=1e-12)


def test_deciles_are_tenths_of_the_rows_by_reads():
    account = world.replayed("stale(2)", 30).account
    parts = account.deciles()
    assert len(parts) == 10
    assert [len(part.reads) for part in parts] == [2, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    np.testing.assert_array_equal(np.concatenate([p.missed for p in parts]), account.missed)
    reads = np.concatenate([part.reads for part in parts])
    assert (np.diff(reads) <= 0).all() and reads[0] > reads[-1]
    assert parts[0].mean_missed > parts[-1].mean_missed


def test_nothing_at_all():
    account = world.replayed("stale(2)", 0).account
    assert (account.conflict, account.stale_share, account.mean_missed) == (0, 0, 0)
    assert account.stale_mass_share == 0 and len(account.deciles()) == 10
