"""A run as a trace for Perfetto (https://ui.perfetto.dev) and chrome://tracing.

One process for each worker and one for what they share, one track for each resource. Arrows lead
from the update that a lookup saw last; lookups that miss updates are red. Counters: batches that
have been read and not yet updated, and the age of the last lookup.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .staleness import ages
from .timeline import Timeline

MICROSECONDS = 1e6
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
) -> None:
    """Write it as a .json file."""
    path.write_text(json.dumps(trace(timeline, batches, title)))


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
        name = f"worker {process - 1}" if process else "shared"
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
