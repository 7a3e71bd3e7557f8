"""What paired runs allow one to say.

    difference_i = value_i - baseline_i          i: a seed; a pair differs in the schedule only
    limit        = max(floor, (t_0.975 + t_0.80) * sd / sqrt(n))
                                                 t: quantiles of Student's law, n - 1 degrees

The detection limit is the smallest true difference that n such pairs would show, at a two-sided
level of 5 %, in four of five repetitions. A mean inside the limit is "no detectable change", never
"no loss"; fewer than five pairs support no claim at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

MIN_PAIRS = 5

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class PairedDifference:
    """One difference per pair, in the unit of the values, and the smallest one worth claiming."""

    differences: tuple[float, ...]
    floor: float = 0.0

    @property
    def mean(self) -> float:
        return mean_and_sd(self.differences)[0]

    @property
    def sd(self) -> float:
        return mean_and_sd(self.differences)[1]

    @property
    def limit(self) -> float:
        return detection_limit(self.sd, len(self.differences), self.floor)

    @property
    def half_width(self) -> float:
        """Of the 95 % interval of the mean."""
        n = len(self.differences)
        return float(student.ppf(0.975, n - 1)) * self.sd / float(np.sqrt(n))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence, of the mean."""
        return self.mean - self.half_width, self.mean + self.half_width

    @property
    def verdict(self) -> str:
        """gain, loss, no detectable change, no claim, or diverged."""
        n = len(self.differences)
        if not np.isfinite(self.differences).all():
            return "diverged"
        if n < MIN_PAIRS:
            return f"no claim: {n} of {MIN_PAIRS} seeds"
        if abs(self.mean) < self.limit:
            return "no detectable change"
        return "gain" if self.mean > 0 else "loss"


def paired_difference(values: Values, baseline: Values, floor: float = 0.0) -> PairedDifference:
    """Compare runs pair by pair.

    >>> d = paired_difference([1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 2.0, 1.0, 4.0, 3.0])
    >>> d.mean, d.sd, round(d.limit, 3), d.verdict
    (1.0, 1.0, 1.662, 'no detectable change')
    """
    pairs = zip(values, baseline, strict=True)
    return PairedDifference(tuple(float(v) - float(b) for v, b in pairs), floor)


def detection_limit(sd: float, n: int, floor: float = 0.0) -> float:
    """Smallest difference that n pairs of this paired sd can show; infinite for a single pair."""
    if n < 2:
        return np.inf
    quantiles = student.ppf(0.975, n - 1) + student.ppf(0.80, n - 1)
    return float(max(floor, quantiles * sd / np.sqrt(n)))


def within(bound: float, change: PairedDifference) -> str:
    """Is the true change less than `bound` in size?

    'holds' or 'does not hold' if the whole 95 % interval is inside or outside, 'undecided', or why
    there is no claim. A mean inside alone says little: it may be so by chance.

    >>> within(10, PairedDifference((-1.0, 2.0, -1.0, 0.0, -1.0)))
    'holds'
    """
    if not np.isfinite(change.differences).all() or len(change.differences) < MIN_PAIRS:
        return change.verdict
    low, high = change.interval
    if -bound < low and high < bound:
        return "holds"
    return "does not hold" if low >= bound or high <= -bound else "undecided"


def at_least(factor: float, larger: PairedDifference, smaller: PairedDifference) -> str:
    """Is the first loss at least `factor` times the second?

    'holds', 'does not hold', 'undecided', or why there is no claim.

    Decided by the 95 % interval of loss_i - factor * other_loss_i over the pairs: a difference, not
    a ratio, so that it means something where the second loss cannot be told from zero.

    >>> big = PairedDifference((-200.0, -210.0, -190.0, -205.0, -195.0))
    >>> at_least(10, big, PairedDifference((-1.0, 2.0, -1.0, 0.0, -1.0)))
    'holds'
    """
    if larger.verdict != "loss":
        return larger.verdict
    margin = factor * np.array(smaller.differences) - np.array(larger.differences)
    mean = float(np.mean(margin))
    if not np.isfinite(mean):
        return "diverged"
    half_width = PairedDifference(tuple(margin.tolist())).half_width
    if mean - half_width >= 0:
        return "holds"
    return "does not hold" if mean + half_width < 0 else "undecided"


def mean_and_sd(values: Values) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1); the latter is nan for a single value."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return float(np.mean(values)), sd
