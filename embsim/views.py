"""Arrays by table name -> what users see: read-only mappings keyed by TableConfig."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from .config import TableConfig
from .state import State
from .tables import Tables as Resolved

Tables = Mapping[TableConfig, np.ndarray]
Slots = Mapping[TableConfig, Mapping[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Tables and slots after `step` training steps, in memory of their own."""

    step: int
    embedding_tables: Tables
    slot_variables: Slots


def snapshot_of(tables: Resolved, state: State) -> Snapshot:
    return Snapshot(
        state.version, by_config(tables, state.weights), slots_by_config(tables, state.slots)
    )


def by_config(tables: Resolved, by_name: Mapping[str, Any]) -> Mapping[TableConfig, Any]:
    """The same values under the tables' configurations."""
    pairs = zip(tables.configs, tables.specs, strict=True)
    return MappingProxyType({config: by_name[spec.name] for config, spec in pairs})


def slots_by_config(tables: Resolved, slots: Mapping[str, Mapping[str, np.ndarray]]) -> Slots:
    """{TableConfig: {slot name: array}}."""
    frozen = {name: MappingProxyType(dict(each)) for name, each in slots.items()}
    return by_config(tables, frozen)
