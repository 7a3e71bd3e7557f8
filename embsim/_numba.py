"""How embsim compiles: `@kernel` and nothing else.

A kernel takes arrays and scalars, never objects, releases the GIL, and works on the half-open range
[lo, hi) of bags or
rows that it is given: threads split ranges (`_threads.py`), never the work inside a bag or a row,
so their number cannot change a bit. IEEE arithmetic only: no fastmath, so LLVM neither contracts
nor reorders.

Numba keeps compiled kernels on disk. That is right only where the whole meaning of a kernel stands
in its own file, as it does for every kernel of embsim (a generated one has its rule written into
its file, see `_codegen.py`).
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile a function of arrays and scalars.

    The type checks that tests add to modules are taken off first.
    """
    plain = inspect.unwrap(function)
    try:
        return cast(F, numba.njit(nogil=True, error_model="numpy", cache=True)(plain))
    except RuntimeError:  # no directory to keep it in can be written
        return uncached_kernel(function)


def uncached_kernel(function: F) -> F:
    """As `kernel`, for source that has no file to keep the result beside."""
    return cast(F, numba.njit(nogil=True, error_model="numpy")(inspect.unwrap(function)))
