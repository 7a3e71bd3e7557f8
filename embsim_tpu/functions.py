"""Lookup and update of all tables of a step, as pure functions of pytrees."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from embsim.config import QuantizationConfig
from embsim.nest import flatten_up_to, pack
from embsim.optimizers import coefficients, updates_every_row
from embsim.plan import Output
from embsim.state import TableSpec

from ._mesh import Shards
from .kernels import Kernels, choose
from .kernels.base import Stored
from .lookup import lookup, shard_rows
from .plan import LookupPlan
from .rule import Rule
from .state import State
from .update import update

Coefficients = Mapping[str, Mapping[str, Any]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Plan:
    """The plans of one batch on the devices, by table, and where each feature's activations stand
    in those of its table: rows lo .. hi of a device's, in this shape without dim.
    """

    tables: Mapping[str, LookupPlan]
    outputs: tuple[Output, ...] = field(metadata={"static": True})


@dataclass(frozen=True)
class Table:
    """What a program must know of a table."""

    dim: int
    rule: Rule
    quantization: QuantizationConfig | None
    kernels: Kernels

    @staticmethod
    def of(spec: TableSpec, kernels: str, shards: Shards, bfloat16: bool) -> "Table":
        assert spec.optimizer is not None
        rule = Rule.of(spec.optimizer, tuple(coefficients(spec.optimizer, 1.0)))
        on = shards.platform, spec.dim, spec.optimizer, shards.kind, bfloat16
        return Table(spec.dim, rule, spec.quantization, choose(kernels, *on))

    @property
    def every_row(self) -> bool:
        return updates_every_row(self.rule.optimizer)


@dataclass(frozen=True)
class Functions:
    """Equal ones compute the same and share compiled programs: sizes of tables, initial values and
    rates are arguments.

    Args:
      tables: (name, Table) of each.
      structure: of the features, in words; `feature_config` has it.
    """

    tables: tuple[tuple[str, Table], ...]
    structure: str
    shards: Shards
    feature_config: Any = field(compare=False)

    def lookup(self, state: State, plan: Plan) -> Any:
        """Activations in the structure of feature_config, float32 [*shape, dim]."""
        self._check("lookup", state, plan)

        def local(weights: Any, plans: Any) -> tuple[jax.Array, ...]:
            found = {
                name: lookup(
                    weights[name],
                    plans[name],
                    table.quantization,
                    axes=self.shards.axes,
                    kernels=table.kernels,
                )
                for name, table in self.tables
            }
            return tuple(
                found[each.table][each.lo : each.hi].reshape(*each.shape, -1)
                for each in plan.outputs
            )

        with jax.named_scope("embsim.lookup"):
            leaves = self.shards.local(local)(dict(state.weights), dict(plan.tables))
        return pack(self.feature_config, leaves)

    def update(
        self,
        state: State,
        plan: Plan,
        gradients: Any,
        coefficients: Coefficients,
        after: Any = None,
    ) -> State:
        """Tables and slots after one step's update.

        after: what else was looked up in `state` in the same program. Where XLA sees no order in
        that read and this change in place, it copies the tables.
        """
        self._check("update", state, plan)
        self._check_coefficients(coefficients)
        leaves = flatten_up_to(self.feature_config, gradients, "gradients")
        for each, leaf in zip(plan.outputs, leaves, strict=True):
            self._check_gradient(each, leaf)
        earlier = jax.tree.leaves(after)

        def local(arrays: Any, plans: Any, parts: Any, numbers: Any, earlier: Any) -> Any:
            return {
                name: update(
                    weights,
                    slots,
                    _after(plans[name], earlier),
                    _stacked(name, table.dim, plan.outputs, parts),
                    table.rule.optimizer,
                    numbers[name],
                    axes=self.shards.axes,
                    kernels=table.kernels,
                )
                for (name, table), (weights, slots) in zip(
                    self.tables, (arrays[name] for name, _ in self.tables), strict=True
                )
            }

        with jax.named_scope("embsim.update"):
            run = self.shards.local(local, replicated=(3,))
            made = run(_by_table(state), dict(plan.tables), tuple(leaves), coefficients, earlier)
        return _state(made)

    def _check(self, call: str, state: Any, plan: Any) -> None:
        """Of types, names and sizes; ids were checked when they were planned."""
        for what, value, kind, made in (
            ("state", state, State, "init() or restored from a checkpoint"),
            ("plan", plan, Plan, "plan()"),
        ):
            if not isinstance(value, kind):
                raise TypeError(
                    f"{call}: {what} is a {type(value).__name__}; it must be the {kind.__name__} "
                    f"that this Embedding's {made} gave; the order is (state, plan)"
                )
        names = {name for name, _ in self.tables}
        for what, found in (("state", state.weights), ("plan", plan.tables)):
            if set(found) != names:
                raise ValueError(
                    f"{call}: the {what} has the tables {sorted(found)}, this Embedding has "
                    f"{sorted(names)}; use the state and plans of one Embedding"
                )
        for name, table in self.tables:
            plan_of, weights = plan.tables[name], jax.tree.leaves(state.weights[name])[0]
            asked, devices = plan_of.shard_rows, len(plan_of.local_rows)
            if (weights.dtype != jnp.float32) != table.kernels.bfloat16:
                raise ValueError(
                    f"{call}: table {name!r} of the state is held as {weights.dtype}, but its "
                    f"table_dtypes say {'bfloat16' if table.kernels.bfloat16 else 'float32'}; use "
                    "the state and plans of one Embedding"
                )
            has = len(weights) // self.shards.size
            if (table.kernels.length(asked), devices) != (has, self.shards.size):
                raise ValueError(
                    f"{call}: the plan of table {name!r} is for {asked} rows on each of {devices} "
                    f"devices (padding included), the table has {has} on each of "
                    f"{self.shards.size}; use the state and plans of one Embedding"
                )

    def _check_coefficients(self, coefficients: Any) -> None:
        names = {name for name, _ in self.tables}
        if not isinstance(coefficients, Mapping) or set(coefficients) != names:
            found = sorted(coefficients) if isinstance(coefficients, Mapping) else coefficients
            raise TypeError(
                f"update: coefficients is {found!r}; it must be what Embedding.coefficients(step) "
                f"returned, for the tables {sorted(names)}"
            )

    def _check_gradient(self, output: Output, gradient: Any) -> None:
        """Raises ValueError, TypeError: not the shape of the activations, no floats."""
        if gradient is None:
            return
        table, (first, *rest) = dict(self.tables)[output.table], output.shape
        wanted = (first * self.shards.size, *rest, table.dim)
        if not hasattr(gradient, "shape") or not hasattr(gradient, "dtype"):
            raise TypeError(
                f"update: a gradient of table {output.table!r} is a {type(gradient).__name__}; it "
                f"must be an array {wanted}, or None for zeros"
            )
        if gradient.shape != wanted:
            raise ValueError(
                f"update: a gradient of table {output.table!r} is {gradient.shape}; it must have "
                f"the shape of the activations, {wanted}"
            )
        if not jnp.issubdtype(gradient.dtype, jnp.floating):
            raise TypeError(
                f"update: a gradient of table {output.table!r} is {gradient.dtype}, not a float"
            )

    def touched(self, state: State, plan: Plan) -> Any:
        """The rows of tables and slots that an update of this plan changes."""

        def rows(table: Table, stored: Stored, plan: LookupPlan) -> Any:
            if table.every_row:
                return stored
            weights, slots = stored
            return table.kernels.take(weights, slots, self._rows(plan), plan.shard_rows)

        return self._each(rows, state, dict(plan.tables))

    def with_touched(self, state: State, plan: Plan, rows: Any) -> State:
        """`state` with what `touched` returned put back."""

        def put(table: Table, stored: Stored, plan: LookupPlan, old: Any) -> Stored:
            if table.every_row:
                return old
            weights, slots = stored
            return table.kernels.put(weights, slots, self._rows(plan), old, plan.shard_rows)

        return _state(self._each(put, state, dict(plan.tables), rows))

    def plain(self, state: State, local_rows: tuple[int, ...]) -> State:
        """As XLA's kernels hold it; local_rows of each table."""

        def local(arrays: Any) -> Any:
            made: dict[str, Stored] = {}
            for (name, table), rows in zip(self.tables, local_rows, strict=True):
                weights, slots = arrays[name]
                made[name] = table.kernels.join(weights, slots, rows, jnp)
            return made

        return _state(self.shards.local(local)(_by_table(state)))

    def stored(self, state: State) -> State:
        """The inverse."""

        def split(table: Table, stored: Stored) -> Stored:
            weights, slots = stored
            return table.kernels.split(weights, slots, jnp)

        return _state(self._each(split, state))

    def _each(self, function: Callable[..., Any], state: State, *trees: Any) -> Any:
        """`function` on every table, its arrays and what the trees have of it, on each shard."""

        def local(*trees: Any) -> Any:
            return {
                name: function(table, *(tree[name] for tree in trees))
                for name, table in self.tables
            }

        return self.shards.local(local)(_by_table(state), *trees)

    def _rows(self, plan: LookupPlan) -> jax.Array:
        return shard_rows(plan, self.shards.axes)


