"""An optimizer's rule is within its bound, with fused multiply-adds too, and not with some ulps
more.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embsim import definition
from embsim.conformance import Difference, EveryOperation
from embsim.conformance.checks._real_steps import ANY, GRADIENTS, POSITIVE, WEIGHTS
from embsim.conformance.literal import literal as short
from embsim.conformance.tolerance import HALF_ULP, Rounded, bounded_update, check_within, exact
from embsim.optimizers import FTRL, SGD, Adagrad, AdagradMomentum, Adam, RowwiseAdagrad
from embsim.optimizers.base import coefficients, row_update

F = np.float32
SEEDS = st.integers(0, 2**32 - 1)


class Contracted:
    """float32 rows as a compiler may compute them: a product that is added may keep its bits."""

    def __init__(self, value, random, factors=None):
        self.value, self.random, self.factors = np.asarray(value), random, factors
        assert self.value.dtype == F

    def _other(self, other):
        return other if isinstance(other, Contracted) else Contracted(F(other), self.random)

    def __mul__(self, other):
        other = self._other(other)
        factors = np.broadcast_arrays(self.value, other.value)
        return Contracted(self.value * other.value, self.random, factors)

    def __add__(self, other):
        other = self._other(other)
        for x, y in ((self, other), (other, self)):
            if x.factors is not None and self.random.random() < 0.7:
                a, b = (factor.astype(np.float64) for factor in x.factors)
                return Contracted((a * b + y.value).astype(F), self.random)
        return Contracted(self.value + other.value, self.random)

    def __sub__(self, other):
        return self + -self._other(other)

    def __neg__(self):
        factors = None if self.factors is None else (-self.factors[0], self.factors[1])
        return Contracted(-self.value, self.random, factors)

    def __truediv__(self, other):
        return Contracted(self.value / self._other(other).value, self.random)

    def __gt__(self, other):
        return self.value > self._other(other).value


class ContractedOps:
    @staticmethod
    def sqrt(x):
        return Contracted(np.sqrt(x.value), x.random)

    @staticmethod
    def power(x, exponent):
        """Up to 4 ulp away."""
        made = np.float64(x.value) ** np.float64(exponent.value)
        off = 1 + x.random.integers(-3, 4) * 2.0**-23
        return Contracted((made * off).astype(F), x.random)

    @staticmethod
    def minimum(x, y):
        return Contracted(np.minimum(x.value, y.value), x.random)

    @staticmethod
    def maximum(x, y):
        return Contracted(np.maximum(x.value, y.value), x.random)

    @staticmethod
    def where(condition, x, y):
        return Contracted(np.where(condition, x.value, y.value), x.random)

    @staticmethod
    def mean(x):
        """In another order."""
        total = F(0)
        for item in x.random.permutation(np.atleast_1d(x.value)):
            total = F(total + item)
        return Contracted(np.array([total / F(len(x.value))], F), x.random)


OPTIMIZERS = [
    SGD(0.1),
    SGD(0.1, weight_decay_factor=0.1, clipvalue=0.5, clip_weight_max=1.0),
    Adagrad(0.1),
    RowwiseAdagrad(0.1),
    AdagradMomentum(0.1, momentum=0.9),
    AdagradMomentum(0.1, momentum=0.5, use_nesterov=True, beta2=0.9),
    AdagradMomentum(0.1, momentum=0.9, exponent=3, epsilon=0.1),
    Adam(0.1),
    Adam(0.1, sum_inside_sqrt=False),
    FTRL(0.1),
    FTRL(0.1, -0.5, 0.1, 0.2, 0.5),
    FTRL(0.1, -0.3, 0.3, multiply_linear_by_learning_rate=True),
    EveryOperation(0.1),
]
POSITIVE_SLOTS = ("accumulators", "velocities", "largest")


def rows_of(data, optimizer, dim=3):
    """float32 (w, g, slots)"""

    def row(numbers, width=dim):
        chosen = st.lists(st.sampled_from(numbers), min_size=width, max_size=width)
        return np.array(data.draw(chosen), F)

    slots = tuple(
        row(POSITIVE if slot.name in POSITIVE_SLOTS else ANY, 1 if slot.rowwise else dim)
        for slot in optimizer.slots
    )
    return row(WEIGHTS), row(GRADIENTS), slots


def names(optimizer):
    return ["w", *(slot.name for slot in optimizer.slots)]


@np.errstate(all="ignore")
def bounds_of(optimizer, w, g, slots):
    numbers = coefficients(optimizer, 0.1)
    new, new_slots = bounded_update(optimizer, exact(w), [*map(exact, slots)], [exact(g)], numbers)
    return dict(zip(names(optimizer), [new, *new_slots], strict=True))


@np.errstate(all="ignore")
def computed(optimizer, w, g, slots):
    """As the law writes it."""
    c = definition.coefficients(optimizer, 0.1)
    new, new_slots = definition.updated(optimizer, w, slots, [g], c)
    return dict(zip(names(optimizer), [new, *new_slots], strict=True))


@np.errstate(all="ignore")
def contracted(optimizer, w, g, slots, random):
    class C:
        def __getattr__(self, name):
            return Contracted(coefficients(optimizer, 0.1)[name], random)

    rows = [Contracted(row, random) for row in (w, g, *slots)]
    new, new_slots = row_update(optimizer, ContractedOps)(rows[0], rows[1], tuple(rows[2:]), C())
    return {n: x.value for n, x in zip(names(optimizer), [new, *new_slots], strict=True)}


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=short)
@settings(max_examples=50)
@given(data=st.data())
def test_a_rule_is_within_its_bound_fused_or_not(optimizer, data):
    w, g, slots = rows_of(data, optimizer)
    bounds = bounds_of(optimizer, w, g, slots)
    random = np.random.default_rng(data.draw(SEEDS))
    results = [computed(optimizer, w, g, slots)]
    results += [contracted(optimizer, w, g, slots, random) for _ in range(3)]
    for result in results:
        for name, bounded in bounds.items():
            check_within(name, result[name], bounded)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=short)
@settings(max_examples=30)
@given(data=st.data())
def test_bounds_of_rules_are_finite_and_a_few_ulps(optimizer, data):
    """Twice as many half ulps as the longest rule has roundings, of the numbers that are added."""
    w, g, slots = rows_of(data, optimizer)
    result = computed(optimizer, w, g, slots)
    bounds = bounds_of(optimizer, w, g, slots)
    for bounded in bounds.values():
        assert np.isfinite(bounded.error).all()
    if isinstance(optimizer, SGD | Adagrad | RowwiseAdagrad):  # nothing else is added
        size = abs(w) + abs(result["w"]).astype(np.float64)
        assert (bounds["w"].error <= 2 * 10 * HALF_ULP * size + 2.0**-140).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=short)
def test_some_ulps_more_than_a_rule_s_bound_are_found(optimizer):
    w, g = F([0.0, 0.3, -2.0]), F([1.0, -0.3, 3.0])
    slots = tuple(np.full(1 if s.rowwise else 3, 0.7, F) for s in optimizer.slots)
    bounds = bounds_of(optimizer, w, g, slots)
    for name, value in computed(optimizer, w, g, slots).items():
        check_within(name, value, bounds[name])
        wrong = value * F(1 + 100 * 2.0**-23)
        if not np.array_equal(wrong, value):
            with pytest.raises(Difference, match=name):
                check_within(name, wrong, bounds[name])


def test_a_rule_s_roundings_count_twice_and_those_of_the_gradient_once():
    sure, unsure = exact(F([3.0])), Rounded(np.array([3.0]), np.array([0.5]))
    numbers = {"lr": F(0.1)}
    for g, more in ((sure, 0.0), (unsure, 0.05)):
        w, _ = bounded_update(SGD(0.1), exact(F([0.0])), [], [g], numbers)
        assert w.error == pytest.approx(2 * HALF_ULP * 0.3 + more, rel=1e-5)
