"""The law, watched for subnormal numbers: there an engine that has none may part from it.

An engine that takes subnormals for zero, each operation or not, has the law's bits as long as no
operation of the law has a subnormal operand or result.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..definition import Batch, Definition
from .tolerance import SMALLEST


class SubnormalMet(Exception):  # noqa: N818 (what happened; no fault of anybody's)
    """An operation of the law had a subnormal operand or result.

    A check leaves such an example out; `replay` of a program of one's own raises it.
    """


class WatchedDefinition(Definition):
    """The law; it raises SubnormalMet where an operation of a lookup or an update meets one.

    What is only stored may be one.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        looking: Any = {table: _Looking(each) for table, each in self.optimizers.items()}
        self.optimizers = looking

    def dequeue(self, batch: Batch, training: bool = True) -> list[np.ndarray]:
        self._look_at_denominators(batch)
        with self._watching():
            return [np.asarray(array) for array in super().dequeue(batch, training)]

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        with self._watching():
            super().apply_gradients(gradients)

    @contextmanager
    def _watching(self) -> Generator[None]:
        self._hold(_Watched)
        try:
            yield
        finally:
            self._hold(np.ndarray)

    def _hold(self, kind: type[np.ndarray]) -> None:
        self.versions = [
            {table: [array.view(kind) for array in arrays] for table, arrays in version.items()}
            for version in self.versions
        ]

    @np.errstate(all="ignore")
    def _look_at_denominators(self, batch: Batch) -> None:
        """Sums of weights or of their squares; gains are seen where they are multiplied."""
        for feature, bags in zip(self.features, batch, strict=True):
            if feature.max_sequence_length or feature.table.combiner == "sum":
                continue
            for bag in bags:
                pairs = [item if isinstance(item, tuple) else (item, 1) for item in bag]
                w = np.array([weight for _, weight in pairs], np.float32)
                terms = w if feature.table.combiner == "mean" else w * w
                _look("denominator of a gain", w, terms, np.cumsum(terms))


class _Looking:
    """`optimizer`, whose rule looks at its numbers."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def rule(self, ops: Any) -> Callable[..., Any]:
        rule = self._optimizer.rule(_Ops(ops))
        return lambda w, g, slots, c: rule(w, np.asarray(g).view(_Watched), slots, c)


class _Ops:
    """`ops`, of which some return plain arrays."""

    def __init__(self, ops: Any) -> None:
        self._ops = ops

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._ops, name)

        def watching(*operands: Any) -> Any:
            result = np.asarray(operation(*operands))
            _look(name, result)
            return result.view(_Watched)

        return watching

    def mean(self, x: Any) -> Any:
        x = np.asarray(x)
        _look("mean", x, np.cumsum(x))
        return self.__getattr__("mean")(x)


class _Watched(np.ndarray):
    """An array that looks at the operands and the result of each of its operations."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [np.asarray(x) if isinstance(x, _Watched) else x for x in inputs]
        result = getattr(ufunc, method)(*plain, **options)
        _look(ufunc.__name__, *plain, result)
        return np.asarray(result).view(_Watched)


def _look(what: str, *numbers: Any) -> None:
    """2^-126 too: machines differ in whether a result is small before or after its rounding."""
    for x in map(np.asarray, numbers):
        if x.dtype == np.float32:
            small = (x != 0) & (abs(x) <= SMALLEST)
            if small.any():
                raise SubnormalMet(
                    f"the law's {what} meets the number {x[small].flat[0]!s}, which an engine "
                    "without subnormals may take for zero: from here on the two are not compared "
                    "to the bit; draw larger numbers"
                )
