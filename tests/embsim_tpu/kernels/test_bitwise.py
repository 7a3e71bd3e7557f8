"""The kernels of TPUs, interpreted, against the reference engine, from plans to tables.

With XLA's default flags results are the reference's to the bit where sums are exact, and within
computed bounds elsewhere. Under the two flags of docs/semantics.md, section 8, in processes of
their own, they are to the bit on any numbers: on one device all, on four where a row's gradients
sum exactly, since each device sums its own.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embsim
from embsim.config import QuantizationConfig
from embsim.optimizers import (
    FTRL,
    SGD,
    Adagrad,
    AdagradMomentum,
    Adam,
    RowwiseAdagrad,
    coefficients,
)
from embsim.reference import ReferenceBackend
from embsim.state import State, TableSpec
from embsim_tpu import Capacity, Embedding, JaxBackend, TrainState
from embsim_tpu.backend import BITWISE_FLAGS
from embsim_tpu.checkpoint import Checkpoints, from_embsim, to_embsim
from tests.embsim.programs import assert_same
from tests.embsim_tpu import test_moved_runs as moved
from tests.embsim_tpu import test_pipeline as pipelined
from tests.embsim_tpu.conftest import EXACT, REAL, Bucket, mesh_of, numbers, steps
from tests.embsim_tpu.test_update import MODEST, UnsortedSlots, check_bounds, label, slots_of
from tests.nightly import IS_NIGHTLY, nightly

ROOT = Path(__file__).parents[3]
KERNELS = ("pallas", "pallas-exact", "sparsecore")
DEVICES = (1, 4)
SMALL, PACKED, TWO_LINES = Bucket(5, 3, 6), Bucket(40, 3, 17), Bucket(40, 130, 5)
MORE = 50 if IS_NIGHTLY else 1
EXAMPLES = {"pallas": 5 * MORE, "pallas-exact": 5 * MORE, "sparsecore": 2 * MORE}
QUICKLY = "--xla_backend_optimization_level=0"  # to compile
QUANTIZED = QuantizationConfig(5, -2.0, 2.0)
POSITIVE = (0.125, 0.5, 1.0, 0.1, 1 / 3, 3.0)


def ours(kernels, devices):
    return JaxBackend(mesh_of(devices), Capacity(positions=128, rows=40), kernels)


def one_step(backend, spec, step, slots, c):
    """Activations, and table and slots after the update."""
    weights, slots = step.table.copy(), {name: slot.copy() for name, slot in slots.items()}
    held = backend.put_state(State({"t": spec}, {"t": weights}, {"t": slots}))
    put = backend.put_plan({"t": step.plan})
    found = backend.lookup(held, put)["t"]
    held = backend.update(held, put, {"t": step.gradients}, {"t": c})
    state = backend.get_state(held)
    return {
        "activations": found,
        "table": state.weights["t"],
        **state.slots["t"],
    }


def compare(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert_same(name, np.asarray(found[name]), np.asarray(array))


def draw_slots(data, bucket, optimizer, regime):
    def fill(shape):
        return data.draw(numbers(shape, regime), label="a slot")

    return slots_of(optimizer, bucket.rows, bucket.dim, fill)


def named(value):
    return label(value) if hasattr(value, "slots") else str(value)


# --- default flags ----------------------------------------------------------------------------

DECAY = SGD(0.5, clipvalue=(-2.0, 1.0), clip_weight_min=-8.0, weight_decay_factor=0.5)


@pytest.mark.parametrize(
    "kernels, devices, optimizer",
    [
        ("pallas", 1, DECAY),
        ("pallas", 4, UnsortedSlots()),
        ("pallas-exact", 1, UnsortedSlots()),
        ("sparsecore", 1, DECAY),
        ("sparsecore", 4, SGD(1.0)),
    ],
    ids=named,
)
def test_a_step_is_the_reference_s_where_sums_are_exact(kernels, devices, optimizer):
    """Of ragged bags, long ones, one id in each, none at all; of not-a-numbers, too."""
    bucket = SMALL if kernels == "sparsecore" else PACKED if devices == 1 else TWO_LINES
    spec = TableSpec("t", bucket.rows, bucket.dim, optimizer, QUANTIZED if devices == 4 else None)
    backends, c = (ours(kernels, devices), ReferenceBackend()), coefficients(optimizer, 0.5)

    @settings(max_examples=EXAMPLES[kernels])
    @given(st.data())
    def check(data):
        step = data.draw(steps(EXACT, devices, [bucket]))
        slots = draw_slots(data, bucket, optimizer, EXACT)
        compare(*(one_step(each, spec, step, slots, c) for each in backends))

    check()


RULES = (
    Adagrad(0.1),
    RowwiseAdagrad(0.1, clipvalue=2.0),
    AdagradMomentum(0.1, momentum=0.9, use_nesterov=True),
    Adam(0.1, clip_weight_max=1.0),
    Adam(0.1, lazy_adam=False, sum_inside_sqrt=False),
    FTRL(0.1, l1_regularization_strength=0.1, l2_regularization_strength=0.2, beta=0.5),
)


def offered(kernels, rule):
    return kernels != "sparsecore" or not isinstance(rule, RowwiseAdagrad)


@pytest.mark.parametrize(
    "kernels, optimizer",
    [
        *(("pallas", rule) for rule in (RULES if IS_NIGHTLY else RULES[3:5])),
        ("pallas-exact", RULES[1]),
        ("sparsecore", RULES[0]),
    ],
    ids=named,
)
def test_a_step_of_any_numbers_is_within_its_bound(kernels, optimizer):
    spec = TableSpec("t", SMALL.rows, SMALL.dim, optimizer)
    backend, c = ours(kernels, 1), coefficients(optimizer, 0.1)

    @settings(max_examples=EXAMPLES[kernels])
    @given(st.data())
    def check(data):
        step = data.draw(steps(REAL, 1, [SMALL], table=MODEST))
        slots = draw_slots(data, SMALL, optimizer, POSITIVE)
        found = one_step(backend, spec, step, slots, c)
        check_bounds(step, slots, optimizer, c, found["table"], {n: found[n] for n in slots})

    check()


# --- in processes of their own ----------------------------------------------------------------


def hold_to_the_bit(kernels, devices, rule):
    """Steps on any numbers, but gradients whose sums are exact where their order is another: that
    of the devices, and in a row's mean."""
    regime = EXACT if devices > 1 or isinstance(rule, RowwiseAdagrad) else REAL
    spec, c = TableSpec("t", SMALL.rows, SMALL.dim, rule), coefficients(rule, 0.1)
    backends = ours(kernels, devices), ReferenceBackend()

    @settings(max_examples=EXAMPLES[kernels])
    @given(st.data())
    def check(data):
        step = data.draw(steps(regime, devices, [SMALL], table=MODEST))
        slots = draw_slots(data, SMALL, rule, POSITIVE)
        compare(*(one_step(each, spec, step, slots, c) for each in backends))

    check()


