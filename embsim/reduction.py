"""The values of the replicas as one: sum, mean, max, min, in replica order."""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import numpy as np


class ReduceOp(Enum):
    """How the replicas' values become one. The strings 'sum', 'mean', 'max', 'min' serve too."""

    SUM = "sum"
    MEAN = "mean"
    MAX = "max"
    MIN = "min"


def checked_op(op: str | ReduceOp, call: str) -> str:
    name = op.value if isinstance(op, ReduceOp) else op.lower() if isinstance(op, str) else ""
    if name not in _BINARY:
        raise ValueError(f"{call}: op is {op!r}; it must be one of {', '.join(map(repr, _BINARY))}")
    return name


def reduced(op: str, values: Sequence[Any], axis: Any) -> Any:
    count = len(values)
    if axis is not None:
        axes = tuple(axis) if isinstance(axis, tuple | list) else (axis,)
        arrays = [value if hasattr(value, "shape") else np.asarray(value) for value in values]
        count = sum(math.prod(array.shape[k] for k in axes) for array in arrays)
        values = [getattr(array, "sum" if op == "mean" else op)(axis=axes) for array in arrays]
    shapes = ["None" if value is None else str(np.shape(value)) for value in values]
    if len(set(shapes)) > 1:
        raise ValueError(f"{op} over replicas: shapes are {', '.join(shapes)}; they must be equal")
    dtypes = [getattr(value, "dtype", type(value)) for value in values]
    if op in ("sum", "mean") and any(dtype in (bool, np.bool_) for dtype in dtypes):
        raise TypeError(f"{op} over replicas: values are bool; cast them to a number first")
    total = functools.reduce(_BINARY[op], values)
    return total / count if op == "mean" else total


def _elementwise(name: str) -> Callable[[Any, Any], Any]:
    def function(a: Any, b: Any) -> Any:
        namespace = a.__array_namespace__() if hasattr(a, "__array_namespace__") else np
        return getattr(namespace, name)(a, b)

    return function


_BINARY = {
    "sum": operator.add,
    "mean": operator.add,
    "max": _elementwise("maximum"),
    "min": _elementwise("minimum"),
}
