"""Rows that share a record: brought together, spread and gathered as by hand."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embsim_tpu.kernels._packed import Together, part_of, wide
from embsim_tpu.kernels.records import LANES, Records
from tests.embsim_tpu.conftest import F

N, ROWS = 12, 30  # rows that are named, padding included; rows of the table
PACKED = (Records(16), Records(64, 2), Records(3))
ROWS_OF = st.sets(st.integers(0, ROWS - 1), max_size=N)


def padded(rows):
    """As a plan has them: ascending, then rows beyond the table."""
    out = ROWS + np.arange(N, dtype=np.int32)
    out[: len(rows)] = sorted(rows)
    return out


@cache
def brought(records):
    """records, count, place, part; values spread and gathered again; mask."""

    def function(rows, count, values):
        together = Together.of(rows, count, records)
        spread, mask = together.spread(values), together.mask()
        fields = together.records, together.count, together.place, together.part
        return fields, spread, together.gathered(spread), mask

    return jax.jit(function)


def values_of(records):
    return np.random.default_rng(0).normal(size=(N, records.width)).astype(F)


@pytest.mark.parametrize("records", PACKED, ids=lambda records: f"dim {records.dim}")
@settings(max_examples=40)
@given(ROWS_OF)
@example(set())
@example({0})
@example({ROWS - 1})
@example(set(range(N)))
@example(set(range(ROWS - N, ROWS)))  # the last record, where padding rows lie, too
def test_rows_of_one_record_come_together(records, chosen):
    rows, values = padded(chosen), values_of(records)
    (found, count, place, part), spread, gathered, mask = jax.tree.map(
        np.asarray, brought(records)(rows, np.int32(len(chosen)), values)
    )
    real, pack = sorted(chosen), records.pack
    wanted = sorted({row // pack for row in real})
    assert count == len(wanted)
    assert found[:count].tolist() == wanted  # each once, ascending
    assert [found[place[i]] * pack + part[i] for i in range(len(real))] == real
    assert (place[len(real) :] >= N).all()  # nowhere

    by_record, by_mask = (np.zeros((N, pack, records.width), F) for _ in range(2))
    for i, row in enumerate(real):
        at = wanted.index(row // pack), row % pack
        by_record[at], by_mask[at] = values[i], 1
    assert spread.tobytes() == by_record.reshape(N, -1).tobytes()
    assert mask.tobytes() == by_mask.reshape(N, -1).tobytes()
    assert gathered[: len(real)].tobytes() == values[: len(real)].tobytes()
    assert gathered.shape == values.shape


@pytest.mark.parametrize("records", [Records(128, 2), Records(300)], ids=lambda r: f"dim {r.dim}")
def test_rows_with_records_of_their_own_stay_as_they_are(records):
    rows, values = padded({1, 5, 29}), values_of(records)
    together = Together.of(jnp.array(rows), jnp.int32(3), records)
    assert np.asarray(together.records).tolist() == rows.tolist()
    assert together.count == 3
    assert together.mask() is None
    for found in (together.spread(values), together.gathered(values)):
        assert np.asarray(found).tobytes() == values.tobytes()


@pytest.mark.parametrize("dim", [1, 3, 16, 64])
def test_a_packed_row_is_found_in_its_line(dim):
    records = Records(dim)
    lines = np.random.default_rng(0).integers(0, 2**32, (40, LANES), np.uint32).view(F)
    lines[0, :2] = -0.0, np.nan
    part = np.arange(40, dtype=np.int32) % records.pack
    part[-1] = records.pack - 1
    rows = lines.reshape(40, records.pack, records.width)
    wanted = rows[np.arange(40), part, :dim]
    found = np.asarray(part_of(jnp.array(lines), jnp.array(part), records))
    assert found.tobytes() == np.ascontiguousarray(wanted).tobytes()


@pytest.mark.parametrize("dim", [100, 128, 300])
def test_a_row_with_lines_of_its_own_is_all_of_them(dim):
    records = Records(dim)
    lines = np.random.default_rng(0).normal(size=(5, records.width)).astype(F)
    found = part_of(jnp.array(lines), jnp.zeros(5, jnp.int32), records)
    assert np.asarray(found).tobytes() == lines[:, :dim].tobytes()


@pytest.mark.parametrize("dim, lanes", [(1, 1), (3, 4), (64, 64), (65, 128), (300, 128)])
def test_a_rowwise_slot_is_in_all_lanes_of_its_row(dim, lanes):
    values = np.arange(5, dtype=F)[:, None]
    found = np.asarray(wide(jnp.array(values), Records(dim)))
    assert found.tolist() == np.repeat(values, lanes, axis=1).tolist()
