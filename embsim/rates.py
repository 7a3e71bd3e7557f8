"""The coefficients of each training step, by table: where learning-rate callables are asked."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .optimizers import Optimizer, coefficients, learning_rate_at
from .state import TableSpec


class Rates:
    """Of these tables, all of which have an optimizer."""

    def __init__(self, specs: Sequence[TableSpec]) -> None:
        self._specs = specs
        self._names: dict[int, list[str]] = {}  # of coefficients, by optimizer

    def at(self, step: int) -> dict[str, dict[str, np.float32]]:
        """Of training step `step`, by table. Each distinct learning-rate callable is asked once.

        Raises:
          TypeError: a callable that takes neither nothing nor the step, or returns no number.
          ValueError: an optimizer whose coefficients have other names at this rate.
        """
        rates: dict[int, tuple[Any, float]] = {}  # with its callable: a kept one keeps its id
        made: dict[int, dict[str, np.float32]] = {}
        for spec in self._specs:
            optimizer = spec.optimizer
            assert optimizer is not None, "only tables that train have coefficients"
            source: float | Callable[..., float] = optimizer.learning_rate
            if id(source) not in rates:
                rates[id(source)] = source, learning_rate_at(source, step)
            if id(optimizer) not in made:
                made[id(optimizer)] = self._named(optimizer, rates[id(source)][1])
        return {spec.name: made[id(spec.optimizer)] for spec in self._specs}

    def _named(self, optimizer: Optimizer, rate: float) -> dict[str, np.float32]:
        """The coefficients at this rate; their names must be the same at every rate."""
        made = coefficients(optimizer, rate)
        names = self._names.setdefault(id(optimizer), list(coefficients(optimizer, 1.0)))
        if list(made) != names:
            raise ValueError(
                f"apply_gradients: {type(optimizer).__name__} has the coefficients {list(made)} at "
                f"rate {rate}, {names} at rate 1; it must have the same at every rate"
            )
        return made
