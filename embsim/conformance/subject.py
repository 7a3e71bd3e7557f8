"""What is tested: a backend, under embsim's engine and by its six functions, or a whole engine."""

from dataclasses import dataclass
from typing import Any

from ..backend import Backend, Parity, get_backend
from .adapter import Capabilities, EngineAdapter
from .embsim_engine import engine_on
from .program import Setup

FUNCTIONS = ("put_state", "get_state", "read_rows", "put_plan", "lookup", "update")
CALLS = ("enqueue", "dequeue", "apply_gradients", "drain", "tables", "slots", "close")


@dataclass(frozen=True)
class Subject:
    """`backend` is None for an engine with its own queues."""

    name: str
    factory: Any  # an AdapterFactory; a class with the attribute is one, which types cannot say
    backend: Backend | None = None

    @property
    def capabilities(self) -> Capabilities:
        return self.factory.capabilities

    def start(self, setup: Setup) -> EngineAdapter:
        return self.factory(setup)


def subject_of(what: Any) -> Subject:
    """A Subject from a backend's name or instance, or from an adapter's class.

    Raises:
      BackendError: no backend of that name, or one that cannot be imported.
      TypeError: neither a backend nor an adapter.
    """
    if isinstance(what, Subject):
        return what
    if isinstance(what, type) and issubclass(what, Backend):
        made: Any = what
        return _of_backend(made())
    if isinstance(what, str | Backend):
        return _of_backend(what)
    if callable(what) and isinstance(getattr(what, "capabilities", None), Capabilities):
        factory: Any = what
        name = getattr(what, "__name__", type(what).__name__)
        missing = [call for call in CALLS if isinstance(what, type) and not hasattr(what, call)]
        if missing:
            raise TypeError(f"adapter {name} has no {', '.join(missing)}; it must have all {CALLS}")
        return Subject(name, factory)
    raise TypeError(f"{what!r} is no subject; {_why_none(what)}")


def _why_none(what: Any) -> str:
    found = getattr(what, "capabilities", None)
    if isinstance(found, Capabilities):
        return f"it is an instance; pass the adapter's class, {type(what).__name__}"
    if hasattr(what, "enqueue"):
        return (
            f"an adapter's class has an attribute `capabilities`, a Capabilities; here: {found!r}"
        )
    some = [name for name in FUNCTIONS if hasattr(what, name)]
    if some:
        missing = [name for name in FUNCTIONS if name not in some]
        return f"it has {', '.join(some)}, but not {', '.join(missing)}"
    return (
        "pass a backend's name, an instance with the six functions of embsim.Backend, or the class "
        "of an EngineAdapter"
    )


def _of_backend(what: str | Backend) -> Subject:
    backend = get_backend(what)
    parity = getattr(backend, "parity", Parity())
    if not isinstance(parity, Parity):
        raise TypeError(f"the backend's parity is {parity!r}; it must be an embsim.Parity")
    name = what if isinstance(what, str) else type(what).__name__
    return Subject(name, engine_on(backend, parity), backend)
