"""Cases of fuzz.py that are guided by coverage: python -m experiments.reliability.guided [FLAGS]

Looks for bytes that reach lines of embsim that no others did, with atheris, which must be installed
(it has wheels for some systems only). FLAGS are libFuzzer's, for instance -max_total_time=1200.
"""

import importlib
import os
import sys
import warnings
from typing import Any


def main(arguments: list[str]) -> None:
    """Never returns: atheris ends the process, with 0 if nothing was found."""
    os.environ["NUMBA_DISABLE_JIT"] = "1"  # kernels as Python: Numba cannot compile the counters
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["embsim"]):
        from . import fuzz
    warnings.simplefilter("ignore")  # of the inputs: NumPy's and embsim's own

    def one(data: bytes) -> None:
        fuzz.case(data)

    atheris.Setup(["guided", *arguments], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
