"""The report of all studies: whole in itself, its links lead somewhere."""

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from experiments import __main__ as command
from experiments import page, plots, study


class Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.hrefs: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if "id" in found:
            self.ids.add(found["id"])
        if tag == "a":
            self.hrefs.append(found["href"])
        if tag in ("img", "script", "link"):
            self.sources.append(found.get("src") or found.get("href"))


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Two studies without training, and one result whose text must not be taken for markup."""
    directory = tmp_path_factory.mktemp("results")
    for name in ("overlap_bound", "timing_validation"):
        command.main(["run", name, "--smoke", "--jobs", "1", "--out", str(directory)])
    hostile = directory / "one_stale_step" / "20260101T000000Z"
    hostile.mkdir(parents=True)
    (hostile / "report.txt").write_text("a < b & <script>alert(1)</script>")
    with plots.style():
        plots.save(plots.panels(1, 2, 2)[0], hostile / "figure.png")
    (hostile / "rows.parquet").touch()
    (hostile / "stale(4), one.trace.json").write_text("{}")
    summary = {"size": "default", "seeds": 5, "seconds": 1.0, "finished": "2026-01-01 00:00"}
    summary |= {"verdict": "<b>holds</b>", "git_commit": "c" * 40, "git_changes": "", "data": "d"}
    (hostile / "summary.json").write_text(json.dumps(summary))
    return directory


def test_every_link_leads_somewhere_and_pictures_are_inside(out):
    command.main(["report", "--out", str(out)])
    text = (out / "report.html").read_text()
    links = Links(text)
    for href in links.hrefs:
        if href.startswith("#"):
            assert href[1:] in links.ids
        elif not href.startswith("https://ui.perfetto.dev"):
            assert (out / unquote(href)).is_file(), href
    assert len([href for href in links.hrefs if href.endswith(".trace.json")]) == 1
    assert all(source.startswith("data:") for source in links.sources)
    assert sum(source.startswith("data:image/png") for source in links.sources) == 3
    assert links.ids == set(command.NAMES)


def test_what_studies_say_is_text_not_markup(out):
    text = page.write([command.study_of("one_stale_step")], out).read_text()
    assert "<script>" not in text and "a &lt; b &amp; &lt;script&gt;" in text
    assert "&lt;b&gt;holds" in text


def test_without_results_there_is_no_page(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results in .*; first: python -m experiments"):
        page.write([command.study_of("one_stale_step")], tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_study_has_the_sections_that_the_page_shows():
    for name in command.NAMES:
        sections = command.study_of(name).sections
        assert {"Question", "Setup", "Expectation", "Result", "Limits"} <= set(sections)
        assert all(sections.values()) and command.study_of(name).question.endswith("?")


def test_sections_are_unwrapped_but_for_bullets():
    limits = command.study_of("quality_in_time").sections["Limits"].splitlines()
    assert len(limits) == 3 and all(line.startswith("* ") for line in limits)


def test_traces_are_written_beside_the_rows(tmp_path):
    described = dataclasses.replace(
        command.study_of("overlap_bound"),
        traces=lambda params: command.study_of("drain_period").traces(
            command.study_of("drain_period").params.smoke()
        ),
    )
    study.main(described, ["--smoke", "--jobs", "1", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("*/*/period-4.trace.json")
    assert json.loads(path.read_text())["traceEvents"]
