"""Symbols that write down what an optimizer's rule does with them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

OPERATIONS = ("maximum", "mean", "minimum", "power", "sqrt", "where")


@dataclass(frozen=True, eq=False)
class Value:
    """A float32 number of one row, or a truth value: a whole row of them, or one for the row."""

    graph: "Graph"
    name: str
    row: bool
    text: str  # the expression that computes it, in Python; empty for what is there already
    args: tuple["Value", ...] = ()
    is_mean: bool = False
    is_truth: bool = False

    def __add__(self, other: Any) -> "Value":
        return self.graph.make("{} + {}", self, other)

    def __sub__(self, other: Any) -> "Value":
        return self.graph.make("{} - {}", self, other)

    def __mul__(self, other: Any) -> "Value":
        return self.graph.make("{} * {}", self, other)

    def __truediv__(self, other: Any) -> "Value":
        return self.graph.make("{} / {}", self, other)

    def __neg__(self) -> "Value":
        return self.graph.make("-{}", self)

    def __lt__(self, other: Any) -> "Value":
        return self.graph.make("{} < {}", self, other, is_truth=True)

    def __le__(self, other: Any) -> "Value":
        return self.graph.make("{} <= {}", self, other, is_truth=True)

    def __gt__(self, other: Any) -> "Value":
        return self.graph.make("{} > {}", self, other, is_truth=True)

    def __ge__(self, other: Any) -> "Value":
        return self.graph.make("{} >= {}", self, other, is_truth=True)

    def __eq__(self, other: Any) -> Any:
        return self.graph.make("{} == {}", self, other, is_truth=True)

    def __ne__(self, other: Any) -> Any:
        return self.graph.make("{} != {}", self, other, is_truth=True)

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise TypeError(
            "optimizer rule: a number of the row decides a branch (`if`, `and`, `or`, `not`); a "
            "rule has no branches: use ops.where, or decide by a hyperparameter outside the inner "
            "function"
        )

    def __pow__(self, other: Any) -> Any:
        raise TypeError("optimizer rule: ** is not offered; use ops.power(x, exponent)")

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **_: Any) -> Any:
        for item in inputs:
            self.graph.value(item)
        raise TypeError(
            f"optimizer rule: numpy.{function.__name__} of a number of the row; use what ops "
            f"offers: {', '.join(OPERATIONS)}"
        )

    def __radd__(self, other: Any) -> Any:
        self.graph.value(other)
        raise AssertionError("unreachable: a value on the left would have added itself")

    __rsub__ = __rmul__ = __rtruediv__ = __radd__


@dataclass(eq=False)
class Graph:
    """The statements of a rule in the order in which it made them; also the `ops` that the rule is
    given.
    """

    values: list[Value] = field(default_factory=list)
    count: int = 0

    def leaf(self, name: str, *, row: bool, text: str = "") -> Value:
        """A number that is there already. With `text`, an element that is read into `name`."""
        value = Value(self, name, row, text)
        self.values.append(value)
        return value

    def make(self, form: str, *args: Any, is_mean: bool = False, is_truth: bool = False) -> Value:
        """`form` of numbers."""
        return self._make(form, tuple(self.number(arg) for arg in args), is_mean, is_truth)

    def value(self, item: Any) -> Value:
        if isinstance(item, Value) and item.graph is self:
            return item
        raise TypeError(
            f"optimizer rule: {item!r} is no float32 of this row; a rule uses w, g, its slots and "
            "c.<coefficient>, and no literals: give the number in coefficients(), so that it is "
            "rounded once"
        )

    def number(self, item: Any) -> Value:
        value = self.value(item)
        if value.is_truth:
            raise TypeError(
                f"optimizer rule: the truth value '{value.text}' is used as a number; it can only "
                "be the condition of ops.where"
            )
        return value

    def __getattr__(self, name: str) -> Any:
        raise TypeError(
            f"optimizer rule: ops has no {name!r}; it offers {', '.join(OPERATIONS)}, and numbers "
            "have + - * / and comparisons"
        )

    def _make(self, form: str, operands: tuple[Value, ...], is_mean: bool, is_truth: bool) -> Value:
        text = form.format(*(operand.name for operand in operands))
        row = any(operand.row for operand in operands) and not is_mean
        name = f"v{self.count}"
        self.count += 1
        made = Value(self, name, row, text, operands, is_mean, is_truth)
        self.values.append(made)
        return made

    def sqrt(self, x: Any) -> Value:
        return self.make("np.sqrt({})", x)

    def minimum(self, x: Any, y: Any) -> Value:
        """NaN in either operand gives NaN."""
        return self.make("({0} if ({0} < {1}) | ({0} != {0}) else {1})", x, y)

    def maximum(self, x: Any, y: Any) -> Value:
        return self.make("({0} if ({0} > {1}) | ({0} != {0}) else {1})", x, y)

    def where(self, condition: Any, x: Any, y: Any) -> Value:
        chosen = self.value(condition)
        if not chosen.is_truth:
            raise TypeError(
                "optimizer rule: the condition of ops.where is a number; compare it with another"
            )
        operands = (chosen, self.number(x), self.number(y))
        return self._make("({1} if {0} else {2})", operands, False, False)

    def power(self, x: Any, exponent: Any) -> Value:
        return self.make("np.float32(np.float64({}) ** np.float64({}))", x, exponent)

    def mean(self, x: Any) -> Value:
        argument = self.number(x)
        if not argument.row:
            raise TypeError(
                "optimizer rule: ops.mean of a number that is already one for the whole row"
            )
        return self.make("{}", argument, is_mean=True)

    def statements(self, outputs: Iterable[Value]) -> list[str]:
        """The body of one row: numbers of the row first (a mean is a loop of its own), without the
        outputs' last loop.
        """
        lines: list[str] = []
        for value in self._needed(outputs):
            if value.is_mean:
                (argument,) = value.args
                lines += [f"{value.name} = zero", "for d in range(dim):"]
                lines += ["    " + line for line in self.row_statements([argument])]
                lines += [f"    {value.name} = {value.name} + {argument.name}"]
                lines += [f"{value.name} = {value.name} / width"]
            elif not value.row and value.text:
                lines.append(f"{value.name} = {value.text}")
        return lines

    def row_statements(self, outputs: Iterable[Value]) -> list[str]:
        """What the loop over a row's numbers computes for `outputs`, at position d."""
        return [
            f"{value.name} = {value.text}"
            for value in self._needed(outputs, rows_only=True)
            if value.text
        ]

    def _needed(self, outputs: Iterable[Value], *, rows_only: bool = False) -> Iterator[Value]:
        wanted: set[int] = set()
        stack = list(outputs)
        while stack:
            value = stack.pop()
            if id(value) not in wanted and (value.row or not rows_only):
                wanted.add(id(value))
                stack.extend(value.args)
        return (value for value in self.values if id(value) in wanted)


class Coefficients:
    """`c` of a rule: its coefficients by name."""

    def __init__(self, values: dict[str, Value]) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        raise TypeError(
            f"optimizer rule: c has no {name!r}; coefficients() gives {', '.join(self.__dict__)}"
        )
