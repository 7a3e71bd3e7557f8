"""Tables and figures of results: plain text, Markdown, bars, and lines of a sweep."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments import plots
from experiments.tables import text_table

from .measure import ENOUGH, QUIET, Result
from .process import FLOOR, PEERS

COLOURS = dict(
    zip(
        PEERS,
        (plots.BLUE, "#56B4E9", plots.ORANGE, "#E69F00", plots.GREEN, plots.PURPLE, "0.6", "k"),
        strict=True,
    )
)
NOTE = (
    "Milliseconds of a step (plan + lookup + update): median, ± half the width of its middle half, "
    f"x: times embsim's. ~: fewer than {ENOUGH} steps waited for cores for at most {QUIET:.0%} of "
    "their time, so all steps count. floor: the memory traffic that a step cannot do without, "
    "alone, timed in the same turns; GB/s: those bytes by the time."
)


def by_cell(results: Sequence[Result]) -> list[dict[str, Result]]:
    """Results of one comparison, by peer."""
    return [{r.peer: r for r in group} for _, group in groupby(results, key=lambda r: r.cell)]


def text(results: Sequence[Result]) -> str:
    """A line for each peer of each cell."""
    sides = dict.fromkeys(("workload", "ids", "optimizer", "peer"), "left")
    names = ("ms", "±", "min", "plan", "lookup", "update", "x embsim", "x floor", "GB/s")
    columns = [*sides.items(), *((name, "right") for name in names)]
    groups = [[_line(r, cell) for r in cell.values()] for cell in by_cell(results)]
    return "\n".join([text_table(columns, groups), "", *notes(results)])


def markdown(results: Sequence[Result]) -> str:
    head, *rows = _table(results)
    rule = ["---" if i < 3 else "---:" for i in range(len(head))]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))
    listed = "\n".join(f"- {note}" for note in notes(results))
    return f"{table}\n\n{listed}"


def notes(results: Sequence[Result]) -> list[str]:
    """What the numbers are, which cells embsim loses, who is not there and why, versions."""
    sizes = dict.fromkeys(
        f"{r.workload}: {r.tables} x {r.rows:,} x {r.dim}, {r.batch:,} samples of {r.pooling} ids, "
        f"{r.combiner}"
        for r in results
    )
    versions = {PEERS[r.peer].label: r.versions for r in results if r.versions}
    lost = [each for each in map(_lost, by_cell(results)) if each]
    return [
        NOTE,
        f"Cells that embsim loses: {'; '.join(lost) or 'none'}.",
        *dict.fromkeys(f"{r.outcome}: {r.note}" for r in results if r.outcome != "timed"),
        "; ".join(sizes),
        "Versions: " + "; ".join(f"{label}: {found}" for label, found in versions.items()),
    ]


def _lost(cell: dict[str, Result]) -> str:
    """The peers that took less time than embsim, with their share of it."""
    mine = cell.get("embsim")
    if mine is None or mine.outcome != "timed":
        return ""
    faster = [
        f"{PEERS[r.peer].label} {r.step / mine.step:.2f}"
        for r in cell.values()
        if r.outcome == "timed" and r.peer != FLOOR and r.step < mine.step
    ]
    where = f"{_name(mine)} {mine.ids} {mine.optimizer}"
    return f"{where} ({', '.join(faster)})" if faster else ""


def _line(r: Result, cell: dict[str, Result]) -> list[str]:
    place = [_name(r), r.ids, r.optimizer, PEERS[r.peer].label]
    if r.outcome != "timed":
        return [*place, r.outcome, *[""] * 8]
    ratios = [
        _digits(r.step / other.step) if other is not None and other.outcome == "timed" else "-"
        for other in (cell.get("embsim"), cell.get(FLOOR))
    ]
    return [
        *place,
        f"{_digits(r.step)}{'' if r.quiet else '~'}",
        f"{_spread(r):.0f}%",
        *map(_digits, (r.step_min, r.plan, r.lookup, r.update)),
        *ratios,
        _bandwidth(r),
    ]


def _table(results: Sequence[Result]) -> Iterable[list[str]]:
    peers = [p for p in PEERS if p != FLOOR and any(r.peer == p for r in results)]
    yield ["workload", "ids", "optimizer", *(PEERS[p].label for p in peers), "floor", "GB/s"]
    for cell in by_cell(results):
        some, mine = next(iter(cell.values())), cell.get("embsim")
        yield [
            _name(some),
            some.ids,
            some.optimizer,
            *(_time(cell.get(peer), mine) for peer in peers),
            _time(cell.get(FLOOR), mine),
            _bandwidth(cell.get(FLOOR)),
        ]


def _name(r: Result) -> str:
    return f"{r.workload}, 1 thread" if r.threads == 1 else r.workload


def _time(r: Result | None, mine: Result | None) -> str:
    if r is None or r.outcome != "timed":
        return "-" if r is None or r.outcome == "not offered" else "failed"
    shown = f"{_digits(r.step)}{'' if r.quiet else '~'} ±{_spread(r):.0f}%"
    if mine is None or mine is r or mine.outcome != "timed":
        return shown
    return f"{shown} {_digits(r.step / mine.step)}x"


def _spread(r: Result) -> float:
    """In percent."""
    return 50 * (r.step_high - r.step_low) / r.step


def _digits(value: float) -> str:
    """Three, or all of those before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _bandwidth(r: Result | None) -> str:
    if r is None or r.outcome != "timed":
        return "-"
    return f"{(r.bytes_lookup + r.bytes_update) / r.step / 1e6:.1f}"


