"""The console command."""

import subprocess
import sys
from importlib.metadata import version

import pytest

from embsim import cli
from embsim.conformance import LEVELS, all_checks
from embsim.conformance.check import BoundCheck

GENERAL = "check_every_call_of_a_program_equals_the_definition"
BITS = "check_every_call_is_the_definition_s_to_the_bit_on_any_numbers"

SUBJECTS = '''
"""Backends and engines of somebody."""

import embsim
from embsim.conformance import Capabilities, EmbsimEngine


class Drops(embsim.ReferenceBackend):
    """Loses every gradient."""

    def update(self, state, plan, gradients, coefficients):
        zeros = {name: 0 * array for name, array in gradients.items()}
        return super().update(state, plan, zeros, coefficients)


class Modest(EmbsimEngine):
    capabilities = Capabilities(bitwise=True, refuses={"power": "no pow"})


class Breaks(embsim.ReferenceBackend):
    def lookup(self, state, plan):
        return {name: None for name in plan}


class NeedsAnArgument(embsim.ReferenceBackend):
    def __init__(self, size):
        pass


class Nothing:
    right = embsim.ReferenceBackend()


number = 3
'''


@pytest.fixture
def subjects(tmp_path, monkeypatch):
    """The name of a module in the current directory."""
    (tmp_path / "somebodys_subjects.py").write_text(SUBJECTS)
    (tmp_path / "broken_subjects.py").write_text("import embsim\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    yield "somebodys_subjects"
    sys.modules.pop("somebodys_subjects", None)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """(status, standard output, standard error)."""
    status = cli.main(["conformance", *arguments])
    return status, *capsys.readouterr()


def test_the_levels_are_the_kit_s():
    assert list(LEVELS) == list(cli.LEVELS)


def test_version_and_help(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"embsim {version('embsim')}\n"
    assert cli.main(["--help"]) == 0
    assert "conformance" in capsys.readouterr().out
    assert cli.main(["conformance", "--help"]) == 0
    assert "--no-shrink" in capsys.readouterr().out
    assert cli.main([]) == 2


# --- what passes


def test_a_backend_that_passes(capsys):
    status, out, err = run(capsys, "reference", "--level", "quick", "--check", GENERAL)
    assert (status, err) == (0, "")
    line, counts = out.splitlines()
    assert line.startswith(f"passed  {GENERAL} (5.1, ")
    assert counts.startswith("reference, level quick: 1 of 1 checks passed (")


@pytest.mark.parametrize("name", ["Modest", "Nothing.right"])
def test_a_class_of_an_adapter_and_an_instance_in_the_current_directory(name, subjects, capsys):
    subject = f"{subjects}:{name}"
    status, out, _ = run(capsys, subject, "--level", "quick", "--check", GENERAL)
    assert status == 0
    assert f"{subject}, level quick: 1 of 1 checks passed" in out


# --- what fails


def test_a_wrong_backend_has_status_1_and_its_program_is_printed(subjects, capsys):
    subject = f"{subjects}:Drops"
    status, out, err = run(capsys, subject, "--level", "quick", "--check", GENERAL, "--no-shrink")
    assert (status, err) == (1, "")
    assert f"failed  {GENERAL} (" in out
    assert "the law says" in out and "subject: Drops" in out
    assert f"\nagain: embsim conformance {subject} --level quick --check {GENERAL}\n" in out
    assert out.splitlines()[-1].startswith(f"{subject}, level quick: 0 of 1 checks passed, 1 fai")


def test_the_program_that_is_printed_is_python_that_shows_the_failure(subjects, capsys):
    status, out, _ = run(capsys, f"{subjects}:Drops", "--level", "quick", "--check", GENERAL)
    assert status == 1
    lines = out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(("import", "from")))
    last = lines.index("))")
    names: dict[str, object] = {}
    exec("\n".join(lines[first : last + 1]), names)
    from embsim.conformance import Difference, replay, subject_of

    replay(subject_of("reference"), names["program"])
    with pytest.raises(Difference, match="the law says"):
        replay(subject_of(sys.modules[subjects].Drops()), names["program"])


def test_a_backend_that_breaks_has_status_1_and_says_where(subjects, capsys):
    status, out, _ = run(
        capsys, f"{subjects}:Breaks", "--level", "quick", "--check", GENERAL, "--no-shrink"
    )
    assert status == 1
    assert f"error   {GENERAL} (" in out
    assert "Traceback" in out and "Error: " in out
    assert "0 of 1 checks passed, 1 broke" in out


# --- on a terminal


@pytest.mark.parametrize("name, status", [("Modest", 0), ("Drops", 1)])
def test_a_terminal_gets_a_table_and_the_program_as_it_is(
    name, status, subjects, capsys, monkeypatch
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "dumb")
    found, out, _ = run(
        capsys, f"{subjects}:{name}", "--level", "quick", "--check", GENERAL, "--no-shrink"
    )
    assert found == status
    assert "decisions" in out and "verdict" in out
    if status:
        assert "\nsetup = Setup((" in out
        assert "\n))\nagain: " in out


# --- lists


def test_the_list_of_all_checks(capsys):
    status, out, _ = run(capsys, "--list")
    assert status == 0
    for each in all_checks():
        assert f"{each.name} ({', '.join(each.decisions)})\n    {each.sentence}\n" in out
    assert "does not apply" not in out


def test_the_list_for_a_subject_says_what_does_not_apply_and_why(subjects, capsys, monkeypatch):
    (general,) = (each for each in all_checks() if each.name == GENERAL)
    monkeypatch.setitem(general.__dict__, "needs", ("power",))
    status, out, _ = run(capsys, f"{subjects}:Modest", "--list", "--check", GENERAL)
    assert status == 0
    assert out.endswith("    does not apply: power is refused: no pow\n")


def test_what_does_not_apply_is_told_with_the_results(subjects, capsys, monkeypatch):
    (needing,) = (each for each in all_checks() if each.name == BITS)
    monkeypatch.setitem(needing.__dict__, "needs", ("power",))
    chosen = ("--check", BITS, "--check", GENERAL)
    status, out, _ = run(capsys, f"{subjects}:Modest", "--level", "quick", *chosen)
    assert status == 0
    assert f"\nnot run, power is refused: no pow: {BITS}\n" in out
    assert "1 of 1 checks passed, 1 does not apply (" in out


# --- usage


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "name a SUBJECT, or pass --list"),
        (("nobody",), "backend 'nobody' is not installed; installed are ['"),
        (("nobody",), "is named package.module:attribute"),
        (("nobodys.module:Engine",), "module 'nobodys.module' cannot be imported"),
        (("broken_subjects:Engine",), "broken_subjects.py, line 2)"),
        (("somebodys_subjects:Engine",), "'somebodys_subjects' has no attribute 'Engine'"),
        (("somebodys_subjects:Nothing.left",), "has no attribute 'Nothing.left'"),
        (("somebodys_subjects:number",), "somebodys_subjects:number: 3 is no subject; pass"),
        (("somebodys_subjects:NeedsAnArgument",), "name an instance, or a class that is made"),
        (
            ("reference", "--check", GENERAL + "s"),
            f"is called '{GENERAL}s'; did you mean {GENERAL}",
        ),
        (("reference", "--level", "long"), "invalid choice: 'long' (choose from"),
        (("reference", "--fast"), "unrecognized arguments: --fast"),
    ],
)
def test_wrong_usage_has_status_2_and_a_message(arguments, message, subjects, capsys):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_a_check_that_does_not_apply_is_no_pass(subjects, capsys, monkeypatch):
    (general,) = (each for each in all_checks() if each.name == GENERAL)
    monkeypatch.setitem(general.__dict__, "needs", ("power",))
    status, out, err = run(capsys, f"{subjects}:Modest", "--check", GENERAL)
    assert (status, out) == (2, "")
    assert f"no check applies to {subjects}:Modest: {GENERAL}: power is refused: no pow" in err


@pytest.mark.parametrize("missing", ["hypothesis", "rich"])
def test_a_missing_extra_is_named(missing, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    status, out, err = run(capsys, "--list")
    assert (status, out) == (2, "")
    assert f"it needs {missing}; pip install 'embsim[conformance]'" in err


# --- as a process


def test_ctrl_c_ends_with_what_was_found_so_far(capsys, monkeypatch):
    result, calls = BoundCheck.result, []

    def interrupted(self, told=None):
        calls.append(self)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return result(self, told)

    monkeypatch.setattr(BoundCheck, "result", interrupted)
    status, out, _ = run(capsys, "reference", "--level", "quick", "--check", BITS, GENERAL)
    assert status == 130
    first, last = out.splitlines()
    assert first.startswith("passed  ")
    assert "1 of 1 checks passed (" in last
    assert last.endswith(" before it was interrupted")


def test_python_m_embsim_is_the_same_command():
    command = [sys.executable, "-m", "embsim", "conformance", "reference", "--level", "quick"]
    done = subprocess.run(
        [*command, "--check", GENERAL], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 of 1 checks passed" in done.stdout
    wrong = subprocess.run([*command, "--check", "x"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "no check is called 'x'" in wrong.stderr
