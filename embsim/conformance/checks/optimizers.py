"""Every optimizer's formula: to the bit where roots and quotients are exact, and within computed
bounds on numbers of all magnitudes.
"""

from typing import Any

from hypothesis import strategies as st

from ...optimizers import FTRL, SGD, Adagrad, AdagradMomentum, Adam, RowwiseAdagrad
from ..adapter import Capabilities, asked_of_optimizer
from ..check import Draw, check
from ..lockstep import replay
from ..program import Rates
from ..rules import EveryOperation
from ..subject import Subject
from ._chains import (
    Chain,
    adagrad,
    adagrad_momentum,
    adam,
    adam_on_any_row,
    chain_programs,
    ftrl,
    rowwise_adagrad,
)
from ._exact_update import Elements, exact_update
from ._real_steps import may_step, real_steps

RATES = (0.1, 1.0, 3.0, Rates((0.3, 0.05)))


def ieee(can: Capabilities) -> bool:
    """Its roots and quotients are exact where float32 holds the result."""
    return can.ulps == 0.5


def _exact(subject: Subject, draw: Draw, chain: st.SearchStrategy[Chain], drawn: Elements) -> None:
    """A program from the initial slots on; or, by a backend's six functions, from any slots."""
    if subject.backend is not None and draw(st.booleans(), "the six functions alone"):
        exact_update(subject, draw, drawn)
    else:
        replay(subject, draw(chain_programs(subject.capabilities, chain, most=3), "program"))


def _real(
    subject: Subject, draw: Draw, optimizers: list[Any], dims: tuple[int, ...] = (2,)
) -> None:
    """Steps within bounds, of one of these optimizers that the subject does not refuse."""
    can = subject.capabilities
    offered = [each for each in optimizers if can.offers(*asked_of_optimizer(each))]
    real_steps(subject, draw, draw(st.sampled_from(offered), "optimizer"), dims)


def _rates(can: Capabilities, draw: Draw) -> Any:
    offered = [
        rate for rate in RATES if can.offers("a learning-rate callable") or rate in RATES[:3]
    ]
    return draw(st.sampled_from(offered), "rate")


@check("4.8", "8.1", when=may_step)
def check_sgd_stays_within_computed_bounds(subject: Subject, draw: Draw) -> None:
    """w - lr * g: a rounding for the product, one for the difference."""
    _real(subject, draw, [SGD(_rates(subject.capabilities, draw))])


@check("4.8", "8.5", needs=("Adagrad",), when=ieee)
def check_adagrad_is_its_formula_where_roots_are_exact(subject: Subject, draw: Draw) -> None:
    """a + g², then w - (lr * g) / √a: the new a, and no epsilon."""
    legs = ((4, 3), (12, 5), (15, 8), (24, 7), (21, 20), (5, 12), (3, 4), (8, 15), (0, 5))
    drawn = Elements(Adagrad(160225.0), [(float(g), float(a * a)) for g, a in legs])
    _exact(subject, draw, adagrad(subject.capabilities), drawn)


@check("4.8", needs=("Adagrad",), when=may_step)
def check_adagrad_stays_within_computed_bounds(subject: Subject, draw: Draw) -> None:
    """Also where the accumulator is so small that an epsilon would show."""
    rate = _rates(subject.capabilities, draw)
    start = draw(st.sampled_from((0.1, 1e-4, 1e-8)), "initial accumulator")
    _real(subject, draw, [Adagrad(rate, initial_accumulator_value=start)])


@check("4.8", "8.5", "10.14", needs=("RowwiseAdagrad",), when=ieee)
def check_rowwise_adagrad_is_its_formula_where_roots_are_exact(
    subject: Subject, draw: Draw
) -> None:
    """a + mean(g²), one a row, then w - (lr / (√a + eps)) * g: the mean, not the sum, over the
    row's own numbers.
    """
    legs = ((4, 3), (12, 5), (15, 8), (24, 7), (5, 12), (8, 15), (0, 5))
    elements = [(float(g), float(a * a)) for g, a in legs]
    drawn = Elements(RowwiseAdagrad(5525.0, epsilon=0.0), elements, dim=4)
    _exact(subject, draw, rowwise_adagrad(subject.capabilities), drawn)


@check("4.8", "10.14", needs=("RowwiseAdagrad",), when=may_step)
def check_rowwise_adagrad_stays_within_computed_bounds(subject: Subject, draw: Draw) -> None:
    """Any number of columns; epsilon is outside the root."""
    rate = _rates(subject.capabilities, draw)
    start = draw(st.sampled_from((0.0, 0.1, 1e-8)), "initial accumulator")
    epsilon = draw(st.sampled_from((1e-8, 1e-3)), "epsilon")
    _real(subject, draw, [RowwiseAdagrad(rate, start, epsilon)], dims=(1, 3, 8))


