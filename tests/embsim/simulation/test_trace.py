"""Traces: every event as the Chrome trace event format has it, and what they tell."""

import json
import os
import subprocess
from collections import Counter, defaultdict
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embsim.simulation import pipelines
from embsim.simulation.staleness import ages
from embsim.simulation.timeline import run
from embsim.simulation.trace import summary, trace, write_trace
from tests.embsim.simulation.test_pipelines import ONE_OF_EACH, PIPELINES, timed

NUMBER, WHOLE, TEXT = (int, float), int, str
# What each phase must have, and may have besides: "Trace Event Format", Google.
FORMAT = {
    "M": ({"name": TEXT, "pid": WHOLE, "args": dict}, {"tid": WHOLE}),
    "X": (
        {"name": TEXT, "cat": TEXT, "pid": WHOLE, "tid": WHOLE, "ts": NUMBER, "dur": NUMBER},
        {"args": dict, "cname": TEXT},
    ),
    "s": ({"name": TEXT, "cat": TEXT, "id": WHOLE, "pid": WHOLE, "tid": WHOLE, "ts": NUMBER}, {}),
    "f": (
        {"name": TEXT, "cat": TEXT, "id": WHOLE, "pid": WHOLE, "tid": WHOLE, "ts": NUMBER},
        {"bp": TEXT},
    ),
    "C": ({"name": TEXT, "pid": WHOLE, "ts": NUMBER, "args": dict}, {}),
}


def check_format(made):
    json.dumps(made, allow_nan=False)
    assert set(made) == {"displayTimeUnit", "otherData", "traceEvents"}
    for event in made["traceEvents"]:
        required, optional = FORMAT[event["ph"]]
        assert required.keys() <= event.keys() - {"ph"} <= required.keys() | optional.keys()
        for name, value in event.items():
            if name != "ph":
                assert isinstance(value, (required | optional)[name]), event
        assert event.get("ts", 0) >= 0 and event.get("dur", 0) >= 0
        if event["ph"] == "C":
            assert all(isinstance(value, NUMBER) for value in event["args"].values())


def of(made, phase):
    return [event for event in made["traceEvents"] if event["ph"] == phase]


@settings(max_examples=40)
@given(PIPELINES, st.integers(0, 12), st.integers(0, 99))
def test_every_trace_has_the_form(pipeline, batches, seed):
    timeline = timed(pipeline, batches, seed)
    made = trace(timeline)
    check_format(made)
    assert len(of(made, "X")) == len(timeline.operations)
    tracks = {(e["pid"], e["tid"]) for e in of(made, "M") if e["name"] == "thread_name"}
    assert len(tracks) == len(timeline.operations.resources)
    assert {(e["pid"], e["tid"]) for e in of(made, "X")} <= tracks
    # An arrow begins where an update ends, and ends where a lookup begins, not earlier.
    starts, ends = ({e["id"]: e for e in of(made, phase)} for phase in "sf")
    assert starts.keys() == ends.keys()
    assert all(starts[i]["ts"] <= ends[i]["ts"] for i in starts)


