"""Every Python example in the README and docs is a doctest: pytest runs it (--doctest-glob)."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_examples_are_doctests(document: Path) -> None:
    blocks = re.findall(r"^```(?:python|pycon|py)\n(.*?)^```", document.read_text(), re.M | re.S)
    assert [block for block in blocks if not doctest.DocTestParser().get_examples(block)] == []


def test_readme_shows_output_and_both_commands_at_the_top() -> None:
    text = (ROOT / "README.md").read_text()
    first = "\n".join(text.splitlines()[:40])
    assert any(example.want for example in doctest.DocTestParser().get_examples(first))
    assert "make study" in text
    assert "make test" in text
