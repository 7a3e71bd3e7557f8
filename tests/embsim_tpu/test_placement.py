import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import embsim.placement as host
from embsim_tpu.placement import SMALL, STEP, Placement

SIZES = st.integers(0, 40) | st.sampled_from([SMALL, SMALL + 1, 8 * SMALL, 8 * SMALL + 1])


@given(SIZES, st.integers(1, 9))
def test_rows_lie_where_the_reference_puts_them(rows, shards):
    twin, reference = Placement(rows, shards), host.Placement(rows, shards)
    every = np.arange(rows, dtype=np.int32)
    np.testing.assert_array_equal(twin.shard_of(every), reference.shard_of(every))
    np.testing.assert_array_equal(twin.local_row(every), reference.local_row(every))
    physical = twin.physical_row(every)
    np.testing.assert_array_equal(
        physical, reference.shard_of(every) * twin.local_rows + reference.local_row(every)
    )
    assert physical.dtype == np.int32


@given(SIZES, st.integers(1, 9))
def test_the_shards_arrays_are_the_reference_s_padded_with_zeros(rows, shards):
    twin, reference = Placement(rows, shards), host.Placement(rows, shards)
    whole = np.arange(1, rows + 1, dtype=np.float32)[:, None]
    made = twin.split(whole)
    assert made.shape == (shards * twin.local_rows, 1)
    parts = made.reshape(shards, twin.local_rows, 1)
    for part, wanted in zip(parts, reference.split(whole), strict=True):
        np.testing.assert_array_equal(part[: len(wanted)], wanted)
        assert not part[len(wanted) :].any()
    np.testing.assert_array_equal(twin.join(made), whole)
    np.testing.assert_array_equal(made[twin.physical_row(np.arange(rows))], whole)


@given(st.integers(1, 2**30), st.integers(1, 64))
def test_padding_is_less_than_half_or_a_step(rows, shards):
    """Or the smallest array of all."""
    needed = -(-rows // shards)
    made = Placement(rows, shards).local_rows
    assert needed <= made
    assert made == 8 or made < 2 * needed
    assert needed <= SMALL or made - needed < STEP
    assert made % 8 == 0


def test_of_one_shard_nothing_is_copied_on_the_way_back():
    stored = np.arange(16.0)
    assert np.shares_memory(Placement(5, 1).join(stored), stored)
    assert Placement(5, 1).physical_row(np.arange(5)).tolist() == [0, 1, 2, 3, 4]


def test_tables_of_about_the_same_size_share_programs():
    assert Placement(33, 1).local_rows == Placement(64, 1).local_rows == 64
    large = 10 * STEP * 8
    assert Placement(large + 1, 1).local_rows == Placement(large + STEP, 1).local_rows


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((4, 2, "div"), "kind is 'div'; on devices it must be 'mod'"),
        ((4, 2, "MOD"), "kind is 'MOD'; it must be one of"),
        ((-1, 2), "num_rows is -1; it must be an int >= 0"),
        ((2**31 - 1, 1), r"2147483647 rows; with padding they must be fewer than 2\*\*31"),
    ],
)
def test_what_devices_cannot_hold_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Placement(*arguments)


def test_arrays_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"split: the array has shape \(4, 2\).*must be 5"):
        Placement(5, 2).split(np.zeros((4, 2)))
