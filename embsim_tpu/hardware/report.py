"""What `make tpu-check` shows: progress, tables, a verdict, and the same as data."""

import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, metadata
from types import TracebackType
from typing import Any

from rich import progress
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .child import Event
from .common import Check

STYLES = {"passed": None, "failed": "bold red", "skipped": "dim"}
SHORT = 300  # characters of a message in the table


class Report:
    """A context with a progress bar; `take` is given events."""

    def __init__(self, checks: Sequence[Check], interpreted: bool) -> None:
        self.checks = {check.name: check for check in checks}
        self.interpreted, self.interrupted = interpreted, False
        self.facts: Event = {}
        self.results: list[Event] = []
        self.refused = ""
        self._console = Console(stderr=True)
        columns = (
            progress.MofNCompleteColumn(),
            progress.BarColumn(20),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.description}", markup=False),
        )
        self._bar = progress.Progress(*columns, console=self._console, transient=True)
        self._task = self._bar.add_task("starts", total=len(checks))
        self._name = ""

    def __enter__(self) -> None:
        self._bar.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._bar.stop()

    @property
    def failed(self) -> list[Event]:
        return [each for each in self.results if each["status"] == "failed"]

    def take(self, event: Event) -> None:
        self.refused = event.get("refused", self.refused)
        self.facts = self.facts or event.get("facts", {})
        if "begin" in event:
            self._name = event["begin"]
            self._bar.update(self._task, description=self._name)
        elif event.get("told"):
            self._bar.update(self._task, description=f"{self._name}: {event['told']}")
        elif "result" in event:
            result = event["result"]
            self.results.append(result)
            self._bar.advance(self._task)
            if not self._console.is_terminal:
                line = f"{result['name']}: {result['status']}: {_short(result['note'])}"
                print(line, file=sys.stderr, flush=True)

    def data(self) -> dict[str, Any]:
        times = [e["data"] for e in self.results if e["name"].startswith("time-") and e["data"]]
        return {
            "verdict": self.verdict,
            "interpreted": self.interpreted,
            "interrupted": self.interrupted,
            "facts": self.facts,
            "checks": self.results,
            "times": [each for each in times if "ratio" in each],
        }

    @property
    def verdict(self) -> str:
        count = Counter(each["status"] for each in self.results)
        text = ", ".join(f"{count[status]} {status}" for status in STYLES)
        if left := len(self.checks) - len(self.results):
            text += f", {left} not run"
        return f"{text}{' before it was interrupted' if self.interrupted else ''}"

    def show(self, file: str) -> None:
        # Into a file as wide as it is.
        console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
        for name, value in self.facts.items():
            console.print(f"{name:17} {value}", markup=False)
        console.print()
        console.print(self._groups())
        if times := self.data()["times"]:
            console.print()
            console.print(_times(times))
        where = " interpreted on CPU, which says nothing of a TPU" if self.interpreted else ""
        lines = [
            "",
            f"{self.verdict}{':' if where else ''}{where}",
            f"all of it is in {file}; {_to()}",
        ]
        lines.append(
            "It names no person, machine or directory; look through it before you send it."
        )
        console.print("\n".join(lines), markup=False, soft_wrap=True)

    def _groups(self) -> Table:
        """A line for each group, and for each check that failed."""
        table = Table(box=None, header_style="bold")
        for name in ("checks", "passed", "failed", "skipped"):
            table.add_column(name, justify="left" if name == "checks" else "right", no_wrap=True)
        table.add_column("what was found", overflow="fold")
        groups: dict[str, list[Event]] = {}
        for each in self.results:
            groups.setdefault(self.checks[each["name"]].group, []).append(each)
        for group, members in groups.items():
            count = Counter(each["status"] for each in members)
            row = [str(count[status] or "") for status in STYLES]
            table.add_row(group, *row, escape(_note(members)))
            for each in members:
                if each["status"] == "failed":
                    name, note = each["name"], escape(_short(each["note"]))
                    table.add_row(f"  {name}", "", "", "", note, style=STYLES["failed"])
        return table


def _note(members: Sequence[Event]) -> str:
    """Of a group: that of its only member, or what its members have in common."""
    good = [each for each in members if each["status"] == "passed"]
    if not good:
        return "" if any(e["status"] == "failed" for e in members) else _short(members[0]["note"])
    ulps = [each["data"]["ulps"] for each in good if "ulps" in each["data"]]
    if len(good) > 1 and ulps and members[0]["name"].startswith("steps"):
        return f"at most {max(ulps)} ulp from the reference, integers equal to the bit"
    return "; ".join(dict.fromkeys(_short(each["note"]) for each in good[:2]))


def _times(times: Sequence[Event]) -> Table:
    table = Table(box=None, header_style="bold")
    names = ("step", "dim", "ids", "rows", "xla ms", "pallas ms", "xla / pallas", "xla ns/row")
    for name in (*names, "pallas ns/row"):
        table.add_column(name, justify="left" if name in ("step", "ids") else "right")
    for each in times:
        table.add_row(
            *(each["what"], str(each["dim"]), each["ids"], f"{each['table_rows']:,}"),
            *(f"{each[name]:.3f}" for name in ("xla_ms", "pallas_ms")),
            f"{each['ratio']:.2f}",
            *(f"{each[name]:.2f}" for name in ("xla_ns_per_row", "pallas_ns_per_row")),
        )
    return table


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHORT else f"{text[:SHORT]} ..."


def _to() -> str:
    try:
        urls = [url.split(", ") for url in metadata("embsim").get_all("Project-URL") or ()]
    except PackageNotFoundError:
        urls = []
    found = [url for name, url in urls if name.lower() in ("repository", "source", "homepage")]
    return f"send it in an issue at {found[0]}" if found else "send it to the authors, in an issue"
