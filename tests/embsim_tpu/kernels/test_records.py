"""Rows in records: what lies where, and that split and join are each other's inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embsim_tpu.kernels.bfloat16 import rounded, widened
from embsim_tpu.kernels.records import LANES, Records
from tests.embsim_tpu.conftest import F

DIMS = st.integers(1, 700) | st.sampled_from((1, 64, 65, 128))
LAYOUTS = st.builds(Records, DIMS, st.integers(1, 9))
HALF = st.builds(Records, DIMS, st.integers(1, 9), half=st.just(True))


def arrays_of(records, rows):
    """Any bits, those of not-a-numbers too; every number of all streams is another one."""
    shape = (records.streams, rows, records.dim)
    return np.arange(1, 1 + np.prod(shape), dtype=np.uint32).reshape(shape).view(F)


@given(LAYOUTS)
@example(Records(1024, 9))
def test_a_row_takes_a_power_of_two_of_lanes_or_whole_lines(records):
    width = records.width
    assert width % LANES == 0 or (LANES % width == 0 and width < LANES)
    assert width >= records.dim
    # The next smaller one would not do.
    assert (width // 2 if width <= LANES else width - LANES) < records.dim
    assert records.pack * width == max(LANES, width)
    assert records.lines * LANES == max(LANES, width)
    assert records.words == records.streams * width >= records.streams * records.dim


@given(DIMS, st.sampled_from((1, 8, 16, 128)))
def test_a_narrow_row_may_be_given_more_lanes(dim, narrowest):
    records = Records(dim, narrowest=narrowest)
    assert records.width == max(Records(dim).width, narrowest)
    assert records.pack * records.width == max(LANES, records.width)


@given(LAYOUTS)
def test_the_pieces_of_a_record_have_lines_as_a_tpu_does_not_pad_them(records):
    pieces = records.pieces
    assert sum(pieces) == records.streams * records.lines
    assert all(n % 8 == 0 or n in (4, 2, 1) for n in pieces)
    assert list(pieces) == sorted(set(pieces), reverse=True)
    assert [n % 8 for n in pieces].count(0) <= 1


@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 300))
def test_of_a_multiple_of_128_nothing_is_wasted(lines, streams, rows):
    records = Records(LANES * lines, streams)
    pieces = records.split(np.zeros((streams, rows, records.dim), F), np)
    assert sum(piece.size for piece in pieces) == streams * rows * records.dim
    assert records.words == streams * records.dim


@given(st.sampled_from((1, 2, 4, 8, 16, 32, 64)), st.integers(1, 5), st.integers(0, 300))
def test_of_a_power_of_two_only_the_last_record_is_padded(dim, streams, rows):
    records = Records(dim, streams)
    pieces = records.split(np.zeros((streams, rows, dim), F), np)
    words = sum(piece.size for piece in pieces)
    assert 0 <= words - streams * rows * dim < streams * LANES


@pytest.mark.parametrize(
    "dim, streams, width, pack, lines, pieces",
    [
        (1, 1, 1, 128, 1, (1,)),
        (3, 2, 4, 32, 1, (2,)),
        (32, 3, 32, 4, 1, (2, 1)),
        (64, 4, 64, 2, 1, (4,)),
        (65, 1, 128, 1, 1, (1,)),
        (100, 2, 128, 1, 1, (2,)),
        (128, 7, 128, 1, 1, (4, 2, 1)),
        (300, 2, 384, 1, 3, (4, 2)),
        (384, 3, 384, 1, 3, (8, 1)),
        (1024, 3, 1024, 1, 8, (24,)),
    ],
)
def test_examples(dim, streams, width, pack, lines, pieces):
    records = Records(dim, streams)
    found = records.width, records.pack, records.lines, records.pieces
    assert found == (width, pack, lines, pieces)


@given(LAYOUTS, st.integers(0, 2000))
def test_so_many_records_hold_the_rows_and_no_fewer(records, rows):
    count = records.count(rows)
    assert count * records.pack >= rows > (count - 1) * records.pack


@given(LAYOUTS)
def test_lines_stand_one_after_the_other_in_the_pieces(records):
    lines = sum(records.pieces)
    places = [records.place(line) for line in range(lines)]
    assert places == [(i, line) for i, n in enumerate(records.pieces) for line in range(n)]
    with pytest.raises(IndexError):
        records.place(lines)


@given(LAYOUTS)
def test_runs_are_the_first_lines_in_the_fewest_pieces(records):
    for lines in {1, records.lines, sum(records.pieces)}:
        runs = records.runs(lines)
        assert [piece for piece, _, _ in runs] == list(range(len(runs)))
        found = [(first + i) for _, first, n in runs for i in range(n)]
        assert found == list(range(lines))
        # All but the last are whole pieces.
        assert [n for *_, n in runs[:-1]] == list(records.pieces[: len(runs) - 1])
        assert 0 < runs[-1][2] <= records.pieces[len(runs) - 1]


@given(LAYOUTS, st.integers(0, 40))
@example(Records(32, 3), 0)
@example(Records(1, 2), 128)
@example(Records(384, 3), 5)
def test_what_is_split_is_joined_again_to_the_bit(records, rows):
    arrays = arrays_of(records, rows)
    pieces = records.split(list(arrays), np)
    assert [piece.shape for piece in pieces] == [
        (records.count(rows), n, LANES) for n in records.pieces
    ]
    joined = records.join(pieces, rows, np)
    assert len(joined) == records.streams
    for found, wanted in zip(joined, arrays, strict=True):
        assert found.shape == wanted.shape
        assert found.tobytes() == wanted.tobytes()


@given(LAYOUTS, st.integers(1, 40))
def test_a_row_lies_where_the_kernels_look_for_it_and_padding_is_0(records, rows):
    arrays = arrays_of(records, rows)
    pieces = records.split(list(arrays), np)
    flat = np.concatenate(pieces, axis=1).view(np.uint32)
    for stream in range(records.streams):
        for row in {0, rows // 2, rows - 1}:
            record, part = divmod(row, records.pack)
            for number in {0, records.dim // 2, records.dim - 1}:
                line, lane = divmod(part * records.width + number, LANES)
                piece, at = records.place(stream * records.lines + line)
                found = pieces[piece][record, at, lane]
                assert found.tobytes() == arrays[stream, row, number].tobytes()
    assert np.count_nonzero(flat) == arrays.size


@pytest.mark.parametrize("dim, streams", [(3, 2), (100, 3), (128, 1), (256, 2)])
def test_jax_splits_and_joins_as_numpy_does(dim, streams):
    records = Records(dim, streams)
    arrays = np.random.default_rng(0).normal(size=(streams, 9, dim)).astype(F)
    wanted = records.split(list(arrays), np)
    found = jax.jit(lambda arrays: records.split(list(arrays), jnp))(arrays)
    for a, b in zip(found, wanted, strict=True):
        assert np.asarray(a).tobytes() == b.tobytes()
    joined = jax.jit(lambda pieces: records.join(pieces, 9, jnp))(found)
    assert np.stack(joined).tobytes() == arrays.tobytes()


# --- weights in bfloat16 ------------------------------------------------------------------------


def half_arrays(records, rows):
    """w of all kinds of bfloat16, and slots of any bits."""
    w, *slots = arrays_of(records, rows)
    numbers = np.arange(1, 1 + w.size, dtype=np.uint32).reshape(w.shape) % 0x7F80
    return [widened(numbers.astype(np.uint16), np), *slots]


@pytest.mark.parametrize(
    "dim, streams, pack, lines, groups, weights, pieces",
    [
        (1, 1, 256, 1, 2, 1, (1,)),
        (3, 2, 64, 1, 2, 1, (2, 1)),
        (32, 3, 8, 1, 2, 1, (4, 1)),
        (100, 2, 2, 1, 2, 1, (2, 1)),
        (128, 1, 2, 1, 2, 1, (1,)),
        (200, 1, 1, 2, 1, 1, (1,)),
        (256, 2, 1, 2, 1, 1, (2, 1)),
        (384, 1, 1, 3, 1, 2, (2,)),
        (384, 3, 1, 3, 1, 2, (8,)),
        (1024, 2, 1, 8, 1, 4, (8, 4)),
    ],
)
def test_examples_of_bfloat16(dim, streams, pack, lines, groups, weights, pieces):
    records = Records(dim, streams, half=True)
    found = records.pack, records.lines, records.groups, records.weights, records.pieces
    assert found == (pack, lines, groups, weights, pieces)
    assert records.pack * records.width == records.all_lines * LANES


@given(st.sampled_from((1, 2, 4, 8, 16, 32, 64, 128, 256, 512)), st.integers(1, 4))
def test_weights_in_bfloat16_take_half_the_memory(dim, streams):
    rows = 256 * 3
    pieces, half = (
        Records(dim, streams, half=given).split(np.zeros((streams, rows, dim), F), np)
        for given in (False, True)
    )
    before, after = (sum(piece.nbytes for piece in each) for each in (pieces, half))
    assert before - after == rows * dim * 2


@given(HALF, st.integers(0, 300))
@example(Records(32, 3, half=True), 0)
@example(Records(1, 2, half=True), 256)
@example(Records(384, 3, half=True), 5)
def test_bfloat16_that_is_split_is_joined_again_to_the_bit(records, rows):
    arrays = half_arrays(records, rows)
    pieces = records.split(arrays, np)
    assert [(p.shape, p.dtype) for p in pieces] == [
        ((records.count(rows), n, LANES), np.int32) for n in records.pieces
    ]
    for found, wanted in zip(records.join(pieces, rows, np), arrays, strict=True):
        assert found.shape == wanted.shape
        assert found.tobytes() == wanted.tobytes()


@given(HALF, st.integers(1, 300))
def test_a_number_in_bfloat16_is_a_half_of_a_word_and_padding_is_0(records, rows):
    """The lower halves are the first lines of the weights as float32 ones would lie."""
    arrays = half_arrays(records, rows)
    pieces = records.split(arrays, np)
    flat = np.concatenate(pieces, axis=1).view(np.uint32)
    for row in {0, rows // 2, rows - 1}:
        record, part = divmod(row, records.pack)
        for number in {0, records.dim // 2, records.dim - 1}:
            line, lane = divmod(part * records.width + number, LANES)
            upper, line = divmod(line, records.weights)
            found = flat[record, line, lane] >> (16 if upper else 0) & 0xFFFF
            assert found == rounded(arrays[0][row, number : number + 1], np)[0]
    halves = flat[:, : records.weights, :]
    used = np.count_nonzero(halves & 0xFFFF) + np.count_nonzero(halves >> 16)
    assert used == np.count_nonzero(arrays[0])


@pytest.mark.parametrize("dim, streams", [(3, 2), (100, 3), (128, 1), (256, 2), (384, 2)])
def test_jax_splits_and_joins_bfloat16_as_numpy_does(dim, streams):
    records = Records(dim, streams, half=True)
    arrays = np.random.default_rng(0).normal(size=(streams, 9, dim)).astype(F)
    wanted = records.split(list(arrays), np)
    found = jax.jit(lambda arrays: records.split(list(arrays), jnp))(arrays)
    for a, b in zip(found, wanted, strict=True):
        assert np.asarray(a).tobytes() == b.tobytes()
    joined = jax.jit(lambda pieces: records.join(pieces, 9, jnp))(found)
    assert np.stack(joined).tobytes() == np.stack(records.join(wanted, 9, np)).tobytes()
    assert np.asarray(joined[0]).tobytes() == widened(rounded(arrays[0], np), np).tobytes()
