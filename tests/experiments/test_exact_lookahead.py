"""The study of look-ahead, on few flights; its report can say that bits differ."""

from experiments import exact_lookahead, study
from experiments.exact_lookahead import Params, Record

SMALL = Params(seeds=(0,), depths=(1, 4), samples=5000)


def test_bits_are_equal_and_fewer_rows_are_read_early_from_further_away():
    one, four = exact_lookahead.run(SMALL)
    assert (one.unequal, four.unequal) == (0, 0) and one.compared > 100_000
    assert 0.1 < four.early < one.early < 1
    assert one.early >= 1 - one.conflict - 0.05
    (alone,) = exact_lookahead.run(Params(seeds=(0,), depths=(4,), samples=5000))
    assert alone == four


def test_a_bit_that_differs_is_said():
    made = [Record(seed, 2, 1000, 0, 0.5, 0.4, 1.0) for seed in range(3)]
    assert "0 of 3,000" in exact_lookahead.report(made)
    assert exact_lookahead.report(made).endswith("equal to the bit.")
    made.append(Record(3, 2, 1000, 7, 0.5, 0.4, 1.0))
    assert exact_lookahead.report(made).endswith("NOT EQUAL.")
    (axes,) = exact_lookahead.figure(made).axes
    assert len(axes.containers) == 2


def test_sizes():
    for params in (Params(), Params.smoke(), Params.full()):
        assert study.single_runs(params)
