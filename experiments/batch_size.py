"""Is a large batch another kind of staleness?

Question
    Inside a batch all samples read the same weights. MLPerf's DLRM-DCNv2 needs 0.71, 0.79 and 0.96
    epochs at batches of 32,768, 65,536 and 160,000 (published convergence points). How do batch
    size and staleness go together: does k * B decide alone?

Setup
    See sweep.py. DeepFM, d = 16, MLP 64-32, Adagrad on both halves, three epochs; batches of 256,
    1024 and 4096, staleness 0, 1 and 8. Rates are the best of a grid at staleness 0 and batches of
    256 on another seed (1000), and the same for all batches.

Expectation (written before the run)
    loss grows with k and with B; no pure k*B law.

Result (default run, 5 seeds)
    Holds. At staleness 0 B = 1024 costs 103 bp against 256, and 4096 another 349. Staleness 8 costs
    12.2 ± 9.0, 13.3 ± 14.2 and 189.0 ± 69.9 bp at the three, of which five seeds show the last
    alone. No law of k * B: 8 batches of 256 late cost 12 bp, one of 1024 2, one of 4096 25.

Limits
    Rates are not tuned for each batch size: a part of what B costs is that there are fewer updates
    at the same rate.
"""

from dataclasses import dataclass
from typing import Self

import embsim

from . import statistics, study, sweep
from .data.samples import provenance
from .replays import Setup, adagrad


@dataclass(frozen=True)
class Params(sweep.Params):
    variants: tuple[str, ...] = ("B = 256", "B = 1024", "B = 4096")
    staleness: tuple[int, ...] = (0, 1, 8)

    @classmethod
    def smoke(cls) -> Self:
        return cls(seeds=(0, 1), variants=("B = 256", "B = 1024"), samples=15_000, epochs=1)

    @classmethod
    def full(cls) -> Self:
        return cls(staleness=(0, 1, 2, 4, 8, 16))


def size(variant: str) -> int:
    """Of a batch."""
    return int(variant.removeprefix("B = "))


def _setup(variant: str, backend: str) -> Setup:
    optimizer = embsim.Adagrad(learning_rate=0.8)
    return Setup(optimizer, adagrad(0.1), size(variant), backend=backend)


def run(params: Params) -> list[sweep.Record]:
    """One record per point of the sweep."""
    return sweep.run(params, _setup)


def _changes(records: list[sweep.Record]) -> dict[str, statistics.PairedDifference]:
    """Of each size of batches against the one before, and of the deepest staleness."""
    found = sweep.cells(records)
    variants = list(dict.fromkeys(name for name, _ in found))
    deepest = max(k for _, k in found)
    sizes = {
        f"{large} against {small}": statistics.paired_difference(
            1e4 * found[large, 0], 1e4 * found[small, 0], sweep.FLOOR_BP
        )
        for large, small in zip(variants[1:], variants, strict=False)
    }
    return sizes | {f"{v}, staleness {deepest}": sweep.change(found, v, deepest) for v in variants}


def verdict(records: list[sweep.Record]) -> str:
    """What is a loss, of what was expected to be one."""
    said = {what: bp.verdict for what, bp in _changes(records).items()}
    if unclaimed := [each for each in said.values() if each.startswith("no claim")]:
        return unclaimed[0]
    losses = [what for what, each in said.items() if each == "loss"]
    if len(losses) == len(said):
        return "holds"
    return f"a loss, as expected: {'; '.join(losses) or 'none'}; of {len(said)}"


def report(records: list[sweep.Record]) -> str:
    """The table, and what became of the expectation."""
    lines = ["Expected: loss grows with k and with B; k * B alone does not decide."]
    for what, bp in _changes(records).items():
        lines.append(f"  {what}: {bp.mean:+.1f} bp: {bp.verdict}")
    return "\n".join([sweep.report(records), *lines])


STUDY = study.Study(
    "batch_size",
    Params,
    sweep.Record,
    run,
    report,
    verdict,
    sweep.figure,
    lambda params: provenance(params.data),
    minutes=2,
)
