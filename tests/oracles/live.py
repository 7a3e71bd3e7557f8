"""The libraries themselves beside embsim, on more seeds and longer trajectories than the goldens.

    python -m tests.oracles.live tensorflow|torch|fbgemm|optax [seeds] [steps]

`make oracles` does it for all, each in an environment of its own. A run that differs from embsim
and is not declared in formulas.DIVERGENCES, or is and does not, makes the exit status 1.
"""

import importlib
import sys

from tests.oracles.compare import carried_runs, compare, compare_carried, worst
from tests.oracles.formulas import DIVERGENCES
from tests.oracles.make_goldens import results_of
from tests.oracles.runs import runs

SEEDS, STEPS = 5, 200
HEAD = f"{'run':38}{'numbers':>9}{'embsim':>9}{'library':>9}{'apart':>10}  declared"


def main(library, seeds=SEEDS, steps=STEPS):
    """embsim and library: to their own formulas; apart: to each other; in units of the bound."""
    versions = importlib.import_module(f"tests.oracles.in_{library}").versions()
    print(f"{library}: {versions}, {seeds} seeds, {steps} steps\n{HEAD}")
    found = {}
    for seed in range(1, seeds + 1):
        cases = runs(library, seed, steps)
        results = {name: results_of(library, run) for name, run in cases.items()}
        for name, run in cases.items():
            found.setdefault(name, []).append(compare(library, run, results[name]))
        for run in carried_runs(library, cases):
            carried = compare_carried(library, run, results[run.name])
            found.setdefault(f"{run.name}, carried", []).append(carried)
    faults = [fault for name, items in found.items() for fault in report(library, name, items)]
    total = sum(item.numbers for items in found.values() for item in items)
    agreeing = [worst(i.apart) for items in found.values() for i in items if not i.declared]
    print(
        f"{total} numbers compared; largest distance of agreeing runs: {max(agreeing):.3f} bounds"
    )
    print("\n".join(faults) or "no undeclared divergence, and every declared one was seen")
    return 1 if faults else 0


def report(library, name, items):
    """One line about a run; yields what is wrong with it."""
    ours, theirs, apart = (
        max(worst(getattr(item, part)) for item in items) for part in ("ours", "theirs", "apart")
    )
    declared = DIVERGENCES.get((library, items[0].run), ("", set()))
    numbers = sum(item.numbers for item in items)
    unbounded = sum(item.unbounded for item in items)
    note = f"{declared[0]}  {f'{unbounded} without bound' if unbounded else ''}".rstrip()
    print(f"{name:38}{numbers:9}{ours:9.3f}{theirs:9.3f}{apart:10.3g}  {note}".rstrip())
    yield from (item.fault for item in items if item.fault)
    silent = set.intersection(*(item.silent for item in items))
    if silent:
        yield f"{name}: declared to diverge in {sorted(silent)}, but does not, with any seed"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:])))
