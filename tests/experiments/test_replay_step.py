"""The benchmark of replays: both ways train the same."""

import numpy as np

from embsim.simulation.pipelines import pipeline_of
from embsim.simulation.replay import replay
from embsim.simulation.timeline import run
from experiments.benchmarks import replay_step


def test_both_ways_are_timed(capsys, monkeypatch):
    monkeypatch.setattr(replay_step, "SAMPLES", 64)
    monkeypatch.setattr(replay_step, "TURNS", 1)
    ratios = replay_step.main(["--steps", "2"])
    assert set(ratios) == set(replay_step.SCHEDULES)
    assert all(0 < ratio < np.inf for ratio in ratios.values())
    assert capsys.readouterr().out.count("ms a step by the engine") == 3


def test_its_model_learns(monkeypatch):
    monkeypatch.setattr(replay_step, "SAMPLES", 64)
    made, pipeline = replay_step.job(1), pipeline_of("sequential()")
    timeline = run(pipeline.operations(20), 1.0)
    args = made.features, made.optimizer, made.batches * 20, made.dense
    scores = replay(timeline, pipeline, *args).scores
    assert scores[-1] < scores[0] - 0.01
