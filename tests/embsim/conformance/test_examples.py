"""Examples of a check: how many, which, and errors that can be read."""

import traceback

import pytest
from hypothesis import assume
from hypothesis import strategies as st

import embsim
from embsim.conformance import Difference, Program, Setup, Values, source
from embsim.conformance.examples import Draw, Examples

TABLE = embsim.TableConfig(1, 1, Values([[0.0]]), embsim.SGD(), "sum", "t0")
SETUP = Setup((embsim.FeatureConfig(TABLE),))


def numbers(seen: list[int]):
    def body(draw: Draw) -> None:
        seen.append(draw(st.integers(0, 10**6), "number"))

    return body


def test_the_examples_are_the_same_every_time_and_another_check_has_others():
    runs: list[list[int]] = []
    for name in ("check_a", "check_a", "check_b"):
        runs.append([])
        examples = Examples(name, numbers(runs[-1]), 30)
        assert examples.error() is None
        assert examples.tried == len(runs[-1]) >= 30
    assert runs[0] == runs[1] != runs[2]


def test_random_ones_are_others_every_time():
    runs: list[list[int]] = [[], []]
    for run in runs:
        assert Examples("check_a", numbers(run), 30, random=True).error() is None
    assert runs[0] != runs[1]


def test_the_shortest_example_is_shown_with_what_was_drawn_and_without_hypothesis_notes():
    told: list[int] = []

    def body(draw: Draw) -> None:
        number = draw(st.integers(0, 10**6), "number")
        bag = draw(st.lists(st.integers(0, 3)))
        if number > 9:
            raise AssertionError(f"too many for {bag}")

    examples = Examples("check_numbers", body, 100, told=told.append)
    error = examples.error()
    assert isinstance(error, AssertionError)
    assert str(error) == "too many for []"
    assert error.__notes__ == ["number: 10", "draw 2: []"]
    assert told == list(range(1, examples.tried + 1))


def test_without_shrinking_the_first_one_is_shown():
    def body(draw: Draw) -> None:
        number = draw(st.integers(0, 10**6), "number")
        failed.append(number)
        assert number < 10

    failed: list[int] = []
    first = Examples("check_numbers", body, 100, shrink=False)
    error = first.error()
    assert error.__notes__ == [f"number: {failed[first.tried - 1]}"]


def test_a_program_is_shown_once_as_python():
    program = Program(SETUP, ())

    def plain(draw: Draw) -> None:
        draw(st.just(program), "program")
        draw(st.just(SETUP), "setup")
        raise AssertionError("seen")

    def with_its_own(draw: Draw) -> None:
        draw(st.just(program), "program")
        raise Difference(f"seen\n{source(program)}")

    text = source(program)
    assert "program = Program(" in text
    assert Examples("check_plain", plain, 5).error().__notes__ == [
        f"program:\n{text}",
        f"setup:\n{text}",
    ]
    assert getattr(Examples("check_own", with_its_own, 5).error(), "__notes__", []) == []


def test_notes_of_the_check_s_own_stay():
    def body(draw: Draw) -> None:
        draw(st.just(1), "one")
        error = AssertionError("seen")
        error.add_note("by hand")
        raise error

    assert Examples("check_notes", body, 5).error().__notes__ == ["by hand", "one: 1"]


@pytest.mark.parametrize("kind", [TypeError, KeyError, embsim.BackendError])
def test_an_error_that_is_no_assertion_comes_back_as_it_is(kind):
    def body(draw: Draw) -> None:
        draw(st.just(1), "one")
        raise kind("seen")

    error = Examples("check_broken", body, 5).error()
    assert type(error) is kind
    assert error.__notes__ == ["one: 1"]


def test_what_fails_only_sometimes_is_a_failure_that_says_so():
    calls: list[int] = []

    def body(draw: Draw) -> None:
        number = draw(st.integers(), "number")
        calls.append(number)
        assert len(calls) != 3, "a race was lost"

    error = Examples("check_race", body, 20).error()
    assert isinstance(error, AssertionError)
    assert "does not compute the same each time" in str(error)
    assert "a race was lost" in str(error)
    assert f"\nnumber: {calls[2]}" in str(error)


def test_a_check_that_can_draw_nothing_has_failed():
    def body(draw: Draw) -> None:
        assume(False)

    error = Examples("check_nothing", body, 5).error()
    assert isinstance(error, AssertionError)
    assert "check_nothing could draw no example" in str(error)


def test_an_interrupt_passes_through():
    def body(draw: Draw) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Examples("check_interrupted", body, 5).error()


def test_the_traceback_is_short():
    def body(draw: Draw) -> None:
        broken()

    def broken() -> None:
        raise TypeError("seen")

    error = Examples("check_broken", body, 5).error()
    frames = traceback.extract_tb(error.__traceback__)
    # In these tests embsim's functions are wrapped by a type checker.
    assert [f.name for f in frames if "jaxtyping" not in f.filename] == ["body", "broken"]
