"""Figures of the studies: one style, PNG, no display needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

# Okabe and Ito: told apart by colour-blind readers.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"

_STYLE: dict[Any, Any] = {  # matplotlib types its keys one by one
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
}


@dataclass(frozen=True)
class Look:
    """How one curve is drawn, in every panel."""

    label: str
    colour: str
    marker: str
    line: str


def style():
    """The context in which a figure is built."""
    return matplotlib.rc_context(_STYLE)


def panels(columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A row of axes on a figure of this size in inches, without pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def curve(
    axes: Axes, x: Sequence[float] | np.ndarray, y: Sequence[tuple[float, float]], look: Look
) -> None:
    """(mean, sd) at every x; an sd of nan has no bar."""
    mean, sd = np.array(y).T
    axes.errorbar(
        x,
        mean,
        np.nan_to_num(sd),
        label=look.label,
        color=look.colour,
        marker=look.marker,
        linestyle=look.line,
        capsize=2,
    )


def signed_log_scale(axes: Axes, threshold: float) -> None:
    """Logarithmic in both directions, linear within the threshold; plain numbers at the ticks."""
    low, high = axes.get_ylim()
    axes.set_yscale("symlog", linthresh=threshold)
    decades = [sign * m * 10.0**e for sign in (-1, 1) for m in (1, 2, 5) for e in range(5)]
    ticks = [0.0, *(tick for tick in decades if abs(tick) >= threshold)]
    axes.set_yticks([tick for tick in sorted(ticks) if low <= tick <= high])
    axes.yaxis.set_major_formatter(lambda tick, _: f"{tick:g}".replace("-", "\N{MINUS SIGN}"))
    axes.yaxis.set_minor_locator(NullLocator())


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=200)
