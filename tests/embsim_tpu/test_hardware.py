"""The command: python -m embsim_tpu.hardware. Without a TPU its checks are interpreted on CPU."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embsim_tpu.backend import JaxBackend
from embsim_tpu.hardware import __main__ as hardware
from embsim_tpu.hardware import child
from embsim_tpu.hardware import times as timing
from embsim_tpu.hardware.checks import all_checks
from embsim_tpu.hardware.common import Check
from embsim_tpu.hardware.facts import DIRECTORIES, scrubbed
from embsim_tpu.hardware.report import Report
from embsim_tpu.kernels.tensorcore import TensorCore

SMALL = ("empty-xla", "empty-pallas", "untouched-pallas-32")


@pytest.fixture
def run(capsys, tmp_path):
    """(status, data of the JSON, standard output, standard error) of these checks, in this
    process."""

    def run(*names, more=("--interpret", "--here")):
        jax.clear_caches()
        file = tmp_path / "report.json"
        only = [f"--only={name}" for name in names]
        status = hardware.main([*more, *only, "--json", str(file)])
        data = json.loads(file.read_text()) if file.exists() else None
        return status, data, *capsys.readouterr()

    yield run
    jax.clear_caches()  # programs of planted faults


def statuses(data):
    return {each["name"]: each["status"] for each in data["checks"]}


def test_every_kind_of_check_passes(run):
    others = ("steps-xla-32-sgd", "steps-pallas-32-adagrad", "padding-xla", "long-xla", "mesh-xla")
    status, data, out, err = run(*others, "repeat-pallas-128", "time-lookup-32-zipf")
    assert status == 0
    found = statuses(data)
    assert found.pop("time-lookup-32-zipf") == "skipped"
    assert set(found.values()) == {"passed"} and len(found) == 6
    assert data["verdict"] == "6 passed, 0 failed, 1 skipped"
    assert data["interpreted"] and not data["interrupted"] and data["times"] == []
    facts = data["facts"]
    assert (facts["platform"], facts["devices"]) == ("cpu", jax.device_count())
    assert facts["jax"] == jax.__version__ and "XLA_FLAGS" in facts
    steps = next(e for e in data["checks"] if e["name"] == "steps-pallas-32-adagrad")
    assert steps["data"]["exact"]["differ"] == 0 < steps["data"]["real"]["numbers"]
    assert steps["seconds"] > 0
    assert "an issue" in out.splitlines()[-2] and "steps-pallas: " not in out
    assert "steps-xla-32-sgd: passed" in err


def test_in_a_process_of_its_own_every_operation_rounds(run):
    """There pallas-exact is held to every bit, and the quotients can be looked at."""
    names = "ieee-divide", "ieee-sqrt", "steps-pallas-exact-32-adagrad"
    status, data, *_ = run(*names, more=("--interpret",))
    assert (status, statuses(data)) == (0, dict.fromkeys(names, "passed"))
    divide, _, steps = data["checks"]
    assert divide["data"] == {"numbers": 2**20, "differ": 0, "ulps": 0}
    assert steps["data"]["real"]["ulps_max"] == steps["data"]["real"]["differ"] == 0


def test_the_quotients_are_skipped_where_operations_are_fused(run):
    status, data, *_ = run("ieee-sqrt")
    assert (status, statuses(data)) == (0, {"ieee-sqrt": "skipped"})


# --- planted faults


def test_one_ulp_is_found(run, monkeypatch):
    original = TensorCore.sum_bags

    def wrong(self, *arguments):
        return jnp.nextafter(original(self, *arguments), jnp.float32(jnp.inf))

    monkeypatch.setattr(TensorCore, "sum_bags", wrong)
    status, data, out, _ = run(*SMALL)
    assert status == 1
    assert [n for n, s in statuses(data).items() if s == "failed"] == ["empty-pallas"]
    words = " ".join(out.split())
    assert "numbers differ from the reference's, by up to 1 ulp" in words
    assert "required: equal to the bit" in words


def test_a_neighbour_s_row_is_found(run, monkeypatch):
    original = TensorCore.update_rows

    def wrong(self, *arguments):
        (first, *rest), slots = original(self, *arguments)
        return (first.at[5].add(1.0), *rest), slots

    monkeypatch.setattr(TensorCore, "update_rows", wrong)
    status, data, out, _ = run(*SMALL)
    assert status == 1
    found = statuses(data)
    assert found["untouched-pallas-32"] == found["empty-pallas"] == "failed"
    assert found["empty-xla"] == "passed"
    assert "that no bag names; required: none" in " ".join(out.split())


def test_other_bits_the_second_time_are_found(run, monkeypatch):
    original, calls = JaxBackend.update, []

    def racy(self, held, *arguments):
        made = original(self, held, *arguments)
        calls.append(1)
        if len(calls) == 3:
            weights = {"t": jax.tree.map(lambda a: a.at[3].add(1e-3), made.state.weights["t"])}
            made = type(made)(
                made.specs, type(made.state)(weights, made.state.slots), made.kernels, 1
            )
        return made

    monkeypatch.setattr(JaxBackend, "update", racy)
    status, data, *_ = run("repeat-pallas-128")
    assert status == 1 and len(calls) == 3
    assert "update 3 of 3 equal ones" in data["checks"][0]["note"]


def test_an_exception_is_a_result_and_the_others_run(run, monkeypatch):
    original = JaxBackend.lookup

    def refused(self, *arguments):
        if self._kernels == "pallas":
            raise RuntimeError("Mosaic failed to compile /home/jane/kernel.py " + "and so on " * 99)
        return original(self, *arguments)

    monkeypatch.setattr(JaxBackend, "lookup", refused)
    status, data, out, _ = run("empty-pallas", "empty-xla")
    found = {each["name"]: each for each in data["checks"]}
    assert status == 1 and found["empty-xla"]["status"] == "passed"
    failed = found["empty-pallas"]
    assert failed["note"].startswith("RuntimeError: Mosaic failed to compile kernel.py and so on")
    assert "Traceback" in failed["data"]["error"] and failed["data"]["error"].count("so on") >= 99
    assert out.count("and so") < 40


# --- processes


def fake(name):
    return Check(name, name.partition("-")[0], name.partition("-")[0], True, lambda *_: ("", {}))


WORKER = """
import json, os, sys, time
def emit(**event): print(chr(30) + json.dumps(event), flush=True)
print("noise")
emit(facts={"platform": "tpu"})
for argument in sys.argv[1:]:
    name = argument.removeprefix("--only=")
    emit(begin=name)
    if "crash" in name:
        print("core halted in /usr/lib/x.so", file=sys.stderr, flush=True)
        os.abort()
    if "hang" in name:
        time.sleep(60)
    emit(result={"name": name, "status": "passed", "note": "", "data": {}, "seconds": 0.0})
