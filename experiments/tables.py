"""Tables of the studies: rich's, as plain text that reads the same in a terminal and in a file."""

from collections.abc import Iterable, Sequence
from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table

Row = Sequence[str]


def text_table(columns: Sequence[tuple[str, str]], groups: Iterable[Iterable[Row]]) -> str:
    """Columns are (heading, "left" or "right"); a rule is drawn between groups of rows."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, justify in columns:
        table.add_column(heading, justify="right" if justify == "right" else "left", no_wrap=True)
    for i, group in enumerate(groups):
        if i > 0:
            table.add_section()
        for row in group:
            table.add_row(*row)
    out = StringIO()
    Console(file=out, width=160, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines())
