import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embsim.placement import Placement

placements = st.builds(
    Placement, st.integers(0, 40), st.integers(1, 9), st.sampled_from(["mod", "div"])
)

MOD_13_5 = [[0, 5, 10], [1, 6, 11], [2, 7, 12], [3, 8], [4, 9]]
DIV_13_5 = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10], [11, 12]]


@pytest.mark.parametrize(
    "placement, required",
    [
        (Placement(13, 5), MOD_13_5),
        (Placement(13, 5, "mod"), MOD_13_5),
        (Placement(13, 5, "div"), DIV_13_5),
        (Placement(2, 3, "mod"), [[0], [1], []]),
        (Placement(2, 3, "div"), [[0], [1], []]),
        (Placement(0, 2, "div"), [[], []]),
        (Placement(4, 1, "div"), [[0, 1, 2, 3]]),
    ],
    ids=str,
)
def test_goldens(placement, required):
    found = placement.split(np.arange(placement.num_rows))
    assert [rows.tolist() for rows in found] == required
    for shard, rows in enumerate(required):
        assert placement.rows_in_shard(shard) == len(rows)
        np.testing.assert_array_equal(placement.shard_of(np.array(rows, int)), shard)
        np.testing.assert_array_equal(placement.local_row(rows), np.arange(len(rows)))


@given(placements, st.sampled_from([np.int32, np.int64]))
def test_global_row_inverts_shard_and_local_row(placement, dtype):
    rows = np.arange(placement.num_rows, dtype=dtype)
    shard, local = placement.shard_of(rows), placement.local_row(rows)
    assert shard.dtype == local.dtype == dtype
    assert ((shard >= 0) & (shard < placement.num_shards)).all()
    found = placement.global_row(shard, local)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, rows)
    for s in range(placement.num_shards):
        np.testing.assert_array_equal(np.sort(local[shard == s]), range(placement.rows_in_shard(s)))


@given(placements)
def test_join_inverts_split(placement):
    whole = np.arange(placement.num_rows * 2.0).reshape(-1, 2)
    shards = placement.split(whole)
    joined = placement.join([shard.copy() for shard in shards])
    np.testing.assert_array_equal(joined, whole)
    assert joined.dtype == whole.dtype
    assert all(np.shares_memory(shard, whole) for shard in shards if shard.size)


def test_the_last_row_of_the_largest_table():
    for kind in ("mod", "div"):
        placement = Placement(2**31 - 1, 7, kind)
        last = np.array([2**31 - 2], np.int32)
        shard, local = placement.shard_of(last), placement.local_row(last)
        np.testing.assert_array_equal(placement.global_row(shard, local), last)
        assert local[0] < placement.rows_in_shard(int(shard[0]))


def test_narrow_integers_are_widened():
    assert Placement(300, 299, "mod").shard_of(np.array([200], np.uint8)).tolist() == [200]
    assert Placement(300, 3, "div").global_row(np.int8(2), np.int8(99)) == 299


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((-1, 2), "num_rows is -1; it must be an int >= 0"),
        ((True, 2), "num_rows is True; it must be an int >= 0"),
        ((3, 0), "num_shards is 0; it must be an int >= 1"),
        ((3, 2, "MOD"), "kind is 'MOD'; it must be one of"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Placement(*arguments)


def test_arrays_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"split: the array has shape \(4, 2\).*must be 5"):
        Placement(5, 2).split(np.zeros((4, 2)))
    with pytest.raises(
        ValueError, match=r"join: the shards have \[2, 3\] rows.*must have \[3, 2\]"
    ):
        Placement(5, 2).join([np.zeros(2), np.zeros(3)])
