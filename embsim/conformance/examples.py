"""Examples of one check, by Hypothesis: how many, which, and an error that can be read."""

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky, HypothesisException, Unsatisfiable

from .difference import Difference
from .program import Program, Setup, source
from .subnormals import SubnormalMet


class Draw:
    """draw(strategy, "label"): a value, drawn inside Hypothesis, so that a failure shrinks."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self._drawn: list[tuple[str, Any]] = []

    def __call__(self, strategy: st.SearchStrategy[Any], label: str | None = None) -> Any:
        value = self._data.draw(strategy, label=label)
        self._drawn.append((label or f"draw {len(self._drawn) + 1}", value))
        return value

    def __repr__(self) -> str:
        return f"<draw of {[label for label, _ in self._drawn]}>"

    def notes(self) -> Iterator[str]:
        """What was drawn, programs and setups as Python."""
        for label, value in self._drawn:
            if isinstance(value, Program | Setup):
                program = value if isinstance(value, Program) else Program(value, ())
                yield f"{label}:\n{source(program)}"
            else:
                yield f"{label}: {value!r}"


class Examples:
    """Examples of `body`, at most `count`, the same ones every time or `random` ones.

    Args:
      name: of the check; decides which examples, so that they depend on nothing else.
      body: raises where an example fails.
      shrink: search for the shortest failing example.
      told: called with the number of each example, up to the first that fails.
    """

    def __init__(
        self,
        name: str,
        body: Callable[[Draw], None],
        count: int,
        *,
        shrink: bool = True,
        random: bool = False,
        told: Callable[[int], None] | None = None,
    ) -> None:
        self.name = name
        self.body = body
        self.tried = 0
        self._told = told
        self._failure: tuple[Exception, list[str], Draw] | None = None  # the newest
        self._run = self._decorated(count, shrink, random)

    def error(self) -> Exception | None:
        """Of the shortest example that fails; only KeyboardInterrupt and the like pass through."""
        try:
            self._run()
        except Flaky as flaky:
            return self._not_repeated() or flaky
        except Unsatisfiable as unsatisfiable:
            return AssertionError(f"{self.name} could draw no example: {unsatisfiable}")
        except Exception as error:
            return self._readable(error)
        return None

    def _decorated(self, count: int, shrink: bool, random: bool) -> Callable[[], None]:
        @given(data=st.data())
        def run(data: Any) -> None:
            self._one(Draw(data))

        every_health_check: Any = list(HealthCheck)
        made: Any = settings(
            max_examples=count,
            phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
            derandomize=not random,
            database=None,
            deadline=None,
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=every_health_check,
        )(run)
        return made if random else seed(zlib.crc32(self.name.encode()))(made)

    def _one(self, draw: Draw) -> None:
        if self._failure is None:
            self.tried += 1
            if self._told is not None:
                self._told(self.tried)
        try:
            self.body(draw)
        except HypothesisException:
            raise  # an example that it does not want
        except SubnormalMet:
            reject()  # neither does the check
        except Exception as error:
            self._failure = error, list(getattr(error, "__notes__", [])), draw
            raise

    def _readable(self, error: Exception) -> Exception:
        """With what was drawn in place of Hypothesis' notes, unless the message has the program."""
        if self._failure is not None and self._failure[0] is error:
            _, notes, draw = self._failure
            has_program = "program = Program(" in str(error)
            error.__notes__ = notes if has_program else [*notes, *draw.notes()]
        return error.with_traceback(_trimmed(error))

    def _not_repeated(self) -> AssertionError | None:
        """Hypothesis repeats a failing example. If then it passes, that is the subject's fault."""
        if self._failure is None or not isinstance(self._failure[0], AssertionError):
            return None
        error = self._readable(self._failure[0])
        seen = "\n".join([str(error), *getattr(error, "__notes__", [])])
        return AssertionError(
            "an example failed and, when it was repeated, did not fail in this way: the subject "
            f"does not compute the same each time. What was seen:\n{seen}"
        )


def _trimmed(error: Exception) -> TracebackType | None:
    """Without Hypothesis' frames; of a Difference, whose message says all, without the kit's too,
    but for the check's body.
    """
    kit = Path(__file__).parent
    hidden = [Path(hypothesis.__file__).parent, kit / "check.py", kit / "examples.py"]
    hidden += [kit] if isinstance(error, Difference) else []
    frames: list[TracebackType] = []
    at = error.__traceback__
    while at is not None:
        path = Path(at.tb_frame.f_code.co_filename)
        inside = any(path.is_relative_to(each) for each in hidden)
        if not inside or path.parent == kit / "checks":
            frames.append(at)
        at = at.tb_next
    made: TracebackType | None = None
    for at in reversed(frames):
        made = TracebackType(made, at.tb_frame, at.tb_lasti, at.tb_lineno)
    return made
