"""Checks: when they apply, what comes of them, and how they are called."""

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import strategies as st

import embsim
from embsim import Parity, ReferenceBackend
from embsim.conformance import (
    LEVELS,
    Capabilities,
    Check,
    Difference,
    Draw,
    EmbsimEngine,
    Setup,
    Subject,
    Values,
    check,
    subject_of,
)

REFERENCE = subject_of("reference")


@check("2.1")
def check_that_holds(subject: Subject, draw: Draw) -> None:
    """A number is
    itself."""
    number = draw(st.integers(), "number")
    assert number == number


@check("2.1", effort=0.5)
def check_that_fails(subject: Subject, draw: Draw) -> None:
    number = draw(st.integers(0, 100), "number")
    assert number < 0, f"{number} is not below 0"


@check("4.2")
def check_that_is_broken(subject: Subject, draw: Draw) -> None:
    """It cannot fail, because it breaks."""
    draw(st.integers(), "number")
    len(None)


class Refusing(ReferenceBackend):
    """Refuses what it does not declare."""

    def put_state(self, state):
        raise embsim.BackendError("not today")


def test_a_check_s_name_and_sentence():
    assert isinstance(check_that_holds, Check)
    assert check_that_holds.name == "check_that_holds"
    assert check_that_holds.sentence == "A number is itself."
    assert check_that_fails.sentence == "check_that_fails"


@pytest.mark.parametrize(
    "decisions, needs, message",
    [((), (), "body holds no decision"), (("2.1",), ("power", "tea"), "body needs .'tea'.")],
)
def test_a_check_names_decisions_and_what_can_be_refused(decisions, needs, message):
    def body(subject: Subject, draw: Draw) -> None: ...

    with pytest.raises(AssertionError, match=message):
        check(*decisions, needs=needs)(body)


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_is_a_number_of_examples(level):
    assert check_that_holds.on("reference", level).examples == LEVELS[level]
    assert check_that_fails.on("reference", level).examples == LEVELS[level] // 2


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match=r"level is 'long'; it must be one of .'quick', 'default'"):
        check_that_holds("reference", level="long")


@pytest.mark.parametrize("subject", ["reference", ReferenceBackend(), EmbsimEngine], ids=repr)
def test_it_is_called_with_any_subject(subject):
    assert check_that_holds(subject, level="quick") is None
    with pytest.raises(AssertionError, match="0 is not below 0") as raised:
        check_that_fails(subject, level="quick")
    assert raised.value.__notes__ == ["number: 0"]


def test_a_result_says_how_many_examples_were_tried():
    passed = check_that_holds.on("reference", "quick").result()
    assert (passed.verdict, passed.error) == ("passed", None)
    assert passed.examples >= LEVELS["quick"]
    failed = check_that_fails.on("reference").result()
    assert (failed.verdict, failed.examples) == ("failed", 1)


def test_a_check_that_breaks_is_no_pass():
    bound = check_that_is_broken.on("reference", "quick")
    result = bound.result()
    assert result.verdict == "error"
    assert isinstance(result.error, TypeError)
    with pytest.raises(TypeError):
        bound()


def test_a_refusal_that_is_not_declared_is_a_difference():
    @check("11")
    def check_that_starts(subject: Subject, draw: Draw) -> None:
        table = embsim.TableConfig(1, 1, Values([[0.0]]), embsim.SGD(), "sum", "t0")
        subject.start(draw(st.just(Setup((embsim.FeatureConfig(table),)))))

    with pytest.raises(Difference, match=r"Refusing refuses .* declare in `refuses`: not today"):
        check_that_starts(Refusing(), "quick")


def able(**capabilities) -> Subject:
    """An engine with queues of its own, of these capabilities."""
    made = type("Engine", (EmbsimEngine,), {"capabilities": Capabilities(**capabilities)})
    return subject_of(made)


def test_why_a_check_does_not_apply():
    of_backends = replace(check_that_holds, backend=True)
    assert of_backends.why_not(REFERENCE) is None
    assert "for backends" in of_backends.why_not(able())

    needing = replace(check_that_holds, needs=("power", "clipvalue"))
    assert needing.why_not(able(refuses={"weights": "no"})) is None
    reason = "power is refused: no pow; clipvalue is refused: later"
    assert needing.why_not(able(refuses={"clipvalue": "later", "power": "no pow"})) == reason
    assert not needing.applies_to(able(refuses={"power": "no pow"}))

    def pipelines(can):
        return can.ahead > 1 and can.in_flight > 1

    ahead = replace(check_that_holds, when=lambda can: can.looks and pipelines(can))
    assert ahead.why_not(able()) is None
    assert ahead.why_not(able(looks=False)) == "looks is False"
    assert ahead.why_not(able(in_flight=1)) == "in_flight is 1"

    any_of_two = replace(check_that_holds, when=lambda can: any(map(can.offers, ("FTRL", "Adam"))))
    assert any_of_two.why_not(able(refuses={"FTRL": "no"})) is None
    left = any_of_two.why_not(able(refuses={"FTRL": "no", "Adam": "no"}))
    assert left == "refused are FTRL, Adam"
    assert replace(check_that_holds, when=lambda can: False).why_not(able()) == "its capabilities"


def test_parity_of_a_backend_decides():
    class Modest(ReferenceBackend):
        parity = Parity(refuses={"power": "no pow"})

    needing = replace(check_that_holds, needs=("power",))
    assert needing.applies_to(REFERENCE)
    assert needing.why_not(subject_of(Modest())) == "power is refused: no pow"


BOUND = [each.on("reference", "quick") for each in (check_that_holds, check_that_fails)]


@pytest.mark.parametrize("bound", BOUND, ids=str)
def test_under_pytest(bound, request):
    assert request.node.callspec.id == bound.check.name == bound.__name__
    assert repr(bound) == f"<{bound.check.name} of reference, level quick>"
    if bound.check is check_that_fails:
        with pytest.raises(AssertionError):
            bound()
    else:
        bound()


# --- what pytest shows

FAILING = """
import embsim
import pytest
from embsim.conformance import checks_for_backend


class Drops(embsim.ReferenceBackend):
    def update(self, state, plan, gradients, coefficients):
        plan = {name: each.with_rows(each.unique[:0]) for name, each in plan.items()}
        return super().update(state, plan, gradients, coefficients)


NAMES = ["check_every_call_of_a_program_equals_the_definition"]


@pytest.mark.parametrize("check", checks_for_backend(Drops(), "quick", NAMES), ids=str)
def test_my_backend(check):
    check()
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What pytest prints of a failing check, with its workers."""
    folder = tmp_path_factory.mktemp("shown")
    (folder / "test_drops.py").write_text(FAILING)
    # -rN: the summary repeats a failure's first line; with CI in the environment, all of it
    command = [sys.executable, "-m", "pytest", "-rN", "-n", "2", "-p", "no:cacheprovider"]
    command.append(str(folder))
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_pytest_with_workers_shows_the_check_the_difference_and_the_program_alone(shown):
    text = shown.stdout
    assert shown.returncode == 1, text
    assert "test_my_backend[check_every_call_of_a_program_equals_the_definition]" in text
    assert "found" in text and "the law says" in text
    assert "E       program = Program(setup, (" in text
    assert text.count("Program(setup") == 1
    for noise in ("Falsifying", "Failing test case", "Draw 1", "hypothesis/core.py", "lockstep.py"):
        assert noise not in text
