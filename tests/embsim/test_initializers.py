import hashlib
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embsim import TableConfig
from embsim.initializers import (
    CHUNK,
    constant,
    initial_table,
    row_id,
    truncated_normal,
    uniform,
)

COUNTED = [truncated_normal(), truncated_normal(1.0, 0.5, seed=3), uniform(-2.0, 3.0)]


@pytest.mark.parametrize("initializer", [*COUNTED, constant(0.25), row_id(5)], ids=str)
@given(
    dim=st.integers(1, 9),
    cuts=st.lists(st.integers(0, 200), min_size=2, max_size=5).map(sorted),
)
def test_any_range_of_rows_is_made_alone(initializer, dim, cuts):
    whole = initializer.values(7, "items", 0, 200, dim)
    for low, high in pairwise(cuts):
        part = initializer.values(7, "items", low, high, dim)
        assert part.dtype == np.float32
        np.testing.assert_array_equal(part, whole[low:high])


def test_draws_are_those_of_numpys_philox():
    """The definition, slowly: one draw an element, inverse CDF by the standard library."""
    key = hashlib.sha256(b"embsim.initializers\x0011\0items").digest()[:16]
    raw = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(30 * 3)
    centred = [int(draw >> np.uint64(11)) / 2**53 - 0.5 for draw in raw]
    cut = NormalDist().cdf(2) - NormalDist().cdf(-2)
    required = [0.5 + 0.1 * NormalDist().inv_cdf(0.5 + u * cut) for u in centred]
    found = truncated_normal(0.5, 0.1).values(11, "items", 0, 30, 3)
    # both are right to about 1e-15 before the one rounding, which may then differ
    np.testing.assert_array_max_ulp(found.reshape(-1), np.float32(required), maxulp=1)
    raw_uniform = [-2.0 + 5.0 * (int(draw >> np.uint64(11)) / 2**53) for draw in raw]
    found = uniform(-2.0, 3.0).values(11, "items", 0, 30, 3)
    np.testing.assert_array_equal(found.reshape(-1), np.float32(raw_uniform))


def test_bits_are_those_of_every_machine():
    table = initial_table(None, 50_000, 17, 42, "users")
    digest = hashlib.sha256(table.tobytes()).hexdigest()
    assert digest == "027c90d19ea95a09764bedfcab99e047c30328dd8a53c9c61f17231a761c0a09"