@check("4.8", "8.5", needs=("AdagradMomentum",), when=ieee)
def check_adagrad_momentum_is_its_formula_where_roots_are_exact(
    subject: Subject, draw: Draw
) -> None:
    """h = g / √(a + eps), m = mu * m + h, and the step lr * m, or lr * (mu * m + h) of Nesterov."""
    nesterov = draw(st.booleans(), "use_nesterov")
    halves = draw(st.booleans(), "beta2 = 1/2")  # a = (a + g²) / 2, else a = a + g²
    rule = AdagradMomentum(0.5, 0.5, nesterov, beta2=0.5 if halves else 1.0, epsilon=1.0)
    elements: list[tuple[float | None, ...]] = []
    for root, most in ((2, 1), (4, 3), (8, 7)):
        for g in range(most + 1):
            a = 2 * (root * root - 1) - g * g if halves else root * root - 1 - g * g
            elements.append((float(g), float(a), None))
    drawn = Elements(rule, elements)
    _exact(subject, draw, adagrad_momentum(subject.capabilities), drawn)


@check("4.8", "4.9", needs=("AdagradMomentum",), when=may_step)
def check_adagrad_momentum_stays_within_computed_bounds(subject: Subject, draw: Draw) -> None:
    """With exponent 2 and others, Nesterov's momentum and without, sums of squares and averages."""
    rate = _rates(subject.capabilities, draw)
    made = [
        AdagradMomentum(rate, momentum=0.9),
        AdagradMomentum(rate, momentum=0.5, use_nesterov=True, beta2=0.9),
        AdagradMomentum(rate, momentum=0.9, epsilon=1e-3),
        AdagradMomentum(rate, momentum=0.9, use_nesterov=True, exponent=3, epsilon=0.1),
        AdagradMomentum(rate, exponent=1.5, beta2=0.9),
    ]
    _real(subject, draw, made)


@check("4.8", "8.5", needs=("Adam",), when=ieee)
def check_adam_is_its_formula_where_roots_are_exact(subject: Subject, draw: Draw) -> None:
    """√(v + eps²), or √v + eps; the new m and v, and no bias correction."""
    inside = draw(st.booleans(), "sum_inside_sqrt")
    # The root, or the root + 1, is 5, 13 or a power of two.
    rule = Adam(65.0, beta_1=0.5, beta_2=0.5, epsilon=1.0, sum_inside_sqrt=inside)
    elements: list[tuple[float | None, ...]] = []
    for root in (4, 5, 8, 13, 16) if inside else (3, 4, 7, 12, 15):
        for g in (0.0, 1.0, 2.0, 3.0, 4.0):
            elements.append((g, None, 2.0 * (root * root - (1 if inside else 0)) - g * g))
    can = subject.capabilities
    chain = st.one_of(adam(can), adam(can), adam_on_any_row(can))
    _exact(subject, draw, chain, Elements(rule, elements))


@check("4.8", needs=("Adam",), when=may_step)
def check_adam_stays_within_computed_bounds(subject: Subject, draw: Draw) -> None:
    """Also where v is as small as eps², so that it matters where epsilon stands."""
    rate = _rates(subject.capabilities, draw)
    inside = draw(st.booleans(), "sum_inside_sqrt")
    epsilon = draw(st.sampled_from((1e-7, 1e-3)), "epsilon")
    b1, b2 = draw(st.sampled_from(((0.9, 0.999), (0.0, 0.99), (0.5, 0.9))), "betas")
    _real(subject, draw, [Adam(rate, b1, b2, epsilon, sum_inside_sqrt=inside)])


@check("4.8", "8.5", needs=("FTRL",), when=ieee)
def check_ftrl_is_its_formula_where_roots_are_exact(subject: Subject, draw: Draw) -> None:
    """Both forms, with l1, 2 * l2 and beta; the linears of the second are scaled by the rate."""
    # (x + 1) / 0.5 + 2 * 2 is twice x + 3, and x is 5, 13 or 29.
    rule = FTRL(
        0.5,
        l1_regularization_strength=2.0,
        l2_regularization_strength=2.0,
        beta=1.0,
        multiply_linear_by_learning_rate=draw(st.booleans(), "multiply_linear_by_learning_rate"),
    )
    legs = ((4, 3), (3, 4), (12, 5), (5, 12), (21, 20), (20, 21), (0, 5), (0, 13))
    elements = [(float(g), float(y * y), None) for g, y in legs]
    _exact(subject, draw, ftrl(subject.capabilities), Elements(rule, elements))


@check("4.8", "4.9", needs=("FTRL",), when=may_step)
def check_ftrl_stays_within_computed_bounds(subject: Subject, draw: Draw) -> None:
    """Both forms, with every regularizer, and powers other than the root."""
    rate = _rates(subject.capabilities, draw)
    made = [
        FTRL(rate),
        FTRL(rate, -0.5, 0.1, 0.2, 0.5),
        FTRL(rate, -0.5, 0.3, 0.2, multiply_linear_by_learning_rate=True),
        FTRL(rate, -0.3, beta=0.5),
    ]
    _real(subject, draw, made)


@check("4.8", "4.9", needs=("a user's optimizer", "power"), when=may_step)
def check_a_user_s_rule_stays_within_computed_bounds(subject: Subject, draw: Draw) -> None:
    """Every operation that `ops` offers, with slots of both kinds."""
    _real(subject, draw, [EveryOperation(_rates(subject.capabilities, draw))], dims=(1, 3))
