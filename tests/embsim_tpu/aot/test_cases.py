"""What the report counts: that it is what its name says, and can be built."""

import jax
import jax.numpy as jnp
import pytest

from embsim_tpu.aot import cases
from embsim_tpu.aot.cases import CASES, TABLE

ROWS = 64
XLA = [case for case in CASES if case.kind == "xla"]
LIBRARY = [case for case in CASES if case.kind == cases.LIBRARY]


def results(case):
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("x",))
    program = case.build(ROWS, mesh)
    made = jax.eval_shape(program.function, *program.arguments)
    return program, [leaf.shape for leaf in jax.tree.leaves(made)]


def test_names_are_unique_and_say_whose_code_it_is():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert all(case.name.endswith(f"-{case.kind}") for case in CASES)


@pytest.mark.parametrize("case", XLA, ids=lambda case: case.name)
def test_a_program_of_so_many_rows_makes_what_its_name_says(case):
    what, dim, _ = case.name.rsplit("-", 2)
    program, shapes = results(case)
    wanted = {
        "take": [(ROWS, int(dim))],
        "adagrad": [(TABLE, int(dim))] * 2,
    }
    assert shapes == wanted.get(what, [(ROWS // cases.BAG, int(dim))])
    assert program.arguments[0].shape == (TABLE, int(dim))
    assert case.large == TABLE * int(dim) * jnp.dtype(jnp.float32).itemsize


def test_only_an_update_takes_over_its_table():
    given = {case.name: results(case)[0].donate for case in XLA}
    assert {name for name, donate in given.items() if donate} == {
        "adagrad-32-xla",
        "adagrad-128-xla",
        "adagrad-256-xla",
    }


def test_a_device_without_sparsecores_is_refused_with_its_name():
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("x",))
    with pytest.raises(ValueError, match="cpu has no SparseCores that jax-tpu-embedding"):
        cases._partitions(mesh)


def test_what_is_not_installed_is_left_out(monkeypatch):
    assert all(case.needs is None and case.installed for case in XLA)
    monkeypatch.setattr("embsim_tpu.aot.cost.find_spec", lambda name: None)
    assert LIBRARY and not any(case.installed for case in LIBRARY)
