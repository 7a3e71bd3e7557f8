"""The twins of the reference have its names in its order, its parameters and its docstrings.

A docstring is compared paragraph by paragraph. Those named in APART, by their beginning, stand in
one of the two alone: they speak of where arrays lie, of what happens in place, or of what devices
do not offer. The first paragraph says what a thing is, and is never among them.
"""

import ast
import inspect
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TWINS = {
    "lookup": ["lookup", "row_gradients"],
    "update": ["update"],
    "state": ["State"],
    "plan": ["SortedRows", "LookupPlan"],
    "placement": ["Placement", "Placement.split", "Placement.join"],
}

HOST, DEVICES = "embsim", "embsim_tpu"
APART = {
    ("update.update", HOST, "With use_gradient_accumulation=False"): "devices refuse it",
    ("update.update", HOST, "In place;"): "of JAX a new array comes back",
    ("update.update", DEVICES, "Returns"): "it does not work in place",
    ("state.State", HOST, "`version` is the number"): "the shape of host arrays",
    ("state.State", DEVICES, "A pytree."): "the shape of the devices' arrays",
    ("plan.LookupPlan", HOST, "These are splits"): "where the host's plan has the positions",
    ("plan.LookupPlan", DEVICES, "int32 arrays,"): "the devices' plan has other arrays",
    ("placement.Placement", HOST, "Raises:"): "devices have one kind",
    ("placement.Placement", DEVICES, "Raises:"): "of 'div' too",
    ("placement.Placement", HOST, ">>>"): "of 'div', which devices do not have",
    ("placement.Placement", DEVICES, ">>>"): "of local rows, which the host does not have",
    ("placement.Placement.split", HOST, "One view"): "parts of one memory",
    ("placement.Placement.split", DEVICES, "One array"): "parts on devices, of one length",
    ("placement.Placement.join", HOST, "A new one."): "whether it is a view",
    ("placement.Placement.join", DEVICES, "A view"): "whether it is a view",
}


@dataclass(frozen=True)
class Member:
    """Of a function its parameters; of a class the names of its fields."""

    positional: tuple[str, ...]
    keyword_only: tuple[str, ...]
    docstring: str
    is_class: bool = False


def members(source):
    """{name: Member} of what is public, methods as Class.method, in the order of the file."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = Member(_fields(node), (), _docstring(node), is_class=True)
            for each in node.body:
                if isinstance(each, ast.FunctionDef):
                    found[f"{node.name}.{each.name}"] = _function(each)
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = _function(node)
    return {name: each for name, each in found.items() if not re.search(r"(^|\.)_", name)}


def _function(node):
    a = node.args
    positional = tuple(each.arg for each in (*a.posonlyargs, *a.args))
    return Member(positional, tuple(each.arg for each in a.kwonlyargs), _docstring(node))


def _fields(node):
    return tuple(each.target.id for each in node.body if isinstance(each, ast.AnnAssign))


def _docstring(node):
    return ast.get_docstring(node) or ""


def paragraphs(docstring):
    return [" ".join(each.split()) for each in inspect.cleandoc(docstring).split("\n\n")]


def differences(name, host, devices, apart=APART):
    """What is not as it should be between the two sources of twin `name`, in words."""
    one, other = members(host), members(devices)
    common = [each for each in one if each in other]
    if common != [each for each in other if each in one]:
        return [f"{name}: the order of {common}"]
    found = []
    for each in common:
        a, b, where = one[each], other[each], f"{name}.{each}"
        if a.is_class:
            shared = [field for field in a.positional if field in b.positional]
            if shared != [field for field in b.positional if field in a.positional]:
                found.append(f"{where}: the order of its fields {shared}")
        elif a.positional != b.positional or not set(a.keyword_only) <= set(b.keyword_only):
            found.append(f"{where}: parameters {a.positional}, {b.positional}")
        if not a.docstring and not b.docstring:
            continue
        left, right = (
            [
                text
                for i, text in enumerate(paragraphs(member.docstring))
                if i == 0
                or not any(text.startswith(start) for start in _starts(where, side, apart))
            ]
            for member, side in ((a, HOST), (b, DEVICES))
        )
        if left != right:
            found.append(f"{where}: docstrings\n{left}\n{right}")
    return found


def _starts(where, side, apart):
    return [start for place, whose, start in apart if (place, whose) == (where, side)]


def sources(name):
    return [(ROOT / package / f"{name}.py").read_text() for package in (HOST, DEVICES)]


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_reads_as_the_reference(name):
    assert differences(name, *sources(name)) == []


@pytest.mark.parametrize("name", TWINS)
def test_these_names_are_twins(name):
    host, devices = map(members, sources(name))
    assert [each for each in host if each in devices] == TWINS[name]


@pytest.mark.parametrize("place", APART, ids=lambda place: ", ".join(place))
def test_what_stands_apart_is_there(place):
    where, side, start = place
    name, _, member = where.partition(".")
    source = dict(zip((HOST, DEVICES), sources(name), strict=True))[side]
    _, *later = paragraphs(members(source)[member].docstring)
    assert len([text for text in later if text.startswith(start)]) == 1


HOST_SOURCE = '''
def first(a, b): """One."""
def second(a):
    """Two.

    More.
    """
class Third:
    x: int
    y: int
def _hidden(): ...
'''


@pytest.mark.parametrize(
    "old, new, what",
    [
        ("(a, b)", "(b, a)", "first: parameters"),
        ("(a, b)", "(a, b, c)", "first: parameters"),
        ('"""One."""', '"""Another."""', "first: docstrings"),
        ("    More.\n", "    Less.\n", "second: docstrings"),
        ("    More.\n", "    More.\n\n    Here.\n", "second: docstrings"),
        ("x: int\n    y: int", "y: int\n    x: int", "Third: the order of its fields"),
    ],
)
def test_a_difference_is_seen(old, new, what):
    (found,) = differences("t", HOST_SOURCE, HOST_SOURCE.replace(old, new))
    assert what in found


def test_another_order_is_seen():
    other = "def second(a): ...\ndef first(a, b): ...\n"
    assert differences("t", HOST_SOURCE, other) == ["t: the order of ['first', 'second']"]


def test_what_a_twin_may_have_of_its_own():
    """More names, keyword-only parameters, other fields; declared paragraphs, never the first."""
    other = HOST_SOURCE.replace("(a, b)", "(a, b, *, axes=())").replace("y: int", "z: int")
    assert differences("t", HOST_SOURCE, other + "\ndef more(): ...\n") == []
    other = HOST_SOURCE.replace("More.", "Devices.")
    apart = {("t.second", HOST, "More"): "", ("t.second", DEVICES, "Devices"): ""}
    assert differences("t", HOST_SOURCE, other, apart) == []
    other = HOST_SOURCE.replace("Two.", "Second.")
    apart = {("t.second", HOST, "Two"): "", ("t.second", DEVICES, "Second"): ""}
    assert len(differences("t", HOST_SOURCE, other, apart)) == 1
