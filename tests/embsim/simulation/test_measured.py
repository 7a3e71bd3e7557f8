"""Measured ids: by hand, against traffic.counted, and every form that a file must not have."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embsim.simulation.measured import Feature, load, measured
from embsim.simulation.traffic import counted

RAGGED = {
    "a.values": np.array([0, 1, 1, 5, 5, 5, 2, 0, 0], np.int32),
    "a.lengths": np.array([2, 0, 1, 1, 3, 0, 0, 2], np.uint8),
    "a.rows": np.array(10),
}


def saved(tmp_path, **arrays):
    np.savez(tmp_path / "ids.npz", **arrays)
    return tmp_path / "ids.npz"


def test_ragged_batches_by_hand(tmp_path):
    features = load(saved(tmp_path, **RAGGED, b=np.array([[7]] * 8)))
    made = measured("mine", features, samples=4, dim=2)
    a, b = made.workload.tables
    assert (a.rows, a.dim, a.ids, b.rows, b.ids) == (10, 2, 9 / 8, 8, 1)
    # Row 0 is 3 of 9 ids, as is row 5; row 1 is 2, row 2 one.
    assert a.popularity.count.tolist() == [2, 1, 1, 6]
    assert a.popularity.probability == pytest.approx([3 / 9, 2 / 9, 1 / 9, 0])
    # Before: 0 1, none, 1, 5. Last: 5 5 2, none, none, 0 0.
    assert [ids.tolist() for ids, _ in (step[0] for step in made.batches)] == [
        [0, 1, 1, 5],
        [5, 5, 2, 0, 0],
    ]
    found = made.traffic(chips=2)
    assert (found.samples, found.ids) == (2, (5 + 4) / 2)
    # Chip 0 asks for 2, 5 and 7, chip 1 for 0 and 7; shard 1 is asked for 5, 7 and 7.
    assert found.asked == 5 / 2 and found.asked_bytes == 5 * 2 * 4 / 2
    assert found.read_bytes == found.exchanged_bytes == found.asked_bytes
    assert found.imbalance == 3 / 2.5
    assert found.changed == 4 / 2
    # Of rows 0, 2, 5 and 7 all but 2 were changed before; of 9 lookups all but one.
    assert found.conflict == {1: 3 / 4} and found.stale == {1: 8 / 9}


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4]), st.integers(1, 5))
def test_equal_bags_are_counted_as_traffic_counts_them(seed, chips, ids):
    generator = np.random.default_rng(seed)
    whole = [generator.integers(0, 30, (24, ids)), generator.integers(0, 9, (24, 1))]
    features = {
        str(i): Feature(ids.reshape(-1), np.full(24, ids.shape[1]), 30)
        for i, ids in enumerate(whole)
    }
    made = measured("x", features, samples=8, dim=4)
    batches = [[ids[step : step + 8] for ids in whole] for step in (0, 8, 16)]
    wanted = asdict(counted(made.workload, batches, chips, (1, 2)))
    for name, value in asdict(made.traffic(chips, (1, 2))).items():
        assert value == pytest.approx(wanted[name]), name


def test_samples_left_over_are_not_used(tmp_path):
    made = measured("x", load(saved(tmp_path, a=np.arange(14).reshape(7, 2))), samples=3, dim=1)
    assert [step[0][0].tolist() for step in made.batches] == [[*range(6)], [*range(6, 12)]]
    assert made.workload.tables[0].popularity.probability.max() == 1 / 12


def test_a_feature_without_ids_has_traffic(tmp_path):
    arrays = {"a.values": np.zeros(0, int), "a.lengths": np.zeros(4, int), "a.rows": np.array(3)}
    made = measured("x", load(saved(tmp_path, **arrays)), samples=2, dim=1)
    found = made.traffic(2)
    assert (found.ids, found.asked, found.imbalance, found.stale) == (0, 0, 1, {1: 0})


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({}, r"it has no arrays"),
        ({"a": np.ones((2, 2))}, r"'a' is float64 \[2, 2\]; it must be integers of 2 axes"),
        ({"a": np.ones(2, int)}, r"'a' is int64 \[2\]; it must be integers of 2 axes"),
        ({"a": np.array([[3, -1]])}, r"'a' has -1 .. 3; it must be from 0 to 2 \*\* 63"),
        ({"a": np.array([[2**63]], np.uint64)}, r"'a' has 9223372036854775808 .. 92"),
        ({"a.values": np.ones(2, int)}, r"'a' lacks .lengths; it must be \[samples, ids\]"),
        ({"a.rows": np.array(2)}, r"'a' lacks .values and .lengths"),
        ({**RAGGED, "a": np.ones((8, 1), int)}, r"'a' is both an array and .values"),
        ({**RAGGED, "a.lengths": np.ones(8, int)}, r"lengths add up to 8, and there are 9 values"),
        ({**RAGGED, "a.lengths": np.ones(9)}, r"'a', .lengths is float64 \[9\]"),
        ({**RAGGED, "a.rows": np.array(5)}, r"ids up to 5 in a table of 5 rows; ids must be less"),
        ({"a": np.array([[2**40]])}, r"ids up to 1099511627776 .* number or hash the ids first"),
        ({**RAGGED, "b": np.ones((7, 1), int)}, r"samples are {'a': 8, 'b': 7}; all features"),
        ({"a": np.array([[None]])}, r"it must be an .npz of arrays: Object arrays"),
    ],
)
def test_what_is_no_file_of_ids_is_refused(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        load(saved(tmp_path, **arrays))


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut off", b"text"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "ids.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"ids of .*ids.npz: it must be an .npz of arrays"):
        load(path)


def test_batches_that_are_too_large_or_too_few_are_refused(tmp_path):
    features = load(saved(tmp_path, **RAGGED))
    with pytest.raises(ValueError, match=r"measured: 8 samples in x; a batch needs 9"):
        measured("x", features, 9, 1)
    with pytest.raises(ValueError, match=r"traffic: 2 batches; to count conflicts with 2 steps"):
        measured("x", features, 4, 1).traffic(1, (2,))
    with pytest.raises(ValueError, match=r"measured: 4 samples; it must be a multiple of 3 chips"):
        measured("x", features, 4, 1).traffic(3)