def check_order(made):
    """On a track one slice ends before the next begins, to a nanosecond; counters go on in time;
    of each arrow there is one beginning and one end, inside a slice each."""
    tracks, counters = defaultdict(list), defaultdict(list)
    for event in of(made, "X"):
        tracks[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for slices in tracks.values():
        slices.sort()
        assert all(end <= begin + 1e-3 for (_, end), (begin, _) in pairwise(slices))
    for event in of(made, "C"):
        counters[event["pid"], event["name"]].append(event["ts"])
    assert all(times == sorted(times) for times in counters.values())
    ids = {phase: [event["id"] for event in of(made, phase)] for phase in "sf"}
    assert sorted(ids["s"]) == sorted(ids["f"]) == sorted(set(ids["s"]))
    for event in of(made, "s") + of(made, "f"):
        slices = tracks[event["pid"], event["tid"]]
        assert any(low - 1e-3 <= event["ts"] <= high + 1e-3 for low, high in slices)


@pytest.mark.parametrize("text", ONE_OF_EACH)
def test_the_trace_of_each_constructor_is_sound_and_summed_up(text, tmp_path):
    timeline = timed(pipelines.pipeline_of(text), 13, seed=1)
    found, age = write_trace(tmp_path / "t.json", timeline), ages(timeline)
    made = json.loads((tmp_path / "t.json").read_text())
    check_format(made)
    check_order(made)
    assert found == summary(made)
    assert found.operations == len(timeline.operations)
    assert (found.lookups, found.stale) == (len(age.age), (age.age > 0).sum())
    assert found.seconds == pytest.approx(timeline.seconds - timeline.start.min())
    assert list(found.busy.values()) == pytest.approx(
        [taken / found.seconds for taken in timeline.busy.values()]
    )
    assert [name for _, name in found.busy] == [each.name for each in timeline.operations.resources]
    assert f"{found.stale} of {found.lookups} lookups stale" in str(found)


@pytest.mark.parametrize(
    "change",
    [
        lambda events: events["X"][1].update(ts=events["X"][0]["ts"]),
        lambda events: events["f"][0].update(id=99),
        lambda events: events["s"][0].update(ts=1e9),
        lambda events: events["C"][-1].update(ts=0.0),
    ],
)
def test_what_is_wrong_in_a_trace_is_found(change):
    made = trace(run(pipelines.sequential().operations(4), 1e-3))
    check_order(made)
    same = [e for e in of(made, "X") if e["tid"] == of(made, "X")[0]["tid"]]
    change({"X": same, **{phase: of(made, phase) for phase in "sfC"}})
    with pytest.raises(AssertionError):
        check_order(made)


def test_a_trace_of_nothing_has_a_summary():
    found = summary(trace(run(pipelines.sequential().operations(0), 1e-3)))
    assert (found.operations, found.lookups, found.seconds, found.busy) == (0, 0, 0.0, {})


def test_stale_lookups_are_red_and_say_their_age():
    timeline = run(pipelines.stale(2).operations(5), 1e-3)
    lookups = [e for e in of(trace(timeline), "X") if e["cat"] == "lookup"]
    assert [(e["name"], e["args"]["age"], e["cname"]) for e in lookups] == [
        ("lookup(0)", 0, "good"),
        *((f"lookup({t})", min(t, 2), "terrible") for t in range(1, 5)),
    ]
    assert all(e["dur"] == pytest.approx(1000) for e in lookups)


def test_arrows_lead_from_the_last_update_that_was_seen():
    made = trace(run(pipelines.tpu_embedding_pipelined().operations(4), 1e-3))
    slices = {(e["pid"], e["tid"], e["ts"] + e["dur"]): e["name"] for e in of(made, "X")}
    begins = {(e["pid"], e["tid"], e["ts"]): e["name"] for e in of(made, "X")}
    found = [
        (slices[s["pid"], s["tid"], s["ts"]], begins[f["pid"], f["tid"], f["ts"]])
        for s, f in zip(of(made, "s"), of(made, "f"), strict=True)
    ]
    assert found == [("update(0)", "lookup(2)"), ("update(1)", "lookup(3)")]


def test_counters_count_batches_that_wait_for_their_update():
    made = trace(run(pipelines.stale(2).operations(6), 1e-3))
    waiting = [e["args"]["batches"] for e in of(made, "C") if "batches" in e["args"]]
    assert waiting == [1, 2, 3, 2, 3, 2, 3, 2, 3, 2, 1, 0]
    old = [e["args"]["updates missed"] for e in of(made, "C") if "updates missed" in e["args"]]
    assert old == [0, 1, 2, 2, 2, 2]


def test_workers_are_processes_and_what_they_share_is_one():
    made = trace(run(pipelines.hybrid(2, 1).operations(4), 1e-3))
    names = {e["pid"]: e["args"]["name"] for e in of(made, "M") if e["name"] == "process_name"}
    assert names == {0: "shared", 1: "worker 0", 2: "worker 1"}


def test_a_part_of_a_run_can_be_written(tmp_path):
    timeline = run(pipelines.stale(1).operations(50), 1e-3)
    write_trace(tmp_path / "t.json", timeline, range(10, 12), "two batches")
    made = json.loads((tmp_path / "t.json").read_text())
    check_format(made)
    assert Counter(e["args"]["batch"] for e in of(made, "X")) == {10: 8, 11: 8}
    assert made["otherData"] == {"title": "two batches"}


@pytest.mark.skipif("TRACE_PROCESSOR" not in os.environ, reason="TRACE_PROCESSOR names no binary")
def test_perfetto_s_trace_processor_reads_it(tmp_path):
    timeline = run(pipelines.stale(1).operations(50), 1e-3)
    write_trace(tmp_path / "t.json", timeline)
    (tmp_path / "q.sql").write_text("select count(*) from slice; select count(*) from flow;")
    command = [os.environ["TRACE_PROCESSOR"], "-q", tmp_path / "q.sql", tmp_path / "t.json"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    age = ages(timeline)
    arrows = len(age.lookup) - 2  # the first two lookups saw no update
    assert [int(line) for line in found.split() if line.isdigit()] == [
        len(timeline.operations),
        arrows,
    ]
