"""What is asked of the libraries: lookups and optimizer trajectories.

NumPy only, so that a library's environment needs nothing else. All numbers are made of raw Philox
bits by exact operations: the same on every machine and with every NumPy.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

F = np.float32
COMBINERS = ("sum", "mean", "sqrtn")


@dataclass(frozen=True)
class Feature:
    """bags: of ids, None a hole; gradients: d loss / d activations, of the activations' shape."""

    bags: list
    weights: list | None
    length: int  # max_sequence_length
    output_shape: tuple | None
    gradients: np.ndarray


@dataclass(frozen=True)
class Lookup:
    """Features on one table. The loss is the sum of activations * gradients."""

    name: str
    combiner: str
    table: np.ndarray
    features: tuple[Feature, ...]

    @property
    def arrays(self):
        """All numbers, for the digest; a hole is -1."""
        yield self.table
        for feature in self.features:
            yield feature.gradients
            for bag in feature.bags:
                yield np.array([-1 if i is None else i for i in bag], "i4")
            for bag in feature.weights or ():
                yield np.array(bag, F)


@dataclass(frozen=True)
class Trajectory:
    """Steps of one optimizer on one table; each sample of a step names one row.

    rates: one learning rate a step, or None for the optimizer's own.
    """

    name: str
    optimizer: str  # in embsim.optimizers
    options: dict
    table: np.ndarray
    rows: np.ndarray  # [steps, samples]
    gradients: np.ndarray  # [steps, samples, dim]
    slots: dict  # name -> first value, [rows, dim] or [rows, 1]
    rates: tuple | None = None

    @property
    def arrays(self):
        yield from (self.table, self.rows, self.gradients, *self.slots.values())
        yield np.array(self.rates or (self.options["learning_rate"],), np.float64)

    def rate(self, step):
        return self.rates[step] if self.rates else self.options["learning_rate"]


def digest(case):
    """Of a case's numbers: goldens are valid for these inputs only."""
    sha = hashlib.sha256()
    for array in case.arrays:
        sha.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return sha.hexdigest()[:16]


class Numbers:
    """Raw bits of Philox, which NumPy keeps stable, to numbers by exact operations."""

    def __init__(self, *key):
        words = hashlib.sha256(repr(key).encode()).digest()[:16]
        self.bits = np.random.Philox(key=int.from_bytes(words, "little"))

    def integers(self, high, shape):
        raw = np.asarray(self.bits.random_raw(int(np.prod(shape))), np.uint64)
        return (raw % np.uint64(high)).astype(np.int64).reshape(shape)

    def floats(self, shape, low=-3, high=3, signed=True):
        """Magnitudes from 2^low to 2^(high + 1), every power of two as likely as the others."""
        mantissa = 1 + self.integers(2**23, shape) / 2.0**23
        exponent = low + self.integers(high - low + 1, shape)
        sign = 1 - 2 * self.integers(2, shape) if signed else 1
        return (sign * np.ldexp(mantissa, exponent)).astype(F)

    def bag_weights(self, bags, **limits):
        return [self.floats((len(bag),), **limits).tolist() for bag in bags]


# --- lookups ------------------------------------------------------------------------------------

ROWS, DIM = 9, 4
EMPTY_INSIDE = [[], [3, 7, 3], [8], [], [0, 1, 2, 5, 5], [8, 8, 8], [6]]  # and a last row
EMPTY_LAST = [*EMPTY_INSIDE, [4, 4, 1], []]
SIGNS = [[1, -1], [-1.5, 2, 0.25], [0], [0, 0], [0, 3], [-2], [], [1e-3, 1e3, 1], [-0.5, 4]]
SIGNS_BAGS = [[1, 2], [3, 3, 4], [5], [6, 7], [5, 6], [8], [], [0, 8, 0], [1, 1]]
HOLES = [[3, None, 7], [None, 8], [], [1, 2, 3, 4], [None, None, None, 5], [0]]


