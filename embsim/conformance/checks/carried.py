"""Checkpoints carried over: to another backend, number of replicas, schedule, rate or reader.

Over embsim's API, from memory to memory: the files are those of embsim, whatever the backend.
"""

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...config import FeatureConfig, TableConfig
from ...initializers import truncated_normal
from ...optimizers import SGD, Adagrad
from ...strategy import TPUStrategy
from ...tpu_embedding import TPUEmbedding
from ..adapter import Capabilities
from ..check import Draw, check
from ..difference import Difference, compare
from ..program import Setup
from ..subject import Subject, subject_of
from ._visible import (
    Pair,
    Steps,
    pipelines,
    side_by_side,
    stale_schedules,
    visible_setups,
    visible_steps,
)
from .checkpoints import rules


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds, in memory of its own; the meta went through JSON."""

    arrays: dict[str, np.ndarray]
    meta: Any


def _saved(embedding: Any, drain: bool = False) -> Saved:
    with embedding.saving(drain) as (arrays, meta):
        return Saved(
            {name: np.array(array) for name, array in arrays.items()}, json.loads(json.dumps(meta))
        )


@contextmanager
def _restored(
    old: Pair, subject: Subject, setup: Setup, note: str, saved: Saved | None = None
) -> Generator[Pair]:
    """A new engine with what `old` saves, beside the law at the point where `old` is."""
    taken = _saved(old.engine.embedding) if saved is None else saved
    with side_by_side(subject, setup) as new:
        new.notes.append(f"restored before the first call from a run of {old.law.steps} steps")
        new.notes.append(note)
        new.engine.embedding.prepare_restore(taken.arrays, taken.meta)()
        new.law.start, new.law.steps = old.law.start, old.law.steps
        new.law.versions = [_by_name(version, setup) for version in old.law.versions]
        yield new


def _by_name(version: Any, setup: Setup) -> Any:
    """A version of the law, for other TableConfigs of the same names."""
    named = {config.name: arrays for config, arrays in version.items()}
    return {config: named[name] for name, config in setup.tables.items()}


def _setup(subject: Subject, draw: Draw) -> Setup:
    can = subject.capabilities
    made = visible_setups(can, schedule=stale_schedules(can), rules=rules(can))
    return draw(made, "setup")


def _before_and_after(draw: Draw, setup: Setup) -> tuple[Steps, Steps]:
    before = draw(visible_steps(setup, 1, 4), "before the save")
    return before, draw(visible_steps(setup, 3, 5, first=len(before)), "after the restore")


def _several_counts(can: Capabilities) -> bool:
    return pipelines(can) and len(can.replicas) > 1


@check("7.4", "7.2", backend=True, when=_several_counts, effort=0.3)
def check_a_restored_run_may_have_another_number_of_replicas(subject: Subject, draw: Draw) -> None:
    """It goes on bit for bit with one replica or several, updates in flight included."""
    setup = _setup(subject, draw)
    before, after = _before_and_after(draw, setup)
    counts = [n for n in subject.capabilities.replicas if setup.samples % n == 0]
    other = replace(setup, replicas=draw(st.sampled_from(counts), "replicas after the restore"))
    with side_by_side(subject, setup) as old:
        old.do(*before)
        note = f"the checkpoint was written with {setup.replicas} replicas"
        with _restored(old, subject, other, note) as new:
            new.do(*after)


@check("7.4", backend=True, when=pipelines, effort=0.4)
def check_a_checkpoint_moves_between_this_backend_and_the_reference(
    subject: Subject, draw: Draw
) -> None:
    """What the reference wrote this backend goes on with, and the reverse."""
    setup = _setup(subject, draw)
    before, after = _before_and_after(draw, setup)
    both = (subject, subject_of("reference"))
    source, target = draw(st.sampled_from((both, both[::-1])), "from, to")
    with side_by_side(source, setup) as old:
        old.do(*before)
        note = f"the checkpoint was written by {source.name}"
        with _restored(old, target, setup, note) as new:
            new.do(*after)


@check("7.4", backend=True, when=pipelines, effort=0.3)
def check_a_checkpoint_is_the_same_over_every_backend(subject: Subject, draw: Draw) -> None:
    """Names, logical shapes without padding, dtypes, values and counts are the reference's."""
    setup = _setup(subject, draw)
    steps = draw(visible_steps(setup, 1, 5), "steps")
    with side_by_side(subject, setup) as pair, side_by_side(subject_of("reference"), setup) as by:
        pair.do(*steps)
        by.do(*steps)
        found, wanted = _saved(pair.engine.embedding), _saved(by.engine.embedding)
        if sorted(found.arrays) != sorted(wanted.arrays):
            differ = sorted(set(found.arrays) ^ set(wanted.arrays))
            raise Difference(f"the checkpoint's arrays are not the reference's: {differ}")
        for name, array in wanted.arrays.items():
            if array.dtype == np.float32:
                compare(f"the checkpoint's {name!r}", found.arrays[name], array)
            elif not np.array_equal(found.arrays[name], array):
                what = f"the checkpoint's {name!r} is {found.arrays[name]}; it must be {array}"
                raise Difference(what)
        if found.meta != wanted.meta:
            raise Difference(f"the checkpoint's meta is {found.meta}; it must be {wanted.meta}")


