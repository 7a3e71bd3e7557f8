"""The benchmark runs on tiny sizes, its comparison can fail, and what it reports is so."""

import json
from dataclasses import replace

import numpy as np
import optax
import pytest

import embsim
from embsim_tpu import Embedding
from experiments.benchmarks import jax_contenders, jax_step, workloads
from experiments.benchmarks.jax_results import floor_bytes, memory_table, time_table

TINY = workloads.Workload("tiny", 1, 2000, 8, 32, 4, "sum")
COMPILED = ("embsim_tpu", "sorted", "dense")


@pytest.mark.parametrize("name", sorted(workloads.WORKLOADS))
@pytest.mark.parametrize("alpha", [0.0, 1.05])
def test_contenders_compute_what_the_engine_computes(name: str, alpha: float) -> None:
    workload = replace(workloads.WORKLOADS[name], dim=8)
    for optimizer in jax_step.OPTIMIZERS[name]:
        jax_step.check(workload, optimizer(0.01), alpha)


@pytest.mark.parametrize(
    ("owner", "name", "wrong", "what"),
    [
        (Embedding, "update", lambda _, state, *__: state, "embsim_tpu: activations of step 1"),
        (jax_contenders, "_sorted_update", lambda w, s, *_: (w, s), "sorted: activations of step"),
        (jax_contenders, "_optax", lambda _: optax.sgd(0.02), "dense: activations of step 1"),
    ],
)
def test_a_difference_stops_the_benchmark(monkeypatch, owner, name, wrong, what) -> None:
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(AssertionError, match=what):
        jax_step.check(TINY, embsim.SGD(0.01), 0.0)


@pytest.fixture(scope="module")
def results():
    return jax_step.Bench(TINY, embsim.Adagrad(0.01), 0.0).run(steps=3)


def test_each_contender_takes_its_turns(results) -> None:
    assert [each.contender for each in results] == list(jax_step.NAMES)
    for each in results:
        assert each.steps == 3
        assert 0 < each.step_min <= each.step <= each.step_max
        assert each.plan > each.put > 0
        assert each.of_copy > 0


def test_steps_hold_tables_and_slots_once(results) -> None:
    tables = 2 * 2048 * 8 * 4  # table and slot, padded to a power of two
    for each in results:
        assert each.tables_and_slots == tables
        assert each.aliased == (tables if each.contender in COMPILED else 0)


def test_only_the_dense_step_holds_more_beside_larger_tables(results) -> None:
    larger = jax_step.Bench(replace(TINY, rows=8000), embsim.Adagrad(0.01), 0.0, COMPILED)
    more = {each.contender: each.beyond for each in larger.run(steps=1)}
    before = {each.contender: each.beyond for each in results}
    assert more["embsim_tpu"] == before["embsim_tpu"]
    assert more["sorted"] == before["sorted"]
    assert more["dense"] - before["dense"] >= 6000 * 8 * 4


def test_the_floor_of_a_small_batch() -> None:
    """3 distinct rows: read by the lookup; read and written with one slot each by the update."""
    workload = workloads.Workload("", 1, 10, 2, 2, 2, "sum")
    batch = [embsim.RaggedTensor(np.array([7, 1, 7, 2], np.int32), np.array([0, 2, 4]))]
    floor = floor_bytes(workload, embsim.Adagrad(0.01), [batch])
    assert floor == 4 * 2 * (3 + 2 * 3 + 2 * 3 + 2 + 2)


def test_tables_name_what_ran(results) -> None:
    table = time_table(results)
    assert "platform cpu" in str(table.title) and "jax " in str(table.title)
    assert list(table.columns[0].cells) == ["tiny Adagrad uniform"]
    some = memory_table([each for each in results if each.contender != "dense"])
    assert list(some.columns[-1].cells) == ["-"]


def test_the_command_prints_a_line_for_each_contender(monkeypatch, capsys) -> None:
    monkeypatch.setitem(workloads.WORKLOADS, "W1", TINY)
    names = ["embsim_tpu", "engine"]
    jax_step.main(
        ["--workloads", "W1", "--scale", "4", "--steps", "1", "--json", "--contenders", *names]
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(x["ids"], x["contender"]) for x in lines] == [
        (ids, name) for ids in ("uniform", "Zipf 1.05") for name in names
    ]
    assert {(x["rows"], x["platform"]) for x in lines} == {(500, "cpu")}
