"""Clicks from a known law: an endless supply of them, tables of any size, the best AUC known.

Sample number n is drawn at time t. Field f has N_f rows:

    rank_f ~ Zipf(α_f) on 1..N_f,   P(rank = k) ∝ k^-α_f        id_f = permutation_f(rank_f)
    A_id, B_id ~ N(0, I_3)    bias_id ~ N(0, 0.35²)    phase_id ~ U(0, 2π)
    u_id(t) = cos(phase_id + 2πt/τ) · A_id + sin(phase_id + 2πt/τ) · B_id
    logit   = -1.2 + Σ_f bias_f + 1.3 · Σ_{f<g} <u_f, u_g> / sqrt(3 · F(F-1)/2)
    label   ~ Bernoulli(sigmoid(logit))

Knobs, each apart from the others:

* drift: τ, the samples after which all vectors are where they were. None: they stay.
* campaign: one field shows ids that live for L samples and never come back. At any time `active`
  campaigns run, s = 0..active-1 by popularity, Zipf in s. In s runs, one after another, campaign
  number active · floor(t/L + s/active) + s, with A, B, bias and phase of its own: starts are
  staggered. Its row is permutation(number mod N): a small table gives rows of dead campaigns to new
  ones.
* session: with probability ρ one field (the user) repeats the id of the sample before.

Everything is a function of (seed, n) or (seed, field, id), by a counter-based generator: no state,
no table, memory O(batch). The AUC of the logit itself is the most that a model can reach. It
depends on the world: over 300 seeds, with all α = 1.05, it is 0.820 with a standard deviation of
0.014; `draw` gives the logits.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
from scipy.special import expit, ndtri

from .streams import Examples, check_batches, full_batches, padded, unmasked

RANK = 3  # of the vectors A and B
BIAS_SD = 0.35
BASE_LOGIT = -1.2
INTERACTION = 1.3
HEAD = 1024  # ranks whose probabilities are exact

# What a number is drawn for; with the seed and a field, the key of its generator.
_ALPHA, _PERMUTATION, _LATENT, _TRAINING, _HELD_OUT, _SESSION = range(6)
_LABEL = 2**31  # in place of a field


@dataclass(frozen=True)
class Synthetic:
    """A world of the law above.

    Args:
      vocabulary_sizes: N_f, at least two fields.
      alphas: α_f; None draws them from U(0.9, 1.2) by the seed.
      seed: of everything; another seed is another world.
      num_samples: of one pass, the times 0..num_samples-1; None is endless, for worlds that do not
        change.
      num_held_out: samples of the world at time num_samples, drawn apart, in no session.
      drift_period: τ.
      campaign_lifetime: L; None: no field of campaigns.
      campaign_field, campaign_active: which field, and how many run at a time.
      session_rho: ρ.
      session_field: the user.
    """

    vocabulary_sizes: tuple[int, ...] = (20_000, 5_000, 1_000, 200, 50, 10)
    alphas: tuple[float, ...] | None = None
    seed: int = 0
    num_samples: int | None = 800_000
    num_held_out: int = 65_536
    drift_period: int | None = None
    campaign_lifetime: int | None = None
    campaign_field: int = 2
    campaign_active: int = 10
    session_rho: float = 0.0
    session_field: int = 0

    def __post_init__(self) -> None:
        sizes, alphas, active = self.vocabulary_sizes, self.alphas, self.campaign_active
        lengths = (self.num_samples, self.num_held_out, self.drift_period, self.campaign_lifetime)
        changes = self.drift_period is not None or self.campaign_lifetime is not None
        rows = dict(enumerate(sizes)).get(self.campaign_field, 0)
        _require(
            len(sizes) >= 2 and min(sizes) >= 1 and max(sizes) < 2**31,
            f"vocabulary_sizes is {sizes}; it must be two or more numbers from 1 to 2^31 - 1",
        )
        _require(
            alphas is None or (len(alphas) == len(sizes) and min(alphas) >= 0),
            f"alphas is {alphas}; it must be None or a number >= 0 for each of {len(sizes)} fields",
        )
        _require(
            self.seed >= 0 and all(length is None or length >= 1 for length in lengths),
            f"seed is {self.seed}, lengths in samples are {lengths}; they must be >= 0 and >= 1",
        )
        _require(
            self.num_samples is not None or not changes,
            "num_samples is None; a world that changes must have an end, where it is held out",
        )
        _require(
            self.campaign_lifetime is None or 2 <= 2 * active <= rows,
            f"campaign_active is {active}, campaign_field {self.campaign_field} of {sizes}; the "
            "field must have two rows or more for each active campaign",
        )
        _require(
            0 <= self.session_rho < 1 and 0 <= self.session_field < len(sizes),
            f"session_rho is {self.session_rho}, session_field {self.session_field} of {sizes}; "
            "rho must be from 0 to below 1, the field one of them",
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"field_{f}" for f in range(len(self.vocabulary_sizes)))

    @property
    def num_dense(self) -> int:
        return 0

    def num_steps(self, batch_size: int) -> int | None:
        check_batches(batch_size)
        return None if self.num_samples is None else full_batches(self.num_samples, batch_size)

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Examples]:
        check_batches(batch_size, start)
        end = self.num_steps(batch_size)
        steps = count(start) if end is None else range(start, end)
        return (self.draw(step * batch_size, batch_size)[0] for step in steps)

    def held_out(self, batch_size: int) -> Iterator[Examples]:
        check_batches(batch_size)
        n = self.num_held_out
        drawn = (self.draw(i, min(batch_size, n - i), True) for i in range(0, n, batch_size))
        return (padded(examples, batch_size) for examples, _ in drawn)

    def draw(self, start: int, size: int, held_out: bool = False) -> tuple[Examples, np.ndarray]:
        """Samples start..start+size-1, and the logits that their labels were drawn from."""
        purpose = _HELD_OUT if held_out else _TRAINING
        numbers = np.arange(start, start + size)
        times = np.full(size, self.num_samples or 0) if held_out else numbers
        ids = np.empty((size, len(self.vocabulary_sizes)), np.int32)
        logits = np.full(size, BASE_LOGIT)
        total, squares = np.zeros((RANK, size)), np.zeros(size)
        for field in range(ids.shape[1]):
            source = numbers
            if self.session_rho and field == self.session_field and not held_out:
                source = self._session_starts(start, size)
            uniform = _uniform(_key(self.seed, purpose, field), source)
            ids[:, field], identities = self._ids(field, uniform, times)
            bias, vectors = self._latents(field, identities, times)
            logits += bias
            total += vectors
            squares += np.sum(vectors**2, axis=0)
        pairs = 0.5 * (np.sum(total**2, axis=0) - squares)  # of all f < g
        num_pairs = ids.shape[1] * (ids.shape[1] - 1) / 2
        logits += INTERACTION * pairs / np.sqrt(num_pairs * RANK)
        clicked = _uniform(_key(self.seed, purpose, _LABEL), numbers) < expit(logits)
        return unmasked(ids, None, clicked.astype(np.float32)), logits

    def alpha(self, field: int) -> float:
        if self.alphas is not None:
            return self.alphas[field]
        uniform = _uniform(_key(self.seed, _ALPHA, field), np.zeros(1, np.int64))
        return 0.9 + (1.2 - 0.9) * uniform.item()

    def row_of_rank(self, field: int, ranks: np.ndarray) -> np.ndarray:
        """The field's permutation; ranks from 0."""
        key = _key(self.seed, _PERMUTATION, field)
        return permuted(ranks, self.vocabulary_sizes[field], key)

    def _ids(
        self, field: int, uniform: np.ndarray, times: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ids, what they stand for): an id stands for itself, but in the field of campaigns."""
        rows, lifetime = self.vocabulary_sizes[field], self.campaign_lifetime
        if lifetime is None or field != self.campaign_field:
            ids = self.row_of_rank(field, zipf_ranks(uniform, self.alpha(field), rows))
            return ids, ids
        active = self.campaign_active
        slots = zipf_ranks(uniform, self.alpha(field), active)
        campaigns = active * ((times * active + slots * lifetime) // (lifetime * active)) + slots
        return self.row_of_rank(field, campaigns % rows), campaigns

    def _latents(
        self, field: int, identities: np.ndarray, times: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(bias, u(t)) of ids or campaigns."""
        draws = 2 * RANK + 2
        distinct, place = np.unique(identities, return_inverse=True)
        counters = distinct * draws + np.arange(draws)[:, None]
        uniform = _uniform(_key(self.seed, _LATENT, field), counters)
        angle, normal = 2 * np.pi * uniform[0, place], ndtri(uniform[1:])[:, place]
        if self.drift_period is not None:
            angle += 2 * np.pi * (times % self.drift_period) / self.drift_period
        a, b = normal[1 : RANK + 1], normal[RANK + 1 :]
        return BIAS_SD * normal[0], np.cos(angle) * a + np.sin(angle) * b

    def _session_starts(self, start: int, size: int) -> np.ndarray:
        """Whose user each sample has: the last sample up to it that began a session."""
        key, reach = _key(self.seed, _SESSION, self.session_field), 64
        while True:
            numbers = np.arange(max(0, start - reach), start + size)
            begins = (_uniform(key, numbers) >= self.session_rho) | (numbers == 0)
            last = np.maximum.accumulate(np.where(begins, numbers, -1))[-size:]
            if last[0] >= 0:
                return last
            reach *= 2


