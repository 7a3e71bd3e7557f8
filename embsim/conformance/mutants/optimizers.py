"""Faults in the optimizers' formulas: other libraries' formulas, mostly."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from ...optimizers import (
    FTRL,
    Adagrad,
    AdagradMomentum,
    Adam,
    RowwiseAdagrad,
    learning_rate_at,
)
from ._changed import Changed, OtherOptimizers, OtherOptions, OtherRule
from .mutant import mutant


@mutant(
    killed_by="check_adagrad_stays_within_computed_bounds",
    origin="tf.keras.optimizers.Adagrad has epsilon=1e-7, TPUEmbedding's has none",
)
class AdagradHasAnEpsilon(OtherRule, eps=1e-7):
    """Adagrad divides by √a + 1e-7."""

    kinds = (Adagrad,)

    def formula(self, optimizer: Any, ops: Any, w: Any, g: Any, slots: Any, c: Any) -> Any:
        a = slots[0] + g * g
        return w - (c.lr * g) / (ops.sqrt(a) + c.eps), (a,)


@mutant(
    killed_by="check_adagrad_is_its_formula_where_roots_are_exact",
    origin="torch.optim.Adagrad has eps=1e-10 outside the root; inside it is as easy to write",
)
class AdagradHasAnEpsilonInside(OtherRule, eps=1e-10):
    """Adagrad divides by √(a + 1e-10)."""

    kinds = (Adagrad,)

    def formula(self, optimizer: Any, ops: Any, w: Any, g: Any, slots: Any, c: Any) -> Any:
        a = slots[0] + g * g
        return w - (c.lr * g) / ops.sqrt(a + c.eps), (a,)


@mutant(
    killed_by="check_adagrad_is_its_formula_where_roots_are_exact",
    origin="a kernel that stores the accumulator last divides by the one it has loaded",
)
class AdagradDividesByTheOldAccumulator(OtherRule):
    """g² is added to the accumulator after the step."""

    kinds = (Adagrad,)

    def formula(self, optimizer: Any, ops: Any, w: Any, g: Any, slots: Any, c: Any) -> Any:
        return w - (c.lr * g) / ops.sqrt(slots[0]), (slots[0] + g * g,)


class _Rowwise(OtherRule):
    """RowwiseAdagrad, of the mean that `mean` makes."""

    kinds = (RowwiseAdagrad,)

    def mean(self, ops: Any, g: Any, c: Any) -> Any:
        raise NotImplementedError

    def changed(self, optimizer: Any) -> Any:
        made = super().changed(optimizer)
        made.coefficients = lambda rate: {  # type: ignore[reportUnknownLambdaType]
            **optimizer.coefficients(rate),
            **self.widths(next(iter(self.setup.tables.values())).dim),
        }
        return made

    def widths(self, dim: int) -> dict[str, float]:
        return {"dim": dim, "padded": dim / (-(-dim // 8) * 8)}

    def formula(self, optimizer: Any, ops: Any, w: Any, g: Any, slots: Any, c: Any) -> Any:
        a = slots[0] + self.mean(ops, g, c)
        return w - (c.lr / (ops.sqrt(a) + c.eps)) * g, (a,)


@mutant(
    killed_by="check_rowwise_adagrad_is_its_formula_where_roots_are_exact",
    origin="rowwise kernels reduce g² over the lanes, and the division by dim is a line of its own",
)
class RowwiseAdagradAddsTheSum(_Rowwise):
    """The accumulator gains sum(g²), not mean(g²)."""

    def mean(self, ops: Any, g: Any, c: Any) -> Any:
        return ops.mean(g * g) * c.dim


@mutant(
    killed_by="check_rowwise_adagrad_is_its_formula_where_roots_are_exact",
    origin="SparseCore pads rows to a multiple of 8 columns",
)
class RowwiseAdagradDividesByThePaddedDim(_Rowwise):
    """The mean is taken over the padded row."""

    def mean(self, ops: Any, g: Any, c: Any) -> Any:
        return ops.mean(g * g) * c.padded


@mutant(
    killed_by="check_rowwise_adagrad_stays_within_computed_bounds",
    origin="Adam's default has epsilon inside of the root, RowwiseAdagrad's has not",
)
class RowwiseEpsilonIsInside(OtherRule):
    """RowwiseAdagrad divides by √(a + eps)."""

    kinds = (RowwiseAdagrad,)

    def formula(self, optimizer: Any, ops: Any, w: Any, g: Any, slots: Any, c: Any) -> Any:
        a = slots[0] + ops.mean(g * g)
        return w - (c.lr / ops.sqrt(a + c.eps)) * g, (a,)


@mutant(
    killed_by="check_adagrad_momentum_is_its_formula_where_roots_are_exact",
    origin="an option of an option, off by default",
)
class NesterovIsIgnored(OtherOptions, use_nesterov=False):
    """use_nesterov=True is ignored."""


@mutant(
    killed_by="check_adagrad_momentum_is_its_formula_where_roots_are_exact",
    origin="1 is the default, and means a sum, not an average",
)
class Beta2IsIgnored(OtherOptions, beta2=1.0):
    """AdagradMomentum always sums the squares."""


@mutant(
    killed_by="check_adagrad_momentum_stays_within_computed_bounds",
    origin="2 is the default, and the root is the faster path",
)
class ExponentIsIgnored(OtherOptions, exponent=2):
    """AdagradMomentum always takes the square root."""


@mutant(
    killed_by="check_adagrad_momentum_is_its_formula_where_roots_are_exact",
    origin="torch.optim.SGD's documentation: in Sutskever's momentum the rate is in the momentum",
)
class MomentumHoldsTheRate(OtherRule):
    """m = mu * m + lr * h, and w = w - m."""

    kinds = (AdagradMomentum,)

    def formula(self, optimizer: Any, ops: Any, w: Any, g: Any, slots: Any, c: Any) -> Any:
        scaled = SimpleNamespace(lr=c.lr / c.lr, mu=c.mu, beta2=c.beta2, c2=c.c2, e=c.e, eps=c.eps)
        _, (a, h) = optimizer.rule(ops)(w, g, (slots[0], slots[1] - slots[1]), scaled)
        m = c.mu * slots[1] + c.lr * h
        return w - m, (a, m)


@mutant(
    killed_by="check_adam_stays_within_computed_bounds",
    origin="Adam's paper and most libraries add epsilon outside of the root",
)
class EpsilonIsAlwaysOutside(OtherOptions, sum_inside_sqrt=False):
    """Adam divides by √v + eps where √(v + eps²) is asked for."""


@mutant(
    killed_by="check_adam_stays_within_computed_bounds",
    origin="TPUEmbedding's default adds epsilon inside of the root",
)
class EpsilonIsAlwaysInside(OtherOptions, sum_inside_sqrt=True):
    """Adam divides by √(v + eps²) where √v + eps is asked for."""


@mutant(
    killed_by="check_adam_is_its_formula_where_roots_are_exact",
    origin="flags called `sum_inside_sqrt` suggest √(v + eps)",
)
class EpsilonIsNotSquared(OtherRule):
    """Adam divides by √(v + eps) where √(v + eps²) is asked for."""

    kinds = (Adam,)

    def formula(self, optimizer: Any, ops: Any, w: Any, g: Any, slots: Any, c: Any) -> Any:
        squared = c.eps if optimizer.sum_inside_sqrt else c.eps2
        numbers = SimpleNamespace(
            lr=c.lr, b1=c.b1, c1=c.c1, b2=c.b2, c2=c.c2, eps=c.eps, eps2=squared
        )
        return optimizer.rule(ops)(w, g, slots, numbers)


@mutant(
    killed_by="check_adam_stays_within_computed_bounds",
    origin="jax-tpu-embedding's Adam, torch.optim's and Keras's correct the bias of the averages",
)
class AdamCorrectsItsBias(OtherOptimizers):
    """The rate is lr * √(1 - b2^t) / (1 - b1^t), t = step + 1."""

    def changed(self, optimizer: Any) -> Any:
        if not isinstance(optimizer, Adam):
            return optimizer

        def rate(step: int) -> float:
            b1, b2 = optimizer.beta_1 ** (step + 1), optimizer.beta_2 ** (step + 1)
            return learning_rate_at(optimizer.learning_rate, step) * math.sqrt(1 - b2) / (1 - b1)

        return Changed(optimizer, learning_rate=rate)


@mutant(
    killed_by="check_ftrl_is_its_formula_where_roots_are_exact",
    origin="with l2 / 2 * w² in the objective there is no factor 2; TensorFlow has l2 * w²",
)
class L2HasNoFactorTwo(OtherOptimizers):
    """FTRL adds l2, not 2 * l2."""

    def changed(self, optimizer: Any) -> Any:
        if not isinstance(optimizer, FTRL):
            return optimizer
        half = optimizer.l2_regularization_strength / 2
        return replace(optimizer, l2_regularization_strength=half)


@mutant(
    killed_by="check_ftrl_is_its_formula_where_roots_are_exact",
    origin="the paper writes z - sign(z) * l1, TensorFlow clip(z) - z: a sign is soon lost",
)
class L1HasTheWrongSign(OtherRule):
    """FTRL's l1 pushes weights away from 0."""

    kinds = (FTRL,)

    def formula(self, optimizer: Any, ops: Any, w: Any, g: Any, slots: Any, c: Any) -> Any:
        flipped = SimpleNamespace(**{name: getattr(c, name) for name in ("lr", "q", "beta")})
        flipped.l22, flipped.l22r = c.l22, c.l22r
        flipped.l1, flipped.l1r = -c.l1, -c.l1r
        return optimizer.rule(ops)(w, g, slots, flipped)


@mutant(
    killed_by="check_ftrl_is_its_formula_where_roots_are_exact",
    origin="beta is not in every FTRL; TensorFlow's took it in later",
)
class BetaIsIgnored(OtherOptions, beta=0.0):
    """FTRL leaves beta out of the denominator."""


@mutant(
    killed_by="check_ftrl_is_its_formula_where_roots_are_exact",
    origin="the two forms give nearly the same weights, and other linears",
)
class LinearsAreNeverScaled(OtherOptions, multiply_linear_by_learning_rate=False):
    """multiply_linear_by_learning_rate=True is ignored."""


@mutant(
    killed_by="check_ftrl_stays_within_computed_bounds",
    origin="the root is the default, and the faster path",
)
class LearningRatePowerIsIgnored(OtherOptions, learning_rate_power=-0.5):
    """FTRL always takes the square root."""


@mutant(
    killed_by="check_ftrl_is_its_formula_where_roots_are_exact",
    origin="accumulators of other optimizers start at 0.1, those of FTRL must start above 0 too",
)
class AccumulatorsStartAtATenth(OtherOptions, initial_accumulator_value=0.1):
    """initial_accumulator_value is ignored."""
