"""Positions in chunks: each position in one place, a block's in its chunks, in their order."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embsim_tpu._chunks import Sizes, ordered
from tests.embsim_tpu.conftest import F

SIZES = st.builds(Sizes, samples=st.integers(1, 9), chunk=st.integers(1, 9))
LENGTHS = st.lists(st.integers(0, 4) | st.integers(0, 40), max_size=24)


def splits_of(lengths):
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def check(order, lengths, sizes, chunks):
    """What kernels rely on."""
    sample, places = np.repeat(np.arange(len(lengths)), lengths), order.places
    blocks = sizes.blocks(len(lengths))
    assert order.counts.shape == order.block.shape == (chunks,)
    assert order.counts.dtype == order.block.dtype == order.within.dtype == np.int32
    # A chunk's positions are its first places, and there are no others.
    assert ((order.counts >= 0) & (order.counts <= sizes.chunk)).all()
    filled = (np.arange(sizes.chunk) < order.counts[:, None]).reshape(-1)
    assert places.tolist() == np.flatnonzero(filled).tolist()
    # A block's chunks follow each other, and every block has one.
    assert set(order.block) == set(range(blocks))
    assert (np.diff(order.block) >= 0).all()
    assert (order.block[places // sizes.chunk] == sample // sizes.samples).all()
    assert (order.within == sample % sizes.samples).all()


def summed(order, values, sizes, blocks):
    """As a kernel does it: a block's sums begin at 0 with its first chunk."""
    out = np.full((blocks, sizes.samples), np.nan, F)
    held = np.zeros(len(order.counts) * sizes.chunk, F)
    within = np.full(len(held), -1)
    held[order.places], within[order.places] = values, order.within
    for c, (count, block) in enumerate(zip(order.counts, order.block, strict=True)):
        if c == 0 or block != order.block[c - 1]:
            out[block] = 0
        for i in range(c * sizes.chunk, c * sizes.chunk + count):
            out[block, within[i]] += held[i]
    return out.reshape(-1)


@given(LENGTHS, SIZES, st.integers(0, 30), st.integers(0, 3))
@example([], Sizes(1, 1), 0, 0)
@example([0, 0, 0], Sizes(2, 3), 0, 0)
@example([40], Sizes(8, 4), 0, 0)
@example([3] * 9, Sizes(3, 9), 0, 0)  # each block's chunk is full, and one is left
def test_every_position_has_one_place_in_a_chunk_of_its_block(lengths, sizes, padding, more):
    """For as many chunks as a plan has, whose positions are padded, and for more."""
    chunks = sizes.chunks(len(lengths), sum(lengths) + padding) + more
    check(ordered(splits_of(lengths), sizes, chunks), lengths, sizes, chunks)


@given(LENGTHS, SIZES)
def test_sums_chunk_by_chunk_are_those_of_the_samples_in_their_order(lengths, sizes):
    values = np.random.default_rng(0).normal(size=sum(lengths)).astype(F)
    chunks, blocks = sizes.chunks(len(lengths), len(values)), sizes.blocks(len(lengths))
    found = summed(ordered(splits_of(lengths), sizes, chunks), values, sizes, blocks)
    wanted = np.zeros(blocks * sizes.samples, F)
    for value, sample in zip(values, np.repeat(np.arange(len(lengths)), lengths), strict=True):
        wanted[sample] += value
    assert found.tolist() == wanted.tolist()


def test_an_example():
    """Blocks of two samples, chunks of three positions: 2 + 3, none, and 7 positions."""
    sizes = Sizes(samples=2, chunk=3)
    order = ordered(splits_of([2, 3, 0, 0, 7]), sizes, sizes.chunks(5, 12))
    assert sizes.chunks(5, 12) == 7
    assert order.counts.tolist() == [3, 2, 0, 3, 3, 1, 0]
    assert order.block.tolist() == [0, 0, 1, 2, 2, 2, 2]
    assert order.places.tolist() == [0, 1, 2, 3, 4, *range(9, 16)]
    assert order.within.tolist() == [0, 0, 1, 1, 1, *[0] * 7]


@given(SIZES, st.integers(1, 6))
def test_so_many_chunks_may_be_needed(sizes, blocks):
    """Where every block has one position more than full chunks have."""
    lengths = [sizes.chunk + 1, *[0] * (sizes.samples - 1)] * blocks
    needed = 2 * blocks
    assert needed <= sizes.chunks(len(lengths), sum(lengths)) <= needed + blocks // sizes.chunk
    ordered(splits_of(lengths), sizes, needed)
    with pytest.raises(AssertionError, match=r"more chunks than sizes\.chunks says"):
        ordered(splits_of(lengths), sizes, needed - 1)


# Controls: what `check` must be able to find.

BROKEN = {
    "two positions change places": lambda o: replace(
        o, places=np.concatenate([o.places[1::-1], o.places[2:]])
    ),
    "two positions have one place": lambda o: replace(o, places=np.maximum(o.places, 1)),
    "a chunk has a position more": lambda o: replace(o, counts=o.counts + (o.counts == 2)),
    "a chunk has a position less": lambda o: replace(o, counts=o.counts - (o.counts == 1)),
    "an empty block has no chunk": lambda o: replace(
        o, block=np.where(o.block == 1, np.int32(0), o.block)
    ),
    "blocks come in no order": lambda o: replace(o, block=o.block[::-1]),
    "a sample is counted from the first": lambda o: replace(
        o, within=np.repeat(np.arange(5, dtype=np.int32), [2, 3, 0, 0, 7])
    ),
    "numbers are wider": lambda o: replace(o, counts=o.counts.astype(np.int64)),
}


@pytest.mark.parametrize("bug", BROKEN)
def test_a_wrong_order_is_found(bug):
    sizes, lengths = Sizes(samples=2, chunk=3), [2, 3, 0, 0, 7]
    order = ordered(splits_of(lengths), sizes, 7)
    check(order, lengths, sizes, 7)
    with pytest.raises(AssertionError):
        check(BROKEN[bug](order), lengths, sizes, 7)
