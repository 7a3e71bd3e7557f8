"""What a backend is: six functions with the meaning of reference.py.

Found by name through entry points.

Queues, staleness and legality are not a backend's business: they exist once, in engine.py and
schedule.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .errors import BackendError
from .plan import LookupPlan
from .state import Rows, State

GROUP = "embsim.backends"


@dataclass(frozen=True)
class Parity:
    """What a backend says of itself, in an optional attribute `parity`; the conformance kit holds
    it to that. Without the attribute it is Parity().

    Args:
      bitwise: it does every operation as the law writes it, rounded, in the law's order: equal to
        the reference to the bit on any numbers.
      ulps: how far sqrt and division may be from the exact result, in units in the last place;
        0.5 is IEEE.
      subnormals: its operations keep numbers below 2^-126. False: each of them may take such
        operands for zero, and return zero for such a result; what is only stored is kept all the
        same.
      bounded: names of embsim.conformance.REFUSABLE. With `bitwise`: where the configuration asks
        for one of them it is held to computed bounds, as if it were not bitwise.
      refuses: {what: why} of what put_state or put_plan refuses with a BackendError: names of
        embsim.conformance.REFUSABLE.
    """

    bitwise: bool = False
    ulps: float = 0.5
    subnormals: bool = True
    bounded: tuple[str, ...] = ()
    refuses: Mapping[str, str] = field(default_factory=dict[str, str])


@runtime_checkable
class Backend(Protocol):
    """Where tables live and arithmetic happens.

    put_state   takes the arrays over: the caller does not use them again. Refuses (BackendError)
                what it cannot train.
    get_state   the tables and slots as host arrays; they may be views, valid until the next update.
    read_rows   rows of one table and its slots, copied.
    put_plan    the plans of one step, by table name. Refuses (CapacityError) what does not fit its
                buffers.
    lookup      activations by table name, [samples, dim] float32: G @ Q(W) of every plan.
    update      the rule on the rows of the plans, given d loss / d activations [samples, dim] and
                the step's coefficients by table name. Returns the next state; may reuse the one it
                was given.

    `lookup` must not depend on a later `update`, also where the device works asynchronously: what
    it returns is the state that it was given.
    """

    def put_state(self, state: State, /) -> Any: ...

    def get_state(self, state: Any, /) -> State: ...

    def read_rows(self, state: Any, table: str, rows: np.ndarray, /) -> Rows: ...

    def put_plan(self, plans: Mapping[str, LookupPlan], /) -> Any: ...

    def lookup(self, state: Any, plan: Any, /) -> Mapping[str, Any]: ...

    def update(
        self,
        state: Any,
        plan: Any,
        gradients: Mapping[str, np.ndarray],
        coefficients: Mapping[str, Mapping[str, np.float32]],
        /,
    ) -> Any: ...


def get_backend(backend: "str | Backend") -> Backend:
    """A backend by its entry-point name, or the instance itself.

    Raises:
      BackendError: no backend of that name, or one that cannot be imported, with what to install.
      TypeError: an object without the six functions.
    """
    if isinstance(backend, str):
        return _load(backend)
    if isinstance(backend, type) or not isinstance(backend, Backend):
        raise TypeError(
            f"backend is {backend!r}; it must be a name or an instance with the six functions of "
            "embsim.Backend"
        )
    return backend


def _load(name: str) -> Backend:
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        raise BackendError(
            f"backend {name!r} is not installed; installed are {sorted(found)}; install the "
            f"package that registers it under the entry-point group {GROUP!r}"
        )
    try:
        made = found[name].load()()
    except (ImportError, AttributeError) as error:
        missing = error.name or "what is missing"
        raise BackendError(
            f"backend {name!r} cannot be imported: {error}; pip install {missing}, or the extra of "
            "the package that provides the backend"
        ) from error
    if not isinstance(made, Backend):
        raise BackendError(
            f"backend {name!r} ({found[name].value}) lacks some of the six functions of "
            "embsim.Backend"
        )
    return made
