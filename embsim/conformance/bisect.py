"""Where two engines part: no law is asked, they run the same program side by side.

    separation = first_difference("reference", "my_backend", program)
    print(separation)                       # call, table, row, both values; a program that shows it

A program is `Program(setup, calls)`: recorded batches in Train calls, or `random_program(setup)`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .literal import literal
from .pair import Parting, first_parting
from .program import Call, Drain, Enqueue, Evaluate, Program, Setup, Train, source
from .shrink import shrunk
from .subject import Subject, subject_of

# A program of more numbers, or with a longer text, is described instead of printed.
NUMBERS, CHARACTERS = 3000, 8000


@dataclass(frozen=True, eq=False)
class Separation(Parting):
    """The first numbers in which `a` and `b` differ. Its str() has a program that shows them.

    Args:
      program: what both were asked to do, cut down if it was to be.
    """

    a: Any
    b: Any
    program: Program
    bound: float | None = None

    @property
    def row(self) -> int | None:
        """Of the table; of activations the sample."""
        return self.where[0] if self.where else None

    def save(self, path: str | Path) -> None:
        """Write the program as a Python module, which is text and may be long."""
        Path(path).write_text(source(self.program) + "\n")

    def __str__(self) -> str:
        a, b = (subject_of(each).name for each in (self.a, self.b))
        call = f"call {self.call} ({type(self.program.calls[self.call]).__name__})"
        place = f" of table {self.table!r} at {list(self.where)}" if self.table else ""
        more = f" ({self.count} numbers differ)" if self.count > 1 else ""
        head = f"{a} and {b} part at {call}: {self.what}{place}: "
        values = f"{self.in_a!s} in the first, {self.in_b!s} in the second{more}"
        return f"{head}{values}\n\n{_repeated(self)}"


def first_difference(
    a: Any, b: Any, program: Program, *, shrink: bool = True, bound: float | None = None
) -> Separation | None:
    """The first numbers in which `a` and `b` differ, or None.

    Activations are compared after each dequeue, tables and slots after every call after which both
    may be looked at, and at the end. Calls that could never be served, or that one of the two does
    not offer, are left out.

    Args:
      a, b: backends (names or instances) or adapters' classes.
      program: calls on one setup.
      shrink: first cut the program down to what is needed to see a difference.
      bound: for engines that round differently: numbers agree if they are at most `bound` times the
        largest number of their row apart. How much is right is the user's to say: differences grow
        with the steps. None: they must be equal to the bit.

    Raises:
      ValueError: an engine whose outputs come late (output_shift).
    """
    pair = (subject_of(a), subject_of(b))
    for each in pair:
        if shift := each.capabilities.output_shift:
            raise ValueError(
                f"first_difference: {each.name} has output_shift={shift}; activations must come "
                "from the dequeue of their own batch"
            )
    found = first_parting(pair, program, bound)
    if found is None:
        return None
    latest = Separation(**vars(found), a=a, b=b, program=program, bound=bound)

    def shows(candidate: Program) -> bool:
        nonlocal latest
        try:
            seen = first_parting(pair, candidate, bound)
        except Exception:
            return False  # both must be able to start with a smaller setup
        if seen is None or (seen.what == "raised") != (latest.what == "raised"):
            return False
        latest = Separation(**vars(seen), a=a, b=b, program=candidate, bound=bound)
        return True

    if shrink:
        shrunk(Program(program.setup, program.calls[: found.call + 1]), shows)
    return latest


def random_program(
    setup: Setup, seed: int = 0, *, steps: int = 10, longest: int = 4, weighted: bool = False
) -> Program:
    """Training steps with real numbers, and a drain after every fifth. Bags have up to `longest`
    ids; `weighted` gives those that are combined weights from 0.5 to 1.5.
    """
    random = np.random.default_rng(seed)
    calls: list[Call] = []
    for step in range(steps):
        batch: list[Any] = []
        for feature in setup.features:
            lengths = random.integers(0, longest + 1, setup.samples)
            ids = random.integers(0, feature.table.vocabulary_size, lengths.sum()).tolist()
            items = ids
            if weighted and not feature.max_sequence_length:
                items = list(zip(ids, random.uniform(0.5, 1.5, len(ids)).tolist(), strict=True))
            ends = np.cumsum(lengths).tolist()
            batch.append([items[end - n : end] for n, end in zip(lengths, ends, strict=True)])
        shapes = [setup.activation_shape(number) for number in range(len(setup.features))]
        calls.append(Train(batch, [random.standard_normal(shape, np.float32) for shape in shapes]))
        if step % 5 == 4:
            calls.append(Drain())
    return Program(setup, tuple(calls))


# --- what is printed


def _repeated(separation: Separation) -> str:
    """Python that finds it again."""
    program, bound = separation.program, separation.bound
    lines: list[str] = ["from embsim.conformance import first_difference"]
    names: list[str] = []
    for letter, subject in (("a", separation.a), ("b", separation.b)):
        spoken = _spoken(subject)
        lines += [spoken[0]] if spoken and spoken[0] else []
        lines += [] if spoken else [f"# {letter}: your {subject_of(subject).name}"]
        names.append(spoken[1] if spoken else letter)
    text = source(program) if _size(program) <= NUMBERS else ""
    if not text or len(text) > CHARACTERS:
        lines = [*(f"# {line}" for line in _shapes(program)), "import runpy", *lines]
        text = 'program = runpy.run_path("program.py")["program"]'
        text += '  # written by separation.save("program.py")'
    given = "" if bound is None else f", bound={bound!r}"
    call = f"first_difference({names[0]}, {names[1]}, program, shrink=False{given})"
    return "\n".join([*dict.fromkeys(lines), text, f"separation = {call}"])


def _spoken(subject: Any) -> tuple[str, str] | None:
    """(import, expression) that give this subject; None if there is none."""
    if isinstance(subject, str):
        return "", repr(subject)
    if isinstance(subject, Subject):
        return _spoken(subject.factory if subject.backend is None else subject.backend)
    kind = subject if isinstance(subject, type) else type(subject)
    if "<" in kind.__qualname__:  # of a function, where nothing can import it
        return None
    expression = kind.__qualname__
    if subject is not kind:
        if not is_dataclass(subject) and getattr(subject, "__dict__", True):
            return None
        expression = literal(subject) if is_dataclass(subject) else f"{expression}()"
    return f"from {kind.__module__} import {kind.__qualname__.split('.')[0]}", expression


def _size(program: Program) -> int:
    """How many numbers it has."""
    tables = sum(t.vocabulary_size * t.dim for t in program.setup.tables.values())
    ids = sum(_ids(call) for call in program.calls)
    slopes = (getattr(call, "gradients", ()) for call in program.calls)
    return tables + ids + sum(np.size(g) for each in slopes for g in each if g is not None)


def _ids(call: Call) -> int:
    batch = getattr(call, "batch", ())
    return sum(len(bag) for bags in batch for bag in bags)


def _shapes(program: Program) -> Iterator[str]:
    setup = program.setup
    for name, config in setup.tables.items():
        size = f"{config.vocabulary_size} x {config.dim}"
        yield f"table {name!r}: {size}, {config.combiner}, {literal(config.optimizer)}"
    for number, feature in enumerate(setup.features):
        yield f"feature {number}: table {feature.table.name!r}, {setup.samples} samples"
    yield f"{setup.schedule}; {len(program.calls)} calls:"
    for number, call in enumerate(program.calls[:10]):
        ids = f" of {_ids(call)} ids" if isinstance(call, Enqueue | Evaluate | Train) else ""
        yield f"  {number} {type(call).__name__}{ids}"
    if len(program.calls) > 10:
        yield "  ..."
