"""Tables and slots under their configurations, read-only."""

import numpy as np
import pytest

from embsim import FeatureConfig, Snapshot, State, TableConfig
from embsim.optimizers import Adam
from embsim.tables import resolve_tables
from embsim.views import by_config, slots_by_config, snapshot_of

ONE, OTHER = TableConfig(2, 1), TableConfig(2, 1)  # equal, but two tables
TABLES = resolve_tables([FeatureConfig(ONE), FeatureConfig(OTHER)], Adam(), trains=True)


def test_identity_decides_which_table_is_meant():
    found = by_config(TABLES, {"table_0": "first", "table_1": "second", "unused": "third"})
    assert (found[ONE], found[OTHER]) == ("first", "second")
    assert list(found) == [ONE, OTHER]
    with pytest.raises(KeyError):
        found[TableConfig(2, 1)]


def test_the_mappings_are_read_only():
    array = np.zeros((2, 1), np.float32)
    slots = {name: {"momenta": array, "velocities": array} for name in ("table_0", "table_1")}
    found = slots_by_config(TABLES, slots)
    for mapping in (by_config(TABLES, {"table_0": array, "table_1": array}), found, found[ONE]):
        with pytest.raises(TypeError, match="does not support item assignment"):
            mapping[ONE] = array
    assert list(found[ONE]) == ["momenta", "velocities"]


def test_a_view_of_slots_does_not_follow_its_source():
    array = np.zeros((2, 1), np.float32)
    source = {"table_0": {"momenta": array}, "table_1": {}}
    slots = slots_by_config(TABLES, source)
    source["table_0"]["momenta"] = array + 1
    assert slots[ONE]["momenta"] is array


def test_a_snapshot_counts_training_steps():
    weights = {
        name: np.full((2, 1), i, np.float32) for i, name in enumerate(("table_0", "table_1"))
    }
    state = State({s.name: s for s in TABLES.specs}, weights, {"table_0": {}, "table_1": {}}, 5)
    snapshot = snapshot_of(TABLES, state)
    assert isinstance(snapshot, Snapshot)
    assert snapshot.step == 5
    assert snapshot.embedding_tables[OTHER].tolist() == [[1], [1]]
    assert dict(snapshot.slot_variables[ONE]) == {}
    with pytest.raises(AttributeError):
        snapshot.step = 6
