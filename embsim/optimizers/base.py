"""What an optimizer is: slots, coefficients, and a rule on one row.

Around the rule: clip, decay, clip.

An optimizer is any object with four things; no base class:

    learning_rate              a float, or a callable without arguments or of the training step
    slots                      tuple of Slot: its slot variables and their initial values
    coefficients(lr)           {name: float}: every number of the formula, rounded to float32 once;
                               the same names at every rate
    rule(ops)                  a function (w, g, slots, c) -> (w, slots) of one row

The rule is written once and runs on every backend: `w`, `g` and the slots are float32 rows,
`c.<name>` the coefficients, and `ops` offers sqrt, minimum, maximum, where, power and mean (of a
row, in position order). Inside the rule there is no literal and no `if`: a decision about a
hyperparameter is taken outside, when the rule is built.

The optional attributes of TPUEmbedding's optimizers (clipvalue, clip_weight_min, ...) are honoured
where they exist.
"""

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class Slot:
    """A slot variable: [vocabulary_size, dim], or [vocabulary_size, 1] if rowwise, starting at
    `initial`.
    """

    name: str
    initial: float = 0.0
    rowwise: bool = False


@runtime_checkable
class Optimizer(Protocol):
    """The form of an optimizer; see the head of this file."""

    @property
    def learning_rate(self) -> float | Callable[..., float]: ...

    @property
    def slots(self) -> tuple[Slot, ...]: ...

    def coefficients(self, learning_rate: float) -> Mapping[str, float]: ...

    def rule(self, ops: Any) -> Callable[..., Any]: ...


def row_update(optimizer: Optimizer, ops: Any) -> Callable[..., Any]:
    """(w, g, slots, c) -> (w, slots): clip g, decay w, the rule, clip w; slots are not clipped."""
    rule = optimizer.rule(ops)
    low, high = clip_values(optimizer)
    weight_min = _option(optimizer, "clip_weight_min")
    weight_max = _option(optimizer, "clip_weight_max")
    decays = bool(_option(optimizer, "weight_decay_factor"))

    def update(w: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Any]:
        if low is not None:
            g = ops.maximum(g, c.clip_gradient_min)
        if high is not None:
            g = ops.minimum(g, c.clip_gradient_max)
        if decays:
            w = c.keep * w
        result = rule(w, g, slots, c)
        if not isinstance(result, tuple) or len(result) != 2:
            name = type(optimizer).__name__
            raise TypeError(f"{name}: the rule returned {result!r}; it must return (w, slots)")
        w, slots = result
        if weight_min is not None:
            w = ops.maximum(w, c.clip_weight_min)
        if weight_max is not None:
            w = ops.minimum(w, c.clip_weight_max)
        return w, slots

    return update


def coefficients(optimizer: Optimizer, learning_rate: float) -> dict[str, np.float32]:
    """All numbers of one step's update, by name: the rule's, the decay's, the limits.

    Computed in float64 and rounded once; in alphabetical order.
    """
    exact = dict(optimizer.coefficients(learning_rate))
    low, high = clip_values(optimizer)
    exact |= {
        name: value
        for name, value in (("clip_gradient_min", low), ("clip_gradient_max", high))
        if value is not None
    }
    decay = _option(optimizer, "weight_decay_factor")
    if decay:
        by_rate = _option(optimizer, "multiply_weight_decay_factor_by_learning_rate")
        exact["keep"] = 1.0 - decay * learning_rate if by_rate else 1.0 - decay
    for name in ("clip_weight_min", "clip_weight_max"):
        limit = _option(optimizer, name)
        if limit is not None:
            exact[name] = limit
    for name, value in exact.items():
        if not isinstance(value, numbers.Real):
            what = f"{type(optimizer).__name__}: coefficient {name!r}"
            raise TypeError(f"{what} is {value!r}; it must be a number")
    with np.errstate(over="ignore"):
        return {name: np.float32(exact[name]) for name in sorted(exact)}


def learning_rate_at(learning_rate: float | Callable[..., Any], step: int) -> float:
    """The rate of training step `step`: a callable is called without arguments if it can be, else
    with the step.
    """
    if not callable(learning_rate):
        return float(learning_rate)
    if _takes(learning_rate):
        value = learning_rate()
    elif _takes(learning_rate, step):
        value = learning_rate(step)
    else:
        raise TypeError(
            f"learning rate of training step {step}: {learning_rate!r} takes neither no argument "
            "nor one, the step"
        )
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"learning rate of training step {step}: {learning_rate!r} returned {value!r}; it "
            "must return a number"
        ) from error


def clip_values(optimizer: Any) -> tuple[float | None, float | None]:
    """(lowest, highest) gradient that `clipvalue` lets through; None where there is no limit."""
    clip = _option(optimizer, "clipvalue")
    if clip is None:
        return None, None
    return clip if isinstance(clip, tuple) else (-clip, clip)


def updates_every_row(optimizer: Any) -> bool:
    """Whether a step also updates the rows that it did not look up (non-lazy Adam)."""
    return bool(_option(optimizer, "updates_every_row"))


