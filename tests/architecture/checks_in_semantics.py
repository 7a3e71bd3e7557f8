"""The checks of the conformance kit under the decisions of docs/semantics.md.

`python -m tests.architecture.checks_in_semantics` rewrites the lines that name them.
"""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from embsim.conformance import all_checks

DOCUMENT = Path(__file__).parents[2] / "docs/semantics.md"
WIDTH = 120


def decisions(text: str) -> Iterator[tuple[str, str]]:
    """(number, text) of every decision: what stands below a heading like `### 2.4 Dense ids`."""
    for block in re.split(r"^(?=##)", text, flags=re.MULTILINE):
        heading = re.match(r"### (\d+\.\d+) ", block)
        if heading:
            yield heading[1], block


def checks_of(number: str) -> list[str]:
    return [each.name for each in all_checks() if number in each.decisions]


def line_of(number: str) -> str:
    """What a decision says of its checks; empty if it has none."""
    names = ", ".join(f"`{name}`" for name in checks_of(number))
    wrapped = textwrap.fill(f"Checked by {names}.", WIDTH, break_long_words=False)
    return f"{wrapped}\n\n" if names else ""


def rewritten(text: str) -> str:
    for number, block in decisions(text):
        without = re.sub(r"^Checked by (?:.|\n)*?\.\n\n", "", block, flags=re.MULTILINE)
        text = text.replace(block, without.rstrip("\n") + "\n\n" + line_of(number))
    return text.rstrip("\n") + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text()))
