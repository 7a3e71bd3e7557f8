"""The benchmark runs on tiny sizes, and its comparison can fail."""

import numpy as np
import pytest

import embsim
from experiments.benchmarks import cpu_step, workloads


@pytest.mark.parametrize("name", sorted(workloads.WORKLOADS))
@pytest.mark.parametrize("alpha", [0.0, 1.05])
def test_engine_and_plain_numpy_compute_the_same_tables(name: str, alpha: float) -> None:
    workload = workloads.WORKLOADS[name].scaled(2048)
    for optimizer in cpu_step.OPTIMIZERS[name]:
        mine, plain = cpu_step.measure(workload, optimizer(0.01), alpha, repeats=1)
        assert set(mine.seconds) == {"plan", "lookup", "update"}
        assert plain.median("step") > 0


def test_a_difference_stops_the_benchmark(monkeypatch) -> None:
    workload = workloads.WORKLOADS["W3"].scaled(2048)
    monkeypatch.setattr(cpu_step.PlainNumpy, "update", lambda *_: None)
    with pytest.raises(AssertionError, match="table_0"):
        cpu_step.measure(workload, embsim.SGD(0.01), 0.0, repeats=1)


def test_ids_follow_the_law_that_is_asked_for() -> None:
    rng = np.random.default_rng(0)
    uniform, zipf = (workloads.draw(rng, 1000, 20_000, alpha) for alpha in (0.0, 1.05))
    for ids in (uniform, zipf):
        assert ids.dtype == np.int32 and ids.min() >= 0 and ids.max() < 1000
    counts = np.sort(np.bincount(zipf, minlength=1000))[::-1]
    share = 1 / np.sum(np.arange(1, 1001) ** -1.05)  # of the most frequent id
    assert abs(counts[0] / 20_000 - share) < 5 * np.sqrt(share / 20_000)
    assert np.bincount(uniform, minlength=1000).max() < 60  # 20 expected