def rules(kernels, devices):
    """All of them nightly; else some: each is compiled, and test_tensorcore.py has them all."""
    every = (SGD(0.1, weight_decay_factor=0.1), *RULES)
    few = {"pallas": (0, 2, 4, 6), "pallas-exact": (1, 6), "sparsecore": (1,)}
    chosen = range(len(every)) if IS_NIGHTLY else (2,) if devices > 1 else few[kernels]
    return [every[i] for i in chosen if offered(kernels, every[i])]


def bitwise(kernels, devices):
    for rule in rules(kernels, devices):
        hold_to_the_bit(kernels, devices, rule)
        print("the same bits:", rule)


@pytest.mark.parametrize("kernels, devices", [*((name, 1) for name in KERNELS), ("pallas", 4)])
def test_under_the_two_flags_a_step_is_the_reference_s_to_the_bit(kernels, devices):
    program = (
        "import tests.conftest\n"
        "from tests.embsim_tpu.kernels import test_bitwise\n"
        f"test_bitwise.bitwise({kernels!r}, {devices})"
    )
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": " ".join((*BITWISE_FLAGS, QUICKLY))},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr[-9000:]
    assert process.stdout.count("the same bits:") == len(rules(kernels, devices))


# --- whole runs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kernels, devices, schedule",
    [
        ("pallas", 1, embsim.tpu_embedding_pipelined()),
        pytest.param("pallas", 4, embsim.sparsecore_loop(2), marks=nightly),
    ],
    ids=["pallas, 1 device", "pallas, 4 devices"],
)
def test_a_run_reads_the_versions_that_its_schedule_says(monkeypatch, kernels, devices, schedule):
    """And is as if drained whenever it is looked at: the training loop's own test."""

    def embedding_on(devices):
        capacity = Capacity(positions=64, rows=17)
        return Embedding(
            pipelined.tables(), mesh=mesh_of(devices), capacity=capacity, kernels=kernels
        )

    monkeypatch.setattr(pipelined, "embedding_on", embedding_on)
    pipelined.test_train_computes_what_the_law_says(devices, schedule, 1, 3)


