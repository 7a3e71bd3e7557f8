"""Checks of what embsim does for every backend: a wrong backend cannot break them, so that each
finds a fault that is planted in embsim itself.
"""

from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import pytest

import embsim._saved
import embsim.batch
import embsim.border
import embsim.engine
import embsim.gradients
import embsim.state
from embsim.conformance import all_checks, subject_of
from embsim.conformance.check import BoundCheck

CHECKS = {check.name: check for check in all_checks()}
PLANTED = {}


def planted(check):
    """A function of pytest's monkeypatch, which plants the fault that `check` must find."""

    def register(plant):
        assert check not in PLANTED, check
        PLANTED[check] = plant
        return plant

    return register


@planted("check_inputs_of_a_wrong_kind_change_nothing")
def ids_that_are_floats_are_cast(patch):
    real = embsim.batch._checked_ids

    def checked(values, spec, place):
        return real(values.astype(np.int64) if values.dtype.kind == "f" else values, spec, place)

    patch.setattr(embsim.batch, "_checked_ids", checked)


@planted("check_a_batch_that_cannot_be_looked_up_changes_nothing")
def an_id_beyond_the_table_is_taken_modulo_its_rows(patch):
    real = embsim.batch._checked_ids

    def checked(values, spec, place):
        if values.dtype.kind in "iu":
            values = values.astype(np.int64) % spec.config.table.vocabulary_size
        return real(values, spec, place)

    patch.setattr(embsim.batch, "_checked_ids", checked)


@planted("check_an_output_shape_of_more_rows_makes_sequences_of_the_bags")
def only_the_first_position_of_a_sequence_is_kept(patch):
    real = embsim.batch.positions

    def positions(values, splits, length):
        lengths = np.diff(splits)
        first = splits[:-1][lengths > 0]
        return real(values[first], np.cumsum([0, *np.minimum(lengths, 1)]), length)

    patch.setattr(embsim.batch, "positions", positions)


def _change_gradients(patch, change):
    """`change` is applied to every gradient before it is checked and cast."""
    real = embsim.gradients.as_gradient

    def as_gradient(value, name, shape=None):
        return real(change(value), name, shape)

    for module in (embsim.gradients, embsim.border):
        patch.setattr(module, "as_gradient", as_gradient)


@planted("check_weights_and_gradients_are_cast_to_float32_once")
def gradients_are_cast_by_way_of_float16(patch):
    def halved(value):
        with np.errstate(over="ignore"):
            return np.asarray(value).astype(np.float16)

    _change_gradients(patch, halved)


@planted("check_gradients_of_another_kind_change_nothing")
def gradients_of_integers_are_cast(patch):
    def cast(value):
        integers = isinstance(value, np.ndarray) and value.dtype.kind == "i"
        return value.astype(np.float32) if integers else value

    _change_gradients(patch, cast)


@planted("check_a_closed_embedding_refuses_every_call")
def a_closed_engine_answers(patch):
    patch.setattr(embsim.engine.Engine, "_check_open", lambda self, name, between_runs=False: None)


@planted("check_a_restored_run_may_have_another_number_of_replicas")
def gradients_in_flight_are_restored_for_the_last_replica_alone(patch):
    real = embsim._saved._load_update

    def load_update(*arguments):
        update = real(*arguments)
        for array in update.gradients.values():
            array[: len(array) // 2] = 0
        return update

    patch.setattr(embsim._saved, "_load_update", load_update)


@planted("check_a_save_that_drains_leaves_nothing_in_flight")
def a_save_that_drains_forgets_what_is_in_flight(patch):
    real = embsim.engine.Engine.saving

    @contextmanager
    def saving(self, drain=False):
        with real(self) as (arrays, meta):
            if drain:
                kept = {k: a for k, a in arrays.items() if k.split("/")[0] in ("weights", "slots")}
                tables = [table | {"patched": False} for table in meta["tables"]]
                arrays, meta = kept, meta | {"pending_steps": [], "tables": tables}
            yield arrays, meta
        if drain:
            self.drain()

    patch.setattr(embsim.engine.Engine, "saving", saving)


@planted("check_another_schedule_goes_on_as_after_a_drain")
def another_schedule_goes_on_with_the_old_start(patch):
    real = embsim.engine.load_state

    def load_state(arrays, meta, specs, schedule):
        return real(arrays, {**meta, "schedule": asdict(schedule)}, specs, schedule)

    patch.setattr(embsim.engine, "load_state", load_state)


@planted("check_slots_of_a_users_choice_are_what_its_function_returned")
def slot_variable_creation_fn_is_ignored(patch):
    patch.setattr(embsim.state, "_fill_from_user", lambda spec, table, slots, creation: None)


@pytest.mark.parametrize("check", PLANTED, ids=lambda check: PLANTED[check].__name__)
def test_a_planted_fault_is_found_by_its_check(check, monkeypatch):
    bound = BoundCheck(CHECKS[check], subject_of("reference"), shrink=False)
    PLANTED[check](monkeypatch)
    result = bound.result()
    assert result.verdict == "failed", f"{result.verdict}: {result.error!r}"
    assert len(str(result.error)) > 40, "a failure must say what was seen"
