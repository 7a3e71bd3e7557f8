"""The study of conflict rates: what it counts, and what it says."""

import numpy as np
import pytest

from experiments import conflict_rate
from experiments.conflict_rate import Params, Record

SMALL = Params(seeds=(0,), sources=("Zipf 1.0", "tailnum shuffled", "tailnum in order"))


@pytest.fixture(scope="module")
def records():
    small = Params(seeds=(0,), sources=SMALL.sources, batches=(512, 65_536), depths=(1, 4))
    return conflict_rate.run(small)


def test_shuffled_ids_agree_with_the_formula_and_ordered_ones_do_not(records):
    found = conflict_rate.means(records)
    for source in ("Zipf 1.0", "tailnum shuffled"):
        counted, formula = found[source, 512, 4]
        assert counted == pytest.approx(formula, abs=0.02)
    counted, formula = found["tailnum in order", 512, 1]
    assert counted > formula + 0.05


def test_what_the_year_is_too_short_for_is_left_out(records):
    cells = {(r.source, r.batch, r.depth) for r in records}
    assert ("tailnum shuffled", 65_536, 4) not in cells and ("Zipf 1.0", 65_536, 4) in cells
    assert ("tailnum shuffled", 65_536, 1) in cells


@pytest.mark.parametrize(("gap", "held"), [(0.01, "holds"), (0.03, "does not hold")])
def test_the_expectation_is_of_shuffled_ids(gap, held):
    made = [
        Record(0, "Zipf 1.0", 256, 1, 0.5 + gap, 0.5),
        Record(0, "tailnum in order", 256, 1, 0.9, 0.5),
    ]
    text = conflict_rate.report(made)
    assert f"largest distance {gap:.3f}: {held}." in text and "up to +0.40" in text
    (axes,) = conflict_rate.figure(made).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.5 + gap])
