"""Seconds of stages: the roofline by hand, assumptions, jitter."""

from dataclasses import replace

import numpy as np
import pytest

from embsim.simulation.hardware import Pod, chip
from embsim.simulation.pipelines import CONSTRUCTORS, full_async, lookahead, pipeline_of, sequential
from embsim.simulation.stages import Assumptions, Jitter, seconds, shares, works
from embsim.simulation.traffic import expected
from embsim.simulation.workload import Table, Workload

ONE = Workload("one", (Table(10_000, 128, 2, slots=1),), 4096, macs=1e6, dense_weights=1e6)
ASSUMED = Assumptions(overhead=0.0)


def test_by_hand_on_one_chip():
    pod = Pod(chip("v5p"))
    traffic = expected(ONE)
    found = works(ONE, traffic, pod, replace(ASSUMED, gather_efficiency=0.5))
    rows = 10_000 * (1 - (1 - 1e-4) ** 8192)
    memory = 2.46e12 * 0.5
    assert found["lookup"] == pytest.approx((rows * 512 + 4096 * 512) / memory)
    assert found["update"] == pytest.approx((rows * 512 + 2 * rows * 1024) / memory)
    assert found["dense"] == pytest.approx(6 * 1e6 * 4096 / (4.59e14 * 0.37))
    assert found["h2d"] == pytest.approx((8192 * 4 + 4096 * 13 * 4) / 1.6e10)
    assert found["host_prep"] == pytest.approx(8192 * 1e-8 / 16)
    assert found["id_a2a"] == found["emb_a2a"] == found["all_reduce"] == found["clock"] == 0


def test_pooled_bags_travel_as_activations():
    """Every id is read; 2 bytes a number; nothing is sorted on the host."""
    pooled = replace(ONE, pooled=True, activation_size=2)
    pod, assumed = Pod(chip("h100"), 8), replace(ASSUMED, gather_efficiency=0.5)
    traffic = expected(pooled, 8)
    found = works(pooled, traffic, pod, assumed)
    sent, memory = 512 * 128 * 2, 3.35e12 * 0.5
    assert found["lookup"] == pytest.approx((1024 * 512 + sent) / memory)
    assert found["emb_a2a"] == found["grad_a2a"] == pod.all_to_all(sent, 0.8)
    assert found["update"] == pytest.approx((sent + 2 * traffic.changed_bytes) / memory)
    assert found["host_prep"] == 0 and traffic.imbalance == 1
    with pytest.raises(ValueError, match=r"activation_size is 3; it must be 2 or 4"):
        replace(ONE, activation_size=3)


def test_on_a_pod_the_busiest_chip_counts():
    wide = replace(ONE, tables=(replace(ONE.tables[0], dim=4096),))
    pod, traffic = Pod(chip("h100"), 8), expected(wide, 8)
    found = works(wide, traffic, pod, ASSUMED)
    busy = works(wide, traffic, pod, replace(ASSUMED, imbalance=2.0))
    for name in ("emb_a2a", "grad_a2a", "update"):
        assert found[name] > 0
        assert busy[name] / found[name] == pytest.approx(2, rel=0.1)
    assert found["dense"] == pytest.approx(
        6 * 1e6 * 512 / (9.9e14 * 0.37) + pod.all_reduce(4e6, 0.8)
    )


def test_every_stage_of_every_schedule_has_a_time():
    traffic = expected(ONE, 4, depths=(1, 3))
    times = works(ONE, traffic, Pod(chip("v5e"), 4), ASSUMED)
    for constructor in CONSTRUCTORS:
        arguments = {"sequential": "", "tpu_embedding_pipelined": "", "offload": ""}
        two = {
            "bounded_async": "2, 1",
            "hybrid": "2, 1",
            "row_clocks": "2, 1",
            "replica_sync": "2, 1",
        }
        given = (arguments | two).get(constructor.__name__, "3")
        pipeline = pipeline_of(f"{constructor.__name__}({given})")
        operations = pipeline.operations(6)
        found = seconds(operations, times, shares(pipeline, traffic, ASSUMED))
        assert len(found) == len(operations) and np.isfinite(found).all()
        assert found[operations.reads].all() and found[operations.writes].all()


def test_look_ahead_splits_a_lookup_by_the_conflict_rate():
    traffic = expected(ONE, 1, depths=(1, 3))
    pipeline = lookahead(3)
    times = works(ONE, traffic, Pod(chip("v5e")), ASSUMED)
    operations = pipeline.operations(1)
    found = seconds(operations, times, shares(pipeline, traffic, ASSUMED))
    early, late = (found[operations.of(name)][0] for name in ("lookup_early", "lookup_late"))
    assert early + late == pytest.approx(times["lookup"])
    assert late / times["lookup"] == pytest.approx(traffic.conflict[3])


def test_a_conflict_rate_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match=r"lookahead\(5\): .* depths \(1,\).* 5"):
        shares(lookahead(5), expected(ONE), ASSUMED)


class TestJitter:
    def test_it_is_repeated_by_its_seed(self):
        operations = sequential().operations(2000)
        times = dict.fromkeys((stage.name for stage in operations.stages), 1.0)
        first, again, other = (
            seconds(operations, times, {"": 1.0}, Jitter(0.3, seed=seed)) for seed in (1, 1, 2)
        )
        assert (first == again).all() and (first != other).any()
        assert np.log(first).std() == pytest.approx(0.3, rel=0.05)
        assert np.log(first).mean() == pytest.approx(0, abs=0.01)

    def test_slow_workers_are_slower(self):
        operations = full_async(2).operations(10)
        factors = Jitter(slow={1: 3.0}).factors(operations)
        assert factors.tolist() == np.where(operations.worker == 1, 3.0, 1.0).tolist()


def test_assumptions_are_said_and_checked():
    text = Assumptions(gather_efficiency=0.5).text()
    assert text[0] == "gather_efficiency 0.5 (assumed)"
    assert len(text) == len(vars(Assumptions()))
    for name, value in (("gather_efficiency", 0), ("overhead", -1.0), ("imbalance", float("nan"))):
        with pytest.raises(ValueError, match=rf"assumptions: {name} is .*; it must be a number >"):
            Assumptions(**{name: value})
    assert Assumptions(overhead=0.0, pulled=0.0).overhead == 0
