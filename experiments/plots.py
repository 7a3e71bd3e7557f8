"""Figures of the studies: one style, PNG, no display needed."""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_STYLE = {
    "figure.dpi": 200,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.markersize": 5,
}
# Okabe and Ito: told apart by colour-blind readers.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"


def style():
    """The context in which a figure is built."""
    return matplotlib.rc_context(_STYLE)


def panels(columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A row of axes on a figure of this size in inches, without pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=200)
