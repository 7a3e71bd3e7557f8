"""Pictures: what is drawn, in what colour, on what scale."""

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from embsim.simulation import pipelines
from embsim.simulation.pictures import COLOURS, STALE, gantt, save_gantt
from embsim.simulation.timeline import run


def drawn(timeline, first, span):
    axes = Figure().subplots()
    gantt(axes, timeline, first, span)
    return axes


def bars(axes):
    return [
        (round(-bar.get_y() - 0.4), bar.get_x(), bar.get_width(), to_hex(bar.get_facecolor()))
        for bar in axes.patches
    ]


def test_bars_are_the_operations_of_the_time_that_is_shown():
    timeline = run(pipelines.sequential().operations(8), 1e-3)
    axes = drawn(timeline, 2, 5e-3)
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        *("host", "pcie", "link", "sparse", "dense"),
    ]
    assert axes.get_xlim() == (0, 5)
    sparse = [(left, width, colour) for row, left, width, colour in bars(axes) if row == 3]
    assert sparse == [
        (0, pytest.approx(1), COLOURS["lookup"]),
        (pytest.approx(4), pytest.approx(1), COLOURS["update"]),
    ]


def test_stale_lookups_are_red():
    fresh, stale = (drawn(run(pipelines.stale(k).operations(9), 1e-3), 4, 5e-3) for k in (0, 1))
    assert STALE not in {colour for *_, colour in bars(fresh)}
    assert STALE in {colour for *_, colour in bars(stale)}


def test_the_way_of_a_batch_is_drawn():
    timeline = run(pipelines.sequential().operations(8), 1e-3)
    arrows = drawn(timeline, 2, 5e-3).texts
    steps = [a for a in arrows if hasattr(a, "arrow_patch") and a.arrow_patch is not None]
    assert len(steps) == 4  # lookup, emb_a2a, dense, grad_a2a, update


def test_schedules_are_below_each_other_on_one_scale(tmp_path):
    runs = {
        name: run(pipelines.pipeline_of(name).operations(30), 1e-6)
        for name in ("stale(0)", "stale(1)")
    }
    save_gantt(tmp_path / "both.png", runs)
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_a_batch_that_is_not_there_is_refused(tmp_path):
    runs = {"stale(1)": run(pipelines.stale(1).operations(9), 1e-3)}
    with pytest.raises(ValueError, match="the run has no lookup of batch 12"):
        save_gantt(tmp_path / "none.png", runs)
