"""The studies, by name.

python -m experiments list                  what there is, and where its last result lies
python -m experiments run NAME [options]    one of them; --help after the name says its options
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import study

NAMES = (
    "staleness_on_flights",
    "one_stale_step",
    "hybrid_against_async",
    "optimizers",
    "batch_size",
    "exact_lookahead",
    "conflict_rate",
    "row_clocks",
    "overlap_bound",
    "quality_in_time",
)


def study_of(name: str) -> study.Study:
    """Raises SystemExit: no such study."""
    if name not in NAMES:
        raise SystemExit(f"experiments: there is no study {name!r}; it must be one of {NAMES}")
    return import_module(f"experiments.{name}").STUDY


def question(name: str) -> str:
    """The first line of the study's text."""
    return (import_module(f"experiments.{name}").__doc__ or "").partition("\n")[0]


def last_result(name: str, results: Path) -> str:
    """The directory of the last run that was finished."""
    finished = sorted((results / name).glob("*/report.txt"))
    return str(finished[-1].parent) if finished else "never run here"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m experiments", description="studies of embsim")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="names, questions, last results")
    listing.add_argument("--out", type=Path, metavar="DIR", default=Path("results"))
    running = commands.add_parser("run", help="one study", add_help=False)
    running.add_argument("name", metavar="NAME")
    options, rest = parser.parse_known_args(arguments)
    if options.command == "run":
        study.main(study_of(options.name), rest)
        return
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    table = Table(box=None, pad_edge=False)
    for heading in ("study", "question", "runs", "last result"):
        table.add_column(heading, justify="right" if heading == "runs" else "left")
    for name in NAMES:
        runs = len(study.single_runs(study_of(name).params()))
        table.add_row(name, question(name), str(runs), last_result(name, options.out))
    Console(soft_wrap=True).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
