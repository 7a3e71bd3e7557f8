"""The benchmark runs every staleness in every turn, and compares inside of turns."""

from experiments.benchmarks import staleness_cost


def test_every_turn_but_the_first_is_counted(capsys):
    seconds = staleness_cost.main(["--flights", "700", "--turns", "2"])
    assert {k: len(each) for k, each in seconds.items()} == {0: 2, 1: 2, 16: 2}
    assert min(map(min, seconds.values())) > 0
    assert "over staleness 0" in capsys.readouterr().out


def test_ratios_are_of_the_same_turn():
    """Each turn is 1.1 times as slow with staleness; medians of all seconds would say 1.32."""
    text = staleness_cost.report({0: [1.0, 5.0, 10.0], 16: [1.1, 5.5, 11.0]})
    (line,) = [line for line in text.splitlines() if line.strip().startswith("16")]
    assert line.split() == ["16", "5.50", "1.100", "1.100", "to", "1.100"]
