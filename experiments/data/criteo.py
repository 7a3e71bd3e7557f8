"""Click logs in Criteo's format, from files of your own.

    1 \\t 13 counts, some empty \\t 26 categories as hex numbers, some empty \\n

    criteo.stream("train.txt")                 every tenth block of 1024 lines is held out
    criteo.stream(["day_0.gz", "day_1.gz"])    the last file is held out
    criteo.stream("days")                      all files in the directory, day_10 after day_9

Counts become log(1 + x); what is below 0 or missing becomes 0. Categories are hashed, field by
field, to all rows of its table but the last, which is for what is missing. Files are read as they
stream by, never as a whole.

Nothing is downloaded: Criteo gives out its logs under terms of its own (the terabyte log: CC
BY-NC-SA 4.0).
"""

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

import numpy as np

import embsim
from embsim._numba import kernel

from .streams import Examples, check_batches, full_batches, padded, rebatched, unmasked

NUM_DENSE = 13
CATEGORIES = tuple(f"C{i}" for i in range(1, 27))
COLUMNS = ("label", *(f"I{i}" for i in range(1, NUM_DENSE + 1)), *CATEGORIES)
BLOCK_LINES = 1024  # read, held out and converted together

TAB, NEWLINE, MINUS = b"\t\n-"
COUNT_DIGITS, CATEGORY_DIGITS = 18, 16  # that 64 bits hold
DIGITS = np.full(256, 255, np.uint8)
DIGITS[list(b"0123456789abcdef")] = range(16)
DIGITS[list(b"ABCDEF")] = range(10, 16)

_FORMATS = {  # by the first letter of a column's name
    "l": (rb"[01]", "0 or 1"),
    "I": (rb"-?\d{1,18}|", "an integer of at most 18 digits, or empty"),
    "C": (rb"[0-9a-fA-F]{0,16}", "a hex number of at most 16 digits, or empty"),
}


@dataclass(frozen=True)
class Block:
    """Lines that follow each other in a file; the first is line `first_line`, from 1."""

    path: Path
    first_line: int
    lines: list[bytes]


def stream(
    paths: str | Path | Sequence[str | Path],
    num_buckets: int | tuple[int, ...] = 1_000_000,
    held_out_every: int = 10,
) -> "Criteo":
    """The stream of a file, of several in the order given, or of the files in a directory.

    Args:
      paths: of files, plain or compressed with the suffix .gz, or of directories of them.
      num_buckets: rows of each table, or of the 26 one by one; the last row is for what is missing.
      held_out_every: of a single file every so manieth block of BLOCK_LINES lines is held out.
    """
    given = [paths] if isinstance(paths, str | Path) else paths
    files = tuple(chain.from_iterable(_files(Path(path)) for path in given))
    sizes = num_buckets if isinstance(num_buckets, tuple) else (num_buckets,) * len(CATEGORIES)
    return Criteo(files, sizes, held_out_every)


@dataclass(frozen=True)
class Criteo:
    """See `stream`."""

    files: tuple[Path, ...]
    vocabulary_sizes: tuple[int, ...]
    held_out_every: int

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("criteo: found no files; there must be at least one")
        if twice := [path for path in self.files if self.files.count(path) > 1]:
            raise ValueError(
                f"criteo: {twice[0]} is given twice; each file must be given once: the last is "
                "held out"
            )
        if len(self.vocabulary_sizes) != len(CATEGORIES) or min(self.vocabulary_sizes) < 2:
            raise ValueError(
                f"criteo: num_buckets is {self.vocabulary_sizes}; it must be one number or "
                f"{len(CATEGORIES)}, each >= 2: one row is for missing categories"
            )
        if self.held_out_every < 2:
            raise ValueError(f"criteo: held_out_every is {self.held_out_every}; it must be >= 2")

    @property
    def names(self) -> tuple[str, ...]:
        return CATEGORIES

    @property
    def num_dense(self) -> int:
        return NUM_DENSE

    def num_steps(self, batch_size: int) -> int:
        """Full batches in one pass. The first call reads all training files, to count lines."""
        return full_batches(self.num_training, batch_size)

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Examples]:
        """Lines before step `start` are read, but not converted."""
        check_batches(batch_size, start)
        pieces = self._converted(_from(self._blocks(held_out=False), start * batch_size))
        return (piece for piece in rebatched(pieces, batch_size) if len(piece) == batch_size)

    def held_out(self, batch_size: int) -> Iterator[Examples]:
        check_batches(batch_size)
        pieces = self._converted(self._blocks(held_out=True))
        return (padded(piece, batch_size) for piece in rebatched(pieces, batch_size))

    def in_order(self) -> Iterator[Examples]:
        """All lines, held out or not, as the files have them."""
        return self._converted(chain.from_iterable(map(_read, self.files)))

    @cached_property
    def num_training(self) -> int:
        """Lines to train on."""
        return sum(len(block.lines) for block in self._blocks(held_out=False))

    def _blocks(self, held_out: bool) -> Iterator[Block]:
        *others, last = self.files
        if others:
            blocks = chain.from_iterable(map(_read, [last] if held_out else others))
        else:
            chosen = self.held_out_every - 1
            numbered = enumerate(_read(last))
            blocks = (b for i, b in numbered if (i % self.held_out_every == chosen) == held_out)
        first = next(blocks, None)
        if first is None:
            raise ValueError(
                f"criteo: found no lines to {'hold out' if held_out else 'train on'} in "
                f"{len(self.files)} files; the last of several is held out, of a single file every "
                f"{self.held_out_every}th block of {BLOCK_LINES} lines: reduce held_out_every, or "
                "give more files"
            )
        yield first
        yield from blocks

    def _converted(self, blocks: Iterator[Block]) -> Iterator[Examples]:
        return (converted(block, self.vocabulary_sizes) for block in blocks)