"""


def test_crashes_and_hangs_are_results(monkeypatch, capsys):
    monkeypatch.setattr(child, "SILENT_SECONDS", 1.0)
    names = ["a-1", "b-crash", "a-2", "b-hang", "b-3", "a-4"]
    report = Report([fake(name) for name in names], interpreted=False)
    kernels = {name: name[0] for name in names}
    child.isolated(names, kernels, [sys.executable, "-c", WORKER], report.take)
    found = {each["name"]: each for each in report.results}
    assert {name: each["status"] for name, each in found.items()} == {
        **dict.fromkeys(["a-1", "a-2", "a-4"], "passed"),
        **dict.fromkeys(["b-crash", "b-hang"], "failed"),
        "b-3": "skipped",
    }
    assert found["b-crash"]["note"] == "ended by signal 6"
    assert "core halted in x.so" in found["b-crash"]["data"]["error"]
    assert found["b-hang"]["note"] == "said nothing for 1 s, and was ended"
    assert "2 checks of these kernels" in found["b-3"]["note"]


def test_a_process_that_cannot_start_fails_all():
    report = Report([fake("a-1"), fake("a-2")], interpreted=False)
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    child.isolated(["a-1", "a-2"], {"a-1": "a", "a-2": "a"}, command, report.take)
    assert [each["status"] for each in report.results] == ["failed", "failed"]
    assert "before the first check: ended with status 3" in report.results[0]["note"]


def test_an_interrupt_keeps_what_was_found(run, monkeypatch):
    original = hardware._result

    def interrupted(check, *arguments):
        if check.name == "untouched-xla-32":
            raise KeyboardInterrupt
        return original(check, *arguments)

    monkeypatch.setattr(hardware, "_result", interrupted)
    status, data, out, _ = run("steps-xla-32-sgd", "untouched-xla-32")
    assert status == 130 and data["interrupted"]
    assert statuses(data) == {"steps-xla-32-sgd": "passed"}
    assert "1 passed, 0 failed, 0 skipped, 1 not run before it was interrupted" in out


# --- usage


@pytest.mark.skipif(jax.default_backend() == "tpu", reason="there is a TPU")
def test_without_a_tpu(run):
    status, data, out, err = run("steps-xla-32-sgd", more=("--here",))
    assert (status, data, out) == (2, None, "")
    assert "of kind cpu" in err and "a TPU that no other process uses is required" in err
    assert "--interpret" in err


def test_an_unknown_name(run):
    status, _, _, err = run("steps-xla-33-*")
    assert status == 2
    assert "no check is called 'steps-xla-33-*'; there are ieee-divide, ieee-sqrt, steps-" in err


def test_what_quick_leaves_out(run):
    status, _, _, err = run("kit-pallas", more=("--quick", "--interpret", "--here"))
    assert status == 2 and "--quick leaves out kit-pallas" in err


def test_a_json_that_cannot_be_written(capsys, tmp_path):
    status = hardware.main(["--interpret", "--here", "--json", str(tmp_path / "no" / "where")])
    assert status == 2 and "No such file or directory; name a file" in capsys.readouterr().err


def test_the_list(capsys):
    assert hardware.main(["--list"]) == 0
    whole = capsys.readouterr().out.split()
    assert whole == list(all_checks()) and whole[-1] == "kit-pallas"
    assert hardware.main(["--list", "--quick"]) == 0
    quick = capsys.readouterr().out.split()
    assert set(quick) < set(whole) and "kit-pallas" not in quick
    assert {"steps-sparsecore-128-adagrad", "time-adagrad-128-zipf", "ieee-sqrt"} <= set(quick)


# --- parts


def test_nothing_personal_is_said(monkeypatch):
    monkeypatch.setattr("embsim_tpu.hardware.facts._user", lambda: "jane")
    monkeypatch.setattr("socket.gethostname", lambda: "tpu-vm-7")
    text = 'File "/home/jane/a/b.py", line 3: jane on tpu-vm-7: jit(f)/jvp/add at ~/x/y.cc:12'
    wanted = 'File "b.py", line 3: USER on HOST: jit(f)/jvp/add at y.cc:12'
    assert scrubbed({"a": [text, 1]}) == {"a": [wanted, 1]}
    assert DIRECTORIES.sub("", "--xla_dump_to=/home/x/dump 3 / 4") == "--xla_dump_to=dump 3 / 4"


@pytest.mark.parametrize("what", ["lookup", "adagrad"])
def test_times_are_taken_of_both(monkeypatch, what):
    """Of a few steps here, which says nothing of their length."""
    for name, value in (("REPEATS", 2), ("SECONDS", 1e-6), ("BAG", 2)):
        monkeypatch.setattr(timing, name, value)
    note, data = timing.measured(what, 32, "zipf", 64, lambda text: None, samples=4)
    assert data["ratio"] == pytest.approx(data["xla_ms"] / data["pallas_ms"])
    assert len(data["xla_all_ms"]) == 2 and data["pallas_ns_per_row"] > 0
    assert data["ids_per_step"] == 8 >= data["distinct_rows"] and "ratio" in note


@pytest.mark.parametrize("ids", ["uniform", "zipf"])
def test_ids_of_the_timings(ids):
    drawn = timing.drawn(ids, 1000, 256, 0)
    assert len(drawn.row_splits) == 257 and drawn.values.max() < 1000
    often = np.bincount(drawn.values).max()
    assert often > 100 if ids == "zipf" else often < 30


@pytest.mark.skipif(jax.default_backend() != "tpu", reason="there is no TPU")
def test_everything_compiled_on_a_tpu(run):
    """In this process, which has the TPU already."""
    status, data, out, _ = run(more=("--here",))
    assert status == 0, out
    assert len(data["times"]) == 12
