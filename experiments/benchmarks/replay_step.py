"""What a replay costs beside the same training by the engine.

    python -m experiments.benchmarks.replay_step [--steps N]

DeepFM on 26 features of 10,000 rows x 16, batches of 4,096, Zipf ids, Adagrad; in turns, nine of
each, from the same batches. The engine has none of the replay's counts of what reads missed.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from rich.console import Console

import embsim
from embsim.engine import Engine
from embsim.schedule import schedule_of
from embsim.simulation.pipelines import pipeline_of
from embsim.simulation.replay import Dense, replay
from embsim.simulation.timeline import run

from ..models.deepfm_dense import dense
from ..replays import adagrad

FEATURES, ROWS, DIM, SAMPLES = 26, 10_000, 16, 4096
SCHEDULES = ("sequential()", "tpu_embedding_pipelined()", "stale(4)")
TURNS = 9
Batch = tuple[dict[str, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Job:
    """What both train."""

    features: Mapping[str, embsim.FeatureConfig]
    batches: list[Batch]
    dense: Dense
    optimizer: embsim.Adagrad


def job(steps: int) -> Job:
    """The same at every call."""
    draw = np.random.default_rng(0)
    names = [f"f{i:02}" for i in range(FEATURES)]
    tables = [embsim.TableConfig(ROWS, DIM, name=name) for name in names]
    batches = [
        (
            {name: (draw.zipf(1.1, SAMPLES) % ROWS).astype(np.int32) for name in names},
            draw.integers(0, 2, SAMPLES).astype(np.float32),
        )
        for _ in range(steps)
    ]
    features = {n: embsim.FeatureConfig(t, name=n) for n, t in zip(names, tables, strict=True)}
    return Job(
        features, batches, dense(0, FEATURES, DIM, (64, 32), adagrad(0.05)), embsim.Adagrad(0.05)
    )


def by_engine(made: Job, schedule: str) -> float:
    """Seconds."""
    start = time.perf_counter()
    engine = Engine(
        tuple(made.features.values()),
        made.optimizer,
        names=tuple(made.features),
        schedule=schedule_of(schedule),
    )
    parameters = made.dense.parameters
    for ids, labels in made.batches:
        engine.enqueue(engine.make_batch(list(ids.values())))
        found = dict(zip(made.features, engine.dequeue(), strict=True))
        _, gradients, slopes = made.dense.gradients(parameters, found, labels)
        engine.apply_gradients([gradients[name] for name in made.features])
        parameters = made.dense.update(parameters, slopes)
    engine.drain()
    return time.perf_counter() - start


def by_replay(made: Job, schedule: str) -> float:
    """Seconds, those of the timeline included."""
    start, pipeline = time.perf_counter(), pipeline_of(schedule)
    timeline = run(pipeline.operations(len(made.batches)), 1.0)
    replay(timeline, pipeline, made.features, made.optimizer, made.batches, made.dense)
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Print and return the median over turns of replay / engine, by schedule."""
    parser = argparse.ArgumentParser("python -m experiments.benchmarks.replay_step")
    parser.add_argument("--steps", type=int, default=60, metavar="N")
    options = parser.parse_args(arguments)
    made, console, ratios = job(options.steps), Console(), {}
    for schedule in SCHEDULES:
        engine, replayed = _turns(made, schedule)
        turns = np.sort(np.divide(replayed, engine))
        ratios[schedule] = float(np.median(turns))
        console.print(
            f"{schedule}: {1e3 * np.median(engine) / options.steps:.1f} ms a step by the engine, "
            f"{1e3 * np.median(replayed) / options.steps:.1f} replayed: {ratios[schedule]:.2f} "
            f"({turns[0]:.2f} to {turns[-1]:.2f})",
            highlight=False,
        )
    return ratios


def _turns(made: Job, schedule: str) -> tuple[list[float], list[float]]:
    ways: list[Callable[[Job, str], float]] = [by_engine, by_replay]
    for way in ways:
        way(Job(made.features, made.batches[:2], made.dense, made.optimizer), schedule)  # compiles
    turns = [[way(made, schedule) for way in ways] for _ in range(TURNS)]
    return [turn[0] for turn in turns], [turn[1] for turn in turns]


if __name__ == "__main__":
    main()