def lookups(seed=0):
    """name -> Lookup. The bags' shapes are the same for every seed but those of `random`."""
    found = []
    for combiner in COMBINERS:
        number = Numbers("lookup", combiner, seed)
        table = number.floats((ROWS, DIM))
        positive = number.bag_weights(EMPTY_LAST, signed=False)
        signs = [np.array(bag, F).tolist() for bag in SIGNS]
        found += [
            _lookup("plain", combiner, table, [_feature(number, EMPTY_INSIDE)]),
            _lookup("empty_last", combiner, table, [_feature(number, EMPTY_LAST)]),
            _lookup("weighted", combiner, table, [_feature(number, EMPTY_LAST, positive)]),
            _lookup("signs", combiner, table, [_feature(number, SIGNS_BAGS, signs)]),
            _lookup("shared", combiner, table, _shared(number, positive)),
            _lookup("random", combiner, table, [_random_feature(number, weighted=False)]),
            _lookup("random_weighted", combiner, table, [_random_feature(number, weighted=True)]),
        ]
    number = Numbers("sequence", seed)
    table = number.floats((ROWS, DIM))
    for name, bags, options in (
        ("sequence", EMPTY_LAST, {"length": 2}),
        ("sequence_holes", HOLES, {"length": 3}),
        ("reshaped", [[1], [2, 3], [], [0]], {"output_shape": (2, 2)}),
        ("reshaped_sequence", [[1], [2, 3, 5], [], [0]], {"output_shape": (2, 4)}),
    ):
        found.append(_lookup(name, "mean", table, [_feature(number, bags, **options)]))
    return {case.name: case for case in found}


def _lookup(name, combiner, table, features):
    return Lookup(f"{name}_{combiner}", combiner, table, tuple(features))


def _feature(number, bags, weights=None, length=0, output_shape=None):
    shape = output_shape or (len(bags), *([length] if length else []))
    return Feature(bags, weights, length, output_shape, number.floats((*shape, DIM)))


def _shared(number, weights):
    """Two features with empty bags and a weighted one, all on one table."""
    return [
        _feature(number, EMPTY_INSIDE),
        _feature(number, EMPTY_LAST, weights),
        _feature(number, [[2], [2, 2], [3]]),
    ]


def _random_feature(number, weighted):
    """Bags of 0 to 40 ids, most of them short; the last is not empty. Weights are positive."""
    sizes = number.integers(7, (12,)) * np.where(number.integers(4, (12,)) == 0, 7, 1)
    bags = [number.integers(ROWS, (int(size),)).tolist() for size in sizes] + [[ROWS - 1]]
    weights = number.bag_weights(bags, low=-6, high=6, signed=False) if weighted else None
    return _feature(number, bags, weights)


# --- trajectories -------------------------------------------------------------------------------

# Row 0 gets gradients around 1e-24, row 1 around 1e-8, where epsilons decide, row 2 around 1, row 3
# from 1e12 to 1e17, row 4 any of these. Row 5 is never looked up.
RANGES = ((-100, -60), (-34, -20), (-3, 3), (40, 58), (-40, 40))
BEYOND = (66, 99)  # 1e20 to 1e30: the square leaves float32
SAMPLES = 6


def trajectories(seed=0, steps=30):
    """name -> Trajectory."""
    found = [_trajectory(seed, steps, name, *optimizer) for name, optimizer in OPTIMIZERS.items()]
    found += [
        _trajectory(seed, steps, f"{name}_beyond", *OPTIMIZERS[name], beyond=True)
        for name in ("sgd", "adagrad", "rowwise_adagrad", "ftrl", "adam")
    ]
    return {case.name: case for case in found}


