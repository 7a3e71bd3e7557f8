"""What a schedule does wrong, in the order in which its operations touch tables.

A constructor of pipelines.py has no hazards; a schedule that someone writes by hand may.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .pipelines import Rule
from .timeline import Timeline

KINDS = ("missing update", "early update", "lost update", "undrained end", "double update")


@dataclass(frozen=True)
class Hazard:
    """One mistake: one of KINDS, and which operations and what the rule requires, in words."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def hazards(timeline: Timeline, rule: Rule) -> list[Hazard]:
    """All of a run.

    missing update  a lookup begins before an update has ended that the rule lets it see
    early update    ... after one has ended that it must not see; or an update before its lookup
    lost update     a batch's gradients are in no update, though later ones are
    undrained end   so at the end of the run
    double update   a batch is updated twice

    A deadlock is none of these: timeline.run raises it, with the cycle.
    """
    return [*_of_lookups(timeline, rule), *_of_updates(timeline, rule)]


def _of_lookups(timeline: Timeline, rule: Rule) -> Iterator[Hazard]:
    operations = timeline.operations
    reads, writes = np.flatnonzero(operations.reads), np.flatnonzero(operations.writes)
    if not len(reads):
        return
    writes = writes[np.argsort(timeline.ended[writes])]
    batch = operations.batch[writes].astype(np.int64)
    seen = np.searchsorted(timeline.ended[writes], timeline.began[reads])
    of_reads = operations.batch[reads].astype(np.int64)
    least, below = rule.at_least(of_reads), rule.below(of_reads)
    # Of what was seen the last batch, of what was not the first one.
    last = np.maximum.accumulate(np.concatenate([[-1], batch]))[seen]
    first = np.minimum.accumulate(np.concatenate([batch, [2**62]])[::-1])[::-1][seen]
    for i in np.flatnonzero((first < least) | (last >= below)):
        lookup = operations[reads[i]]
        for j in range(len(writes)):
            update = operations[writes[j]]
            if j >= seen[i] and batch[j] < least[i]:
                text = f"{lookup} begins before {update} has ended, which it must see"
                yield Hazard("missing update", text)
            if j < seen[i] and batch[j] >= below[i]:
                text = f"{lookup} begins after {update} has ended, which it must not see"
                yield Hazard("early update", text)


def _of_updates(timeline: Timeline, rule: Rule) -> Iterator[Hazard]:
    operations = timeline.operations
    reads, writes = np.flatnonzero(operations.reads), np.flatnonzero(operations.writes)
    order = writes[np.argsort(timeline.ended[writes])]
    written, which, counts = np.unique(
        operations.batch[order], return_index=True, return_counts=True
    )
    for batch, count in zip(written[counts > 1], counts[counts > 1], strict=True):
        yield Hazard("double update", f"batch {batch} is updated {count} times")
    end = int(written.max(initial=-1))
    batches = operations.batch[reads].astype(np.int64)
    applied = rule.applied(batches)
    place = np.searchsorted(written, applied)
    for i, batch in enumerate(batches):
        lookup = operations[reads[i]]
        if place[i] == len(written) or written[place[i]] != applied[i]:
            kind = "lost update" if applied[i] < end else "undrained end"
            yield Hazard(
                kind, f"{lookup} has no update({applied[i]}) with the gradients of its batch"
            )
            continue
        write = order[which[place[i]]]
        if timeline.began[write] < timeline.ended[reads[i]]:
            text = f"{operations[write]} begins before {lookup} of batch {batch} has ended"
            yield Hazard("early update", f"{text}: there are no gradients yet")