def leg(patch, kernels, devices, kind):
    """A part of a run with these kernels, for check_moved."""

    def made(rules, schedule):
        patch.setattr(moved, "Embedding", partial(Embedding, kernels=kernels))
        run = kind(rules, schedule, devices)
        names = {each.name for each in run.embedding.kernels.values()}
        assert names == {kernels.removesuffix("-exact")}
        return run

    return made


@nightly
def test_a_run_moved_between_kernels_goes_on_bit_for_bit(tmp_path, monkeypatch):
    """By checkpoints of JAX, updates in flight, on one device and on four."""
    legs = [
        leg(monkeypatch, "pallas", 0, moved.WithOrbax),
        leg(monkeypatch, "xla", 4, moved.WithOrbax),
        leg(monkeypatch, "pallas", 0, moved.WithOrbax),
    ]
    moved.check_moved(tmp_path, "sums", embsim.stale(2), legs, each=2)


@nightly
def test_a_run_moved_to_and_from_tpu_embedding_goes_on_bit_for_bit(tmp_path, monkeypatch):
    files = moved.OnPipeline
    legs = [leg(monkeypatch, "pallas", 4, files), moved.host, leg(monkeypatch, "pallas", 0, files)]
    moved.check_moved(tmp_path, "sums", embsim.stale(2), legs, each=2)


@pytest.mark.parametrize("kernels", ["pallas", "sparsecore"])
def test_a_state_is_the_same_bits_for_other_kernels(tmp_path, kernels):
    """Not-a-numbers with their payload, subnormals, zeros of either sign; saved and back."""
    draw = np.random.default_rng(0)
    rules = embsim.Adagrad(0.5), embsim.Adam(0.5)
    first, plain = (
        Embedding(moved.features(rules), kernels=name, mesh=mesh_of(4)) for name in (kernels, "xla")
    )
    start = plain.get(plain.init())

    def any_bits(array):
        made = draw.integers(0, 2**32, array.shape, np.uint32).view(np.float32)
        made[:2] = [[1e-45], [-0.0]]
        return made

    host = State(
        start.specs,
        {name: any_bits(array) for name, array in start.weights.items()},
        {name: {n: any_bits(a) for n, a in each.items()} for name, each in start.slots.items()},
    )
    wanted = bits_of(host)
    tables = first.put(host)
    for number, (saver, reader) in enumerate([(first, plain), (plain, first)]):
        path = tmp_path / str(number)
        with Checkpoints(path, saver) as checkpoints:
            checkpoints.save(TrainState(tables, None))
        state, _ = Checkpoints(path, reader).restore()
        tables = state.tables
        assert bits_of(reader.get(tables)) == wanted
        to_embsim(tmp_path / f"files {number}", reader, state)
        again = from_embsim(tmp_path / f"files {number}", saver)
        assert bits_of(saver.get(again.tables)) == wanted


def bits_of(state):
    arrays = {(name, None): array for name, array in state.weights.items()}
    for name, slots in state.slots.items():
        arrays |= {(name, slot): array for slot, array in slots.items()}
    return {name: np.asarray(array).tobytes() for name, array in arrays.items()}
