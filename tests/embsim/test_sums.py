"""Sums in registers against the Python that says what they are, to the bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embsim._numba import kernel
from embsim._sums import TILES, prefetch, weighted_sum, weighted_sums
from tests.embsim.programs import F, assert_same

ODD = F([0.0, -0.0, 1e-45, -1e-40, 3e38, -3e38, 2.0**24, 1.0, 0.1, np.inf, np.nan])


def drawn(seed, dim, lengths):
    """A matrix whose rows have `lengths` entries, and dense rows with odd numbers among them."""
    draw = np.random.default_rng(seed)
    splits = np.cumsum([0, *lengths])
    rows = draw.normal(size=(7, dim)).astype(F)
    odd = draw.random(rows.shape) < 0.2
    rows[odd] = draw.choice(ODD, odd.sum())
    index = draw.integers(0, len(rows), splits[-1]).astype(np.int32)
    return splits, index, draw.normal(size=splits[-1]).astype(F), rows


def expected(splits, index, gain, rows):
    out = np.zeros((len(splits) - 1, rows.shape[1]), F)
    with np.errstate(all="ignore"):
        for i in range(len(out)):
            weighted_sum(out, i, rows, index, gain, splits[i], splits[i + 1])
    return out


@settings(max_examples=20)
@given(st.integers(0, 99), st.integers(1, 150), st.lists(st.integers(0, 30), max_size=5))
def test_tiles_change_no_bit(seed, dim, lengths):
    matrix = drawn(seed, dim, lengths)
    out = np.full((len(lengths), dim), 7, F)
    weighted_sums(0, len(out), *matrix, out)
    assert_same(f"dim {dim}", out, expected(*matrix))


@pytest.mark.parametrize("dim", sorted({w * n + more for w, n in TILES for more in (-1, 0, 1)}))
def test_every_seam_between_tiles(dim):
    matrix = drawn(dim, dim, [3, 0, 40, 1])
    out = np.empty((4, dim), F)
    weighted_sums(0, 4, *matrix, out)
    assert_same(f"dim {dim}", out, expected(*matrix))


def test_only_the_rows_asked_for_are_written():
    matrix = drawn(0, 67, [2, 5, 1, 3])
    out = np.full((4, 67), 7, F)
    weighted_sums(1, 3, *matrix, out)
    assert (out[[0, 3]] == 7).all()
    assert_same("rows 1 and 2", out[1:3], expected(*matrix)[1:3])


def test_a_sum_starts_from_positive_zero():
    out = np.empty((1, 1), F)
    matrix = np.array([0, 1]), np.zeros(1, np.int32), F([1])
    weighted_sums(0, 1, *matrix, F([[-0.0]]), out)
    assert not np.signbit(out[0, 0])


@kernel
def _touch(rows, r):
    prefetch(rows, r)
    return rows[r, 0]


@pytest.mark.parametrize("dim", [1, 16, 33])
def test_prefetch_has_no_effect(dim):
    rows = np.arange(5 * dim, dtype=F).reshape(5, dim)
    before = rows.copy()
    assert _touch(rows, 4) == 4 * dim
    assert rows.tobytes() == before.tobytes()
