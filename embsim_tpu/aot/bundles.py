"""The instructions that a TPU's compiler ends with, counted: how many for each loop of a program.

A TensorCore executes bundles, each of several instructions at once, one a cycle if nothing stalls.
libtpu writes them down as text, one file for each fusion or kernel:

      0x2 LB: > { %s10 = sadd.s32 1, %s9  ;;  %s9 = sphi %s8, %s10 } /* Start region 7 */
      0x3   : > { %82 = dma.hbm_to_vmem /*hbm=*/%s78, /*vmem=*/%s80 }
      0x4   : > { %p5 = scmp.ge.s32.totalorder %s10, 513 /* loop exit test */ }
      0x5   :  { %10 = sbr.rel (!%p5) target = $region7 }

A branch back to where a region starts closes a loop; what stands in its delay slots belongs to it.
How often a loop turns is read from its exit test, if both numbers in it are constants.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

# Bundles after a branch that are executed before it is taken, as the dumps have them.
DELAY_SLOTS = {"v4": 1, "v5e": 4, "v5p": 4, "v6e": 4, "7x": 6}

# What is counted of each loop besides its bundles, by the instructions' names.
KINDS = {
    "reads": r"= dma\.(?:hbm|general)_to_\w+",
    "dmas": r"= dma\.\w+_\w+",
    "waits": r"= dma\.done",
    "vld": r"= vld\b",
    "vst": r"= vst\b",
    "sqrt": r"= v(?:r?sqrt)\b",
    "rcp": r"= v(?:rcp|recip)\b",
}

FINAL, SHARED = "final_bundles", "deduplication-map"
TOP = "TLP"  # the program that calls all others


def flags(directory: Path) -> str:
    """LIBTPU_INIT_ARGS, read once when libtpu is loaded: write the bundles of what is compiled to
    `directory`. Of all passes only the last is written; all of them take twenty times as long."""
    return (
        f"--xla_jf_dump_to={directory} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_html=false "
        "--xla_jf_emit_annotations=true --xla_jf_debug_level=2 "
        f"--xla_jf_dump_llo_pass_label_regex=^({FINAL}|{SHARED})$"
    )


@dataclass(frozen=True)
class Loop:
    """Bundles `start` .. `end` of a function.

    Args:
      depth: 1 for a loop in no other, 2 for one inside it.
      bundles: of the whole body.
      own: those in no loop inside it.
      inner: how many loops are inside it.
      turns: how often it is executed each time it is entered; None if that is not a constant.
      optional: whether a branch may pass it by.
      counts: of KINDS, in its own bundles.
    """

    start: int
    end: int
    depth: int
    bundles: int
    own: int
    inner: int
    turns: int | None
    optional: bool
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Function:
    """A fusion or a kernel: its bundles, those in no loop, and its loops by where they start."""

    bundles: int
    own: int
    loops: tuple[Loop, ...]
    counts: Mapping[str, int]  # of the bundles in no loop
    calls: tuple[tuple[str, int | None], ...] = ()  # of other functions, and how often

    def around(self, loop: Loop) -> list[Loop]:
        """The loops that a loop is inside of, from the outside, and itself."""
        return [each for each in self.loops if each.start <= loop.start and each.end >= loop.end]

    def times(self, loop: Loop) -> tuple[int, bool]:
        """How often its body is executed, and whether each number of turns is known; a loop whose
        turns are not is taken to turn once."""
        turns = [each.turns for each in self.around(loop)]
        return prod(each or 1 for each in turns), None not in turns


def program(directory: Path, target: str) -> list[tuple[str, Function, int | None]]:
    """The functions that a dumped program calls, in that order, and how often each; None where
    that is not known. What the program does itself, copies that a donated argument makes needless,
    is left out."""
    files = {
        found[1]: path
        for path in sorted(directory.iterdir())
        if (found := re.fullmatch(rf"\d+-(.+?)-\d+-({FINAL}|{SHARED})\.txt", path.name))
        and found[2] == FINAL
    }
    same = _same(directory)
    parsed = {name: parse(path.read_text(errors="replace"), target) for name, path in files.items()}
    return [(name, parsed[same.get(name, name)], times) for name, times in parsed[TOP].calls]


def _same(directory: Path) -> dict[str, str]:
    """Functions of the same code are written once: the name under which each is found."""
    found: dict[str, str] = {}
    for path in directory.glob(f"*-{SHARED}.txt"):
        key = ""
        for line in path.read_text().splitlines():
            if line.startswith("key:"):
                key = line.removeprefix("key:")
            elif line.startswith("  "):
                found[line.strip()] = key
    return found


def parse(text: str, target: str) -> Function:
    """A file of bundles as libtpu writes it."""
    return _Reader(list(_bundles(text)), DELAY_SLOTS[target]).function


def _bundles(text: str) -> Iterator[str]:
    """The instructions and comments of each bundle; some of them go on for several lines."""
    lines: list[str] = []
    for line in text.splitlines():
        if re.match(r" *(0x[0-9a-f]+|0) +([A-Z]{2} ?)*: *>* *\{", line):
            if lines:
                yield "\n".join(lines)
            lines = [line]
        elif lines:
            lines.append(line)
    if lines:
        yield "\n".join(lines)


class _Reader:
    """Loops of a list of bundles."""

    def __init__(self, bundles: list[str], delay: int) -> None:
        self.bundles = bundles
        self.starts: dict[str, int] = {}  # of regions
        for place, text in enumerate(bundles):
            for region in re.findall(r"Start(?:/End empty)? region (\d+)", text):
                self.starts.setdefault(region, place)
        self.branches = [  # from, to; a region that nowhere starts is empty, at the end
            (place, self.starts.get(branch[1], len(bundles)))
            for place, text in enumerate(bundles)
            if (branch := re.search(r"sbr\.rel .*?target = \$region(\d+)", text))
        ]
        last = len(bundles) - 1
        self.spans = sorted(  # start, end and closing branch of each loop
            (to, min(place + delay, last), place) for place, to in self.branches if to <= place
        )

    @property
    def function(self) -> Function:
        loops = tuple(self._loop(start, end) for start, end, _ in self.spans)
        size, text = self._own(0, len(self.bundles) - 1)
        return Function(len(self.bundles), size, loops, _counts(text), tuple(self._calls(loops)))

    def _inside(self, start: int, end: int) -> list[tuple[int, int]]:
        """The loops within these bundles other than they themselves."""
        inner = [(s, e) for s, e, _ in self.spans if start <= s and e <= end]
        return [each for each in inner if each != (start, end)]

    def _own(self, start: int, end: int) -> tuple[int, str]:
        """How many of the bundles are in no loop inside, and their text."""
        inner = self._inside(start, end)
        if (start, end) == (0, len(self.bundles) - 1):
            inner = [(s, e) for s, e, _ in self.spans]
        own = [
            text
            for place, text in enumerate(self.bundles[start : end + 1], start)
            if not any(s <= place <= e for s, e in inner)
        ]
        return len(own), "\n".join(own)

    def _loop(self, start: int, end: int) -> Loop:
        size, text = self._own(start, end)
        branch = next(branch for s, e, branch in self.spans if (s, e) == (start, end))
        return Loop(
            start,
            end,
            sum(s <= start and end <= e for s, e, _ in self.spans),
            end - start + 1,
            size,
            len(self._inside(start, end)),
            self._turns(start, branch),
            any(place < start and to > branch for place, to in self.branches),
            _counts(text),
        )

    def _calls(self, loops: tuple[Loop, ...]) -> Iterator[tuple[str, int | None]]:
        for place, text in enumerate(self.bundles):
            for name in re.findall(r"= inlined_call[^;}]*?/\* %(\S+) = ", text):
                turns = [each.turns for each in loops if each.start <= place <= each.end]
                yield name, None if None in turns else prod(each or 1 for each in turns)

    # --- how often a loop turns: from its exit test back to the constant that it starts from

    def _turns(self, start: int, branch: int) -> int | None:
        closing = re.search(r"sbr\.rel \(!(%\w+)\)", self.bundles[branch])
        test = closing and self._last(closing[1], branch)
        ended = test and re.match(r"scmp\.ge\.s32\.totalorder (%\w+), (\d+)", test)
        step = ended and self._value(ended[1], branch, start)
        added = step and re.match(r"sadd\.s32 (\d+), (%\w+)", step)
        counter = added and self._value(added[2], branch, start, before=True)
        first = counter and re.match(r"(?:smov )?(\d+)$", counter)
        if not (ended and added and first):
            return None
        return max(1, -(-(int(ended[2]) - int(first[1])) // int(added[1])))

    def _value(self, name: str, place: int, start: int, *, before: bool = False) -> str | None:
        """What makes a number, behind copies, memory that it is kept in, and the choice (sphi)
        between what it is `before` the loop that begins at `start` and what it is at its end."""
        for _ in range(8):
            made = self._last(name, place)
            if made is None:
                return None
            if chosen := re.match(r"sphi (%\w+), (%\w+)", made):
                if not before:
                    return None
                name, place = chosen[1], start
            elif copied := re.match(r"smov (%\w+)", made):
                name = copied[1]
            elif kept := re.match(r"sld \[smem:\[(#allocation\d+_spill[^\]]*)\]\]", made):
                stored = self._stored(kept[1], place)
                if stored is None:
                    return None
                name = stored
            else:
                return made
        return None

    def _last(self, name: str, place: int) -> str | None:
        """The instruction that makes `name`; there is one, but for copies at the end of a loop."""
        pattern = re.compile(rf"{re.escape(name)} = ([^;}}\n]*)")
        for text in reversed(self.bundles[: place + 1]):
            if found := pattern.search(text):
                return re.sub(r"\(!?%\w+\), ", "", found[1].split("/*")[0]).strip()
        return None

    def _stored(self, slot: str, place: int) -> str | None:
        pattern = re.compile(rf"sst \[smem:\[{re.escape(slot)}\]\] (%\w+)")
        for text in reversed(self.bundles[: place + 1]):
            if found := pattern.search(text):
                return found[1]
        return None


def _counts(text: str) -> dict[str, int]:
    return {kind: len(re.findall(pattern, text)) for kind, pattern in KINDS.items()}
