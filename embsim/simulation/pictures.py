"""Runs as pictures: who does what, when, and which lookups are stale."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .staleness import ages
from .timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STALE, OTHER = "#c0392b", "#99a3a4"
COLOURS = {"lookup": "#2471a3", "dense": "#7d3c98", "update": "#1e8449"}
BATCHES = 4  # that the slowest schedule shows
NARROW = 0.015  # of the picture: bars without a number


def save_gantt(path: Path, runs: Mapping[str, Timeline], first: int = 8) -> None:
    """One picture of several schedules, below each other, on one scale of time, as PNG.

    Args:
      runs: by the names of schedules.
      first: the batch with whose lookup each begins; its way is drawn with arrows.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
      ValueError: a run that has not so many batches.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    span = max(_span(timeline, first) for timeline in runs.values())
    heights = [1 + 0.35 * len(timeline.operations.resources) for timeline in runs.values()]
    figure = Figure(figsize=(11, 0.6 + sum(heights)), layout="constrained")
    grid: Any = figure.subplots(len(runs), 1, squeeze=False, height_ratios=heights, sharex=True)
    for axes, (name, timeline) in zip(grid[:, 0], runs.items(), strict=True):
        gantt(axes, timeline, first, span)
        axes.set_title(name, loc="left")
    colours = {**COLOURS, "lookup that misses updates": STALE, "everything else": OTHER}
    patches = [Patch(color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(patches), frameon=False)
    grid[-1, 0].set_xlabel(f"time, {_unit(span)[1]}; numbers are batches")
    figure.savefig(path, dpi=150)


def gantt(axes: "Axes", timeline: Timeline, first: int, span: float) -> None:
    """Draw `span` seconds from the lookup of batch `first`: a row for each resource."""
    operations, found = timeline.operations, ages(timeline)
    begin = _begin(timeline, first)
    scale, _ = _unit(span)
    row = -operations.resource
    stale = set(found.lookup[found.age > 0].tolist())
    inside = (
        (timeline.end > begin) & (timeline.start < begin + span) & (timeline.end > timeline.start)
    )
    for i in np.flatnonzero(inside).tolist():
        left = max(timeline.start[i] - begin, 0) * scale
        right = min(timeline.end[i] - begin, span) * scale
        work = operations[i].stage.work
        colour = STALE if i in stale else COLOURS.get(work, OTHER)
        frame: Any = {"height": 0.8, "edgecolor": "white", "linewidth": 0.6}
        axes.barh(row[i], right - left, left=left, color=colour, **frame)
        if right - left > NARROW * span * scale:
            text: Any = {"ha": "center", "va": "center", "color": "white", "fontsize": 7}
            axes.text((left + right) / 2, row[i], str(operations.batch[i]), **text)
    _way(axes, timeline, first, begin, scale, row)
    names = [
        each.name if each.worker in (None, 0) else f"{each.name}, worker {each.worker}"
        for each in operations.resources
    ]
    axes.set_yticks(range(0, -len(names), -1), names)
    axes.set_xlim(0, span * scale)
    axes.spines[["top", "right"]].set_visible(False)


def _way(
    axes: "Axes", timeline: Timeline, batch: int, begin: float, scale: float, row: np.ndarray
) -> None:
    """Arrows from each stage of a batch to the next, from its lookup on."""
    own = np.flatnonzero((timeline.operations.batch == batch) & (timeline.start >= begin))
    own = own[np.argsort(timeline.began[own])]
    for one, other in pairwise(own):
        axes.annotate(
            "",
            xy=((timeline.start[other] - begin) * scale, row[other]),
            xytext=((timeline.end[one] - begin) * scale, row[one]),
            arrowprops={"arrowstyle": "->", "color": "#222222", "linewidth": 0.8},
        )


def _begin(timeline: Timeline, batch: int) -> float:
    operations = timeline.operations
    lookups = operations.reads & (operations.batch == batch)
    if not lookups.any():
        raise ValueError(f"gantt: the run has no lookup of batch {batch}")
    return float(timeline.start[lookups].min())


def _span(timeline: Timeline, first: int) -> float:
    return _begin(timeline, first + BATCHES) - _begin(timeline, first)


def _unit(seconds: float) -> tuple[float, str]:
    return (1e3, "ms") if seconds >= 1e-3 else (1e6, "µs")