@pytest.mark.parametrize("rows, dim", [(1, 1), (3, CHUNK + 1), (CHUNK // 8 + 3, 16)])
def test_table_does_not_depend_on_pieces_or_threads(rows, dim):
    table = initial_table(None, rows, dim, 5, "t")
    np.testing.assert_array_equal(table, truncated_normal().values(5, "t", 0, rows, dim))
    assert table.ctypes.data % 64 == 0
    code = (
        "import hashlib; from embsim.initializers import initial_table;"
        f"print(hashlib.sha256(initial_table(None, {rows}, {dim}, 5, 't').tobytes()).hexdigest())"
    )
    for threads in "13":
        found = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "EMBSIM_NUM_THREADS": threads},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.strip() == hashlib.sha256(table.tobytes()).hexdigest()


def test_default_is_cut_at_two_standard_deviations():
    table = initial_table(None, 100_000, 4, 0, "t")
    assert np.abs(table).max() <= 2 / 2
    assert abs(table.std() - 0.4398) < 0.002  # 0.8796 / sqrt(4)
    assert abs(table.mean()) < 0.002
    assert len(np.unique(table)) > 0.97 * table.size


def test_tables_differ_by_seed_and_name():
    tables = [initial_table(None, 5, 4, s, n) for s in (0, 1, -1) for n in ("a", "b", "a/b", "é")]
    assert len({table.tobytes() for table in tables}) == len(tables)


def test_own_seed_replaces_the_embeddings():
    own = truncated_normal(seed=9)
    np.testing.assert_array_equal(
        initial_table(own, 5, 4, 0, "t"), initial_table(None, 5, 4, 9, "t")
    )


@pytest.mark.parametrize("initializer", [*COUNTED, constant(0.25), row_id(5)], ids=str)
def test_initializers_are_called_with_shape_and_dtype(initializer):
    made = initializer((6, 4), np.float64)
    assert made.dtype == np.float64
    assert made.shape == (6, 4)
    np.testing.assert_array_equal(made, initializer([6, 4]))
    assert initializer((2, 3, 4)).shape == (2, 3, 4)
    with pytest.raises(ValueError, match=r"shape is \(\); a table has the shape \(rows, dim\)"):
        initializer(())


def test_constant_and_row_id():
    np.testing.assert_array_equal(initial_table(constant(2), 2, 3, 0, "t"), np.full((2, 3), 2.0))
    found = initial_table(row_id(100), 3, 2, 0, "t")
    np.testing.assert_array_equal(found, [[100, 100], [101, 101], [102, 102]])


class TensorLike:
    def numpy(self):
        return np.ones((3, 2))


@pytest.mark.parametrize(
    "result",
    [
        np.ones((3, 2)),
        np.asfortranarray(np.ones((3, 2), np.float32)),
        np.ones((3, 2), np.int64),
        np.ones((3, 2), ml_dtypes.bfloat16),
        [[1, 1], [1, 1], [1, 1]],
        jax.numpy.ones((3, 2)),
        TensorLike(),
    ],
    ids=lambda result: type(result).__name__,
)
def test_users_initializer_is_called_once_and_its_result_copied(result):
    calls = []

    def initializer(*args):
        calls.append(args)
        return result

    table = initial_table(initializer, 3, 2, 0, "t")
    assert calls == [((3, 2), np.float32)]
    np.testing.assert_array_equal(table, np.ones((3, 2), np.float32))
    assert table.flags.c_contiguous
    assert table.flags.writeable
    if isinstance(result, np.ndarray):
        assert not np.shares_memory(table, result)


@pytest.mark.parametrize(
    "result, message",
    [
        (
            np.ones((2, 3)),
            r"table 'items': initializer returned shape \(2, 3\); it must be \(3, 2\)",
        ),
        (1.0, r"returned shape \(\); it must be \(3, 2\)"),
        ("text", "initializer returned <U4; it must return real numbers"),
        (np.ones((3, 2), complex), "initializer returned complex128; it must return real"),
        (None, "initializer returned object"),
    ],
)
def test_wrong_results_are_refused(result, message):
    with pytest.raises(ValueError, match=message):
        initial_table(lambda shape, dtype: result, 3, 2, 0, "items")


def test_a_row_initializer_of_a_wrong_shape_is_refused():
    class Wrong:
        def values(self, seed, table_name, start_row, stop_row, dim):
            return np.zeros((stop_row - start_row, 1), np.float32)

        def __call__(self, shape, dtype):
            raise AssertionError("rows are asked for")

    message = (
        r"rows 0..2 of table 'items': initializer returned shape \(3, 1\); it must be \(3, 2\)"
    )
    with pytest.raises(ValueError, match=message):
        initial_table(Wrong(), 3, 2, 0, "items")


def test_a_class_in_place_of_an_instance_is_refused():
    with pytest.raises(ValueError, match=r"'items': initializer is the class RowId.*an instance"):
        initial_table(type(row_id()), 3, 2, 0, "items")


def test_a_failing_initializer_says_how_it_was_called():
    def failing(shape, dtype):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        initial_table(failing, 3, 2, 0, "items")
    assert "table 'items' as initializer((3, 2), np.float32)" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: truncated_normal(float("nan")), "mean is nan; it must be a finite number"),
        (lambda: truncated_normal(0.0, -1.0), "stddev is -1.0; it must be a finite number >= 0.0"),
        (lambda: uniform(1.0, 0.0), "high is 0.0; it must be a finite number >= 1.0"),
        (lambda: constant(float("inf")), "value is inf; it must be a finite number"),
        (lambda: uniform(0.0, 1.0, seed=True), "seed is True; it must be an int, or None"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_default_is_printed_as_none():
    assert "initializer=None" in repr(TableConfig(3, 2))
    assert repr(truncated_normal()) == "TruncatedNormal(mean=0.0, stddev=None, seed=None)"
