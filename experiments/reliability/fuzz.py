"""Whatever is passed to a public entry point: a documented error or a result, and nothing lost.

A case is decoded from bytes, so that random bytes, Hypothesis and a coverage-guided fuzzer can all
make cases, and a case that fails is its bytes. Asked of every case:

* the only exceptions are those of DOCUMENTED, raised by embsim in its own words;
* after an error the embedding trains on, to the bit, as if there had been none;
* it takes no more than SECONDS, and MEMORY bytes.
"""

import contextlib
import io
import math
import resource
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

import embsim
from embsim import RaggedTensor, SparseTensor
from embsim import schedule as schedules
from embsim.cli import main as cli
from embsim.simulation.hardware import chip
from embsim.simulation.pipelines import pipeline_of

DOCUMENTED = (ValueError, TypeError, RuntimeError, FileNotFoundError)
UNDOCUMENTED = (RecursionError, NotImplementedError)  # which are RuntimeErrors
OURS = Path(embsim.__file__).parent
SECONDS, MEMORY = 10.0, 2**31
ROWS, DIM = 8, 2
STRANGE = (
    *(0, 1, -1, 7, 8, 2**31 - 1, 2**31, -(2**31) - 1, 2**40, 2**63 - 1, 2**63, -(2**63), 10**30),
    *(0.5, -0.0, math.nan, math.inf, -math.inf, 1e300, True, False, None, "", "a", "8", b"\0"),
    *(..., 1j, {}, [], (), object, np.float32("nan"), np.int8(-1), np.uint64(2**63)),
    np.datetime64("NaT"),
)
DTYPES = ("i1", "u1", "i4", "i8", "u8", "f2", "f4", "f8", "c8", "?", "O", "U1", "S1", "M8[s]")
WORDS = ("stale", "sequential", "lookahead", "(", ")", "1", "-1", "1e9", ",", "True", "os", " ")