def bars(results: Sequence[Result]) -> Figure:
    """A panel for each workload and law of ids, a group of bars for each optimizer."""
    panels = dict.fromkeys((r.workload, r.ids, r.threads) for r in results)
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    with plots.style():
        figure = Figure(figsize=(4.4 * columns, 2.2 * rows + 0.4), layout="constrained")
        grid = list(figure.subplots(rows, columns, squeeze=False, sharey="row").flat)
        for axes, panel in zip(grid, panels, strict=False):
            _bars(axes, [r for r in results if (r.workload, r.ids, r.threads) == panel])
            axes.set_title(f"{panel[0]}, {panel[1]}, {_threads(panel[2])}")
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[::columns]:
            axes.set_ylabel("step (ms)")
        _legend(figure, grid[: len(panels)])
    return figure


def _bars(axes: Axes, results: Sequence[Result]) -> None:
    optimizers = list(dict.fromkeys(r.optimizer for r in results))
    peers = [p for p in PEERS if p != FLOOR and any(r.peer == p for r in results)]
    width = 0.8 / max(1, len(peers))
    for r in results:
        if r.outcome != "timed":
            continue
        group = optimizers.index(r.optimizer)
        if r.peer == FLOOR:
            axes.hlines(r.step, group - 0.42, group + 0.42, COLOURS[FLOOR], lw=1, label="floor")
            continue
        x = group + (peers.index(r.peer) - (len(peers) - 1) / 2) * width
        label = PEERS[r.peer].label
        axes.bar(x, r.step, 0.92 * width, color=COLOURS[r.peer], label=label)
        axes.vlines(x, r.step_low, r.step_high, "0.2", lw=0.8)
    axes.set_yscale("log")
    axes.set_xticks(range(len(optimizers)), optimizers)
    axes.grid(visible=False, axis="x")


def lines(results: Sequence[Result], axis: str) -> Figure:
    """A panel for each workload, law of ids and optimizer: a step against the size that is swept,
    whose value stands in the workload's name behind a comma."""

    def panel_of(r: Result) -> tuple[str, ...]:
        return r.workload.partition(",")[0], r.ids, r.optimizer, _threads(r.threads)

    panels = dict.fromkeys(map(panel_of, results))
    with plots.style():
        figure, grid = plots.panels(len(panels), 3.6 * len(panels), 3.0)
        for axes, panel in zip(grid, panels, strict=True):
            inside = [r for r in results if panel_of(r) == panel]
            for peer in PEERS:
                mine = [r for r in inside if r.peer == peer and r.outcome == "timed"]
                if not mine:
                    continue
                axes.plot(
                    [getattr(r, axis) for r in mine],
                    [r.step for r in mine],
                    color=COLOURS[peer],
                    marker="" if peer == FLOOR else "o",
                    label=PEERS[peer].label,
                )
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
            ticks = sorted({getattr(r, axis) for r in inside})
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            axes.set_yscale("log")
            axes.set_xlabel(axis)
            axes.set_title(", ".join(panel))
        grid[0].set_ylabel("step (ms)")
        _legend(figure, grid)
    return figure


def _legend(figure: Figure, grid: Sequence[Axes]) -> None:
    """One for all panels, in the order of the peers."""
    shown = {
        label: handle
        for axes in grid
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    labels = [peer.label for peer in PEERS.values() if peer.label in shown]
    columns = min(len(labels), int(figure.get_figwidth() / 0.9))
    handles = [shown[label] for label in labels]
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"
