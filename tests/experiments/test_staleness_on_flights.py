"""The main job on few flights: deterministic, paired, and reported with restraint."""

import dataclasses
import json

import pyarrow.parquet as parquet
import pytest

from experiments import staleness_on_flights as flights_study
from experiments import study
from experiments.staleness_on_flights import ALL, NO_BURST, NO_CALENDAR, Params, Record

SMALL = Params(seeds=(0,), orders=("time",), feature_sets=(ALL,), staleness=(0, 1), flights=1300)


def test_the_same_seed_gives_the_same_records() -> None:
    first, second = flights_study.run(SMALL), flights_study.run(SMALL)
    assert first == second
    assert [r.steps for r in first] == [1300 // 64] * 2
    fresh, stale = first
    assert fresh.auc != stale.auc
    (other,) = flights_study.run(dataclasses.replace(SMALL, seeds=(1,), staleness=(0,)))
    assert other.auc != fresh.auc


def test_the_points_of_the_sweep_run_alone_as_they_do_together() -> None:
    together = flights_study.run(SMALL)
    alone = [record for single in study.single_runs(SMALL) for record in flights_study.run(single)]
    assert alone == together


def test_the_sizes_of_the_study() -> None:
    assert (len(Params().seeds), Params().staleness) == (5, (0, 1, 4, 16))
    assert Params.full().staleness == (0, 1, 4, 16, 64)
    assert len(Params.smoke().seeds) < 5


def made_up(seeds: int, losses: dict[tuple[str, str], float]) -> list[Record]:
    """Records in which staleness 1 costs each curve so many bp in every seed."""
    records = []
    for seed in range(seeds):
        for (order, features), loss in losses.items():
            for staleness in (0, 1):
                auc = 0.7 + 0.001 * seed - 1e-4 * loss * staleness
                record = Record(seed, order, features, staleness, 10, auc, auc, 0.5, 1.0)
                records.append(record)
    return records


LOSSES = {
    ("time", ALL): 150.0,
    ("time", NO_BURST): 170.0,
    ("time", NO_CALENDAR): 70.0,
    ("shuffled", ALL): 4.0,
}


def test_the_report_says_what_five_seeds_allow() -> None:
    text = flights_study.report(made_up(5, LOSSES))
    rows = [line for line in text.splitlines() if " bp" not in line]
    assert any("-150.0 ± 0.0" in row and row.endswith("loss") for row in rows)
    assert any("-4.0 ± 0.0" in row and row.endswith("no detectable change") for row in rows)
    assert "at least 10x the shuffled loss: 150.0 against 4.0 bp: holds" in text
    assert "at least 2x the loss without origin_day: 150.0 against 170.0 bp: does not hold" in text
    assert "no loss" not in text
    assert flights_study.verdict(made_up(5, LOSSES)) == (
        "at least 10x the shuffled loss: holds; "
        "at least 2x the loss without origin_day: does not hold"
    )


def test_the_report_of_four_seeds_claims_nothing() -> None:
    text = flights_study.report(made_up(4, LOSSES))
    assert "no claim: 4 of 5 seeds" in text
    assert "holds" not in text
    assert not any(line.endswith(("loss", "gain")) for line in text.splitlines())


def test_the_command_writes_rows_report_and_figure(tmp_path, monkeypatch, capsys) -> None:
    sweep = Params(seeds=(0,), staleness=(0, 1), flights=700)
    monkeypatch.setattr(Params, "smoke", classmethod(lambda cls: sweep))
    rate = ["--param", "embedding_learning_rate=0.25"]
    arguments = ["--smoke", "--jobs", "1", "--out", str(tmp_path), *rate]
    records = study.main(flights_study.STUDY, arguments)
    (directory,) = (tmp_path / "staleness_on_flights").iterdir()
    rows = [json.loads(line) for line in (directory / "rows.jsonl").read_text().splitlines()]
    assert sorted(row["auc"] for row in rows) == sorted(record.auc for record in records)
    assert {"git_commit", "version_numpy", "param_batch_size", "data_sha256"} <= set(rows[0])
    assert {row["param_embedding_learning_rate"] for row in rows} == {0.25}
    table = parquet.read_table(directory / "rows.parquet")
    assert table.column("auc").to_pylist() == [record.auc for record in records]
    assert (directory / "report.txt").read_text() in capsys.readouterr().out
    assert (directory / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "bad",
    [
        ["--seeds", "0"],
        ["--smoke", "--full"],
        ["--jobs", "-1"],
        ["--param", "seeds=3"],
        ["--parallel", "x"],
    ],
)
def test_wrong_arguments_end_with_a_usage(bad: list[str], capsys) -> None:
    with pytest.raises(SystemExit):
        study.main(flights_study.STUDY, bad)
    assert "usage: python -m experiments run staleness_on_flights" in capsys.readouterr().err
