"""The study of what overlap can save."""

from dataclasses import replace

from experiments import overlap_bound
from experiments.overlap_bound import SCHEDULES, Params


def test_no_schedule_is_above_its_bound_and_the_report_would_say_so():
    records = overlap_bound.run(Params(workloads=("dlrm_bench",), pods=("h100 x 8", "v5p x 64")))
    assert [r.schedule for r in records] == list(SCHEDULES) * 2
    assert all(1 <= r.speedup <= r.bound * (1 + 1e-9) for r in records)
    assert "Above the bound: 0 of 8" in overlap_bound.report(records)
    wrong = [replace(records[0], speedup=9.0), *records[1:]]
    assert "Above the bound: 1 of 8" in overlap_bound.report(wrong)
    (axes,) = overlap_bound.figure(records).axes
    assert len(axes.collections) == len(SCHEDULES)
