"""How well does the simulator predict published step times?

Question
    A model of time with five numbers that no one has published (fractions of peaks, overheads): fit
    on some published throughputs, how far are its predictions of the others?

Setup
    Sixteen throughputs of NVIDIA's DLRM example, HugeCTR's MLPerf runs and torchrec_dlrm, on V100,
    A100 and H100, 1 to 128 of them (data/published_timings.py, in published order), under the
    schedule sequential(). Fitted are the fractions of flop/s, memory and links that are reached, a
    factor for imbalance, and an overhead for each software: least squares of log ratios, from one
    start. Split before anything was fitted: odd against even points, both ways; and chips of one
    kind held out. Added later: one chip against several. Errors are of held-out points alone.

Limits
    Not modelled: hybrid placements, CUDA graphs, overlap inside a step, input from disk. Criteo's
    popularity is recalled, not measured. torchrec_dlrm's arithmetic is not published: taken as
    TF32. Odd against even is nearly 16 bits against 32: the published order alternates.

    python -m experiments.timing_validation [--out DIR]

Beside it, T4: TorchRec's three pipelines in their order. "Base" begins a batch's input when the
last update has ended; SparseDist is sequential(), SemiSync semi_sync(0).
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from embsim.simulation.hardware import Pod, chip
from embsim.simulation.operations import Builder, Operations
from embsim.simulation.pipelines import Pipeline, semi_sync, sequential
from embsim.simulation.pipelines.base import STAGES, Rows, batch
from embsim.simulation.simulate import Result, simulate
from embsim.simulation.stages import Assumptions
from embsim.simulation.traffic import Traffic, expected
from embsim.simulation.zoo import workload

from . import plots
from .data.published_timings import POINTS, Published
from .tables import text_table

BATCHES = 12
SOFTWARE = tuple(dict.fromkeys(point.software for point in POINTS))
FRACTIONS = ("flop_efficiency", "gather_efficiency", "link_efficiency")
BOUNDS = {
    **dict.fromkeys(FRACTIONS, (0.05, 1.0)),
    "imbalance": (1.0, 4.0),
    "overhead": (1e-5, 5e-2),
}
START = {**dict.fromkeys(FRACTIONS, 0.5), "imbalance": 1.5, "overhead": 2e-3}


@dataclass(frozen=True)
class Fit:
    """Assumptions for each software; they differ in the overhead alone."""

    by_software: dict[str, Assumptions]

    def predicted(self, point: Published) -> float:
        """Samples a second."""
        (result,) = simulate(
            point.workload(),
            point.pod(),
            [sequential()],
            traffic=_traffic(point),
            assumed=self.by_software[point.software],
            batches=BATCHES,
        )
        return result.samples_per_second


@dataclass(frozen=True)
class Split:
    """Points to fit on, and the others."""

    name: str
    fitted: tuple[Published, ...]
    held_out: tuple[Published, ...]


def uncalibrated() -> Fit:
    """The simulator's defaults."""
    return Fit(dict.fromkeys(SOFTWARE, Assumptions()))


def fit(points: Sequence[Published]) -> Fit:
    """Least squares of log(predicted / published). A software without a point gets the mean of
    the others' overheads, in logs."""
    known = [name for name in SOFTWARE if any(point.software == name for point in points)]
    shared = (*FRACTIONS, "imbalance")
    names = [*shared, *(f"overhead of {name}" for name in known)]
    low, high, start = (
        np.log([each[name.partition(" ")[0]] for name in names])
        for each in (
            {name: bounds[0] for name, bounds in BOUNDS.items()},
            {name: bounds[1] for name, bounds in BOUNDS.items()},
            START,
        )
    )

    def made(logs: Any) -> Fit:
        values = np.exp(logs)
        common = Assumptions(**dict(zip(shared, map(float, values), strict=False)))
        each = dict(zip(known, map(float, values[len(shared) :]), strict=True))
        other = float(np.exp(np.mean(logs[len(shared) :])))
        return Fit({n: replace(common, overhead=each.get(n, other)) for n in SOFTWARE})

    found: Any = least_squares(
        lambda logs: log_errors(made(logs), points), start, bounds=(low, high), diff_step=1e-3
    )
    return made(found.x)


def log_errors(fitted: Fit, points: Sequence[Published]) -> np.ndarray:
    """log(predicted / published) of each."""
    return np.array([np.log(fitted.predicted(each) / each.throughput) for each in points])


def splits() -> list[Split]:
    """Odd against even; one chip against several, of the software that has both; each kind of chip
    held out."""
    odd, even = POINTS[::2], POINTS[1::2]
    made = [Split("odd points", odd, even), Split("even points", even, odd)]
    examples = [point for point in POINTS if point.software == "examples"]
    one = tuple(point for point in examples if point.chips == 1)
    made.append(Split("one chip", one, tuple(p for p in examples if p.chips > 1)))
    for kind in ("v100", "a100", "h100"):
        fitted = tuple(point for point in POINTS if not point.chip.startswith(kind))
        rest = tuple(point for point in POINTS if point.chip.startswith(kind))
        made.append(Split(f"all but {kind}", fitted, rest))
    return made


def factors(log_errors: np.ndarray) -> tuple[str, str]:
    """How far off, either way, in the geometric mean and at worst: 1.00 is exact."""
    each = np.abs(log_errors)
    return f"{np.exp(each.mean()):.2f}", f"{np.exp(each.max()):.2f}"


@cache
def _traffic(point: Published) -> Traffic:
    return expected(point.workload(), point.chips)


