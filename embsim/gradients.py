"""What the caller gives to apply_gradients -> one float32 array per table, checked."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ._memory import aligned_empty
from ._threads import WORTH_THREADS, parallel
from .config import FeatureConfig
from .convert import as_array
from .plan import Output
from .ragged import kind_of
from .tables import Tables


@runtime_checkable
class Receiver(Protocol):
    """The part of an engine that decides what a gradient must look like."""

    features: tuple[FeatureConfig, ...]
    names: tuple[str, ...]
    tables: Tables
    check_numerics: bool


def as_gradient(value: Any, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """A float32 array, cast once from another float dtype.

    Raises:
      ValueError: no array, or another shape than `shape` (not compared if None).
      TypeError: an array of integers or truth values.
    """
    if not any(hasattr(value, name) for name in ("__array__", "__dlpack__", "numpy")):
        raise ValueError(
            f"apply_gradients: the gradient of feature {name!r} is a {type(value).__name__}, not "
            "an array; it must be an array of the activations' shape, or None for zeros"
        )
    if np.ma.is_masked(value):
        raise ValueError(
            f"apply_gradients: the gradient of feature {name!r} has masked numbers; fill them "
            "first, with 0 where there is no gradient"
        )
    array = as_array(value, f"apply_gradients: the gradient of feature {name!r}")
    if shape is not None and array.shape != shape:
        raise ValueError(
            f"apply_gradients: the gradient of feature {name!r} has shape {array.shape}; it must "
            f"have the activations' shape {shape}"
        )
    if array.dtype != np.float32:
        if kind_of(array.dtype) != "f":
            raise TypeError(
                f"apply_gradients: the gradient of feature {name!r} has dtype {array.dtype}; it "
                "must be a float dtype"
            )
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    return array


def stack_gradients(
    gradients: Sequence[Any], engine: Receiver, outputs: Sequence[Output] | None
) -> tuple[dict[str, np.ndarray], set[str]]:
    """({table: [samples, dim]}, the tables whose array is still the caller's memory).

    A feature without gradient gives zeros. With `outputs` None (no step waits) kinds and dtypes are
    checked, not shapes.

    Raises:
      ValueError: another number of gradients than features, a wrong shape or kind, or a number that
        is not finite where the engine checks for it.
      TypeError: a gradient of integers.
    """
    if len(gradients) != len(engine.features):
        raise ValueError(
            f"apply_gradients: {len(gradients)} gradients for {len(engine.features)} features"
        )
    parts: list[np.ndarray | None] = []
    for i, (value, name, feature) in enumerate(
        zip(gradients, engine.names, engine.features, strict=True)
    ):
        shape = None if outputs is None else (*outputs[i].shape, feature.table.dim)
        part = None if value is None else as_gradient(value, name, shape)
        if part is not None and engine.check_numerics:
            check_finite(part, name)
        parts.append(part)
    if outputs is None:
        return {}, set()
    return _stack(parts, engine, outputs)


def owned(by_table: Mapping[str, np.ndarray], borrowed: set[str]) -> dict[str, np.ndarray]:
    """The same gradients, those of the `borrowed` tables in memory of their own."""
    size = sum(by_table[name].size for name in borrowed)
    if size < WORTH_THREADS:
        return {name: g.copy() if name in borrowed else g for name, g in by_table.items()}
    kept = dict(by_table)
    for name in borrowed:
        kept[name] = aligned_empty(by_table[name].shape, np.float32)
    parallel(
        [lambda name=name: np.copyto(kept[name], by_table[name]) for name in sorted(borrowed)],
        size,
    )
    return kept


def check_finite(gradient: np.ndarray, name: str) -> None:
    """Raises ValueError naming the first number that is infinite or NaN."""
    finite = np.isfinite(gradient)
    if not finite.all():
        place = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(
            f"apply_gradients: the gradient of feature {name!r} is {gradient[place]} at {place}; "
            "with check_numerics=True it must be finite"
        )


def _stack(
    parts: Sequence[np.ndarray | None], engine: Receiver, outputs: Sequence[Output]
) -> tuple[dict[str, np.ndarray], set[str]]:
    by_table: dict[str, np.ndarray] = {}
    borrowed: set[str] = set()
    members: dict[str, list[int]] = {spec.name: [] for spec in engine.tables.specs}
    for i, output in enumerate(outputs):
        members[output.table].append(i)
    for spec in engine.tables.specs:
        features = members[spec.name]
        part = parts[features[0]]
        if len(features) == 1 and part is not None:
            by_table[spec.name] = np.ascontiguousarray(part).reshape(-1, spec.dim)
            borrowed.add(spec.name)
            continue
        stacked = by_table[spec.name] = np.zeros((outputs[features[-1]].hi, spec.dim), np.float32)
        for i in features:
            part = parts[i]
            if part is not None:
                stacked[outputs[i].lo : outputs[i].hi] = part.reshape(-1, spec.dim)
    return by_table, borrowed