def converted(block: Block, num_buckets: tuple[int, ...]) -> Examples:
    """The lines as samples.

    Raises:
      ValueError: a line that is not in the format; names file, line, field and what was found.
    """
    shape = (len(block.lines), len(CATEGORIES))
    labels = np.zeros(shape[0], np.float32)
    counts = np.zeros((shape[0], NUM_DENSE), np.int64)
    categories, missing = np.zeros(shape, np.uint64), np.zeros(shape, np.bool_)
    text = np.frombuffer(b"".join(block.lines), np.uint8)
    good = _parse(text, labels, counts, categories, missing)
    if good < len(block.lines):
        place = f"{block.path}, line {block.first_line + good}"
        raise ValueError(f"criteo: {place}: {_complaint(block.lines[good])}")
    ids = np.empty(shape, np.int32)
    for field, rows in enumerate(num_buckets):
        hashed = embsim.hash_ids(categories[:, field], rows - 1)
        ids[:, field] = np.where(missing[:, field], rows - 1, hashed)
    dense = np.log1p(np.maximum(counts, 0)).astype(np.float32)
    return unmasked(ids, dense, labels)


@kernel
def _parse(text, labels, counts, categories, missing):  # type: ignore[no-untyped-def]
    """Fills one row per line, all of which end with a newline; returns how many are in the format.

    An empty count stays 0.
    """
    position = 0
    for line in range(len(labels)):
        for column in range(1 + NUM_DENSE + categories.shape[1]):
            base, most = (10, COUNT_DIGITS) if column <= NUM_DENSE else (16, CATEGORY_DIGITS)
            negative = text[position] == MINUS and 0 < column <= NUM_DENSE
            position += negative
            value, width = np.uint64(0), 0
            while text[position] != TAB and text[position] != NEWLINE:
                digit = DIGITS[text[position]]
                if digit >= base or width == most:
                    return line
                value = value * np.uint64(base) + np.uint64(digit)
                width += 1
                position += 1
            last = column == NUM_DENSE + categories.shape[1]
            if (text[position] == NEWLINE) != last or (negative and not width):
                return line
            position += 1
            if column > NUM_DENSE:
                categories[line, column - NUM_DENSE - 1] = value
                missing[line, column - NUM_DENSE - 1] = not width
            elif column > 0:
                counts[line, column - 1] = -np.int64(value) if negative else np.int64(value)
            elif width != 1 or value > 1:
                return line
            else:
                labels[line] = value
    return len(labels)


def _complaint(line: bytes) -> str:
    """What is wrong with a line that `_parse` refused."""
    found = line.removesuffix(b"\n").split(b"\t")
    if len(found) != len(COLUMNS):
        return (
            f"found {len(found)} fields; there must be {len(COLUMNS)}, parted by tabs: label, "
            f"{NUM_DENSE} counts, {len(CATEGORIES)} categories"
        )
    for name, text in zip(COLUMNS, found, strict=True):
        pattern, required = _FORMATS[name[0]]
        if not re.fullmatch(pattern, text):
            return f"field {name} is {text!r}; it must be {required}"
    raise AssertionError(line)


def _read(path: Path) -> Iterator[Block]:
    """The file from its start; a last line without newline gets one."""
    first_line = 1
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        try:
            while lines := list(islice(file, BLOCK_LINES)):
                lines[-1] = lines[-1].removesuffix(b"\n") + b"\n"
                yield Block(path, first_line, lines)
                first_line += len(lines)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"criteo: {path}, after line {first_line - 1}: {error}; it must be a "
                "whole gzip file"
            ) from error


def _from(blocks: Iterator[Block], line: int) -> Iterator[Block]:
    """Without the first `line` lines of all."""
    for block in blocks:
        if line < len(block.lines):
            yield Block(block.path, block.first_line + line, block.lines[line:])
        line = max(0, line - len(block.lines))


def _files(path: Path) -> list[Path]:
    """A file itself; of a directory what is in it, numbers in names counted as numbers."""
    if path.is_dir():
        inside = [file for file in path.iterdir() if file.is_file() and file.name[0] != "."]
        return sorted(inside, key=_natural)
    if not path.is_file():
        raise ValueError(f"criteo: {path} is neither a file nor a directory")
    return [path]


def _natural(path: Path) -> list[tuple[int, str]]:
    """day_9 before day_10."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
