"""The example plugin, installed as any other package, is held to the definition by its name.

`make test` installs it; elsewhere: pip install --editable ./tests/example_plugin
"""

import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import embsim
from embsim.backend import GROUP, get_backend
from embsim.conformance import checks_for_backend, subject_of

ROOT = Path(__file__).parents[3]
PLUGIN = ROOT / "tests/example_plugin/embsim_example/backend.py"
PAGE = ROOT / "docs/writing_a_backend.md"
INSTALLED = {entry.name: entry.value for entry in entry_points(group=GROUP)}


def test_it_is_installed():
    assert INSTALLED.get("example") == "embsim_example.backend:ExampleBackend", __doc__


@pytest.mark.parametrize(
    "check", checks_for_backend("example", "quick") if "example" in INSTALLED else [], ids=str
)
def test_it_equals_the_definition(check):
    check()


def test_what_it_declares():
    can = subject_of("example").capabilities
    assert can.bitwise
    assert list(can.refuses) == ["use_gradient_accumulation=False"]


def test_what_it_declares_to_refuse_it_refuses():
    optimizer = embsim.SGD(1.0, use_gradient_accumulation=False)
    spec = embsim.TableSpec("t", 1, 1, optimizer)
    with pytest.raises(embsim.BackendError, match="use_gradient_accumulation=False"):
        get_backend("example").put_state(embsim.State({"t": spec}, {}, {"t": {}}))


def test_the_page_about_backends_shows_its_code_as_it_is():
    """Every indented block that defines something is in the plugin's file, line by line."""
    text = re.sub(r"^```.*?^```", "", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"(?:^    .*\n(?:\n(?=    ))*)+", text, re.MULTILINE)
    shown = [
        block for block in blocks if re.search(r"^ +(def|class|@dataclass|parity)", block, re.M)
    ]
    plugin = PLUGIN.read_text()
    assert shown
    for block in shown:
        lines = [line[4:] for line in block.rstrip("\n").split("\n")]
        assert "\n".join(lines) in plugin, block
