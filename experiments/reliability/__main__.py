"""python -m experiments.reliability COMMAND: what must not happen to a training, tried.

threads    a loader, a trainer and a looker at once
fuzz       anything passed to every entry point; guided.py looks for more by coverage
"""

import argparse
import sys
import time
import warnings

from . import fuzz, threads


def main(arguments: list[str] | None = None) -> None:
    """The command line; ends with 1 if something was wrong."""
    parser = argparse.ArgumentParser("python -m experiments.reliability")
    commands = parser.add_subparsers(dest="command", required=True)
    of_threads = commands.add_parser("threads", help="three threads at once")
    of_threads.add_argument("--operations", type=int, default=100_000)
    of_threads.add_argument("--backend", default="reference")
    of_fuzz = commands.add_parser("fuzz", help="anything passed to every entry point")
    of_fuzz.add_argument("--cases", type=int, default=1_000_000)
    of_fuzz.add_argument("--seconds", type=float, default=1200.0)
    for command in (of_threads, of_fuzz):
        command.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    start = time.monotonic()
    if options.command == "threads":
        counts = threads.run(options.operations, options.seed, options.backend)
        print(threads.report(counts, time.monotonic() - start))
        sys.exit(bool(counts.wrong))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the inputs: NumPy's and embsim's own
        found = fuzz.run(options.cases, options.seconds, options.seed)
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in found.most_common())
    print(f"{found.total():,} cases in {time.monotonic() - start:.0f} s: {kinds}; nothing else")


if __name__ == "__main__":
    main()
