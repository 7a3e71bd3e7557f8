"""What is done to a row around the optimizer's rule: sum, clip, decay, rule, clip, and for which
rows.
"""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...optimizers import FTRL, SGD, Adam
from ..adapter import Capabilities
from ..check import Draw, check
from ..lockstep import replay
from ..program import Program, Rates, Train
from ..rules import Counting
from ..single import engine_steps
from ..strategies import INTEGERS, batches, tables_of
from ..subject import Subject
from ._chains import (
    ROWS,
    Chain,
    Part,
    adagrad,
    adam_on_any_row,
    chain_programs,
    delivered,
    ftrl,
    one_table,
    rates,
    rowwise_adagrad,
    with_drains,
)
from ._real_steps import may_step

SMALL = (3.0, 4.0, 1.0, 2.0, 0.0)
USER = ("a user's optimizer", "power")


def _sgd(can: Capabilities, **options: Any) -> st.SearchStrategy[Chain]:
    """SGD on small integers; `options` are strategies."""
    made = st.fixed_dictionaries(options)
    return st.tuples(rates(can, 1.0, 0.5), made).map(
        lambda drawn: Chain(SGD(drawn[0], **drawn[1]), (SMALL,))
    )


def _nonlinear(can: Capabilities) -> list[st.SearchStrategy[Chain]]:
    """Chains of rules of which two small updates are not one large one."""
    chains: list[st.SearchStrategy[Chain]] = []
    if can.offers(*USER):
        chains.append(rates(can, 1.0).map(lambda rate: Chain(Counting(rate), (SMALL,))))
    if can.offers("Adagrad") and can.ulps == 0.5:
        chains += [adagrad(can), adagrad(can)]
    if can.offers("RowwiseAdagrad") and can.ulps == 0.5:
        chains.append(rowwise_adagrad(can))
    return chains


@check("4.1", "3.1", when=lambda can: bool(_nonlinear(can)))
def check_duplicate_ids_are_summed_before_the_rule(subject: Subject, draw: Draw) -> None:
    """A row that comes from several features, samples or places of a bag is updated once, with the
    sum of its contributions: of g and g' Adagrad's accumulator gains (g + g')², not g² + g'².
    """
    can = subject.capabilities
    chain = st.one_of(_nonlinear(can))
    replay(subject, draw(chain_programs(can, chain, parts=2, most=3), "program"))


@check("4.2", needs=("clipvalue",))
def check_gradients_are_clipped_after_they_are_summed(subject: Subject, draw: Draw) -> None:
    """clipvalue limits a row's summed gradient, on both sides or on one, and nothing else: neither
    what is added up nor the row.
    """
    can = subject.capabilities
    limits = st.sampled_from((2.0, 1.0, (-1.0, None), (None, 2.0), (-3.0, 1.0), (1.0, 2.0)))
    replay(subject, draw(chain_programs(can, _sgd(can, clipvalue=limits)), "program"))


@check("4.3", needs=("weight_decay_factor",))
def check_touched_rows_decay_before_the_rule(subject: Subject, draw: Draw) -> None:
    """keep * w, then the rule; keep is 1 - factor, or 1 - factor * rate if that is asked for. Rows
    that were not looked up keep their weights.
    """
    can = subject.capabilities
    chain = _sgd(
        can,
        weight_decay_factor=st.just(0.5),
        multiply_weight_decay_factor_by_learning_rate=st.sampled_from((None, False, True)),
    )
    replay(subject, draw(chain_programs(can, chain, weights=(4.0, -4.0, 8.0)), "program"))


@check("4.5", needs=("clip_weight",))
def check_weights_are_clipped_after_the_rule_and_slots_never(subject: Subject, draw: Draw) -> None:
    """A touched row is within clip_weight_min and clip_weight_max, whatever its gradient; slots and
    the other rows may be beyond.
    """
    can = subject.capabilities
    limits = draw(st.sampled_from(((-2.0, 2.0), (None, 3.0), (-1.0, None), (1.0, 2.0))), "limits")
    options = {"clip_weight_min": limits[0], "clip_weight_max": limits[1]}
    chain = _sgd(can, **{name: st.just(limit) for name, limit in options.items()})
    if can.offers("Adagrad") and can.ulps == 0.5:
        chain = st.one_of(chain, adagrad(can, **options))
    replay(subject, draw(chain_programs(can, chain, weights=(0.0, 5.0, -5.0, 1.0)), "program"))


