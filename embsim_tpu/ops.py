"""The operations of an optimizer's rule on JAX rows: float32 [rows, dim], rowwise slots [rows, 1].

XLA on CPU turns a / sqrt(x) into a product with an approximate reciprocal root, and the division by
a broadcast number into a product with its reciprocal. With `exact` both are kept apart by a barrier
and rounded once, as the law has them; it costs an array of the rows' size for each division by a
coefficient. Multiply and add may be fused in any case (docs/semantics.md, section 8).
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@dataclass(frozen=True)
class Ops:
    """What `rule(ops)` is given: sqrt, minimum, maximum, where, power, mean."""

    exact: bool = True

    def sqrt(self, x: Any) -> Any:
        return self._kept(jnp.sqrt(_array(x)))

    def minimum(self, x: Any, y: Any) -> Any:
        return jnp.minimum(_array(x), _array(y))

    def maximum(self, x: Any, y: Any) -> Any:
        return jnp.maximum(_array(x), _array(y))

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        return jnp.where(_array(condition), _array(x), _array(y))

    def power(self, x: Any, exponent: Any) -> Any:
        """In float32: at most 4 ulp from the reference, which uses float64."""
        return jnp.power(_array(x), _array(exponent))

    def mean(self, x: Any) -> Any:
        """[rows, dim] -> [rows, 1]: the sum in the machine's order, divided by dim once."""
        x = _array(x)
        return self.divide(jnp.sum(x, axis=-1, keepdims=True), jnp.float32(x.shape[-1]))

    def divide(self, x: Any, divisor: Any) -> Any:
        """x / divisor, where the divisor may be one number for all rows."""
        return x / self._kept(jnp.broadcast_to(divisor, jnp.shape(x)))

    def coefficients(self, names: tuple[str, ...], values: jax.Array) -> SimpleNamespace:
        """`c` of a rule: the numbers of `values` [coefficients] by name."""
        return SimpleNamespace(
            **{name: Coefficient(self, values[i]) for i, name in enumerate(names)}
        )

    def _kept(self, x: Any) -> Any:
        return lax.optimization_barrier(x) if self.exact else x


@dataclass(frozen=True, eq=False)
class Coefficient:
    """One float32 number that every row of a step shares."""

    ops: Ops
    value: Any

    def __neg__(self) -> "Coefficient":
        return Coefficient(self.ops, -self.value)

    def __add__(self, other: Any) -> Any:
        return self._with(other, self.value + _array(other))

    def __sub__(self, other: Any) -> Any:
        return self._with(other, self.value - _array(other))

    def __mul__(self, other: Any) -> Any:
        return self._with(other, self.value * _array(other))

    def __truediv__(self, other: Any) -> Any:
        return self._with(other, self.value / _array(other))

    def __radd__(self, other: Any) -> Any:
        return other + self.value

    def __rsub__(self, other: Any) -> Any:
        return other - self.value

    def __rmul__(self, other: Any) -> Any:
        return other * self.value

    def __rtruediv__(self, other: Any) -> Any:
        return self.ops.divide(other, self.value)

    def __lt__(self, other: Any) -> Any:
        return self.value < _array(other)

    def __le__(self, other: Any) -> Any:
        return self.value <= _array(other)

    def __gt__(self, other: Any) -> Any:
        return self.value > _array(other)

    def __ge__(self, other: Any) -> Any:
        return self.value >= _array(other)

    def _with(self, other: Any, value: Any) -> Any:
        return Coefficient(self.ops, value) if isinstance(other, Coefficient) else value


def _array(x: Any) -> Any:
    return x.value if isinstance(x, Coefficient) else x