def stream(preset: str = "static", rows: int | None = None, **changes: Any) -> Synthetic:
    """One of PRESETS, with other arguments of Synthetic.

    `rows` are those of the largest table; the others keep their proportion to it.
    """
    if preset not in PRESETS:
        raise ValueError(f"synthetic: preset is {preset!r}; it must be one of {list(PRESETS)}")
    if rows is not None:
        sizes = PRESETS[preset].vocabulary_sizes
        changes["vocabulary_sizes"] = tuple(max(1, n * rows // max(sizes)) for n in sizes)
    return replace(PRESETS[preset], **changes)


def zipf_ranks(uniform: np.ndarray, alpha: float, rows: int) -> np.ndarray:
    """Ranks 0..rows-1 with P(rank) ∝ (rank + 1)^-alpha, by inverse CDF, without a table of rows.

    From rank HEAD on k^-alpha is the integral of x^-alpha over k ± 1/2: a relative error of
    alpha (alpha + 1) / 24k², below 2e-7 for alpha up to 1.5.
    """
    head = np.cumsum(np.arange(1, min(rows, HEAD) + 1) ** -float(alpha))
    a, b, power = len(head) + 0.5, rows + 0.5, 1.0 - alpha
    log = np.log(b / a)
    tail = a**power * np.expm1(power * log) / power if power else log  # ∫ x^-alpha from a to b
    mass = uniform * (head[-1] + tail)
    ranks = np.searchsorted(head, mass, side="right")
    if len(beyond := np.flatnonzero(ranks == len(head))):
        area = mass[beyond] - head[-1]
        log = np.log1p(power * area * a**-power) / power if power else area  # its b, over a
        ranks[beyond] = np.minimum(a * np.exp(log) + 0.5, rows).astype(np.int64) - 1
    return ranks


def permuted(ranks: np.ndarray, rows: int, key: int) -> np.ndarray:
    """A bijection of 0..rows-1 on itself, one for each key.

    Odd multiples, sums and shifts are bijections of 0..2^bits-1; what lies beyond the last row goes
    through them again, until it does not.
    """
    bits = max(1, (rows - 1).bit_length())
    mask, shift = np.uint64(2**bits - 1), np.uint64((bits + 1) // 2)
    factors = _bits(key, np.arange(3)) | np.uint64(1)
    terms = _bits(key, np.arange(3, 6))

    def once(x: np.ndarray) -> np.ndarray:
        for factor, term in zip(factors, terms, strict=True):
            x = (x * factor + term) & mask
            x = x ^ (x >> shift)
        return x

    x = once(ranks.astype(np.uint64))
    while len(outside := np.flatnonzero(x >= rows)):
        x[outside] = once(x[outside])
    return x.astype(np.int64)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(f"Synthetic: {otherwise}")


@lru_cache(maxsize=1024)
def _key(seed: int, purpose: int, field: int) -> int:
    return int(np.random.SeedSequence((seed, purpose, field)).generate_state(1, np.uint64)[0])


def _uniform(key: int, counters: np.ndarray) -> np.ndarray:
    """In (0, 1), one for each counter."""
    return ((_bits(key, counters) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _bits(key: int, counters: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele, Lea and Flood 2014) of the seed `key`, its outputs by their number."""
    z = np.uint64(key) + (counters.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


# Of meta2021-like. Read 1,036,236 times each, as the 856 tables of fbgemm_t856_bs65536 are by one
# batch of 65,536 (facebookresearch/dlrm_datasets, MIT licence), these have the share of distinct
# rows, and of reads in each of the 17 bins of reuse, of its locality_stats.txt within 0.01.
_META_2021_ROWS = (20_000, 50_000, 200_000, 200_000, 100_000, 1_000, 1_000_000, 2_000_000)
_META_2021_ALPHAS = (0.8, 0.8, 0.8, 0.8, 0.5, 0.9, 0.9, 0.9)

PRESETS = {
    "static": Synthetic(),
    "drift": Synthetic(drift_period=200_000),
    "campaign": Synthetic(campaign_lifetime=8_000),
    "session": Synthetic(session_rho=0.97),
    "meta2021-like": Synthetic(_META_2021_ROWS, _META_2021_ALPHAS),
}
