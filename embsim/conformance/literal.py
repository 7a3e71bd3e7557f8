"""Values as Python, for the programs that a failure prints."""

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import numpy as np

# What is usually given by position.
_POSITIONAL = {"learning_rate", "batch", "gradients", "values", "num_buckets", "lower", "upper"}


def literal(value: Any) -> str:
    """Python that makes `value`: floats in the fewest digits that are the same float32."""
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, (float, np.floating)):
        if type(value) is np.float16:
            value = np.float32(value)  # digits enough for float16 are too few for float32
        return str(float(str(value))) if np.isfinite(value) else f"float('{value}')"
    if isinstance(value, np.integer):
        return str(value)
    if isinstance(value, list | tuple):
        inner = ", ".join(literal(item) for item in value)
        if isinstance(value, list):
            return f"[{inner}]"
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if is_dataclass(value):
        return f"{type(value).__qualname__}({', '.join(_arguments(value))})"
    return value.__qualname__ if hasattr(value, "__qualname__") else repr(value)


def _array(value: np.ndarray) -> str:
    """A list, or an array of one number."""
    if value.dtype.char not in "fd" and value.dtype.kind not in "iu":
        value = value.astype(np.float32)
    if value.ndim == 0:
        return literal(value[()])
    if value.size > 1 and value.tobytes() == value.flat[0].tobytes() * value.size:
        shape = value.shape[0] if value.ndim == 1 else value.shape
        number = literal(value.flat[0])
        return f"np.zeros({shape})" if number == "0.0" else f"np.full({shape}, {number})"
    return literal(list(value)) if value.size else f"np.zeros({value.shape})"


def _arguments(value: Any) -> Iterator[str]:
    """Of a dataclass, those that are not the default."""
    for each in fields(value):
        found, default = getattr(value, each.name), each.default
        if each.default_factory is not MISSING:
            default = each.default_factory()
        if each.init and (default is MISSING or repr(found) != repr(default)):
            yield ("" if each.name in _POSITIONAL else f"{each.name}=") + literal(found)
