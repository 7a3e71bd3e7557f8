"""The studies, by name.

python -m experiments list                  what there is: question, cost, data, last result
python -m experiments run NAME [options]    one of them; --help after the name says its options
python -m experiments report                all results on one page, results/report.html
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import page, results, study

NAMES = (
    "staleness_on_flights",
    "one_stale_step",
    "hybrid_against_async",
    "stability",
    "optimizers",
    "batch_size",
    "exact_lookahead",
    "conflict_rate",
    "row_clocks",
    "overlap_bound",
    "zero_tables",
    "drain_period",
    "quality_in_time",
    "timing_validation",
)


def study_of(name: str) -> study.Study:
    """Raises SystemExit: no such study."""
    if name not in NAMES:
        raise SystemExit(
            f"experiments: there is no study {name!r}; it must be one of {', '.join(NAMES)}"
        )
    return import_module(f"experiments.{name}").STUDY


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m experiments", description="studies of embsim")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="one study", add_help=False).add_argument("name")
    listing = commands.add_parser("list", help="names, questions, costs, data, last results")
    reporting = commands.add_parser("report", help="all results on one page")
    for command in (listing, reporting):
        command.add_argument("--out", type=Path, metavar="DIR", default=Path("results"))
    options, rest = parser.parse_known_args(arguments)
    if options.command == "run":
        study.main(study_of(options.name), rest)
        return
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    studies = [study_of(name) for name in NAMES]
    if options.command == "report":
        try:
            print(page.write(studies, options.out))
        except FileNotFoundError as error:
            sys.exit(str(error))
    else:
        Console(soft_wrap=True).print(_listed(studies, options.out))


def _listed(studies: list[study.Study], out: Path) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("study", "question", "minutes", "data", "last result"):
        justify = "right" if heading == "minutes" else "left"
        table.add_column(heading, justify=justify, no_wrap=heading == "study")
    for each in studies:
        data = each.data(each.params())["data"]
        last = results.last(out, each.name)
        table.add_row(each.name, each.question, f"{each.minutes:g}", data, _last(last))
    return table


def _last(result: results.Finished | None) -> str:
    if result is None:
        return "none here"
    summary = result.summary
    size = "" if summary["size"] == "default" else f" ({summary['size']})"
    return f"{summary['finished']}{size}: {summary['verdict']}"


if __name__ == "__main__":
    main(sys.argv[1:])
