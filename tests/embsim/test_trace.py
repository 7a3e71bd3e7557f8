"""What a rule may do with its symbols, and the statements that come of it."""

import operator

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embsim._trace import Graph
from embsim.optimizers import NumpyOps
from tests.embsim.programs import F, assert_same


def symbols():
    """(ops, w, g, s, c): w and g are rows, s a rowwise slot, c a coefficient."""
    graph = Graph()
    w, g = (graph.leaf(f"{name}_d", row=True, text=f"{name}[d]") for name in "wg")
    return graph, w, g, graph.leaf("s_d", row=False, text="s[0]"), graph.leaf("c", row=False)


def text_of(graph, *outputs):
    """The statements before the loop that writes, and those in it."""
    return [*graph.statements(outputs), "then", *graph.row_statements(outputs)]


def test_operations_become_statements_in_the_order_in_which_they_were_made():
    ops, w, g, _, c = symbols()
    square = g * g
    step = c * g
    w = w - step / ops.sqrt(square)
    assert text_of(ops, w) == [
        "then",
        "w_d = w[d]",
        "g_d = g[d]",
        "v0 = g_d * g_d",
        "v1 = c * g_d",
        "v2 = np.sqrt(v0)",
        "v3 = v1 / v2",
        "v4 = w_d - v3",
    ]


def test_numbers_of_the_row_come_first_and_a_mean_is_a_loop_of_its_own():
    ops, w, g, s, c = symbols()
    s = s + ops.mean(g * g)
    w = w - c / ops.sqrt(s) * g
    assert text_of(ops, w, s) == [
        "s_d = s[0]",
        "v1 = zero",
        "for d in range(dim):",
        "    g_d = g[d]",
        "    v0 = g_d * g_d",
        "    v1 = v1 + v0",
        "v1 = v1 / width",
        "v2 = s_d + v1",
        "v3 = np.sqrt(v2)",
        "v4 = c / v3",
        "then",
        "w_d = w[d]",
        "g_d = g[d]",
        "v5 = v4 * g_d",
        "v6 = w_d - v5",
    ]


def test_what_is_handed_on_is_read_before_anything_is_written():
    ops, w, g, s, _ = symbols()
    assert text_of(ops, g, w, s) == ["s_d = s[0]", "then", "w_d = w[d]", "g_d = g[d]"]


def test_what_no_output_needs_is_not_computed():
    ops, w, g, s, c = symbols()
    ops.sqrt(ops.mean(w) * s), g / w
    assert text_of(ops, w * c) == ["then", "w_d = w[d]", "v4 = w_d * c"]


def test_nothing_is_simplified():
    ops, w, g, _, c = symbols()
    assert text_of(ops, (w + g) - g)[3:] == ["v0 = w_d + g_d", "v1 = v0 - g_d"]
    ops, w, g, _, c = symbols()
    negative = -w
    assert text_of(ops, -negative)[2:] == ["v0 = -w_d", "v1 = -v0"]
    ops, w, g, _, c = symbols()
    assert text_of(ops, w * c + w * c)[2:] == ["v0 = w_d * c", "v1 = w_d * c", "v2 = v0 + v1"]