@check("4.4", "4.1", "4.2", "4.3", "4.5", needs=("clipvalue", "weight_decay_factor", "clip_weight"))
def check_an_update_sums_clips_decays_applies_the_rule_and_clips(
    subject: Subject, draw: Draw
) -> None:
    """All of it at once, in this order: sum g, clip g, decay w, the rule, clip w."""
    can = subject.capabilities
    chain = _sgd(
        can,
        clipvalue=st.just(2.0),
        weight_decay_factor=st.just(0.5),
        clip_weight_min=st.just(-3.0),
        clip_weight_max=st.just(3.0),
    )
    replay(subject, draw(chain_programs(can, chain, weights=(4.0, -4.0, 8.0)), "program"))


@check("4.6", "8.3", needs=("use_gradient_accumulation=False",))
def check_without_accumulation_each_contribution_is_an_update_in_order(
    subject: Subject, draw: Draw
) -> None:
    """Decay, rule and weight clipping are done for each contribution, by feature, then sample, then
    position.
    """
    can = subject.capabilities
    options: dict[str, Any] = {"use_gradient_accumulation": False}
    gradients: tuple[tuple[float, ...], ...] = (SMALL,) * 3
    optimizer: Any = SGD(draw(rates(can, 1.0), "rate"), **options)
    if can.offers("Adagrad") and can.ulps == 0.5 and draw(st.booleans(), "Adagrad"):
        drawn = draw(adagrad(can, **options), "chain")
        optimizer = drawn.optimizer
        gradients = tuple(tuple(drawn.unit * g for g in each) for each in drawn.touches[:2])
    elif can.offers("clip_weight"):
        optimizer = SGD(optimizer.learning_rate, **options, clip_weight_max=2.0)
    row = draw(st.integers(0, ROWS - 1), "row")
    parts = [(row, draw(tables_of((2,), each), "contribution")) for each in gradients]
    setup = draw(one_table(can, optimizer), "setup")
    replay(subject, Program(setup, (draw(delivered(setup, parts, ordered=True), "step"),)))


@check("8.3", when=lambda can: can.bitwise)
def check_contributions_are_added_in_the_written_order(subject: Subject, draw: Draw) -> None:
    """By feature, then sample, then position, each sum rounded: numbers whose sum tells."""
    can = subject.capabilities.to_the_bit
    orders = st.permutations((2.0**24, 1.0, -(2.0**24), 3.0))
    numbers = np.array([draw(orders, "a column") for _ in range(2)], np.float32).T
    row = draw(st.integers(0, ROWS - 1), "row")
    parts: list[Part] = [(row, part) for part in numbers]
    setup = draw(one_table(can, SGD(1.0), weights=(0.0,)), "setup")
    step = draw(delivered(setup, parts, ordered=True), "step")
    replay(subject, Program(setup, (step,)))


@check("4.7", "5.3", needs=("a learning-rate callable",))
def check_learning_rates_belong_to_the_step_of_their_gradients(
    subject: Subject, draw: Draw
) -> None:
    """A callable rate is that of the training step whose gradients it scales, also where the update
    waits for later steps to be dequeued.
    """
    can = subject.capabilities
    values = draw(st.sampled_from(((1.0, 0.5, 0.25), (0.5, 2.0), (1.0, 0.5))), "rates")
    setup = draw(one_table(can, SGD(Rates(values))), "setup")
    ones = np.ones(2, np.float32)
    steps: list[Train] = []
    for number in range(draw(st.integers(2, 6), "steps")):
        parts = [(row, ones) for row in {0, number % ROWS}]
        steps.append(draw(delivered(setup, parts), "step"))
    replay(subject, Program(setup, tuple(draw(with_drains(can, steps), "calls"))))


