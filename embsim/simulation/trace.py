"""A run as a trace for Perfetto (https://ui.perfetto.dev) and chrome://tracing.

One process for each worker and one for what they share, one track for each resource. Arrows lead
from the update that a lookup saw last; lookups that miss updates are red. Counters: batches that
have been read and not yet updated, and the age of the last lookup.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .staleness import ages
from .timeline import Timeline

MICROSECONDS = 1e6
SHARED = "shared"  # the process of what all workers share
FRESH, STALE, OTHER = "good", "terrible", "generic_work"  # colours that the viewers know


def trace(
    timeline: Timeline, batches: range | None = None, title: str = "embsim"
) -> dict[str, Any]:
    """The trace as a JSON object, in the Chrome trace event format; of all batches by default."""
    chosen = _chosen(timeline, batches)
    return {
        "displayTimeUnit": "ms",
        "otherData": {"title": title},
        "traceEvents": [
            *_names(timeline),
            *_slices(timeline, chosen),
            *_arrows(timeline, chosen),
            *_counters(timeline, chosen),
        ],
    }


def write_trace(
    path: Path, timeline: Timeline, batches: range | None = None, title: str = "embsim"
) -> "Summary":
    """Write it as a .json file; returns what it holds."""
    made = trace(timeline, batches, title)
    path.write_text(json.dumps(made))
    return summary(made)


@dataclass(frozen=True)
class Summary:
    """What a trace holds.

    Args:
      operations, arrows: how many.
      lookups, stale: how many say their age, and of these, how many miss an update.
      seconds: from the first beginning to the last end.
      busy: by (process, resource) the share of this time for which it is taken.
    """

    operations: int
    arrows: int
    lookups: int
    stale: int
    seconds: float
    busy: dict[tuple[str, str], float]

    def __str__(self) -> str:
        several = len({process for process, _ in self.busy} - {SHARED}) > 1
        taken = ", ".join(
            f"{process + ' ' if several else ''}{name} {share:.0%}"
            for (process, name), share in self.busy.items()
        )
        return (
            f"{self.operations} operations, {self.stale} of {self.lookups} lookups stale, "
            f"{self.arrows} arrows, {1e3 * self.seconds:.3f} ms; busy: {taken}"
        )


def summary(made: dict[str, Any]) -> Summary:
    """Of a trace, as `trace` makes it or as it is read from a file."""
    events: list[dict[str, Any]] = made["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    names = {
        (event["name"], event["pid"], event.get("tid")): event["args"].get("name")
        for event in events
        if event["ph"] == "M"
    }
    first = min((event["ts"] for event in slices), default=0.0)
    last = max((event["ts"] + event["dur"] for event in slices), default=0.0)
    busy = {
        (names["process_name", process, None], name): 0.0
        for (kind, process, _), name in names.items()
        if kind == "thread_name"
    }
    for event in slices:
        process, track = event["pid"], event["tid"]
        at = names["process_name", process, None], names["thread_name", process, track]
        busy[at] += event["dur"] / (last - first or 1.0)
    age = [event["args"]["age"] for event in slices if "age" in event["args"]]
    return Summary(
        operations=len(slices),
        arrows=sum(event["ph"] == "s" for event in events),
        lookups=len(age),
        stale=sum(each > 0 for each in age),
        seconds=(last - first) / MICROSECONDS,
        busy=busy,
    )


def _chosen(timeline: Timeline, batches: range | None) -> np.ndarray:
    """bool [operations]."""
    if batches is None:
        return np.ones(len(timeline.operations), bool)
    return np.isin(timeline.operations.batch, np.arange(batches.start, batches.stop, batches.step))


def _tracks(timeline: Timeline) -> list[tuple[int, int]]:
    """(process, track) of each resource: process 0 is shared, worker w has process w + 1."""
    return [
        (0 if resource.worker is None else resource.worker + 1, number + 1)
        for number, resource in enumerate(timeline.operations.resources)
    ]


def _names(timeline: Timeline) -> Iterator[dict[str, Any]]:
    tracks, resources = _tracks(timeline), timeline.operations.resources
    for process in sorted({process for process, _ in tracks}):
        name = f"worker {process - 1}" if process else SHARED
        yield {"ph": "M", "name": "process_name", "pid": process, "args": {"name": name}}
    for (process, track), resource in zip(tracks, resources, strict=True):
        place = {"ph": "M", "pid": process, "tid": track}
        yield {**place, "name": "thread_name", "args": {"name": resource.name}}
        yield {**place, "name": "thread_sort_index", "args": {"sort_index": track}}


def _slices(timeline: Timeline, chosen: np.ndarray) -> Iterator[dict[str, Any]]:
    operations, tracks, found = timeline.operations, _tracks(timeline), ages(timeline)
    age = dict(zip(found.lookup.tolist(), found.age.tolist(), strict=True))
    for i in np.flatnonzero(chosen).tolist():
        process, track = tracks[operations.resource[i]]
        arguments: dict[str, Any] = {"batch": int(operations.batch[i])}
        colour = OTHER
        if i in age:
            arguments["age"], colour = age[i], STALE if age[i] else FRESH
        yield {
            "ph": "X",
            "name": str(operations[i]),
            "cat": operations[i].stage.name,
            "pid": process,
            "tid": track,
            "ts": timeline.start[i] * MICROSECONDS,
            "dur": (timeline.end[i] - timeline.start[i]) * MICROSECONDS,
            "cname": colour,
            "args": arguments,
        }


def _arrows(timeline: Timeline, chosen: np.ndarray) -> Iterator[dict[str, Any]]:
    operations, tracks = timeline.operations, _tracks(timeline)
    last, arrow = None, 0
    for i in timeline.events().tolist():
        if operations.writes[i]:
            last = i
        elif last is not None and chosen[i] and chosen[last]:
            arrow += 1
            for phase, at, when in (("s", last, timeline.end[last]), ("f", i, timeline.start[i])):
                process, track = tracks[operations.resource[at]]
                event = {"ph": phase, "id": arrow, "name": "seen", "cat": "seen"}
                place = {"pid": process, "tid": track, "ts": when * MICROSECONDS}
                yield {**event, **place, **({"bp": "e"} if phase == "f" else {})}


def _counters(timeline: Timeline, chosen: np.ndarray) -> Iterator[dict[str, Any]]:
    operations, found = timeline.operations, ages(timeline)
    age = dict(zip(found.lookup.tolist(), found.age.tolist(), strict=True))
    read: set[int] = set()
    updated: set[int] = set()
    for i in timeline.events().tolist():
        batch = int(operations.batch[i])
        (read if operations.reads[i] else updated).add(batch)
        if not chosen[i]:
            continue
        when = timeline.start[i] if operations.reads[i] else timeline.end[i]
        event = {"ph": "C", "pid": 0, "ts": when * MICROSECONDS}
        yield {
            **event,
            "name": "batches read, not updated",
            "args": {"batches": len(read - updated)},
        }
        if i in age:
            yield {**event, "name": "age of a lookup", "args": {"updates missed": age[i]}}
