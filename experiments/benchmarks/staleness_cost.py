"""What staleness costs in wall time: the same training at staleness 0, 1 and 16, in turns.

    python -m experiments.benchmarks.staleness_cost [--flights N] [--turns N]

The training of staleness_on_flights: DeepFM, nine tables, batches of 64, through TPUEmbedding. Each
turn runs every staleness once, first in one order, then in the other; a ratio is of two runs of the
same turn. The first turn compiles and is not counted.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.progress import track

from .. import staleness_on_flights as study
from ..tables import text_table

STALENESS = (0, 1, 16)


def measure(
    flights: int, turns: int, staleness: Sequence[int] = STALENESS
) -> dict[int, list[float]]:
    """Seconds of every turn, by staleness."""
    params = study.Params(
        seeds=(0,), orders=("shuffled",), feature_sets=(study.ALL,), flights=flights
    )
    seconds: dict[int, list[float]] = {k: [] for k in staleness}
    for turn in track(range(turns + 1), "turns", console=Console(stderr=True)):
        for k in staleness if turn % 2 else tuple(reversed(staleness)):
            (record,) = study.run(replace(params, staleness=(k,)))
            if turn > 0:
                seconds[k].append(record.seconds)
    return seconds


def report(seconds: dict[int, list[float]]) -> str:
    """Medians, and the median of the ratios inside of turns, with their quartiles."""
    first = np.array(seconds[min(seconds)])
    rows: list[tuple[str, ...]] = []
    for k, each in seconds.items():
        low, middle, high = np.quantile(np.array(each) / first, (0.25, 0.5, 0.75))
        rows.append((str(k), f"{np.median(each):.2f}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}"))
    heads = ("staleness", "seconds", "over staleness 0", "quartiles")
    return text_table([(name, "right") for name in heads], [rows])


def main(arguments: list[str] | None = None) -> dict[int, list[float]]:
    """The command line."""
    parser = argparse.ArgumentParser("python -m experiments.benchmarks.staleness_cost")
    parser.add_argument("--flights", type=int, default=50_000)
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args(arguments)
    seconds = measure(options.flights, options.turns)
    print(report(seconds))
    return seconds


if __name__ == "__main__":
    main()
