"""Chips and pods as data: every number with its source, and a mark where it is not published.

chip("v5p")                      one of ours; chips() names them
chip("mine.toml:fast")           a user's own: the form of chips.toml beside this file
Pod(chip("v5p"), 64)             64 of them, as their topology has them: 4 x 4 x 4
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from ..config import integer

OURS = Path(__file__).with_name("chips.toml")
MARKS = ("published", "memory", "assumed")
NUMBERS = {
    "hbm_bytes": "bytes",
    "hbm_bandwidth": "bytes/s",
    "peak_flops": "flop/s",
    "link_bandwidth": "bytes/s",
    "ports": "",
    "link_latency": "s",
    "pcie_bandwidth": "bytes/s",
    "network_bandwidth": "bytes/s",
    "sparsecores": "",
    "node": "chips",
}
OPTIONAL = {"ports": 1.0, "sparsecores": 0.0, "node": float("inf")}  # where a chip says nothing


@dataclass(frozen=True)
class Number:
    """A fact: its value, how it is known (one of MARKS), and where it is from."""

    value: float
    mark: str
    source: str


@dataclass(frozen=True)
class Chip:
    """One chip; bandwidths are one way, in bytes a second.

    Args:
      name: unique.
      kind: "torus", of `axes` axes, or "switch", to which each chip of a `node` has one port; nodes
        are joined by the network, to which each chip has its own.
      numbers: by the names in NUMBERS.
    """

    name: str
    kind: str
    axes: int
    numbers: Mapping[str, Number] = field(repr=False)

    def __getattr__(self, name: str) -> float:
        if name in NUMBERS:
            return self.numbers[name].value
        raise AttributeError(name)

    def with_number(self, name: str, value: float, mark: str, source: str) -> "Chip":
        """The same but for one number."""
        return replace(self, numbers={**self.numbers, name: Number(value, mark, source)})

    def doubtful(self) -> list[str]:
        """What is said of numbers that are not published, with every result."""
        return [
            f"{self.name}: {name} {number.value:g} {NUMBERS[name]}".rstrip() + f" ({number.mark})"
            for name, number in self.numbers.items()
            if number.mark != "published"
        ]


@dataclass(frozen=True)
class Pod:
    """Chips that work together.

    Args:
      shape: lengths of the axes of a torus, by default as equal as the number allows; of a switch
        (chips,).

    Raises:
      ValueError: a shape that is not of so many chips, or of more axes than the chip's torus has.
    """

    chip: Chip
    chips: int = 1
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        integer("pod: chips", self.chips, minimum=1)
        shape = self.shape or self._default()
        axes = self.chip.axes if self.chip.kind == "torus" else 1
        if prod(shape) != self.chips or len(shape) > axes:
            raise ValueError(
                f"pod: shape {shape} of {self.chips} {self.chip.name}; it must have that many "
                f"chips on at most {axes} axes"
            )
        object.__setattr__(self, "shape", shape)

    def _default(self) -> tuple[int, ...]:
        if self.chip.kind == "switch":
            return (self.chips,)
        return min(_factored(self.chips, self.chip.axes), key=lambda shape: (max(shape), shape))

    @property
    def wraps(self) -> bool:
        """Whether the longest axis is a ring: on two axes of 16 chips or more, on three of a
        multiple of 4."""
        longest = max(self.shape)
        return longest % 4 == 0 if self.chip.axes == 3 else longest >= 16

    def all_to_all(self, sent: float, efficiency: float) -> float:
        """Seconds in which every chip sends `sent` bytes, as much to each other.

        On a torus the middle of the longest axis limits it; on a switch each chip's port, or, with
        several nodes, its part of the network, whichever takes longer.
        """
        if self.chips == 1:
            return 0.0
        if self.chip.kind == "switch":
            node = min(self.chips, self.chip.node)
            inside = sent * (node - 1) / self.chips / self.chip.link_bandwidth
            across = sent * (self.chips - node) / self.chips / self.chip.network_bandwidth
            return self.chip.link_latency + max(inside, across) / efficiency
        longest, half = max(self.shape), 8 if self.wraps else 4
        hops = sum(length // (2 if self.wraps else 1) for length in self.shape)
        moved = sent * longest / (half * self.chip.link_bandwidth * efficiency)
        return self.chip.link_latency * hops + moved

    def all_reduce(self, size: float, efficiency: float) -> float:
        """Seconds in which `size` bytes of each chip are summed on all."""
        if self.chips == 1:
            return 0.0
        if self.chip.kind == "switch":
            return self._all_reduce_of_nodes(size, efficiency)
        ports, hops = min(self.chip.ports, 2 * len(self.shape)), 2 * sum(self.shape)
        moved = 2 * size * (self.chips - 1) / self.chips
        return self.chip.link_latency * hops + moved / (
            ports * self.chip.link_bandwidth * efficiency
        )

    def _all_reduce_of_nodes(self, size: float, efficiency: float) -> float:
        """Each chip of a node sums its part in the node, then with its like in the others."""
        node = min(self.chips, self.chip.node)
        nodes = self.chips / node
        inside = 2 * size * (node - 1) / node / self.chip.link_bandwidth
        across = 2 * size / node * (nodes - 1) / nodes / self.chip.network_bandwidth
        return 2 * self.chip.link_latency + (inside + across) / efficiency


def _factored(number: int, axes: int) -> list[tuple[int, ...]]:
    """All shapes of so many chips, descending."""
    if axes == 1:
        return [(number,)]
    return [
        tuple(sorted((first, *rest), reverse=True))
        for first in range(1, number + 1)
        if number % first == 0
        for rest in _factored(number // first, axes - 1)
    ]


def chips() -> tuple[str, ...]:
    """Names of ours."""
    return tuple(_read(OURS))


def chip(name: str) -> Chip:
    """One of ours by its name, or FILE.toml:NAME.

    Raises:
      ValueError: no such chip; a file that lacks a number, or has another form.
    """
    path, _, inside = name.rpartition(":")
    known = _read(Path(path) if path else OURS)
    if inside not in known:
        where = path or "embsim"
        raise ValueError(
            f"chip {name!r}: {where} has {', '.join(known)}; a chip of your own is FILE.toml:NAME"
        )
    return known[inside]


@cache
def _read(path: Path) -> dict[str, Chip]:
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"chips of {path}: {error}") from error
    sources = tables.pop("sources", {})
    if strange := [name for name, table in tables.items() if not isinstance(table, dict)]:
        raise ValueError(f"chips of {path}: {strange[0]!r} is no chip; a chip is a table, [NAME]")
    if not isinstance(sources, dict):
        raise ValueError(f"chips of {path}: sources are {sources!r}; required: a table, [sources]")
    return {
        name: _chip(f"{path}: [{name}]", name, table, sources) for name, table in tables.items()
    }


def _chip(where: str, name: str, table: dict[str, Any], sources: Mapping[str, str]) -> Chip:
    kind, axes = table.pop("kind", None), table.pop("axes", 1)
    if kind not in ("torus", "switch") or axes not in (1, 2, 3):
        raise ValueError(
            f"{where}: kind is {kind!r}, axes {axes!r}; it must be a 'torus' of 1 to 3 axes or a "
            "'switch'"
        )
    if unknown := table.keys() - NUMBERS.keys():
        raise ValueError(f"{where}: {sorted(unknown)}; what a chip has is {tuple(NUMBERS)}")
    numbers: dict[str, Number] = {}
    for key in NUMBERS:
        given = table.get(
            key, [OPTIONAL[key], "published", "by default"] if key in OPTIONAL else None
        )
        numbers[key] = _number(f"{where}: {key}", given, sources)
    return Chip(name, kind, axes, numbers)


def _number(where: str, given: Any, sources: Mapping[str, str]) -> Number:
    match given:
        case [int() | float() as value, str() as mark, str() as source] if (
            mark in MARKS and value >= 0
        ):
            return Number(float(value), mark, str(sources.get(source, source)))
        case _:
            raise ValueError(
                f"{where} is {given!r}; it must be [number, mark, source], with a mark of {MARKS}"
            )
