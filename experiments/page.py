"""All results on one page: `python -m experiments report` writes OUT/report.html.

Figures are inside of the page; rows and traces are linked to, where they lie beside it.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from .results import Finished, last
from .study import Study


@dataclass(frozen=True)
class Shown:
    """A study on the page, with its last result if there is one."""

    study: Study
    result: Finished | None
    out: Path

    @property
    def figure(self) -> str:
        """As a data URL."""
        assert self.result is not None
        png = (self.result.directory / "figure.png").read_bytes()
        return "data:image/png;base64," + base64.b64encode(png).decode()

    @property
    def files(self) -> list[tuple[str, str]]:
        """(name, path from the page) of rows and traces."""
        assert self.result is not None
        directory = self.result.directory
        paths = [directory / "rows.parquet", *sorted(directory.glob("*.trace.json"))]
        return [(path.name, quote(path.relative_to(self.out).as_posix())) for path in paths]


def write(studies: Sequence[Study], out: Path) -> Path:
    """The page; returns where it is.

    Raises:
      FileNotFoundError: there are no results in `out`.
    """
    shown = [Shown(study, last(out, study.name), out) for study in studies]
    if not any(each.result for each in shown):
        raise FileNotFoundError(
            f"report: there are no results in {out}; first: python -m experiments run NAME"
        )
    path = out / "report.html"
    path.write_text(_environment().get_template("report.html").render(shown=shown))
    return path


def _environment() -> Any:
    return Environment(
        loader=PackageLoader("experiments", "."),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
