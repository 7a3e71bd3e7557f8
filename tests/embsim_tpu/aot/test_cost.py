"""Costs per row, of made-up functions and of small kernels that are really compiled."""

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from embsim_tpu import aot
from embsim_tpu.aot.bundles import KINDS, Function, Loop
from embsim_tpu.aot.cost import (
    Case,
    Cost,
    Executed,
    Kernel,
    UnknownError,
    _environment,
    _kernel,
    _per_row,
    measure,
    registered,
)

needs_libtpu = pytest.mark.skipif(aot.missing() is not None, reason=str(aot.missing()))


def kinds(**counts):
    return dict.fromkeys(KINDS, 0) | counts


def loop(start, end, own, turns, depth=1, inner=0, optional=True, **counts):
    size = end - start + 1
    return Loop(start, end, depth, size, own, inner, turns, optional, kinds(**counts))


# A chunk of 64 rows: 8 turns of 8 rows that are read, 4 turns of 16 rows, 12 bundles besides.
READ = loop(4, 23, 20, 8, depth=2, reads=8)
SUM = loop(30, 61, 32, 4, depth=2, vst=16)
KERNEL = Function(80, 16, (loop(2, 65, 12, 10, inner=2), READ, SUM), kinds())
DECLARED = Kernel("lookup", (8, 16), 64)


def case(**changes):
    return Case("case", "xla", lambda rows, mesh: None, 1, rows=640, **changes)


def per_row(case, function=KERNEL, sparsecore=False, cores=1):
    return _per_row(case, [("lookup.1", function, 1)], sparsecore, cores)


def test_what_is_executed_is_what_stands_in_loops_times_their_turns():
    found = Executed.of([(KERNEL, 3)])
    assert found.bundles == 3 * (16 + 10 * (12 + 8 * 20 + 4 * 32))
    assert (found.uncertain, found.unbounded) == (0, False)
    assert found.counts == Counter(kinds(reads=3 * 640, vst=3 * 640))


def test_what_a_program_executes_is_divided_by_its_rows():
    assert per_row(case()) == {"bundles": 16 / 640 + (12 + 8 * 20 + 4 * 32) / 64, "at_least": False}


def test_declared_rows_tell_the_chunk_apart():
    found = per_row(case(kernel=DECLARED))
    assert found == {"bundles": 20 / 8 + 32 / 16, "chunk": 12 / 64, "at_least": False}


def test_what_stands_around_a_kernel_belongs_to_its_chunks():
    calls = [("lookup.1", KERNEL, 1), ("slice", Function(640, 640, (), kinds()), 1)]
    assert _per_row(case(kernel=DECLARED), calls, False, 1)["chunk"] == 12 / 64 + 1


def test_loops_that_turn_we_know_not_how_often_make_it_a_lower_bound():
    found = per_row(
        case(), replace(KERNEL, loops=(KERNEL.loops[0], READ, replace(SUM, turns=None)))
    )
    assert found == {"bundles": 16 / 640 + (12 + 8 * 20 + 32) / 64, "at_least": True}


def test_a_loop_of_unknown_length_that_is_always_entered_makes_it_unknown():
    alone = loop(70, 75, 6, None, optional=False)
    with pytest.raises(UnknownError, match="how often"):
        per_row(case(), replace(KERNEL, loops=(*KERNEL.loops, alone)))


def test_fewer_reads_than_rows_mean_that_a_loop_was_missed():
    with pytest.raises(UnknownError, match=r"read 1\.00 times, and must be 2"):
        per_row(case(reads=2))
    with pytest.raises(UnknownError, match=r"read 1\.00 times, and must be 2"):
        per_row(case(reads=2, kernel=DECLARED))
    assert per_row(case(reads=2), cores=2) == per_row(case())
    assert per_row(case(reads=2), sparsecore=True) == per_row(case())