# --- TorchRec's pipelines


# PR #1971 of pytorch/torchrec: seconds (P90) and bytes; the hardware is not published.
PIPELINES = {
    "Base": (10.098, 8.418e9),
    "SparseDist": (10.050, 8.655e9),
    "SemiSync": (9.541, 10.332e9),
}


def base() -> Pipeline:
    """Nothing overlaps, not even a batch's input."""

    def make(batches: int) -> Operations:
        made, rows, steps = Builder(STAGES), Rows(), np.arange(batches)
        batch(made, STAGES, steps, rows)
        made.wait(rows["host_prep"][1:], rows["update"][:-1])
        return made.build()

    return replace(sequential(), name="base", make=make)


def ranking(kind: str = "a100", chips: int = 2) -> list[Result]:
    """Of PIPELINES, in their order, on TorchRec's benchmark of pipelines."""
    made = replace(workload("torchrec_sdd_base"), pooled=True)
    schedules = [base(), sequential(), semi_sync(0)]
    return simulate(made, Pod(chip(kind), chips), schedules)


# --- what is shown


def ranking_report() -> str:
    """Seconds and buffers, relative to Base."""
    results, rows = ranking(), []
    for (name, (seconds, size)), result in zip(PIPELINES.items(), results, strict=True):
        more = (result.buffer_bytes - results[0].buffer_bytes) / 1e9
        rows.append(
            (
                f"{name}: {result.pipeline.name}",
                f"{seconds / PIPELINES['Base'][0]:.3f}",
                f"{result.step_seconds / results[0].step_seconds:.3f}",
                f"{(size - PIPELINES['Base'][1]) / 1e9:+.2f}",
                f"{more:+.2f}",
            )
        )
    head = [("pipeline", "left"), ("published time", "right"), ("predicted", "right")]
    head += [("published GB", "right"), ("predicted", "right")]
    pod = results[0].pod
    where = f"relative to Base; {pod.chips} x {pod.chip.name} (the published hardware is unknown)"
    return f"{text_table(head, [rows])}\n{where}"


def report(found: dict[str, tuple[Split, np.ndarray]], plain: np.ndarray) -> str:
    """Every held-out prediction of the two halves, and errors of all splits."""
    halves = {
        point: error
        for name in ("odd points", "even points")
        for point, error in zip(found[name][0].held_out, found[name][1], strict=True)
    }
    rows = [
        (
            point.name,
            f"{point.throughput / 1e6:.2f}",
            f"{point.throughput * np.exp(halves[point]) / 1e6:.2f}",
            f"{np.exp(halves[point]):.2f}",
            f"{np.exp(before):.2f}",
        )
        for point, before in zip(POINTS, plain, strict=True)
    ]
    head = [("measurement", "left"), *((h, "right") for h in ("published", "predicted"))]
    head += [("ratio", "right"), ("not fitted", "right")]
    errors = [
        (name, str(len(split.held_out)), *factors(each)) for name, (split, each) in found.items()
    ]
    errors.append(("nothing", str(len(plain)), *factors(plain)))
    kinds = [("fitted on", "left")]
    kinds += [(name, "right") for name in ("held out", "typical factor", "worst")]
    note = "million samples a second; ratio: predicted / published, fitted on the other half"
    return f"{text_table(head, [rows])}\n{note}\n\n{text_table(kinds, [errors])}"


def figure(found: dict[str, tuple[Split, np.ndarray]], plain: np.ndarray) -> Any:
    """Predicted against published, of held-out points."""
    looks = {"examples": ("o", plots.BLUE), "hugectr": ("s", plots.ORANGE)}
    with plots.style():
        canvas, (axes,) = plots.panels(1, 4.2, 3.8)
        published = np.array([point.throughput for point in POINTS]) / 1e6
        axes.plot(published, published * np.exp(plain), "x", color="0.6", label="not fitted")
        for software in SOFTWARE:
            marker, colour = looks.get(software, ("^", plots.GREEN))
            pairs = [
                (point.throughput / 1e6, point.throughput * np.exp(error) / 1e6)
                for name in ("odd points", "even points")
                for point, error in zip(found[name][0].held_out, found[name][1], strict=True)
                if point.software == software
            ]
            label = f"{software}, fitted on the other half"
            axes.plot(*np.array(pairs).T, marker, color=colour, label=label)
        ends = np.array([0.05, 150.0])
        axes.plot(ends, ends, color="black", linewidth=0.8)
        axes.fill_between(ends, ends / 1.5, ends * 1.5, color="black", alpha=0.08, linewidth=0)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        axes.set(xlabel="published, million samples a second", ylabel="predicted")
        axes.set_title("Throughputs that were held out; band: a factor of 1.5")
        axes.legend()
    return canvas


def main(arguments: list[str] | None = None) -> dict[str, tuple[Split, np.ndarray]]:
    """Print the report, write the picture; returns log errors of held-out points by split."""
    parser = argparse.ArgumentParser("python -m experiments.timing_validation")
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("results"))
    options = parser.parse_args(arguments)
    found = {each.name: (each, log_errors(fit(each.fitted), each.held_out)) for each in splits()}
    plain = log_errors(uncalibrated(), POINTS)
    print(f"{report(found, plain)}\n\n{ranking_report()}")
    directory = options.out / "timing_validation"
    directory.mkdir(parents=True, exist_ok=True)
    plots.save(figure(found, plain), directory / "figure.png")
    print(f"picture: {directory / 'figure.png'}")
    return found


if __name__ == "__main__":
    main()