@check("4.7", needs=("Adam",), when=may_step, effort=0.25)
def check_coefficients_are_computed_in_float64_and_rounded_once(
    subject: Subject, draw: Draw
) -> None:
    """Adam's 1 - b1 and 1 - b2 are the nearest float32, which 1 - float32(b) is not."""
    can = subject.capabilities
    betas = draw(st.sampled_from(((0.9, 0.999), (0.8, 0.9999), (0.95, 0.99))), "betas")
    setup = draw(one_table(can, Adam(0.1, *betas)), "setup")
    vector = draw(tables_of((2,), (1.0, -3.0, 0.7)), "gradient")
    step = draw(delivered(setup, [(draw(st.integers(0, ROWS - 1)), vector)]), "step")
    engine_steps(subject, setup, [(step.batch, step.gradients)])


def _with_slots(can: Capabilities) -> list[st.SearchStrategy[Chain]]:
    """Chains whose slots change with every update, even with gradient 0."""
    chains = _nonlinear(can)
    if can.ulps == 0.5:
        chains += [adam_on_any_row(can)] * 2 if can.offers("Adam") else []
        chains += [ftrl(can)] if can.offers("FTRL") else []
    return chains


@check("4.10", "1.1", when=lambda can: bool(_with_slots(can)))
def check_rows_outside_the_plan_keep_their_slots(subject: Subject, draw: Draw) -> None:
    """Whatever a step does to the rows that it looks up, all others and their slots stay as they
    were: no decay of momenta, no padding, no row 0 in the place of an empty bag.
    """
    can = subject.capabilities
    chain = st.one_of(_with_slots(can))
    program = draw(chain_programs(can, chain, least=2, parts=1, weights=(1.0, 2.0)), "program")
    replay(subject, program)


@check("4.10", needs=("Adam", "lazy_adam=False"), when=lambda can: can.ulps == 0.5)
def check_a_non_lazy_adam_moves_every_row_also_for_an_empty_plan(
    subject: Subject, draw: Draw
) -> None:
    """With lazy_adam=False each step updates all rows of the table once, with gradient 0 where
    nothing was looked up, also when nothing was at all.
    """
    can = subject.capabilities
    program = draw(chain_programs(can, adam_on_any_row(can, lazy=False), most=3), "program")
    setup = program.setup
    empty = draw(delivered(setup, []), "empty step")
    replay(subject, Program(setup, (*program.calls, empty)))


def _moved_by_zeros(can: Capabilities) -> list[Any]:
    """Optimizers of which a gradient of 0 changes a row or its slots, exactly."""
    made: list[Any] = [FTRL(0.5)] if can.offers("FTRL") else []
    made += [Counting()] if can.offers(*USER) else []
    if can.offers("weight_decay_factor"):
        made.append(SGD(0.5, weight_decay_factor=0.5))
    if can.offers("clip_weight"):
        made.append(SGD(0.5, clip_weight_max=0.5))
    return made


@check("4.11", "3.3", when=lambda can: bool(_moved_by_zeros(can)))
def check_a_gradient_of_zero_is_an_update(subject: Subject, draw: Draw) -> None:
    """A row that was looked up is updated, though its gradient is 0, None or has gain 0: FTRL sets
    a fresh row to 0, decay and weight clipping apply, and slots count it.
    """
    can = subject.capabilities
    optimizer = draw(st.sampled_from(_moved_by_zeros(can)), "optimizer")
    setup = draw(one_table(can, optimizer, weights=(1.0, 2.0, -2.0)), "setup")
    kinds = ["zeros", *(["gain 0"] if can.offers("weights") else [])]
    kinds += ["None"] if can.offers("gradients of None") else []
    kind = draw(st.sampled_from(kinds), "kind")
    batch = draw(batches(setup, Capabilities(refuses={"weights": "see below"})), "batch")
    numbers = INTEGERS if kind == "gain 0" else (0.0,)
    shape = setup.activation_shape(0)
    gradients: list[Any] = [draw(tables_of(shape, numbers), "gradient") for _ in setup.features]
    if kind == "gain 0":
        batch = [[[(row, 0.0) for row in bag] for bag in bags] for bags in batch]
    if kind == "None":
        gradients[-1] = None
    replay(subject, Program(setup, (Train(batch, gradients),)))