def accumulates_gradients(optimizer: Any) -> bool:
    """Whether duplicates are summed before the rule (the default) or each contribution is an update
    of its own.
    """
    return getattr(optimizer, "use_gradient_accumulation", True) is not False


def one_row(optimizer: Optimizer, w: Any, g: Any, **slots: Any) -> tuple[Any, ...]:
    """The update of a single row by hand: (w, slot, ...) as lists, a rowwise slot as a number.

    For worked examples.
    """
    row = np.atleast_1d(np.asarray(w, np.float32))
    values = tuple(
        np.atleast_1d(np.asarray(slots.get(s.name, s.initial), np.float32)) for s in optimizer.slots
    )
    rate = learning_rate_at(optimizer.learning_rate, 0)
    c = SimpleNamespace(**coefficients(optimizer, rate))
    with np.errstate(all="ignore"):
        new, new_slots = row_update(optimizer, NumpyOps)(
            row, np.atleast_1d(np.asarray(g, np.float32)), values, c
        )
    parts = [
        v.item() if s.rowwise else v.tolist()
        for s, v in zip(optimizer.slots, new_slots, strict=True)
    ]
    return (new.tolist(), *parts)


class NumpyOps:
    """The operations of a rule on NumPy rows: float32, every operation rounded, NaN propagated by
    minimum and maximum.
    """

    sqrt = staticmethod(np.sqrt)
    minimum = staticmethod(np.minimum)
    maximum = staticmethod(np.maximum)
    where = staticmethod(np.where)

    @staticmethod
    def power(x: np.ndarray, exponent: np.float32) -> np.ndarray:
        """x ** exponent in float64 by the C library, rounded once."""
        e = np.float64(exponent)
        return np.array(
            [np.float32(np.float64(item) ** e) for item in np.ravel(x)], np.float32
        ).reshape(np.shape(x))

    @staticmethod
    def mean(x: np.ndarray) -> np.ndarray:
        """[dim] -> [1]: the sum in position order, divided by dim once."""
        total = np.float32(0.0)
        for item in x:
            total = total + item
        return np.array([total / np.float32(len(x))], np.float32)


def check_options(optimizer: Any) -> None:
    """The arguments that all of TPUEmbedding's optimizers share. Raises TypeError or ValueError."""
    name = type(optimizer).__name__
    rate = optimizer.learning_rate
    if not callable(rate):
        _number(f"{name}: learning_rate", rate, "a number, or a callable that returns one")
    for option in ("use_gradient_accumulation", "low_dimensional_packing_status"):
        if not isinstance(getattr(optimizer, option), bool):
            raise ValueError(
                f"{name}: {option} is {getattr(optimizer, option)!r}; it must be True or False"
            )
    for option in ("clip_weight_min", "clip_weight_max", "weight_decay_factor"):
        if getattr(optimizer, option) is not None:
            _number(f"{name}: {option}", getattr(optimizer, option), "a number or None")
    _check_order(
        name,
        "clip_weight_min and clip_weight_max",
        optimizer.clip_weight_min,
        optimizer.clip_weight_max,
    )
    _check_clipvalue(name, optimizer)
    creation = _option(optimizer, "slot_variable_creation_fn")
    if creation is not None and not callable(creation):
        raise ValueError(
            f"{name}: slot_variable_creation_fn is {creation!r}; it must be a callable or None"
        )


def check_range(name: str, value: Any, what: str, legal: Callable[[float], bool]) -> None:
    """Raises ValueError unless value is a number with legal(value); `what` says it in words."""
    _number(name, value, what)
    if not legal(value):
        raise ValueError(f"{name} is {value}; it must be {what}")


def _check_clipvalue(name: str, optimizer: Any) -> None:
    clip = optimizer.clipvalue
    if clip is None:
        return
    if not optimizer.use_gradient_accumulation:
        raise ValueError(
            f"{name}: clipvalue is {clip} with use_gradient_accumulation=False; clipping needs "
            "the accumulated gradient: set use_gradient_accumulation=True or clipvalue=None"
        )
    if isinstance(clip, tuple):
        if len(clip) != 2:
            raise ValueError(
                f"{name}: clipvalue has {len(clip)} entries; it must be a number or (min, max)"
            )
        for limit in clip:
            if limit is not None:
                _number(f"{name}: an entry of clipvalue", limit, "a number or None")
    else:
        _number(f"{name}: clipvalue", clip, "a number >= 0, or a tuple (min, max)")
    _check_order(name, "clipvalue", *clip_values(optimizer))


def _check_order(name: str, what: str, low: float | None, high: float | None) -> None:
    if low is not None and high is not None and not low <= high:
        raise ValueError(
            f"{name}: {what} allow values from {low} to {high}; the lower limit must not be above "
            "the upper"
        )


def _number(what: str, value: Any, required: str) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{what} is {value!r}; it must be {required}")
    if math.isnan(value):
        raise ValueError(f"{what} is NaN; it must be {required}")


def _option(optimizer: Any, name: str) -> Any:
    return getattr(optimizer, name, None)


def _takes(function: Callable[..., Any], *arguments: Any) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # no signature to ask: a C function; TensorFlow calls it without arguments
        return not arguments
    return True
