"""The conformance kit on JAX: the backend and the training loop, on one device and on eight.

With XLA's default flags they are held to computed bounds where numbers are real. Under the two
flags of docs/semantics.md, section 8, in a process of its own, the backend is held to every bit.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from embsim.conformance import checks_for_backend, checks_for_engine, run_checks
from embsim_tpu import JaxBackend
from embsim_tpu.backend import BITWISE_FLAGS
from embsim_tpu.conformance import PipelineEngine
from tests.embsim_tpu.conftest import mesh_of
from tests.nightly import IS_NIGHTLY, nightly

TO_THE_BIT = "check_every_call_is_the_definition_s_to_the_bit_on_any_numbers"

BITWISE_LEG = """
import json
from embsim.conformance import run_checks
from embsim_tpu import JaxBackend

backend = JaxBackend()
report = run_checks(backend, "quick", shrink=False)
print(json.dumps({
    "bitwise": backend.parity.bitwise,
    "checks": [result.check.name for result in report.results],
    "failures": str(report) if report.failures else "",
}))
"""


@pytest.mark.parametrize("check", checks_for_backend(JaxBackend(), "quick"), ids=str)
def test_backend_on_one_device(check):
    check()


@pytest.mark.parametrize("check", checks_for_backend(JaxBackend(mesh_of(8)), "quick"), ids=str)
def test_backend_on_eight_devices(check):
    check()


PIPELINE = checks_for_engine(PipelineEngine, "quick")


@pytest.mark.parametrize("check", PIPELINE if IS_NIGHTLY else PIPELINE[::3], ids=str)
def test_pipeline_on_one_device(check):
    """A third of them; all nightly."""
    check()


@nightly
@pytest.mark.parametrize(
    "check", checks_for_engine(PipelineEngine.on(mesh_of(8)), "quick"), ids=str
)
def test_pipeline_on_eight_devices(check):
    check()


ON_EIGHT = (
    "check_every_call_of_a_program_equals_the_definition",
    "check_tables_are_read_as_if_drained",
    "check_a_lookup_made_ahead_of_a_drain_is_made_again",
    "check_looks_change_no_later_number",
)


@pytest.mark.parametrize(
    "check", checks_for_engine(PipelineEngine.on(mesh_of(8)), "quick", ON_EIGHT), ids=str
)
def test_some_checks_of_the_pipeline_on_eight_devices(check):
    """Whole programs, and what one device cannot get wrong; all of them nightly."""
    check()


@nightly
def test_under_the_two_flags_the_backend_is_bitwise():
    environment = {**os.environ, "XLA_FLAGS": " ".join(BITWISE_FLAGS)}
    command = [sys.executable, "-c", BITWISE_LEG]
    made = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    found = json.loads(made.stdout.splitlines()[-1])
    assert found["failures"] == ""
    assert found["bitwise"]
    without_flags = {check.check.name for check in checks_for_backend(JaxBackend())}
    assert set(found["checks"]) - without_flags == {
        TO_THE_BIT,
        "check_contributions_are_added_in_the_written_order",
    }
    assert without_flags <= set(found["checks"])


class ClaimsToBeBitwise(JaxBackend):
    @property
    def parity(self):
        return replace(super().parity, bitwise=True)


def test_without_the_flags_a_claim_to_be_bitwise_is_refuted():
    """By numbers that XLA's fused multiply-add rounds once less than the law."""
    assert not any(flag in os.environ["XLA_FLAGS"] for flag in BITWISE_FLAGS)
    report = run_checks(ClaimsToBeBitwise(), "default", [TO_THE_BIT], shrink=False)
    assert [result.verdict for result in report.results] == ["failed"]
    assert "to the bit" in str(report.results[0].error)


def test_what_is_declared():
    """Of every subject the same, but for the bits, which are of one device under the flags."""
    one, eight = JaxBackend().parity, JaxBackend(mesh_of(8)).parity
    assert one == eight
    assert not one.bitwise
    for engine, parity in ((PipelineEngine, one), (PipelineEngine.on(mesh_of(8)), eight)):
        for name, value in vars(parity).items():
            assert getattr(engine.capabilities, name) == value, name