NUMBERS = st.floats(width=32) | st.sampled_from([0.0, -0.0, np.nan, 1e-45, 3e38, 1.0])
OPERATIONS = {
    "minimum": lambda ops, x, y: ops.minimum(x, y),
    "maximum": lambda ops, x, y: ops.maximum(x, y),
    "<": lambda ops, x, y: ops.where(x < y, x, y),
    "<=": lambda ops, x, y: ops.where(x <= y, y, x),
    ">": lambda ops, x, y: ops.where(x > y, x, y),
    ">=": lambda ops, x, y: ops.where(x >= y, y, x),
    "==": lambda ops, x, y: ops.where(x == y, x, -y),
    "!=": lambda ops, x, y: ops.where(x != y, x, -y),
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


BINARY = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
COMPARE = (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne)


def drawn_steps(data):
    """[(kind, comparison, operands)] on numbers that are there by then; which of them are rows."""
    is_row, steps = [True, True, False, False], []  # w, g, s, c
    for _ in range(data.draw(st.integers(0, 9), label="steps")):
        kind = data.draw(st.sampled_from([*BINARY, "neg", "sqrt", "mean", "min", "max", "where"]))
        rows = [i for i, row in enumerate(is_row) if row]
        allowed = st.sampled_from(rows if kind == "mean" else range(len(is_row)))
        count = {"neg": 1, "sqrt": 1, "mean": 1, "where": 4}.get(kind, 2)
        operands = [data.draw(allowed) for _ in range(count)]
        steps.append((kind, data.draw(st.sampled_from(COMPARE)), operands))
        is_row.append(kind != "mean" and any(is_row[i] for i in operands))
    return steps, is_row


def carried_out(steps, ops, *values):
    """All numbers of a rule that takes these steps."""
    values = list(values)
    for kind, compare, operands in steps:
        x, *rest = (values[i] for i in operands)
        if kind in BINARY:
            values.append(BINARY[kind](x, *rest))
        elif kind == "neg":
            values.append(-x)
        elif kind == "where":
            values.append(ops.where(compare(x, rest[0]), *rest[1:]))
        else:
            name = {"min": "minimum", "max": "maximum"}.get(kind, kind)
            values.append(getattr(ops, name)(x, *rest))
    return values


@settings(max_examples=200)
@given(st.data())
@np.errstate(all="ignore")
def test_any_rule_computes_what_it_computes_on_numpy_rows(data):
    steps, is_row = drawn_steps(data)
    dim = data.draw(st.sampled_from([1, 3]), label="dim")
    w, g = (data.draw(hnp.arrays(F, dim, elements=NUMBERS.map(F)), label=n) for n in "wg")
    s, c = (data.draw(NUMBERS, label=label) for label in "sc")
    want = carried_out(steps, NumpyOps, w, g, F([s]), F(c))
    ops, *numbers = symbols()
    made = carried_out(steps, ops, *numbers)
    narrow = [i for i, row in enumerate(is_row) if not row]
    outputs = [data.draw(st.sampled_from(range(len(made)))), data.draw(st.sampled_from(narrow))]
    chosen = [made[i] for i in outputs]
    lines = [*ops.statements(chosen), "for d in range(dim):"]
    lines += [f"    {line}" for line in [*ops.row_statements(chosen), f"out[d] = {chosen[0].name}"]]
    out, constants = np.empty(dim, F), {"np": np, "dim": dim, "width": F(dim), "zero": F(0)}
    values = {**constants, "w": w, "g": g, "s": F([s]), "c": F(c), "out": out}
    exec("\n".join(lines), values)
    assert_same("a number each", out, np.broadcast_to(want[outputs[0]], dim))
    assert_same("one number", np.array([values[chosen[1].name]]), np.reshape(want[outputs[1]], 1))


REFUSED = {
    "a literal on the right": (lambda ops, w, g, s, c: w * 0.5, "0.5 is no float32 of this row"),
    "a literal on the left": (lambda ops, w, g, s, c: 2 - w, "2 is no float32"),
    "a literal below": (lambda ops, w, g, s, c: 1 / w, "1 is no float32"),
    "a literal compared": (lambda ops, w, g, s, c: ops.where(w > 0, w, g), "0 is no float32"),
    "a NumPy number": (lambda ops, w, g, s, c: np.float32(0.5) * w, r"0\.5\) is no float32"),
    "a NumPy array": (lambda ops, w, g, s, c: np.ones(3, F) + w, r"array.* is no float32"),
    "a literal operand": (lambda ops, w, g, s, c: ops.maximum(w, 0.0), "0.0 is no float32"),
    "a literal result": (lambda ops, w, g, s, c: 0.0, "0.0 is no float32"),
    "no result": (lambda ops, w, g, s, c: None, "None is no float32"),
    "a symbol of another rule": (lambda ops, w, g, s, c: w + symbols()[1], "is no float32"),
    "if": (lambda ops, w, g, s, c: w if g > c else g, "has no branches: use ops.where"),
    "if of a number": (lambda ops, w, g, s, c: w if g else g, "has no branches"),
    "if with ==": (lambda ops, w, g, s, c: w if g == c else g, "optimizer rule"),
    "if with !=": (lambda ops, w, g, s, c: w if s != c else g, "optimizer rule"),
    "in": (lambda ops, w, g, s, c: w if g in (c, s) else g, "optimizer rule"),
    "and": (lambda ops, w, g, s, c: ops.where(w > g and g > c, w, g), "has no branches"),
    "not": (lambda ops, w, g, s, c: ops.where(not w, w, g), "has no branches"),
    "a chain of comparisons": (lambda ops, w, g, s, c: ops.where(w > g > c, w, g), "no branches"),
    "Python's max": (lambda ops, w, g, s, c: max(w, g), "has no branches"),
    "NumPy's maximum": (lambda ops, w, g, s, c: np.maximum(w, g), "numpy.maximum of a number"),
    "NumPy's root": (lambda ops, w, g, s, c: np.sqrt(w), "sqrt"),
    "Python's float": (lambda ops, w, g, s, c: float(w), "float"),
    "an unknown operation": (lambda ops, w, g, s, c: ops.exp(w), "exp"),
    "a power with **": (lambda ops, w, g, s, c: w**c, r"\*\*"),
    "an element": (lambda ops, w, g, s, c: w[0], "subscript"),
    "the mean of one number": (lambda ops, w, g, s, c: ops.mean(s), "already one for the whole"),
    "a sum of truth values": (lambda ops, w, g, s, c: (g > c) + (w == c), "'g_d > c' is used as"),
    "a truth value as factor": (
        lambda ops, w, g, s, c: (g > c) * w,
        "'g_d > c' is used as a number",
    ),
    "a truth value chosen": (
        lambda ops, w, g, s, c: ops.where(g > c, g < c, w),
        "'g_d < c' is used",
    ),
    "a number as condition": (
        lambda ops, w, g, s, c: ops.where(g, w, c),
        "condition.* is a number",
    ),
    "a comparison with a literal": (lambda ops, w, g, s, c: ops.where(w == 0, g, w), "0 is no flo"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_rule_has_no_literals_no_branches_and_no_other_operations(case):
    """(Of truth values: NumPy and Python disagree on what True + True is.)"""
    expression, message = REFUSED[case]
    ops, *numbers = symbols()
    with pytest.raises(TypeError, match=message):
        ops.value(expression(ops, *numbers))
