"""Backends with the arithmetic of other machines: right, if they say so."""

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from ...definition import quantized
from ...optimizers import (
    NumpyOps,
    RowwiseAdagrad,
    accumulates_gradients,
    row_update,
    updates_every_row,
)
from ...plan import LookupPlan
from ...reference import ReferenceBackend
from ...state import State, TableSpec


class Flushed(np.ndarray):
    """Operands and results below 2^-126 are zero; they are kept where they are only stored."""

    below: ClassVar[float] = 2.0**-126
    kept: ClassVar[tuple[str, ...]] = ()  # operations that keep them

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [np.asarray(x) if isinstance(x, Flushed) else x for x in inputs]
        if ufunc.__name__ in self.kept:
            return np.asarray(getattr(ufunc, method)(*plain, **options)).view(type(self))
        result = getattr(ufunc, method)(*map(self._zeroed, plain), **options)
        return self._zeroed(result).view(type(self))

    def _zeroed(self, x: Any) -> np.ndarray:
        x = np.asarray(x)
        return np.where(abs(x) < self.below, np.float32(0), x) if x.dtype == np.float32 else x


class RowByRow(ReferenceBackend):
    """Updates in NumPy."""

    def arithmetic(self, array: np.ndarray) -> np.ndarray:
        """What gradients are summed in."""
        return array

    def of_rule(self, optimizer: Any, array: np.ndarray) -> np.ndarray:
        """What the rule is computed in."""
        return self.arithmetic(array)

    @np.errstate(all="ignore")
    def update(
        self,
        state: State,
        plan: Mapping[str, LookupPlan],
        gradients: Mapping[str, np.ndarray],
        coefficients: Mapping[str, Mapping[str, np.float32]],
    ) -> State:
        for name, each in plan.items():
            arrays = [state.weights[name], *state.slots[name].values()]
            parts: dict[int, list[Any]] = {}
            slopes = self.arithmetic(gradients[name])
            for sample, row, gain in zip(each.sample, each.row, each.gain, strict=True):
                parts.setdefault(int(row), []).append(gain * slopes[sample])
            self._updated(state.specs[name], arrays, parts, SimpleNamespace(**coefficients[name]))
        return replace(state, version=state.version + 1)

    def _updated(
        self, spec: TableSpec, arrays: list[np.ndarray], parts: Mapping[int, list[Any]], c: Any
    ) -> None:
        optimizer = spec.optimizer
        assert optimizer is not None
        rule = row_update(optimizer, NumpyOps)
        zeros = np.zeros(spec.dim, np.float32)
        for row in range(spec.vocabulary_size) if updates_every_row(optimizer) else parts:
            given = parts.get(row, [])
            if accumulates_gradients(optimizer):
                given = [sum(given, start=zeros)]
            w, *slots = (self.of_rule(optimizer, array[row]) for array in arrays)
            for g in given:
                w, slots = rule(w, self.of_rule(optimizer, g), tuple(slots), c)
            for array, value in zip(arrays, (w, *slots), strict=True):
                array[row] = value


class Flushing(RowByRow):
    """In arrays of the class `array`."""

    array: ClassVar[type[Flushed]] = Flushed

    def arithmetic(self, array: np.ndarray) -> np.ndarray:
        return array.view(self.array)

    @np.errstate(all="ignore")
    def lookup(self, state: State, plan: Mapping[str, LookupPlan]) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for name, each in plan.items():
            weights, config = state.weights[name].view(self.array), state.specs[name].quantization
            out = found[name] = np.zeros((each.samples, weights.shape[1]), np.float32)
            for sample, row, gain in zip(each.sample, each.row, each.gain, strict=True):
                out[sample] = out[sample] + gain * quantized(weights[row], config)
        return found


class SumsSquaresBackwards(ReferenceBackend):
    """RowwiseAdagrad's mean is summed from the last column to the first."""

    def update(
        self,
        state: State,
        plan: Mapping[str, LookupPlan],
        gradients: Mapping[str, np.ndarray],
        coefficients: Mapping[str, Mapping[str, np.float32]],
    ) -> State:
        weights, given = dict(state.weights), dict(gradients)
        turned = [n for n in plan if isinstance(state.specs[n].optimizer, RowwiseAdagrad)]
        for name in turned:
            weights[name] = np.ascontiguousarray(weights[name][:, ::-1])
            given[name] = np.ascontiguousarray(given[name][:, ::-1])
        made = super().update(replace(state, weights=weights), plan, given, coefficients)
        for name in turned:
            state.weights[name][...] = weights[name][:, ::-1]
        return replace(made, weights=state.weights)