def test_a_call_in_a_loop_of_unknown_length_makes_it_unknown():
    with pytest.raises(UnknownError, match=r"lookup\.1 stands in a loop"):
        _per_row(case(), [("lookup.1", KERNEL, None)], False, 1)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (Kernel("update", (8, 16), 64), "0 kernels are called 'update'"),
        (Kernel("lookup", (8,), 64), "2 innermost loops, of 20, 32 bundles.* rows of 1"),
        (Kernel("lookup", (8, 8), 64), "a loop of 32 bundles turns 4 times; with 8 rows"),
        (Kernel("lookup", (8, 16), 128), "a loop of 20 bundles turns 8 times.* no chunk of 128"),
    ],
    ids=["name", "loops", "rows", "chunk"],
)
def test_a_declaration_that_does_not_fit_the_kernel_is_told(kernel, message):
    with pytest.raises(UnknownError, match=message):
        _kernel(kernel, [("lookup.1", KERNEL, 1)], 1)


def test_a_loop_for_what_is_left_of_a_short_chunk_is_left_out():
    rest = loop(62, 64, 3, None, depth=2)
    kernel = replace(KERNEL, loops=(*KERNEL.loops, rest))
    found = _kernel(Kernel("lookup", (8, 16, 0), 64), [("lookup.1", kernel, 1)], 1)
    assert (found.bundles, found.chunk) == (4.5, 12 / 64)


@pytest.mark.parametrize(
    ("cost", "text"),
    [
        (Cost(5.25), "5.2"),
        (Cost(8.71, 0.52), "8.7 + 0.5"),
        (Cost(11.2, at_least=True), "≥ 11.2"),
        (Cost(0.49, sparsecore=True), "SC"),
        (Cost(14.4, sparsecore=True, at_least=True), "≥ 14.4 + SC"),
        (Cost(50.3, copies=4), "50.3*"),
        (Cost(unknown="why"), "?"),
        (Cost(refused="why"), "–"),
    ],
    ids=str,
)
def test_a_cost_as_text(cost, text):
    assert str(cost) == text


def test_a_cost_goes_through_json():
    made = Cost(5.25, loops=({"function": "take", "turns": None},))
    assert Cost(**json.loads(json.dumps(vars(made)))) == replace(made, loops=list(made.loops))


def test_the_process_that_compiles_has_its_own_flags(monkeypatch, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/cache")
    found = _environment(tmp_path)
    assert not {"XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"} & set(found)
    assert str(tmp_path) in found["LIBTPU_INIT_ARGS"] and found["JAX_PLATFORMS"] == "cpu"


def test_cases_are_found_by_name():
    assert registered("embsim_tpu.aot.cases:CASES")["take-128-xla"].kind == "xla"
    for name in ("embsim_tpu.aot.cases:NONE", "embsim_tpu.none:CASES", "cases"):
        with pytest.raises(ValueError, match=r"name them package\.module:LIST"):
            registered(name)


# --- kernels that are compiled


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return measured


@cache
def measured(name):
    return measure(name, "v5e", "samples:CASES")


@needs_libtpu
def test_a_kernel_costs_what_the_dump_says_of_its_two_loops(counted):
    found = counted("by 8")
    step, start, double = found.loops
    assert [each["inner"] for each in found.loops] == [2, 0, 0]
    assert (start["turns"], start["counts"]["reads"]) == (32, 8)
    assert (double["turns"], double["counts"]["vst"]) == (32, 8)
    assert found.bundles == (start["own"] + double["own"]) / 8
    assert found.chunk == step["own"] / 256
    assert 3 < found.bundles < 20


@needs_libtpu
def test_longer_turns_cost_less_a_row(counted):
    assert [each["turns"] for each in counted("by 16").loops[1:]] == [16, 16]
    assert counted("by 16").bundles < counted("by 8").bundles


@needs_libtpu
def test_one_more_copy_of_each_row_is_seen(counted):
    assert counted("two copies").loops[1]["counts"]["reads"] == 16
    assert counted("two copies").bundles > counted("by 8").bundles + 2


@needs_libtpu
def test_turns_alone_give_what_the_declaration_gives(counted):
    declared, by_turns = counted("by 8"), counted("by turns")
    # Two turns more than there are chunks start and end the pipeline.
    assert by_turns.bundles == pytest.approx(declared.bundles + declared.chunk, rel=0.05)
    assert by_turns.chunk == 0


@needs_libtpu
def test_a_process_that_ends_leaves_the_cost_unknown(counted):
    assert counted("none").unknown == "the process that compiles it ended: KeyError: 'none'"
