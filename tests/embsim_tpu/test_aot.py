"""Compiling for TPUs that are not there, and what is found in compiled programs."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from embsim.errors import BackendError
from embsim_tpu import aot

TABLE = jax.ShapeDtypeStruct((4096, 8), jnp.float32)
ROWS = jax.ShapeDtypeStruct((16,), jnp.int32)
VALUES = jax.ShapeDtypeStruct((16, 8), jnp.float32)
LARGE = 4096 * 8 * 4

needs_libtpu = pytest.mark.skipif(aot.missing() is not None, reason=str(aot.missing()))


def report(function, *arguments, donate=0):
    return aot.compile_for(function, *arguments, large=LARGE, donate=donate)


def put(table, rows, values):
    return table.at[rows].set(values)


def test_a_change_of_rows_in_place_is_no_copy():
    found = report(put, TABLE, ROWS, VALUES)
    assert (found.copies, found.prefetches, found.outside) == ((), (), ())
    assert found.alias_bytes == LARGE and found.temp_bytes < LARGE
    assert found.argument_bytes == LARGE + 16 * 4 + 16 * 8 * 4


def test_without_donation_the_change_is_made_in_a_copy():
    found = report(put, TABLE, ROWS, VALUES, donate=())
    assert found.alias_bytes == 0 and any("copy" in line for line in found.copies)


@pytest.mark.parametrize(
    "function",
    [
        lambda table, rows, values: put(table * 2, rows, values),
        lambda table, rows, values: put(table, rows, values) * 2,
        lambda table, rows, values: put(table[::-1], rows, values),
        lambda table, rows, values: (put(table, rows, values), table.sum() + table.T),
    ],
    ids=["before", "after", "reversed", "transposed"],
)
def test_a_pass_over_the_table_is_a_copy(function):
    assert report(function, TABLE, ROWS, VALUES).copies


def test_only_large_arrays_are_reported():
    found = aot.compile_for(lambda table: table * 2, TABLE, large=LARGE + 1)
    assert found.copies == ()


def test_an_update_in_a_loop_is_in_place():
    def loop(table, rows, values):
        return jax.lax.fori_loop(
            0, 4, lambda i, t: jax.lax.dynamic_update_slice(t, values[i][None], (rows[i], 0)), table
        )

    assert report(loop, TABLE, ROWS, VALUES).copies == ()


def test_a_callback_to_the_host_is_found():
    def asks(table):
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct((), jnp.float32), table[0, 0])

    found = report(asks, TABLE, donate=())
    assert len(found.outside) == 1 and "callback" in found.outside[0]


def test_static_arguments_go_to_a_jitted_function():
    scaled = jax.jit(lambda table, times: table * times, static_argnames="times")
    assert aot.compile_for(scaled, TABLE, large=LARGE, times=3).copies


FUSED = """
HloModule step

%inner (a: f32[4096,8], b: f32[1,8], i: s32[]) -> f32[4096,8] {
  %a = f32[4096,8]{1,0} parameter(0)
  %b = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %SOURCE = f32[4096,8]{1,0} negate(%a)
  ROOT %out = f32[4096,8]{1,0} dynamic-update-slice(%FROM, %b, %i, %i)
}

ENTRY %main (a: f32[4096,8], b: f32[1,8], i: s32[]) -> f32[4096,8] {
  %a.1 = f32[4096,8]{1,0} parameter(0)
  %b.1 = f32[1,8]{1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  %start = (f32[4096,8]{1,0:S(1)}, f32[4096,8]{1,0}, u32[]{:S(2)}) copy-start(%a.1)
  %done = f32[4096,8]{1,0:S(1)} copy-done(%start)
  ROOT %f = f32[4096,8]{1,0} fusion(%done, %b.1, %i.1), kind=kLoop, calls=%inner
}
"""


def test_a_fusion_is_in_place_only_where_what_it_changes_is_its_operand():
    copies, prefetches = aot.Instructions(FUSED.replace("%FROM", "%a")).large(LARGE)
    assert copies == () and len(prefetches) == 1
    copies, _ = aot.Instructions(FUSED.replace("%FROM", "%SOURCE")).large(LARGE)
    assert len(copies) == 1 and "fusion" in copies[0]


def test_a_target_must_be_one_that_is_known():
    with pytest.raises(ValueError, match=r"'v1'.*'v4', 'v5e', 'v5p', 'v6e', '7x'"):
        aot.target("v1")


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(aot, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=rf'pip install "jax\[tpu\]=={jax.__version__}"'):
        aot.target("v5e")


@needs_libtpu
@pytest.mark.parametrize("name", aot.TARGETS)
def test_a_program_compiles_for_one_and_for_four_devices(name):
    for devices in (1, 4):
        mesh = aot.target(name, devices)
        split = NamedSharding(mesh, PartitionSpec("x"))
        assert {device.platform for device in mesh.devices.flat} == {"tpu"}
        given = aot.shapes_of({"x": np.zeros((64, 128), np.float32)}, split)
        found = aot.compile_for(lambda x: {"x": x["x"] * 2}, given, large=2**20, donate=0)
        assert found.argument_bytes == found.alias_bytes == 64 * 128 * 4 // devices


@needs_libtpu
def test_there_are_no_more_devices_than_one_host_has():
    with pytest.raises(ValueError, match=r"'v5e': 5 devices; its host, v5e:2x2, has 4"):
        aot.target("v5e", 5)


@needs_libtpu
def test_the_layout_of_a_tpu_is_seen():
    """Rows 64 wide lie across a TPU's memory; to gather them plainly a table is copied."""
    one = NamedSharding(aot.target("v5e"), PartitionSpec())
    table = jax.ShapeDtypeStruct((2**20, 64), jnp.float32, sharding=one)
    rows = jax.ShapeDtypeStruct((16,), jnp.int32, sharding=one)
    found = aot.compile_for(lambda table, rows: table[rows], table, rows, large=2**28)
    assert len(found.copies) == 1 and "copy" in found.copies[0]
    assert found.temp_bytes >= 2 * 2**28  # 64 of 128 lanes are padding


@needs_libtpu
def test_several_processes_may_compile_at_once():
    """Also where a process has started JAX before, and so has loaded libtpu without ENVIRONMENT."""
    program = (
        "import jax, time; jax.devices()\n"
        "from embsim_tpu import aot\n"
        "aot.target('v5e'); time.sleep(2)"
    )
    clean = {name: v for name, v in os.environ.items() if name not in aot.ENVIRONMENT}
    clean.pop("JAX_PLATFORMS", None)
    made = [subprocess.Popen([sys.executable, "-c", program], env=clean) for _ in range(2)]
    assert [each.wait() for each in made] == [0, 0]
