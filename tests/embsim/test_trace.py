"""What a rule may do with its symbols, and the statements that come of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embsim._trace import Graph
from embsim.optimizers import NumpyOps
from tests.embsim.programs import F, assert_same


def symbols():
    """(ops, w, g, s, c): w and g are rows, s and c one number for the row."""
    graph = Graph()
    rows = [graph.leaf(f"{name}[d]", row=True) for name in "wg"]
    return graph, *rows, *(graph.leaf(name, row=False) for name in "sc")


def text_of(graph, *outputs):
    """The loops that a kernel makes of it."""
    return [*graph.statements(outputs), "then", *graph.row_statements(outputs)]


def test_operations_become_statements_in_the_order_in_which_they_were_made():
    ops, w, g, _, c = symbols()
    square = g * g
    step = c * g
    w = w - step / ops.sqrt(square)
    assert text_of(ops, w) == [
        "then",
        "v0 = g[d] * g[d]",
        "v1 = c * g[d]",
        "v2 = np.sqrt(v0)",
        "v3 = v1 / v2",
        "v4 = w[d] - v3",
    ]


def test_numbers_of_the_row_come_first_and_a_mean_is_a_loop_of_its_own():
    ops, w, g, s, c = symbols()
    s = s + ops.mean(g * g)
    w = w - c / ops.sqrt(s) * g
    assert text_of(ops, w, s) == [
        "v1 = zero",
        "for d in range(dim):",
        "    v0 = g[d] * g[d]",
        "    v1 = v1 + v0",
        "v1 = v1 / width",
        "v2 = s + v1",
        "v3 = np.sqrt(v2)",
        "v4 = c / v3",
        "then",
        "v5 = v4 * g[d]",
        "v6 = w[d] - v5",
    ]


def test_what_no_output_needs_is_not_computed():
    ops, w, g, s, c = symbols()
    ops.sqrt(ops.mean(w) * s), g / w
    assert text_of(ops, w * c) == ["then", "v4 = w[d] * c"]
    assert text_of(ops, w, s) == ["then"]


def test_nothing_is_simplified():
    ops, w, g, _, c = symbols()
    assert text_of(ops, (w + g) - g)[1:] == ["v0 = w[d] + g[d]", "v1 = v0 - g[d]"]
    ops, w, g, _, c = symbols()
    negative = -w
    assert text_of(ops, -negative)[1:] == ["v0 = -w[d]", "v1 = -v0"]
    ops, w, g, _, c = symbols()
    assert text_of(ops, w * c + w * c)[1:] == ["v0 = w[d] * c", "v1 = w[d] * c", "v2 = v0 + v1"]


NUMBERS = st.floats(width=32) | st.sampled_from([0.0, -0.0, np.nan, 1e-45, 3e38, 1.0])
OPERATIONS = {
    "minimum": lambda ops, x, y: ops.minimum(x, y),
    "maximum": lambda ops, x, y: ops.maximum(x, y),
    "<": lambda ops, x, y: ops.where(x < y, x, y),
    "<=": lambda ops, x, y: ops.where(x <= y, y, x),
    ">": lambda ops, x, y: ops.where(x > y, x, y),
    ">=": lambda ops, x, y: ops.where(x >= y, y, x),
    "+": lambda ops, x, y: x + y,
    "-": lambda ops, x, y: x - y,
    "*": lambda ops, x, y: x * y,
    "/": lambda ops, x, y: x / y,
    "-x": lambda ops, x, y: -x,
    "sqrt": lambda ops, x, y: ops.sqrt(x),
    "power": lambda ops, x, y: ops.power(x, y),
}


@pytest.mark.parametrize("name", OPERATIONS)
@given(st.data())
def test_an_operation_is_numpy_s(name, data):
    """NaN in either operand of minimum and maximum gives NaN."""
    x, y = (F(data.draw(NUMBERS, label=label)) for label in "xy")
    graph = Graph()
    result = OPERATIONS[name](graph, graph.leaf("x", row=False), graph.leaf("y", row=False))
    values = {"np": np, "x": x, "y": y}
    with np.errstate(all="ignore"):
        exec("\n".join(graph.statements([result])), values)
        want = OPERATIONS[name](NumpyOps, F([x]), y if name == "power" else F([y]))
    assert_same(name, np.array([values[result.name]]), want)


REFUSED = {
    "a literal on the right": (lambda ops, w, g, s, c: w * 0.5, "0.5 is no float32 of this row"),
    "a literal on the left": (lambda ops, w, g, s, c: 2 - w, "2 is no float32"),
    "a literal below": (lambda ops, w, g, s, c: 1 / w, "1 is no float32"),
    "a literal compared": (lambda ops, w, g, s, c: ops.where(w > 0, w, g), "0 is no float32"),
    "a NumPy number": (lambda ops, w, g, s, c: np.float32(0.5) * w, "0.5 is no float32"),
    "a NumPy array": (lambda ops, w, g, s, c: np.ones(3, F) + w, "1.0 is no float32"),
    "a literal operand": (lambda ops, w, g, s, c: ops.maximum(w, 0.0), "0.0 is no float32"),
    "a literal result": (lambda ops, w, g, s, c: 0.0, "0.0 is no float32"),
    "no result": (lambda ops, w, g, s, c: None, "None is no float32"),
    "a symbol of another rule": (lambda ops, w, g, s, c: w + symbols()[1], "is no float32"),
    "if": (lambda ops, w, g, s, c: w if g > c else g, "has no branches: use ops.where"),
    "if of a number": (lambda ops, w, g, s, c: w if g else g, "has no branches"),
    "if with ==": (lambda ops, w, g, s, c: w if g == c else g, "optimizer rule"),
    "if with !=": (lambda ops, w, g, s, c: w if s != c else g, "optimizer rule"),
    "where with ==": (lambda ops, w, g, s, c: ops.where(g == c, w, g), "optimizer rule"),
    "in": (lambda ops, w, g, s, c: w if g in (c, s) else g, "optimizer rule"),
    "and": (lambda ops, w, g, s, c: ops.where(w > g and g > c, w, g), "has no branches"),
    "not": (lambda ops, w, g, s, c: ops.where(not w, w, g), "has no branches"),
    "a chain of comparisons": (lambda ops, w, g, s, c: ops.where(w > g > c, w, g), "no branches"),
    "Python's max": (lambda ops, w, g, s, c: max(w, g), "has no branches"),
    "NumPy's maximum": (lambda ops, w, g, s, c: np.maximum(w, g), "has no branches"),
    "NumPy's root": (lambda ops, w, g, s, c: np.sqrt(w), "sqrt"),
    "Python's float": (lambda ops, w, g, s, c: float(w), "float"),
    "an unknown operation": (lambda ops, w, g, s, c: ops.exp(w), "exp"),
    "a power with **": (lambda ops, w, g, s, c: w**c, r"\*\*"),
    "an element": (lambda ops, w, g, s, c: w[0], "subscript"),
    "the mean of one number": (lambda ops, w, g, s, c: ops.mean(s), "already one for the whole"),
    "a sum of truth values": (lambda ops, w, g, s, c: ((g > c) + (w > c)) * w, "optimizer rule"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_rule_has_no_literals_no_branches_and_no_other_operations(case):
    """(Of truth values: NumPy and Python disagree on what True + True is.)"""
    expression, message = REFUSED[case]
    ops, *numbers = symbols()
    with pytest.raises(TypeError, match=message):
        ops.value(expression(ops, *numbers))
