"""The operations of an optimizer's rule inside a kernel: rows as records have them, no barriers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu

from ..ops import Ops
from . import ieee
from .base import Slots, Stored
from .records import LANES, Records


@dataclass(frozen=True)
class KernelOps(Ops):
    """On rows [n, lines * 128]: of packed rows, 128 // width rows beside each other."""

    exact: bool = False
    records: Records = field(default_factory=lambda: Records(LANES))

    def applied(self, row: Callable[..., Stored], w: Any, g: Any, slots: Slots) -> Stored:
        """row(w, g, slots), of a row that was made with these operations."""
        return row(w, g, slots)

    def mean(self, x: Any) -> Any:
        """Of a row: [n, 1], or of packed rows the same number in all lanes of each."""
        lane = lax.broadcasted_iota(jnp.int32, x.shape, 1)
        width, dim = self.records.width, self.records.dim
        own = lane & (width - 1) if width < LANES else lane
        x = jnp.where(own < dim, x, jnp.zeros_like(x))
        if width >= LANES:
            return self.divide(jnp.sum(x, axis=1, keepdims=True), jnp.float32(dim))
        step = 1
        while step < width:
            up, down = pltpu.roll(x, LANES - step, 1), pltpu.roll(x, step, 1)
            x = x + jnp.where(lane & step == 0, up, down)
            step *= 2
        return self.divide(x, jnp.float32(dim))

    def divide(self, x: Any, divisor: Any) -> Any:
        return x / jnp.broadcast_to(divisor, jnp.shape(x))


@dataclass(frozen=True)
class IeeeOps(KernelOps):
    """Roots and quotients are rounded as IEEE 754 has them; all others are as they are."""

    def applied(self, row: Callable[..., Stored], w: Any, g: Any, slots: Slots) -> Stored:
        given = {name: ieee.Number(value) for name, value in slots.items()}
        new, made = row(ieee.Number(w), ieee.Number(g), given)
        return ieee.plain(new), {name: ieee.plain(value) for name, value in made.items()}

    def sqrt(self, x: Any) -> ieee.Number:
        return ieee.Number(ieee.sqrt(ieee.plain(x)))

    def minimum(self, x: Any, y: Any) -> ieee.Number:
        return ieee.Number(jnp.minimum(ieee.plain(x), ieee.plain(y)))

    def maximum(self, x: Any, y: Any) -> ieee.Number:
        return ieee.Number(jnp.maximum(ieee.plain(x), ieee.plain(y)))

    def where(self, condition: Any, x: Any, y: Any) -> ieee.Number:
        return ieee.Number(jnp.where(condition, ieee.plain(x), ieee.plain(y)))

    def power(self, x: Any, exponent: Any) -> ieee.Number:
        return ieee.Number(jnp.power(ieee.plain(x), ieee.plain(exponent)))

    def mean(self, x: Any) -> ieee.Number:
        return ieee.Number(ieee.plain(super().mean(ieee.plain(x))))

    def divide(self, x: Any, divisor: Any) -> ieee.Number:
        return ieee.Number(ieee.plain(x)) / ieee.plain(divisor)
