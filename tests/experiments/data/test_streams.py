"""What every stream promises, on all three; and how pieces become batches."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.data import criteo, flights_stream, streams, synthetic

BATCH = 64
SHORT = {"num_samples": 1000, "num_held_out": 150}
STREAMS = {
    "synthetic": lambda path: synthetic.stream(**SHORT),
    "drift": lambda path: synthetic.stream("drift", drift_period=300, **SHORT),
    "campaign": lambda path: synthetic.stream("campaign", campaign_lifetime=90, **SHORT),
    "session": lambda path: synthetic.stream("session", session_rho=0.99, **SHORT),
    "endless": lambda path: synthetic.stream(rows=10**7, **SHORT | {"num_samples": None}),
    "criteo": lambda path: criteo.stream(path, num_buckets=100, held_out_every=3),
    "criteo, two files": lambda path: criteo.stream(cut(path, 600), num_buckets=100),
    "flights": lambda path: flights_stream.stream(held_out_share=0.9975),
    "shuffled": lambda path: flights_stream.stream("shuffled", epochs=3, held_out_share=0.9975),
}


@pytest.fixture(params=STREAMS)
def stream(request, tmp_path, monkeypatch) -> streams.Stream:
    monkeypatch.setattr(criteo, "BLOCK_LINES", 50)
    rng = np.random.default_rng(0)
    rows = [
        [
            int(rng.integers(2)),
            *rng.integers(0, 99, 13),
            *map("{:x}".format, rng.integers(0, 99, 26)),
        ]
        for _ in range(777)
    ]
    path = tmp_path / "log.txt"
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return STREAMS[request.param](path)


def test_is_a_stream(stream: streams.Stream) -> None:
    assert isinstance(stream, streams.Stream)
    assert len(stream.names) == len(set(stream.names)) == len(stream.vocabulary_sizes)


def test_a_step_has_the_same_batch_wherever_the_iteration_starts(stream: streams.Stream) -> None:
    steps = stream.num_steps(BATCH) or 12
    whole = list(itertools.islice(stream.batches(BATCH), steps))
    assert len(whole) == steps > 3
    for start in range(steps + 1):
        rest = itertools.islice(stream.batches(BATCH, start), steps - start)
        for found, expected in itertools.zip_longest(rest, whole[start:]):
            assert_same(found, expected)


def test_samples_do_not_depend_on_the_batch_size(stream: streams.Stream) -> None:
    """But for those that an epoch drops at its end."""
    batches = [stream.batches(7), stream.batches(BATCH)]
    one, other = (
        joined(itertools.islice(b, 700 // n)) for b, n in zip(batches, (7, BATCH), strict=True)
    )
    count = min(len(one), len(other))
    assert count > 100
    assert_same(one[:count], other[:count])


def test_batches_are_full_and_in_range(stream: streams.Stream) -> None:
    steps = stream.num_steps(BATCH)
    batches = list(itertools.islice(stream.batches(BATCH), steps or 5))
    assert len(batches) == (steps or 5)
    assert steps is None or not list(stream.batches(BATCH, start=steps))
    for examples in batches:
        check(stream, examples)
        assert examples.mask.all()
    labels = np.concatenate([examples.labels for examples in batches])
    assert 0.05 < labels.mean() < 0.6


def test_held_out_is_fixed_and_padded(stream: streams.Stream) -> None:
    batches = list(stream.held_out(BATCH))
    for examples, again in zip(batches, stream.held_out(BATCH), strict=True):
        check(stream, examples)
        assert_same(examples, again)
    assert all(examples.mask.all() for examples in batches[:-1])
    count = int(batches[-1].mask.sum())
    assert batches[-1].mask.tolist() == [True] * count + [False] * (BATCH - count)
    assert not any(column[count:].any() for column in columns(batches[-1]))
    for size in (1000, 7):
        assert_same(unpadded(stream.held_out(size)), unpadded(batches))


def test_no_sample_is_both_held_out_and_trained_on(stream: streams.Stream) -> None:
    """Samples of synthetic streams may be equal by chance, others (nearly) never."""
    trained = itertools.islice(stream.batches(7), stream.num_steps(7) or 100)
    trained = {row.tobytes() for examples in trained for row in rows_of(examples)}
    held_out = [row.tobytes() for row in rows_of(unpadded(stream.held_out(BATCH)))]
    assert np.mean([row in trained for row in held_out]) < 0.05


def test_wrong_sizes_are_refused_at_once(stream: streams.Stream) -> None:
    with pytest.raises(ValueError, match=r"batch_size is 0, start is 0; .* >= 1"):
        stream.batches(0)
    with pytest.raises(ValueError, match=r"batch_size is 1, start is -1; .* >= 0"):
        stream.batches(1, start=-1)
    with pytest.raises(ValueError, match="batch_size is 0"):
        stream.held_out(0)
    if stream.num_steps(BATCH) is not None:
        with pytest.raises(ValueError, match=r"batch_size is 10000000, .* only \d+ .*; reduce"):
            stream.num_steps(10**7)


@given(lengths=st.lists(st.integers(0, 9)), batch_size=st.integers(1, 12))
def test_rebatched_keeps_all_samples_in_order(lengths: list[int], batch_size: int) -> None:
    ends = np.cumsum([0, *lengths])
    whole = numbered(int(ends[-1]))
    pieces = [whole[a:b] for a, b in itertools.pairwise(ends)]
    found = list(streams.rebatched(pieces, batch_size))
    assert [len(examples) for examples in found[:-1]] == [batch_size] * (len(found) - 1)
    assert all(1 <= len(examples) <= batch_size for examples in found)
    if found:
        assert_same(joined(found), whole)
        full = streams.padded(found[-1], batch_size)
        assert len(full) == batch_size and full.mask.sum() == len(found[-1])
    else:
        assert not len(whole)


def cut(path: Path, line: int) -> list[Path]:
    """Two files of it."""
    lines = path.read_text().splitlines(keepends=True)
    parts = [path.with_name("first.txt"), path.with_name("last.txt")]
    for part, some in zip(parts, (lines[:line], lines[line:]), strict=True):
        part.write_text("".join(some))
    return parts


def numbered(count: int) -> streams.Examples:
    number = np.arange(count)
    ids = np.stack([number, -number], axis=1).astype(np.int32)
    return streams.unmasked(ids, ids.astype(np.float32) / 2, (number % 2).astype(np.float32))


def check(stream: streams.Stream, examples: streams.Examples) -> None:
    fields = len(stream.names)
    shapes = [(BATCH, fields), (BATCH, stream.num_dense), (BATCH,), (BATCH,)]
    assert [column.shape for column in columns(examples)] == shapes
    kinds = [np.int32, np.float32, np.float32, np.bool_]
    assert [column.dtype for column in columns(examples)] == kinds
    assert (examples.ids >= 0).all() and (examples.ids < stream.vocabulary_sizes).all()
    assert np.isfinite(examples.dense).all()
    assert set(examples.labels.tolist()) <= {0.0, 1.0}


def columns(examples: streams.Examples) -> list[np.ndarray]:
    return [examples.ids, examples.dense, examples.labels, examples.mask]


def joined(batches) -> streams.Examples:
    return streams.Examples(*map(np.concatenate, zip(*map(columns, batches), strict=True)))


def unpadded(batches) -> streams.Examples:
    whole = joined(batches)
    return whole[: int(whole.mask.sum())]


def rows_of(examples: streams.Examples) -> np.ndarray:
    return np.concatenate([examples.ids, examples.dense], axis=1)


def assert_same(found: streams.Examples, expected: streams.Examples) -> None:
    for a, b in zip(columns(found), columns(expected), strict=True):
        assert a.shape == b.shape and (a == b).all()
