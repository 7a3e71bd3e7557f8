"""Programs compiled for a TPU that is not there, and what they do with memory.

    devices = target("v5e", 4)                       a Mesh; needs libtpu, no TPU
    report = compile_for(step, *shapes_of(arguments, NamedSharding(devices, ...)), large=2**20)
    assert not report.copies and report.alias_bytes >= ...

The compiler is the one that a TPU would run, so its memory, layouts and copies are the real ones.
That a program compiles says nothing of its results.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from math import prod
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from embsim.errors import BackendError

# One host of each TPU generation, as libtpu names it.
TARGETS = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "7x": "tpu7x:2x2x1",
}

# Read when libtpu is loaded, once. The first lets several processes load it; without the others it
# asks a server for the machine that it is on.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


def missing() -> str | None:
    """Why nothing can be compiled for a TPU here; None if it can."""
    if find_spec("libtpu") is None:
        return f'libtpu, the compiler, is not installed; pip install "jax[tpu]=={jax.__version__}"'
    return None


def target(name: str, devices: int = 1) -> Mesh:
    """The first `devices` of one host of a generation in TARGETS, in one row with the axis "x".

    Where `os.environ` lacks what is in ENVIRONMENT it is set.

    Raises:
      ValueError: another name, or more devices than the host has.
      BackendError: libtpu is not installed.
    """
    if name not in TARGETS:
        raise ValueError(f"target {name!r}: it must be one of {tuple(TARGETS)}")
    why = missing()
    if why is not None:
        raise BackendError(f"target {name!r}: {why}")
    found = _devices(name)
    if not 1 <= devices <= len(found):
        raise ValueError(
            f"target {name!r}: {devices} devices; its host, {TARGETS[name]}, has {len(found)}"
        )
    return Mesh(np.array(found[:devices]), ("x",))


@cache
def _devices(name: str) -> list[Any]:
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    return list(topologies.get_topology_desc(platform="tpu", topology_name=TARGETS[name]).devices)


def shapes_of(tree: Any, sharding: Any) -> Any:
    """A pytree of arrays as shapes only, sharded so."""

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)

    return jax.tree.map(shape, tree)


@dataclass(frozen=True)
class Report:
    """What a compiled program does on each device.

    Args:
      argument_bytes: of its arguments, as they are laid out there.
      alias_bytes: of donated arguments whose memory the results take over.
      temp_bytes: that it needs besides arguments and results.
      copies: instructions that make a large array other than by changing rows of one in place.
      prefetches: those that only move a large array into on-chip memory or back.
      outside: those that reach beyond the devices: callbacks to the host, transfers from and to it.
      text: the optimized program, as HLO.
    """

    argument_bytes: int
    alias_bytes: int
    temp_bytes: int
    copies: tuple[str, ...]
    prefetches: tuple[str, ...]
    outside: tuple[str, ...]
    text: str


def compile_for(
    function: Any, *arguments: Any, large: int, donate: Any = (), **static: Any
) -> Report:
    """Compile for the devices of the arguments' shardings.

    Args:
      function: to be jitted, with `donate` as its donate_argnums; or already jitted.
      arguments: arrays, or jax.ShapeDtypeStructs with shardings.
      large: the bytes from which on an array is reported, as one device holds it, without padding.
      static: the static arguments of a jitted function, by name.
    """
    jitted = function if hasattr(function, "lower") else jax.jit(function, donate_argnums=donate)
    compiled = jitted.lower(*arguments, **static).compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None, "a compiler that tells nothing of its programs"
    found = Instructions(text)
    return Report(
        memory.argument_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        *found.large(large),
        found.outside(),
        text,
    )


# Instructions that make no array; what those of the second line call is looked at by itself.
PASSING = re.compile(
    "parameter|tuple|get-tuple-element|bitcast|opt-barrier|.*-done|.*-update"
    "|while|conditional|call|call-start|async-start"
)
IN_PLACE = {"scatter", "dynamic-update-slice"}
OUTSIDE = re.compile('infeed|outfeed|send|recv|custom-call.*_target="[^"]*(?i:callback|host)')
ON_CHIP, HOST = "S(1)", "S(5)"  # memory spaces in layouts


@dataclass(frozen=True)
class Instruction:
    """%name = type opcode(operands, attributes; the type may be a tuple of arrays."""

    computation: str
    is_root: bool
    name: str
    type: str
    opcode: str
    rest: str

    @property
    def bytes(self) -> int:
        """Of the largest array that it makes."""
        sizes = [0]
        for bits, shape in re.findall(r"[a-z]+(\d*)\w*\[([\d,]*)\]", self.type):
            sizes.append(int(bits or 8) * prod(int(n) for n in shape.split(",") if n) // 8)
        return max(sizes)

    @property
    def calls(self) -> str | None:
        found = re.search(r"calls=%([\w.-]+)", self.rest)
        return found and found[1]

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.rest.split(")")[0])

    @property
    def line(self) -> str:
        return f"{self.type} {self.opcode}({self.rest}"[:200]


class Instructions:
    """Those of a program in the text that XLA prints."""

    def __init__(self, text: str) -> None:
        self.all = list(_parsed(text))
        self._named = {(each.computation, each.name): each for each in self.all}
        self._roots = {each.computation: each for each in self.all if each.is_root}
        # What stands inside a fusion makes no array in memory.
        self._fused = {each.calls for each in self.all if each.opcode == "fusion"}

    def large(self, bytes: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Copies and prefetches of arrays of so many bytes or more."""
        copies: list[str] = []
        prefetches: list[str] = []
        for each in self.all:
            if each.computation in self._fused or each.bytes < bytes:
                continue
            if not PASSING.fullmatch(each.opcode) and not self._in_place(each):
                moves = re.search("^copy|^slice|ConcatBitcast", f"{each.opcode} {each.rest}")
                (prefetches if moves and ON_CHIP in each.type else copies).append(each.line)
        return tuple(copies), tuple(prefetches)

    def outside(self) -> tuple[str, ...]:
        return tuple(
            each.line
            for each in self.all
            if OUTSIDE.match(f"{each.opcode}({each.rest}") or HOST in each.type
        )

    def _in_place(self, each: Instruction) -> bool:
        """Whether it changes a part of its first operand; in a fusion, of one of the fusion's."""
        if each.opcode == "fusion":
            return self._in_place(self._roots[each.calls or ""])
        if "output_to_operand_aliasing=" in each.rest:
            return True
        if each.computation not in self._fused:
            return each.opcode in IN_PLACE
        of = [self._named[each.computation, name] for name in each.operands]
        if each.opcode in IN_PLACE | {"bitcast"}:
            return of[0].opcode == "parameter" or self._in_place(of[0])
        return each.opcode == "tuple" and all(map(self._in_place, of))


def _parsed(text: str) -> Iterator[Instruction]:
    computation = ""
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%([\w.-]+) \(.*\{$", line):
            computation = header[1]
        elif found := re.match(r"\s+(ROOT )?%([\w.-]+) = (.+?) ([a-z][\w-]*)\((.*)", line):
            yield Instruction(computation, found[1] is not None, *found.groups()[1:])