class Bytes:
    """Choices, taken from bytes; after their end every choice is the first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def below(self, count: int) -> int:
        value = self._data[self._at] if self._at < len(self._data) else 0
        self._at += 1
        return value % count

    def of(self, choices: Any) -> Any:
        return choices[self.below(len(choices))]

    def anything(self, depth: int = 2) -> Any:
        """A value of any kind."""
        makers: list[Callable[[], Any]] = [
            lambda: self.of(STRANGE),
            self.array,
            self.ids,
            self.ragged,
            self.sparse,
            lambda: [self.anything(depth - 1) for _ in range(self.below(4))],
            lambda: {self.of("abc"): self.anything(depth - 1) for _ in range(self.below(3))},
        ]
        return self.of(makers if depth > 0 else makers[:5])()

    def array(self) -> np.ndarray:
        shape = tuple(self.below(4) for _ in range(self.below(4)))
        values = [self.of(STRANGE[:20]) for _ in range(math.prod(shape))]
        with contextlib.suppress(Exception), np.errstate(all="ignore"):
            return np.array(values, object).astype(self.of(DTYPES)).reshape(shape)
        return np.zeros(shape, np.float32)

    def ids(self) -> np.ndarray:
        """Mostly good ones."""
        return np.array([self.below(ROWS) for _ in range(self.below(5))], np.int32)

    def ragged(self) -> RaggedTensor:
        splits = np.array([self.of((0, 1, 2, 3, 5, -1, 2**40)) for _ in range(self.below(5))])
        return RaggedTensor(self.ids() if self.below(3) else self.array(), splits)

    def sparse(self) -> SparseTensor:
        count = self.below(4)
        indices = np.array([[self.below(4), self.below(3)] for _ in range(count)], np.int64)
        values = np.arange(count, dtype=np.int32) if self.below(3) else self.array()
        shape = (self.of((0, 1, 3, 4, -1, 2**40)), self.of((0, 3, 2**40)))
        return SparseTensor(indices.reshape(-1, 2), values, shape)

    def text(self) -> str:
        return "".join(self.of((*WORDS, *STRANGE[13:16])).__str__() for _ in range(self.below(8)))


def world() -> embsim.TPUEmbedding:
    """Two tables, one waiting step and one queued batch: all that a refused call must keep."""
    tables = {name: embsim.TableConfig(ROWS, DIM, name=name) for name in "ab"}
    with embsim.TPUStrategy(1).scope():
        made = embsim.TPUEmbedding(
            {name: embsim.FeatureConfig(table) for name, table in tables.items()},
            embsim.Adagrad(0.1),
            schedule=embsim.stale(1),
            check_numerics=True,
        )
    batch = dict.fromkeys("ab", np.array([1, 2], np.int32))
    for _ in range(2):
        made.enqueue(batch)
    made.dequeue()
    return made


def finished(made: embsim.TPUEmbedding) -> bytes:
    """Tables and slots after what waits in `world` was trained: it shows whatever was lost."""
    gradients = {name: np.ones((2, DIM), np.float32) for name in "ab"}
    made.apply_gradients(gradients)
    made.dequeue()
    made.apply_gradients(gradients)
    made.drain()
    weights, slots = made.embedding_tables.values(), made.slot_variables.values()
    return b"".join(
        array.tobytes() for array in (*weights, *(a for s in slots for a in s.values()))
    )


def _is_whole(made: embsim.TPUEmbedding) -> bool:
    try:
        return finished(made) == _expected()
    except DOCUMENTED:  # of calls that the world as it was would have taken
        return False


@cache
def _expected() -> bytes:
    return finished(world())


def call(made: embsim.TPUEmbedding, draw: Bytes, scratch: Path) -> None:
    """One call of one entry point."""
    any_ = draw.anything
    dict_of = lambda: {name: any_() for name in "ab"}  # noqa: E731
    calls: list[Callable[[], Any]] = [
        lambda: made.enqueue(dict_of(), dict_of() if draw.below(2) else None),
        lambda: made.enqueue(any_(), training=any_(), timeout=0),
        lambda: made.apply_gradients({n: draw.array() for n in "ab"} if draw.below(2) else any_()),
        lambda: made.build(any_(), any_()),
        lambda: embsim.TableConfig(any_(), any_(), any_(), any_(), any_(), any_()),
        lambda: embsim.FeatureConfig(any_(), any_(), any_()),
        lambda: embsim.TPUEmbedding(any_(), any_(), seed=any_(), queue_capacity=any_()),
        lambda: draw.of((embsim.SGD, embsim.Adagrad, embsim.Adam, embsim.FTRL))(any_(), any_()),
        lambda: embsim.Schedule(any_(), any_(), any_()),
        lambda: embsim.stale(any_()),
        lambda: schedules.schedule_of(draw.text()),
        lambda: pipeline_of(draw.text()),
        lambda: chip(draw.text()),
        lambda: embsim.hash_ids(any_(), any_(), any_()),
        lambda: embsim.pad_batch(any_(), any_(), any_()),
        lambda: embsim.serving_embedding_lookup(any_(), any_(), any_(), any_()),
        lambda: embsim.from_scipy(any_()),
        lambda: RaggedTensor.from_lists(any_(), draw.of(DTYPES)),
        lambda: embsim.Loader(made, any_(), ahead=any_(), timeout=any_()),
        lambda: embsim.set_num_threads(draw.of(STRANGE[9:])),
        lambda: made.restore(any_()),
        lambda: _arguments(draw),
        lambda: _chips(draw, scratch),
        lambda: _checkpoint(draw, scratch),
    ]
    draw.of(calls)()


def _arguments(draw: Bytes) -> None:
    """The command's own refusal is an exit with 2."""
    words = ["simulate", "conformance", "--list", "--chips", "-1", "--schedule", draw.text(), "x"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = cli([draw.of(words) for _ in range(1 + draw.below(4))])
        except SystemExit as leaving:
            code = leaving.code
    if code not in (0, 1, 2):
        raise AssertionError(f"the command ended with {code!r}: {out.getvalue()[-200:]}")


def _chips(draw: Bytes, scratch: Path) -> None:
    """A chips.toml of which a piece was replaced."""
    import embsim.simulation.hardware as hardware

    text = hardware.OURS.read_text()
    at = (draw.below(256) * 256 + draw.below(256)) % len(text)
    changed = text[:at] + draw.of(('"', "=", "-", "[", "nan", "1e400", "", "\x00")) + text[at + 3 :]
    (scratch / "chips.toml").write_text(changed)
    with contextlib.suppress(tomllib.TOMLDecodeError):
        chip(f"{scratch / 'chips.toml'}:v5p")


def _checkpoint(draw: Bytes, scratch: Path) -> None:
    """A checkpoint with one file altered is refused, or is read as it was written."""
    table = embsim.TableConfig(ROWS, DIM, name="t")

    def fresh(seed: int) -> embsim.TPUEmbedding:
        feature = embsim.FeatureConfig(table)
        with embsim.TPUStrategy(1).scope():
            return embsim.TPUEmbedding(feature, embsim.Adagrad(0.1), seed=seed)

    written = fresh(1)
    directory = Path(written.save(scratch / f"checkpoint-{time.monotonic_ns()}"))
    expected = written.embedding_tables[table].tobytes()
    path = draw.of(sorted(path for path in directory.rglob("*") if path.is_file()))
    raw = bytearray(path.read_bytes())
    at = (draw.below(256) * 256 + draw.below(256)) % max(1, len(raw))
    change = draw.below(4)
    if change == 0:
        raw[at : at + 1] = bytes([draw.below(256)])
    elif change == 1:
        del raw[at:]
    elif change == 2:
        raw[at:at] = bytes([draw.below(256)] * (1 + draw.below(9)))
    path.unlink() if change == 3 else path.write_bytes(raw)
    made = fresh(2)
    made.restore(directory)
    if made.embedding_tables[table].tobytes() != expected:
        raise AssertionError(f"an altered {path.name} was restored to other numbers")


def case(data: bytes) -> str:
    """What became of it: "accepted", or the name of a documented error.

    Raises:
      AssertionError: an error of another kind, a changed state, too slow, or too large.
    """
    made, start = world(), time.monotonic()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    became, threads = "accepted", embsim.num_threads()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            call(made, Bytes(data), Path(scratch))
    except UNDOCUMENTED as error:
        raise AssertionError(f"{data!r}: {type(error).__name__}: {error}") from error
    except DOCUMENTED as error:
        became = type(error).__name__
        if not _is_whole(made):
            raise AssertionError(f"{data!r}: refused, but the embedding has changed") from error
        where = traceback.extract_tb(error.__traceback__)[-1]
        ours = Path(where.filename).is_relative_to(OURS) and "raise" in (where.line or "")
        if not ours or not str(error):
            raise AssertionError(f"{data!r}: {became} of {where.filename}: {error}") from error
    except Exception as error:
        raise AssertionError(f"{data!r}: {type(error).__name__}: {error}") from error
    finally:
        embsim.set_num_threads(threads)
    seconds = time.monotonic() - start
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
    if seconds > SECONDS or grown > MEMORY:
        raise AssertionError(f"{data!r}: took {seconds:.1f} s and {grown / 2**20:.0f} MiB")
    return became


def run(cases: int, seconds: float, seed: int = 0) -> Counter[str]:
    """Random cases until so many are made, or so long; what became of them.

    Raises:
      AssertionError: as `case`.
    """
    draw, found, end = np.random.default_rng(seed), Counter[str](), time.monotonic() + seconds
    for _ in track(range(cases), "cases", console=Console(stderr=True)):
        data = draw.integers(0, 256, size=int(draw.integers(1, 120)), dtype=np.uint8).tobytes()
        found[case(data)] += 1
        if time.monotonic() > end:
            break
    return found
