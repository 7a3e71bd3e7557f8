"""All checks of a subject, and the report."""

import pytest
from hypothesis import strategies as st

from embsim import ReferenceBackend
from embsim.conformance import (
    Capabilities,
    Check,
    Draw,
    EmbsimEngine,
    Subject,
    all_checks,
    check,
    checks_for_backend,
    checks_for_engine,
    run_checks,
    subject_of,
)
from embsim.conformance.report import not_run, sentences

GENERAL = "check_every_call_of_a_program_equals_the_definition"


class Drops(ReferenceBackend):
    """Forgets every second update."""

    def update(self, state, plan, gradients, coefficients):
        if state.version % 2:
            plan = {name: each.with_rows(each.unique[:0]) for name, each in plan.items()}
        return super().update(state, plan, gradients, coefficients)


class DropsEngine(EmbsimEngine):
    """An engine that loses gradients."""

    def apply_gradients(self, gradients):
        super().apply_gradients([None] * len(gradients))


class WithoutPower(EmbsimEngine):
    capabilities = Capabilities(bitwise=True, refuses={"power": "no pow"})


@check("2.1")
def check_that_holds(subject: Subject, draw: Draw) -> None:
    """A number is itself."""
    draw(st.integers(), "number")


@check("2.2", needs=("power",))
def check_that_fails(subject: Subject, draw: Draw) -> None:
    """No number is above 9."""
    number = draw(st.integers(0, 100), "number")
    if number > 9:
        raise AssertionError(f"{number} is above 9")


@check("2.3")
def check_that_breaks(subject: Subject, draw: Draw) -> None:
    """Nothing has no length."""
    len(None)


MINE = (check_that_holds, check_that_fails, check_that_breaks)


def test_checks_of_the_kit_are_in_the_order_of_the_decisions_and_have_names_of_their_own():
    checks = all_checks()
    names = [each.name for each in checks]
    assert len(set(names)) == len(names) >= 2
    assert all(name.startswith("check_") for name in names)
    order = [[int(part) for part in each.decisions[0].split(".")] for each in checks]
    assert order == sorted(order)
    assert all(sentence.endswith(".") for _, sentence in sentences())


def test_checks_of_one_s_own_are_not_the_kit_s():
    assert isinstance(check_that_holds, Check)
    assert not {each.name for each in MINE} & {each.name for each in all_checks()}


@pytest.mark.parametrize("level", ["quick", "nightly"])
def test_they_are_bound_to_a_backend_by_name_or_instance_or_to_an_engine(level):
    by_name = checks_for_backend("reference", level)
    reference = subject_of("reference")
    assert [*map(str, by_name)] == [x.name for x in all_checks() if x.applies_to(reference)]
    assert [*map(str, checks_for_backend(ReferenceBackend(), level))] == [*map(str, by_name)]
    of_engine = checks_for_engine(EmbsimEngine, level)
    assert [*map(str, of_engine)] == [str(x) for x in by_name if not x.check.backend]
    assert {each.level for each in (*by_name, *of_engine)} == {level}


def test_names_choose():
    assert [*map(str, checks_for_backend("reference", names=[GENERAL]))] == [GENERAL]
    assert [*map(str, checks_for_backend("reference", names=GENERAL))] == [GENERAL]
    assert checks_for_backend("reference", names=[]) == []


@pytest.mark.parametrize("run", [checks_for_backend, run_checks])
def test_unknown_names_and_levels_are_refused(run):
    message = f"no check is called 'check_every_call_of_a_program'; did you mean .*{GENERAL}"
    with pytest.raises(ValueError, match=message):
        run("reference", "quick", [GENERAL, "check_every_call_of_a_program"])
    with pytest.raises(ValueError, match="no check is called 'xyz'; all_checks"):
        run("reference", "quick", ["xyz"])
    with pytest.raises(ValueError, match=r"level is 'long'; it must be one of .'quick'"):
        run("reference", "long")


@pytest.mark.parametrize("subject", ["reference", ReferenceBackend(), EmbsimEngine], ids=repr)
def test_a_right_subject_passes(subject):
    report = run_checks(subject, "quick", [GENERAL])
    assert report.passed
    assert report.failures == ()
    assert [result.verdict for result in report.results] == ["passed"]
    assert report.counts.startswith("1 of 1 checks passed (")


@pytest.mark.parametrize("subject", [Drops(), DropsEngine], ids=repr)
def test_a_wrong_subject_fails_with_a_program(subject):
    report = run_checks(subject, "quick", [GENERAL], shrink=False)
    assert not report.passed
    (failure,) = report.failures
    assert failure.verdict == "failed"
    text = str(report)
    assert f"{GENERAL} (failed, example {failure.examples})" in text
    assert "program = Program(setup, (\n    " in text
    assert "subject: Drops" in text


def test_the_same_program_every_time():
    reports = [run_checks(Drops(), "quick", [GENERAL], shrink=False) for _ in range(2)]
    assert str(reports[0].failures[0].error) == str(reports[1].failures[0].error)


def test_every_check_is_run_and_each_result_handed_out():
    seen: list[str] = []
    report = run_checks(
        "reference", "quick", checks=MINE, each=lambda result: seen.append(result.verdict)
    )
    assert seen == ["passed", "failed", "error"]
    assert [result.verdict for result in report.results] == seen
    assert not report.passed
    assert len(report.failures) == 2
    assert report.counts.startswith("1 of 3 checks passed, 1 failed, 1 broke (")
    text = str(report)  # the shortest failure is the last
    assert text.index("Traceback") < text.index("10 is above 9") < text.index(report.counts)


def test_the_report_as_text():
    text = str(run_checks(WithoutPower, "quick", checks=MINE))
    lines = text.splitlines()
    assert lines[0] == "WithoutPower, level quick"
    assert lines[1].startswith("passed  check_that_holds (2.1; ")
    assert lines[2].startswith("error   check_that_breaks (2.3; 1 examples, ")
    assert lines[3] == "not run, power is refused: no pow: check_that_fails"
    assert "check_that_breaks (error, example 1)\n2.3: Nothing has no length.\nTraceback" in text
    assert "TypeError: object of type 'NoneType' has no len()" in text
    assert lines[-1].startswith("1 of 2 checks passed, 1 broke, 1 does not apply (")


def test_shrinking_can_be_left_out():
    shrunk, first = (
        run_checks("reference", "default", checks=[check_that_fails], shrink=shrink)
        for shrink in (True, False)
    )
    assert str(shrunk.failures[0].error) == "10 is above 9"
    assert shrunk.results[0].examples == first.results[0].examples
    assert int(str(first.failures[0].error).split()[0]) >= 10


def test_a_run_of_nothing_has_not_passed():
    report = run_checks(WithoutPower, "quick", checks=[check_that_fails])
    assert report.results == ()
    assert not report.passed
    assert report.not_applicable == {"check_that_fails": "power is refused: no pow"}


def test_what_was_not_run_is_told_by_reason():
    many = {f"check_{number}": "errors is False" for number in range(9)}
    assert not_run({"check_a": "ahead is 1", **many, "check_b": "ahead is 1"}) == [
        "not run, ahead is 1: check_a, check_b",
        "not run, errors is False: 9 checks",
    ]
