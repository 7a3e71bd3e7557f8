"""The benchmark of replays: both ways train the same."""

import numpy as np

from experiments.benchmarks import replay_step


def test_both_ways_are_timed(capsys, monkeypatch):
    monkeypatch.setattr(replay_step, "SAMPLES", 64)
    monkeypatch.setattr(replay_step, "TURNS", 1)
    ratios = replay_step.main(["--steps", "2"])
    assert set(ratios) == set(replay_step.SCHEDULES)
    assert all(0 < ratio < np.inf for ratio in ratios.values())
    assert capsys.readouterr().out.count("ms a step by the engine") == 3
