"""Runs one library on the cases and writes what it returned: tests/oracles/goldens/<library>.json.

    python -m tests.oracles.make_goldens tensorflow|torch|fbgemm|optax

in an environment made from tests/oracles/requirements-<library>.txt; embsim is not needed.
"""

import importlib
import json
import sys
from pathlib import Path

import numpy as np

from tests.oracles.cases import Lookup, digest
from tests.oracles.runs import runs

GOLDENS = Path(__file__).parent / "goldens"


def results_of(library, run):
    """What the library returns for a run: name -> array."""
    oracle = importlib.import_module(f"tests.oracles.in_{library}")
    ask = oracle.lookup if isinstance(run.case, Lookup) else oracle.train
    return ask(run.case, **run.options)


def text(array):
    """The shortest decimals that give the same bits when read."""
    line = " ".join(str(x) for x in array.ravel())
    again = np.array(line.split(), array.dtype).reshape(array.shape)
    assert np.array_equal(again, array, equal_nan=True)
    number = ~np.isnan(array)
    assert np.array_equal(np.signbit(again[number]), np.signbit(array[number]))
    return line


def golden(run, results):
    return {
        "inputs": digest(run.case),
        "results": {
            name: {"dtype": array.dtype.name, "shape": list(array.shape), "values": text(array)}
            for name, array in results.items()
        },
    }


def read(library):
    """(versions, refusals, run name -> (digest of inputs, name -> array))."""
    found = json.loads((GOLDENS / f"{library}.json").read_text())
    arrays = {
        run: (
            item["inputs"],
            {
                name: np.array(one["values"].split(), one["dtype"]).reshape(one["shape"])
                for name, one in item["results"].items()
            },
        )
        for run, item in found["runs"].items()
    }
    return found["versions"], found["refusals"], arrays


def main(library):
    oracle = importlib.import_module(f"tests.oracles.in_{library}")
    found = {
        "library": library,
        "versions": oracle.versions(),
        "refusals": oracle.refusals(),
        "runs": {
            name: golden(run, results_of(library, run)) for name, run in runs(library).items()
        },
    }
    path = GOLDENS / f"{library}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{path.name}: {len(found['runs'])} runs, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
