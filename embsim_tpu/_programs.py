"""The compiled programs of a pipeline: one for each kind of tick and shape of batch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax

from .functions import Functions
from .state import State

# (carry, activations, inputs) -> (carry, gradients, metrics)
DenseStep = Callable[[Any, Any, Any], tuple[Any, Any, Any]]


@dataclass(frozen=True)
class Programs:
    """Compiled on first use, once for each kind of tick and shape of batch."""

    tick: Any
    touched: Any
    with_touched: Any


@lru_cache(maxsize=64)
def programs(functions: Functions, dense_step: DenseStep) -> Programs:
    """Of these tables and this dense step; pipelines of equal ones share them."""

    def tick(
        tables: State,
        carry: Any,
        activations: Any,
        inputs: Any,
        plan: Any,
        due: Any,
        *,
        dense: bool,
        own: bool,
    ) -> tuple[State, Any, Any, Any, Any]:
        """Each part where its arguments are there: the lookup of `plan`, the dense step, the update
        `due`: a plan, its gradients (`own`: those of this dense step) and coefficients."""
        found = gradients = metrics = None
        if plan is not None:
            found = functions.lookup(tables, plan)
        if dense:
            given = found if activations is None else activations
            with jax.named_scope("embsim.dense"):
                carry, gradients, metrics = _three(dense_step(carry, given, inputs))
        if due is not None:
            due_plan, older, coefficients = due
            given = gradients if own else older
            tables = functions.update(tables, due_plan, given, coefficients, after=found)
            gradients = None if own else gradients
        return tables, carry, found, gradients, metrics

    return Programs(
        jax.jit(tick, static_argnames=("dense", "own"), donate_argnums=(0, 1)),
        jax.jit(functions.touched),
        jax.jit(functions.with_touched, donate_argnums=0),
    )


def _three(made: Any) -> tuple[Any, Any, Any]:
    if isinstance(made, tuple) and len(made) == 3:
        return made
    found = f"a tuple of {len(made)}" if isinstance(made, tuple) else f"a {type(made).__name__}"
    raise TypeError(
        f"dense_step returned {found}; it must return (carry, gradients, metrics): gradients of "
        "the activations, in their structure, and metrics of any kind, None too"
    )
