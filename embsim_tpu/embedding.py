"""Embedding: a model's tables as pure functions of a pytree.

    state = embedding.init(seed)                    tables and slots, a pytree
    plan = embedding.plan(features)                 on the host: checked, planned, transferred
    activations = embedding.lookup(state, plan)     pure
    state = embedding.update(state, plan, gradients, coefficients)      pure

The last two are for use inside jax.jit, beside any dense model. Which version of the tables a
lookup reads is the caller's business here; `pipeline.train` does it by a schedule.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from embsim.batch import make_batch
from embsim.border import named_features
from embsim.config import integer
from embsim.errors import BackendError, BatchError
from embsim.nest import flatten_up_to, pack
from embsim.optimizers import accumulates_gradients
from embsim.plan import LookupPlan as HostPlan
from embsim.plan import Output, build_plans
from embsim.rates import Rates
from embsim.state import State as HostState
from embsim.state import initial_state
from embsim.tables import resolve_tables

from ._mesh import Shards
from ._processes import Processes, Turn
from .capacity import Capacities, Capacity
from .functions import Coefficients, Functions, Plan, Table
from .kernels.base import plain
from .placement import Placement
from .plan import Cut, Ranges, cut, put_cut
from .state import State, get_state, put_state

_numbers = count()  # of embeddings, which all processes make in the same order


class Embedding:
    """Tables, optimizers and features, fixed; a static argument of programs.

    Args:
      feature_config: FeatureConfigs in any nesting of dicts, lists and tuples.
      optimizer: of the tables that have none of their own.
      mesh: tables are split by row (mod), samples by the first axis of every feature, over all of
        its devices; None is the default device. Where they belong to several processes, all make
        the same embeddings in the same order.
      capacity: static sizes of plans by table: "auto" learns them; see `embsim_tpu.Capacity`.
      kernels: what does the arithmetic, one of `kernels.NAMES`; see docs/hardware.md.
      table_dtypes: by table "float32", which is the default, or "bfloat16", in which its weights
        are then held; all that comes and goes is float32. See docs/semantics.md section 11.1.

    Raises:
      ValueError: what TPUEmbedding refuses of features, tables and optimizers; a capacity or dtype
        for a table that is not there; another dtype.
      BackendError: an optimizer with use_gradient_accumulation=False; what the kernels do not have.
    """

    def __init__(
        self,
        feature_config: Any,
        optimizer: Any = None,
        *,
        mesh: Mesh | None = None,
        capacity: str | Capacity | Mapping[str, Capacity] = "auto",
        kernels: str = "auto",
        table_dtypes: Mapping[str, Any] | None = None,
    ) -> None:
        configs, self.names = named_features(feature_config)
        self.features = tuple(configs)
        self.feature_config = pack(feature_config, configs)  # containers of its own
        self.tables = resolve_tables(configs, optimizer, trains=True)
        self.specs = {spec.name: spec for spec in self.tables.specs}
        self.shards = Shards(mesh)
        self.capacities = Capacities(capacity)
        self.capacities.check_names(self.specs)
        self.processes = Processes(self.shards.processes, f"embedding {next(_numbers)}")
        bfloat16 = _bfloat16(table_dtypes or {}, self.specs)
        self._rates = Rates(self.tables.specs)
        for spec in self.tables.specs:
            if not accumulates_gradients(spec.optimizer):
                raise BackendError(
                    f"table {spec.name!r}: {type(spec.optimizer).__name__} has "
                    "use_gradient_accumulation=False, which devices do not offer; leave it out, or "
                    "train with embsim.TPUEmbedding"
                )
        made = {
            name: Table.of(spec, kernels, self.shards, name in bfloat16)
            for name, spec in self.specs.items()
        }
        self.kernels = {name: table.kernels for name, table in made.items()}
        self.functions = Functions(
            tuple(made.items()),
            repr(pack(feature_config, list(self.tables.of_feature))),
            self.shards,
            self.feature_config,
        )

    def init(self, seed: int = 0) -> State:
        """Every table from its initializer and every slot from its initial value.

        The same numbers as TPUEmbedding(seed=seed) on any backend and mesh.
        """
        return self.put(initial_state(self.tables.specs, self.tables.configs, seed))

    def put(self, state: HostState) -> State:
        """Host arrays [vocabulary_size, dim] on the devices, rounded where a table is bfloat16.
        They are taken over: do not use them again."""
        return put_state(state, self.shards, self.kernels)

    def get(self, state: State, version: int = 0) -> HostState:
        """The logical rows of all tables and slots, as float32 host arrays; views where there is
        one CPU device and the tables are float32."""
        return get_state(state, self.specs, self.shards, self.kernels, version)

    def plain(self, state: State) -> State:
        """As XLA's kernels hold it, in float32, which checkpoints do: a copy where this embedding's
        do not."""
        return state if self._plain else _programs(self.functions)[2](state, self._local_rows)

    def stored(self, state: State) -> State:
        """The inverse of plain."""
        return state if self._plain else _programs(self.functions)[3](state)

    @property
    def _plain(self) -> bool:
        return all(map(plain, self.kernels.values()))

    @property
    def _local_rows(self) -> tuple[int, ...]:
        size = self.shards.size
        return tuple(Placement(s.vocabulary_size, size).local_rows for s in self.tables.specs)

    def host_plans(
        self, features: Any, weights: Any = None
    ) -> tuple[dict[str, HostPlan], tuple[Output, ...]]:
        """Plans by table as the reference has them, and where each feature's activations stand.

        Raises:
          ValueError, TypeError: a batch that breaks a rule of docs/semantics.md section 2.
        """
        ids = flatten_up_to(self.feature_config, features)
        gains = None
        if weights is not None:
            gains = flatten_up_to(self.feature_config, weights, "weights")
        shapes = [None] * len(ids)
        batch = make_batch(ids, gains, self.features, self.names, shapes, 1)
        sizes, own = {each.output_shape[0] for each in batch.features}, len(self.shards.own)
        if not own:
            raise BackendError(
                f"plan: the mesh has no device of this process, {jax.process_index()}; it has "
                f"devices of {list(self.shards.processes)}: only those can take part"
            )
        if len(sizes) > 1 or min(sizes) % own:
            whose = "the mesh's" if own == self.shards.size else "this process's"
            raise BatchError(
                f"plan: the features have {sorted(sizes)} samples; all must have the same number, "
                f"a multiple of {whose} {own} devices; see embsim.pad_batch"
            )
        rows = [(spec.name, spec.vocabulary_size) for spec in self.tables.specs]
        return build_plans(batch, rows, self.tables.of_feature)

    def plan(self, features: Any, weights: Any = None) -> Plan:
        """Check, plan and transfer one batch: ids, and optionally their weights, in the structure
        of feature_config, in any form that TPUEmbedding.enqueue takes.

        In a run of several processes each passes the samples of its own devices, in the order in
        which the mesh has them, as many for each device as the others, and all plan the same
        batches in the same order, from one thread at a time: they tell each other sizes. An error
        in one of them is raised in all.

        Raises:
          ValueError, TypeError: a batch that breaks a rule of docs/semantics.md section 2.
          CapacityError: a batch beyond the capacities.
          BackendError: in several processes, what has no class in embsim.errors, of another one.
        """
        with self.processes.turn() as turn:
            return self.put_plan(*self.host_plans(features, weights), turn)

    def put_plan(
        self, plans: Mapping[str, HostPlan], outputs: Sequence[Output], turn: Turn | None = None
    ) -> Plan:
        """The device form of host plans; of several processes each has the plans of its samples."""
        devices = len(self.shards.own)
        local = _local_outputs(outputs, devices)
        with turn or self.processes.turn() as turn:
            cuts = {
                name: cut(plan, _parts(name, outputs, devices), self.shards)
                for name, plan in plans.items()
            }
            sizes = self._agreed(cuts, local, turn)
        put = self.shards.put_own
        made = {
            name: put_cut(each, *sizes[name], self.shards, put, self.kernels[name].sizes)
            for name, each in cuts.items()
        }
        return Plan(made, local)

    def _agreed(
        self, cuts: Mapping[str, Cut], outputs: Sequence[Output], turn: Turn
    ) -> dict[str, tuple[Capacity, bool]]:
        """By table what no process needs more of, and whether all have one id each."""
        mine: dict[str, Any] = {}
        for name, each in cuts.items():
            capacity = self.capacities.proposed(name, each.need)
            mine[name] = capacity.positions, capacity.rows, each.one_id_each
        turn.same.append(f"features {[each.shape for each in outputs]}")
        said = turn.agree(mine)
        agreed: dict[str, tuple[Capacity, bool]] = {}
        for name in cuts:
            positions, rows, one_id_each = zip(*(theirs[name] for theirs in said), strict=True)
            capacity = Capacity(max(positions), max(rows))
            self.capacities.learn(name, capacity)
            agreed[name] = capacity, all(one_id_each)
        return agreed

    def coefficients(self, step: int) -> dict[str, dict[str, np.float32]]:
        """All numbers of the update of training step `step`, by table: an argument of `update`."""
        return self._rates.at(integer("coefficients: step", step, minimum=0))

    def lookup(self, state: State, plan: Plan) -> Any:
        """Activations in the structure of feature_config, float32 [*shape, dim]: G @ Q(W) of every
        feature. Pure; on a mesh each device computes those of its samples."""
        return _programs(self.functions)[0](state, plan)

    def update(self, state: State, plan: Plan, gradients: Any, coefficients: Coefficients) -> State:
        """Tables and slots after one step's update. Pure; donate `state`, or tables are copied.

        Args:
          gradients: d loss / d activations in the structure of feature_config; None is zeros.
          coefficients: what `coefficients(step)` returned.
        """
        return _programs(self.functions)[1](state, plan, gradients, coefficients)


@lru_cache(maxsize=64)
def _programs(functions: Functions) -> tuple[Callable[..., Any], ...]:
    """Lookup and update, compiled as a whole where no jax.jit of the caller is around them; plain
    and stored."""
    return (
        jax.jit(functions.lookup),
        jax.jit(functions.update),
        jax.jit(functions.plain, static_argnums=1),
        jax.jit(functions.stored),
    )


def _bfloat16(dtypes: Mapping[str, Any], tables: Collection[str]) -> set[str]:
    """The tables that shall be held so."""
    unknown = sorted(set(dtypes) - set(tables))
    if unknown:
        raise ValueError(f"table_dtypes names the tables {unknown}; there are {sorted(tables)}")
    names = {name: _dtype_name(dtype) for name, dtype in dtypes.items()}
    for name, dtype in names.items():
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f"table_dtypes: table {name!r} has {dtypes[name]!r}; it must be 'float32' or "
                "'bfloat16'"
            )
    return {name for name, dtype in names.items() if dtype == "bfloat16"}


def _dtype_name(dtype: Any) -> str | None:
    try:
        return None if dtype is None else jnp.dtype(dtype).name
    except TypeError:
        return None


def _parts(name: str, outputs: Sequence[Output], shards: int) -> list[Ranges]:
    """Of a table's samples those of each device: an equal part of every feature."""
    members = [each for each in outputs if each.table == name]
    steps = [(each.hi - each.lo) // shards for each in members]
    return [
        [(each.lo + p * n, each.lo + (p + 1) * n) for each, n in zip(members, steps, strict=True)]
        for p in range(shards)
    ]


def _local_outputs(outputs: Sequence[Output], shards: int) -> tuple[Output, ...]:
    return tuple(
        Output(
            each.table,
            each.lo // shards,
            each.hi // shards,
            (each.shape[0] // shards, *each.shape[1:]),
        )
        for each in outputs
    )
