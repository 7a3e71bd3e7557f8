"""JaxBackend: tables on a device or a mesh, every call one compiled program per table."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import embsim.state as host
from embsim import Parity
from embsim.errors import BackendError
from embsim.optimizers import accumulates_gradients
from embsim.plan import LookupPlan as HostPlan
from embsim.state import Rows, TableSpec

from ._mesh import Shards
from .capacity import Capacities, Capacity, power_of_two
from .kernels import Kernels, choose
from .lookup import lookup
from .placement import Placement
from .plan import LookupPlan, SizesOf, device_plan, even_parts, no_chunks
from .rule import Rule
from .state import State, get_state, put_state
from .update import update

# Under these XLA on CPU rounds every operation as it is written: docs/semantics.md, section 8.
BITWISE_FLAGS = ("--xla_cpu_max_isa=AVX", "--xla_disable_hlo_passes=algsimp")


@dataclass(frozen=True, eq=False)
class Held:
    """What put_state returns: the arrays and what is fixed of them."""

    specs: Mapping[str, TableSpec]
    state: State
    kernels: Mapping[str, Kernels]
    version: int


@dataclass(frozen=True)
class Report:
    """What static shapes have cost so far.

    Args:
      capacities: by table, what "auto" has come to.
      growths: how often "auto" raised one of them.
      programs: compiled programs, of lookups, updates and reads of rows together.
    """

    capacities: Mapping[str, Capacity]
    growths: int
    programs: int


class JaxBackend:
    """The six functions of embsim.Backend on JAX devices, held to the reference.

    Args:
      mesh: tables are split by row (mod) and samples evenly over all of its devices; None is the
        default device.
      capacity: static sizes of plans by table: "auto" learns them; see `embsim_tpu.Capacity`.
      kernels: what does the arithmetic, one of `kernels.NAMES`; see docs/hardware.md.

    Raises:
      ValueError: an argument of none of these forms.

    Activations and gradients are NumPy arrays, as everywhere under TPUEmbedding; where the devices
    belong to several processes, all make the same calls with the same whole batches. To train a
    model in JAX and keep them on the devices: `embsim_tpu.Embedding`, `embsim_tpu.pipeline.train`.
    """

    def __init__(
        self,
        mesh: Mesh | None = None,
        capacity: str | Capacity | Mapping[str, Capacity] = "auto",
        kernels: str = "auto",
    ) -> None:
        self.shards = Shards(mesh)
        choose(kernels, self.shards.platform)  # or it is refused
        self._kernels = kernels
        # Plans are made for those of their tables, which put_state tells: by name and rows.
        self._of_table: dict[tuple[str, int], Kernels] = {}
        self._bfloat16: set[str] = set()  # tables that are held so, which `hold` tells
        self._capacities = Capacities(capacity)
        self._programs: set[Any] = set()

    @property
    def parity(self) -> Parity:
        """What the conformance kit holds this backend to, on its platform."""
        flags = os.environ.get("XLA_FLAGS", "")
        cpu = self.shards.platform == "cpu"
        return Parity(
            bitwise=cpu and self.shards.size == 1 and all(flag in flags for flag in BITWISE_FLAGS),
            ulps=0.5 if cpu else 4.0,
            subnormals=False,
            bounded=("RowwiseAdagrad", "power"),  # a sum of the machine's order; float32
            refuses={
                "use_gradient_accumulation=False": "a device sums duplicates before the rule; "
                "one after the other they would be a loop over ids"
            },
        )

    @property
    def report(self) -> Report:
        capacities = self._capacities
        return Report(capacities.learned, capacities.growths, len(self._programs))

    def put_state(self, state: host.State) -> Held:
        for spec in state.specs.values():
            if spec.optimizer is not None and not accumulates_gradients(spec.optimizer):
                why = self.parity.refuses["use_gradient_accumulation=False"]
                raise BackendError(
                    f"put_state: table {spec.name!r}: {type(spec.optimizer).__name__} has "
                    f"use_gradient_accumulation=False; backend 'jax' refuses it: {why}; use "
                    "backend='reference', or leave the option out"
                )
        kernels = {
            name: choose(
                self._kernels,
                self.shards.platform,
                spec.dim,
                spec.optimizer,
                self.shards.kind,
                name in self._bfloat16,
            )
            for name, spec in state.specs.items()
        }
        made = put_state(state, self.shards, kernels)
        return self.hold(Held(state.specs, made, kernels, state.version))

    def hold(self, held: Held) -> Held:
        """Tables that are on the devices already: plans of them can be made from now on, and their
        rows are held as they are."""
        for name, spec in held.specs.items():
            self._of_table[name, spec.vocabulary_size] = held.kernels[name]
        self._bfloat16 |= {name for name, each in held.kernels.items() if each.bfloat16}
        return held

    def get_state(self, held: Held) -> host.State:
        return get_state(held.state, held.specs, self.shards, held.kernels, held.version)

    def read_rows(self, held: Held, table: str, rows: np.ndarray) -> Rows:
        placement = Placement(held.specs[table].vocabulary_size, self.shards.size)
        wanted = np.zeros(power_of_two(len(rows)), np.int32)
        wanted[: len(rows)] = placement.physical_row(rows)
        arrays = (held.state.weights[table], dict(held.state.slots[table]))
        program = _read_program(self.shards, held.kernels[table], placement.local_rows)
        self._count("read_rows", arrays, wanted)
        weights, slots = program(*arrays, self.shards.put_replicated(wanted))
        found = {name: _host_rows(array, len(rows)) for name, array in slots.items()}
        return Rows(_host_rows(weights, len(rows)), found)

    def put_plan(self, plans: Mapping[str, HostPlan]) -> dict[str, tuple[int, LookupPlan]]:
        """By table: samples, and the plan on the devices."""
        return {
            name: (
                plan.samples,
                device_plan(
                    plan,
                    even_parts(plan.samples, self.shards.size),
                    self._capacities,
                    self.shards,
                    self._sizes(plan),
                ),
            )
            for name, plan in plans.items()
        }

    def _sizes(self, plan: HostPlan) -> SizesOf:
        kernels = self._of_table.get((plan.table, plan.num_rows))
        return no_chunks if kernels is None else kernels.sizes

    def lookup(
        self, held: Held, plan: Mapping[str, tuple[int, LookupPlan]]
    ) -> dict[str, np.ndarray]:
        found: dict[str, jax.Array] = {}
        for name, (_, table_plan) in plan.items():
            program = _lookup_program(
                self.shards, held.kernels[name], held.specs[name].quantization
            )
            arguments = held.state.weights[name], table_plan
            self._count("lookup", held.specs[name].quantization, arguments)
            found[name] = program(*arguments)
        # All are under way before the first is waited for.
        return {
            name: self.shards.whole(found[name])[:samples] for name, (samples, _) in plan.items()
        }

    def update(
        self,
        held: Held,
        plan: Mapping[str, tuple[int, LookupPlan]],
        gradients: Mapping[str, np.ndarray],
        coefficients: Mapping[str, Mapping[str, np.float32]],
    ) -> Held:
        weights, slots = dict(held.state.weights), dict(held.state.slots)
        for name, (samples, table_plan) in plan.items():
            optimizer = held.specs[name].optimizer
            assert optimizer is not None, "a table without optimizer is only looked up"
            rule = Rule.of(optimizer, tuple(coefficients[name]))
            program = _update_program(self.shards, held.kernels[name], rule)
            values = np.array(list(coefficients[name].values()), np.float32)
            each = max(1, table_plan.samples)  # padding has to come from somewhere
            given = np.zeros((self.shards.size * each, held.specs[name].dim), np.float32)
            given[:samples] = gradients[name]
            arguments = (weights[name], dict(slots[name]), table_plan, given, values)
            self._count("update", rule, arguments)
            put = self.shards.put(given), self.shards.put_replicated(values)
            weights[name], slots[name] = program(*arguments[:3], *put)
        return Held(held.specs, State(weights, slots), held.kernels, held.version + 1)

    def _count(self, *what: Any) -> None:
        leaves, structure = jax.tree.flatten(what)
        shapes = tuple(leaf.shape if hasattr(leaf, "shape") else leaf for leaf in leaves)
        self._programs.add((structure, shapes))


@cache
def _lookup_program(shards: Shards, kernels: Any, quantization: Any) -> Any:
    function = partial(lookup, quantization=quantization, axes=shards.axes, kernels=kernels)

    def program(table: Any, plan: Any) -> Any:
        with jax.named_scope("embsim.lookup"):
            return shards.local(function)(table, plan)

    return jax.jit(program)


@cache
def _update_program(shards: Shards, kernels: Any, rule: Rule) -> Any:
    def function(table: Any, slots: Any, plan: Any, gradients: Any, values: Any) -> Any:
        return update(
            table,
            slots,
            plan,
            gradients,
            rule.optimizer,
            {name: values[i] for i, name in enumerate(rule.coefficients)},
            axes=shards.axes,
            kernels=kernels,
        )

    def program(*arguments: Any) -> Any:
        with jax.named_scope("embsim.update"):
            return shards.local(function, replicated=(4,))(*arguments)

    return jax.jit(program, donate_argnums=(0, 1))


@cache
def _read_program(shards: Shards, kernels: Kernels, shard_rows: int) -> Any:
    def program(table: Any, slots: Any, rows: Any) -> Any:
        return kernels.bits(table, slots, rows, shard_rows)

    return jax.jit(program, out_shardings=shards.replicated)


def _host_rows(array: jax.Array, rows: int) -> np.ndarray:
    return np.array(np.asarray(array)[:rows])