@check("7.4", "5.6", backend=True, when=pipelines, effort=0.3)
def check_a_save_that_drains_leaves_nothing_in_flight(subject: Subject, draw: Draw) -> None:
    """save(drain=True) is a drain for the run that goes on and for the one that is restored."""
    setup = _setup(subject, draw)
    before, after = _before_and_after(draw, setup)
    with side_by_side(subject, setup) as old:
        old.do(*before)
        saved = _saved(old.engine.embedding, drain=True)
        old.notes.append(f"after {len(before)} steps it was saved with drain=True")
        old.law.drain()
        left = sorted(name for name in saved.arrays if name.startswith(("pending", "patches")))
        if left:
            raise Difference(f"a checkpoint with drain=True holds nothing in flight; found {left}")
        with _restored(old, subject, setup, "saved with drain=True", saved) as new:
            new.do(*after)
        old.do(*after)


@check("7.4", "10.6", backend=True, when=pipelines, effort=0.4)
def check_a_reader_without_optimizer_gets_the_tables_as_if_drained(
    subject: Subject, draw: Draw
) -> None:
    """Over this backend or the reference: every submitted update is in them, and no slots."""
    setup = _setup(subject, draw)
    names = ("reference", subject.backend)
    backend = draw(st.sampled_from(names), "the reader's backend")
    with side_by_side(subject, setup) as pair:
        pair.do(*draw(visible_steps(setup, 1, 5), "steps"))
        saved = _saved(pair.engine.embedding)
        tables = {name: replace(each, optimizer=None) for name, each in setup.tables.items()}
        features = [FeatureConfig(tables[str(each.table.name)]) for each in setup.features]
        reader = TPUEmbedding(features, None, backend=backend)
        reader.prepare_restore(saved.arrays, saved.meta)()
        read, newest = reader.embedding_tables, _by_name(pair.law.versions[-1], setup)
        for name, config in setup.tables.items():
            found = np.asarray(read[tables[name]])
            compare(f"table {name!r} of a reader", found, newest[config][0], table=name)
        slots = {table.name: sorted(each) for table, each in reader.slot_variables.items() if each}
        if slots:
            raise Difference(f"a reader without optimizer has no slots; found {slots}")


@check("10.5", backend=True, when=lambda can: pipelines(can) and can.schedules is None, effort=0.3)
def check_another_schedule_goes_on_as_after_a_drain(subject: Subject, draw: Draw) -> None:
    """Restored under another schedule, the next lookup sees what was in flight."""
    setup = _setup(subject, draw)
    before, after = _before_and_after(draw, setup)
    other = replace(setup, schedule=draw(stale_schedules(subject.capabilities), "other schedule"))
    with side_by_side(subject, setup) as old:
        old.do(*before)
        with _restored(old, subject, other, f"it was saved under {setup.schedule}") as new:
            if other.schedule != setup.schedule:
                new.law.drain()
            new.do(*after)


@check("10.7", "4.7", backend=True, when=pipelines, effort=0.3)
def check_updates_in_flight_keep_the_rate_that_they_were_saved_with(
    subject: Subject, draw: Draw
) -> None:
    """Restored with another learning rate: later updates have the new one, those in flight not."""
    can = subject.capabilities
    made = visible_setups(can, schedule=stale_schedules(can), rules=st.just(SGD(1.0)))
    setup = draw(made, "setup")
    before, after = _before_and_after(draw, setup)
    other = _with_rule(setup, SGD(0.25))
    with side_by_side(subject, setup) as old:
        old.do(*before)
        with _restored(old, subject, other, "it was saved with SGD(1.0)") as new:
            new.do(*after)


def _with_rule(setup: Setup, rule: Any) -> Setup:
    tables = {name: replace(config, optimizer=rule) for name, config in setup.tables.items()}
    features = [replace(each, table=tables[str(each.table.name)]) for each in setup.features]
    return replace(setup, features=tuple(features))


# --- before the first step


def _built(subject: Subject, table: TableConfig, optimizer: Any, **options: Any) -> TPUEmbedding:
    assert subject.backend is not None
    with TPUStrategy(num_replicas=1).scope():
        made = TPUEmbedding(FeatureConfig(table), optimizer, backend=subject.backend, **options)
    made.build(1)
    return made


@check("7.5", backend=True, effort=0.3)
def check_default_initial_values_depend_on_seed_and_name_alone(
    subject: Subject, draw: Draw
) -> None:
    """Not on the backend, nor on its shards: row by row those of the truncated normal."""
    rows, dim = draw(st.integers(1, 40), "rows"), draw(st.integers(1, 5), "dim")
    seed = draw(st.integers(0, 3), "seed")
    table = TableConfig(rows, dim, name=draw(st.sampled_from(("items", "users")), "name"))
    made = _built(subject, table, SGD(1.0), seed=seed)
    found = np.array(made.embedding_tables[table])
    made.close()
    wanted = truncated_normal().values(seed, str(table.name), 0, rows, dim)
    compare(f"table {table.name!r} of seed {seed} before the first step", found, wanted)


@check("10.31", "7.6", backend=True, needs=("Adagrad",), effort=0.2)
def check_slots_of_a_users_choice_are_what_its_function_returned(
    subject: Subject, draw: Draw
) -> None:
    """The backend takes slot variables as they are given, and makes none of its own."""
    rows, dim = draw(st.integers(1, 9), "rows"), draw(st.integers(1, 4), "dim")
    wanted = 1 + np.arange(rows * dim, dtype=np.float32).reshape(rows, dim)

    def chosen(table: Any, names: Any, initializers: Any) -> dict[str, np.ndarray]:
        return dict.fromkeys(names, wanted)

    table = TableConfig(rows, dim, name="t")
    made = _built(subject, table, Adagrad(0.1, slot_variable_creation_fn=chosen))
    found = np.array(made.slot_variables[table]["accumulators"])
    made.close()
    compare("slot 'accumulators' of the user's choice", found, wanted, slot="accumulators")
