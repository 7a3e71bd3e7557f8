"""Meshes for the tests of embsim_tpu, and what the tests of its twins draw.

Shapes come from a few buckets, since each is compiled. Numbers are of two regimes:

    EXACT   every sum is exact in any order; not-a-number and the infinities are what they are in
            any order, too, so they belong here: the twins equal the reference to the bit
    REAL    sums depend on their order: the twins keep computed bounds
"""

from dataclasses import dataclass

import hypothesis.extra.numpy as hnp
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from embsim.plan import LookupPlan
from embsim_tpu._mesh import Shards
from embsim_tpu.capacity import Capacities, Capacity

F = np.float32
DEVICES = (1, 2, 8)
EXACT = (0.0, -0.0, 1.0, -1.0, 2.0, -3.0, np.nan, np.inf, -np.inf)
REAL = (0.0, -0.0, 1.0, -1.0, 0.5, 0.1, -0.3, 1 / 3, 1e-3, -70.0, 1e4, 2.0**24, 1e-30)
GAINS = {EXACT: (1.0, 0.0, -0.0, -1.0, 0.5, 2.0), REAL: (1.0, 0.0, -1.0, 1 / 3, 0.1, 2.0**24, 1e-3)}


def mesh_of(devices):
    """None is the default device, no mesh."""
    return None if devices == 1 else jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("x",))


@pytest.fixture(scope="session", params=DEVICES, ids="{} devices".format)
def mesh(request):
    assert len(jax.devices()) >= request.param, "XLA_FLAGS is set in tests/conftest.py"
    return mesh_of(request.param)


@pytest.fixture(scope="session")
def shards(mesh):
    return Shards(mesh)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_go_with_their_module():
    """They take memory."""
    yield
    jax.clear_caches()


@dataclass(frozen=True)
class Bucket:
    """Fewer rows and samples than there are devices, one row, and more."""

    rows: int
    dim: int
    samples: int


BUCKETS = (Bucket(1, 1, 1), Bucket(5, 3, 6), Bucket(40, 2, 17))
LONGEST = 40
CAPACITY = Capacity(positions=128, rows=40)


@dataclass(frozen=True, eq=False)
class Step:
    """A table, its plan, and gradients of its activations."""

    bucket: Bucket
    table: np.ndarray
    bags: list
    gradients: np.ndarray

    @property
    def plan(self):
        return plan_of(self.bags, self.bucket.rows)


def plan_of(bags, rows):
    """bags of (row, gain)."""
    flat = [item for bag in bags for item in bag]
    row, gain = (np.array([item[i] for item in flat], d) for i, d in ((0, np.int32), (1, F)))
    return LookupPlan("t", rows, np.cumsum([0, *map(len, bags)]), row, gain)


def numbers(shape, regime):
    elements = st.sampled_from([F(x) for x in regime])
    return hnp.arrays(F, shape, elements=elements, fill=elements)


@st.composite
def bags_of(draw, bucket, regime, devices=1):
    """Any ids, one alone, those of one shard, one id in each bag, or none; perhaps one long bag."""
    rows = range(bucket.rows)
    first = draw(st.sampled_from(rows), label="a row")
    ids = {"any": rows, "one": [first], "a shard": rows[first % devices :: devices], "each": rows}
    kind = draw(st.sampled_from([*ids, "none"]), label="ids")
    if kind == "none":
        return [[]] * bucket.samples
    item = st.tuples(st.sampled_from(ids[kind]), st.sampled_from(GAINS[regime]))
    lengths = (1, 1) if kind == "each" else (0, 4)
    bag = st.lists(item, min_size=lengths[0], max_size=lengths[1])
    bags = draw(st.lists(bag, min_size=bucket.samples, max_size=bucket.samples), label="bags")
    if kind != "each" and draw(st.booleans(), label="a long bag"):
        place = draw(st.integers(0, bucket.samples - 1))
        bags[place] = draw(st.lists(item, min_size=LONGEST, max_size=LONGEST))
    return bags


@st.composite
def steps(draw, regime, devices=1, buckets=BUCKETS, table=None):
    bucket = draw(st.sampled_from(buckets), label="bucket")
    bags = draw(bags_of(bucket, regime, devices))
    return Step(
        bucket,
        draw(numbers((bucket.rows, bucket.dim), table or regime), label="table"),
        bags,
        draw(numbers((bucket.samples, bucket.dim), regime), label="gradients"),
    )


def capacities():
    return Capacities(CAPACITY)