def _after(plan: LookupPlan, arrays: Sequence[jax.Array]) -> LookupPlan:
    """The same plan, but nothing that depends on its rows can be computed before `arrays`.

    0 is added to the rows, of which XLA cannot know that it is 0: local_rows is not negative. (XLA
    on CPU drops lax.optimization_barrier before it orders anything.)
    """
    zero = jnp.minimum(plan.local_rows[0], 0)
    for array in arrays:
        words = lax.bitcast_convert_type(array, jnp.int32)
        zero &= lax.reduce_xor(words, axes=tuple(range(words.ndim)))
    return replace(plan, asked=plan.asked + zero)


def _stacked(name: str, dim: int, outputs: Sequence[Output], parts: Any) -> jax.Array:
    """The gradients of a table's features one below the other, zeros for None."""
    rows: list[jax.Array] = []
    for each, part in zip(outputs, parts, strict=True):
        if each.table != name:
            continue
        if part is None:
            part = jnp.zeros((*each.shape, dim), jnp.float32)
        rows.append(part.reshape(-1, dim).astype(jnp.float32))
    return jnp.concatenate(rows)


def _by_table(state: State) -> dict[str, tuple[Any, dict[str, Any]]]:
    return {name: (table, dict(state.slots[name])) for name, table in state.weights.items()}


def _state(by_table: Mapping[str, tuple[Any, dict[str, Any]]]) -> State:
    pairs = by_table.items()
    return State({n: table for n, (table, _) in pairs}, {n: slots for n, (_, slots) in pairs})