FAST = {"learning_rate": 0.1}
REGULAR = {"l1_regularization_strength": 0.01, "l2_regularization_strength": 0.1, "beta": 0.5}
MULTIPLY = {"multiply_linear_by_learning_rate": True}
OUTSIDE = {"sum_inside_sqrt": False}
EXACT_BETAS = {"beta_1": 0.875, "beta_2": 1 - 2.0**-10}  # 1 - beta is exact in float32
OPTIMIZERS: dict[str, Any] = {
    "sgd": ("SGD", FAST),
    "adagrad": ("Adagrad", {**FAST, "initial_accumulator_value": 0.1}),
    "adagrad_small": ("Adagrad", {**FAST, "initial_accumulator_value": 1e-12}),
    "adagrad_subnormal": ("Adagrad", {**FAST, "initial_accumulator_value": 2.0**-130}),
    "adagrad_one_by_one": ("Adagrad", {**FAST, "use_gradient_accumulation": False}),
    "rowwise_adagrad": ("RowwiseAdagrad", {**FAST, "epsilon": 1e-8}),
    "rowwise_adagrad_started": (
        "RowwiseAdagrad",
        {**FAST, "epsilon": 0.1, "initial_accumulator_value": 0.5},
    ),
    "ftrl": ("FTRL", {"learning_rate": 0.05}),
    "ftrl_regular": ("FTRL", {"learning_rate": 0.05, **REGULAR}),
    "ftrl_power": ("FTRL", {"learning_rate": 0.05, **REGULAR, "learning_rate_power": -0.3}),
    "ftrl_multiply": ("FTRL", {"learning_rate": 0.05, **MULTIPLY}),
    "ftrl_multiply_regular": ("FTRL", {"learning_rate": 0.05, **REGULAR, **MULTIPLY}),
    "adam": ("Adam", {**FAST, **EXACT_BETAS, **OUTSIDE}),
    "adam_default_betas": ("Adam", {**FAST, **OUTSIDE}),
    "adam_all_rows": ("Adam", {**FAST, **EXACT_BETAS, **OUTSIDE, "lazy_adam": False}),
    "adam_inside": ("Adam", {**FAST}),
    "adam_textbook": ("Adam", {**FAST, **OUTSIDE, "epsilon": 1e-8}),  # with rates
    "momentum": ("AdagradMomentum", {**FAST, "momentum": 0.9}),
    "momentum_nesterov": ("AdagradMomentum", {**FAST, "momentum": 0.9, "use_nesterov": True}),
    "momentum_decaying": ("AdagradMomentum", {**FAST, "momentum": 0.5, "beta2": 0.9}),
}
SLOTS = {  # first values
    "SGD": {},
    "Adagrad": {"accumulators": 0.1},
    "RowwiseAdagrad": {"accumulators": 0.0},
    "FTRL": {"accumulators": 0.1, "linears": 0.0},
    "Adam": {"momenta": 0.0, "velocities": 0.0},
    "AdagradMomentum": {"accumulators": 0.0, "momenta": 0.0},
}


def _trajectory(seed, steps, name, optimizer, options, beyond=False):
    number = Numbers("trajectory", name, seed)
    dim = 4 if optimizer in ("SGD", "Adagrad", "RowwiseAdagrad") else 2  # FBGEMM: multiples of 4
    ranges = (*RANGES[:3], BEYOND, RANGES[4]) if beyond else RANGES
    rows = number.integers(len(ranges), (steps, SAMPLES))
    gradients = np.empty((steps, SAMPLES, dim), F)
    of_range = [number.floats(gradients.shape, *limits) for limits in ranges]
    for row, values in enumerate(of_range):
        gradients[rows == row] = values[rows == row]
    gradients[number.integers(6, rows.shape) == 0] = 0
    table = number.floats((len(ranges) + 1, dim))
    slots = {}
    for slot, first in SLOTS[optimizer].items():
        width = 1 if optimizer == "RowwiseAdagrad" else dim
        if slot == "accumulators":
            first = options.get("initial_accumulator_value", first)
        slots[slot] = np.full((len(table), width), first, F)
    rates = _textbook_rates(options, steps) if name == "adam_textbook" else None
    return Trajectory(name, optimizer, options, table, rows, gradients, slots, rates)


def _textbook_rates(options, steps):
    """lr * sqrt(1 - b2^t) / (1 - b1^t): the textbook's correction of the bias, as a schedule."""
    b1, b2 = options.get("beta_1", 0.9), options.get("beta_2", 0.999)
    t = np.arange(1, steps + 1, dtype=np.float64)
    rates = options["learning_rate"] * np.sqrt(1 - b2**t) / (1 - b1**t)
    return tuple(rates.tolist())
