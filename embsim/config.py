"""Tables and features: what is looked up where. Frozen, validated, never mutated.

Names and arguments are those of `tf.tpu.experimental.embedding`. Two equal configurations are two
tables: identity decides, as in TensorFlow.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COMBINERS = ("mean", "sum", "sqrtn")
MAX_ROWS = 2**31 - 1


@dataclass(frozen=True)
class QuantizationConfig:
    """Simulated quantization of looked-up rows to `num_buckets` levels on [lower, upper].

    Applied to every row before the combiner, forward only: the gradient passes straight through,
    the table stays float32. Ties round up.

    Raises:
      ValueError: fewer than 2 buckets, or not lower < upper.
    """

    num_buckets: int
    lower: float
    upper: float

    def __post_init__(self) -> None:
        buckets = integer("QuantizationConfig: num_buckets", self.num_buckets, minimum=2)
        object.__setattr__(self, "num_buckets", buckets)
        lower, upper = float(self.lower), float(self.upper)
        if not (lower < upper and math.isfinite(lower) and math.isfinite(upper)):
            raise ValueError(
                f"QuantizationConfig: limits are lower={lower}, upper={upper}; "
                "they must be finite and lower < upper"
            )


@dataclass(frozen=True, eq=False, repr=False)
class TableConfig:
    """One embedding table: `vocabulary_size` rows of `dim` float32 numbers.

    Args:
      vocabulary_size: number of rows, 1 to 2^31 - 1; legal ids are 0 .. vocabulary_size - 1.
      dim: numbers in a row, at least 1.
      initializer: called once with (shape, dtype), positionally, and must return an array
        [vocabulary_size, dim]; None is a truncated normal, mean 0, stddev 1/sqrt(dim), the same
        whatever the replicas, shards or backend.
      optimizer: the table's own optimizer; None takes the embedding's.
      combiner: how the rows of a bag become one: 'mean', 'sum' or 'sqrtn'.
      name: None becomes 'table_<position>' in the embedding that uses the table; the config itself
        stays as it is.
      quantization_config: simulated quantization of looked-up rows.

    Raises:
      ValueError: any argument out of its range.
    """

    vocabulary_size: int
    dim: int
    initializer: Callable[..., Any] | None = None
    optimizer: Any = None
    combiner: str = "mean"
    name: str | None = None
    quantization_config: QuantizationConfig | None = None

    def __post_init__(self) -> None:
        where = _where("TableConfig", self.name)
        rows = integer(
            f"{where}: vocabulary_size", self.vocabulary_size, minimum=1, maximum=MAX_ROWS
        )
        object.__setattr__(self, "vocabulary_size", rows)
        object.__setattr__(self, "dim", integer(f"{where}: dim", self.dim, minimum=1))
        if self.initializer is not None and not callable(self.initializer):
            raise ValueError(
                f"{where}: initializer is {self.initializer!r}; it must be None or a callable "
                "that takes (shape, dtype)"
            )
        if not isinstance(self.combiner, str) or self.combiner not in COMBINERS:
            raise ValueError(
                f"{where}: combiner is {self.combiner!r}; it must be one of {COMBINERS}"
            )
        quantization = self.quantization_config
        if quantization is not None and not isinstance(quantization, QuantizationConfig):
            raise ValueError(
                f"{where}: quantization_config is {quantization!r}; "
                "it must be a QuantizationConfig or None"
            )

    def __repr__(self) -> str:
        return (
            f"TableConfig(vocabulary_size={self.vocabulary_size}, dim={self.dim}, "
            f"initializer={self.initializer!r}, optimizer={self.optimizer!r}, "
            f"combiner={self.combiner!r}, name={self.name!r}, "
            f"quantization_config={self.quantization_config!r})"
        )


@dataclass(frozen=True, eq=False)
class FeatureConfig:
    """One feature: the ids of one input, looked up in `table`. Features may share a table.

    Args:
      table: a TableConfig.
      max_sequence_length: L > 0 makes a sequence feature: activations [batch, L, dim], one row a
        position, no combining. Used only for inputs of rank 2 without output_shape.
      validate_weights_and_indices: accepted for TensorFlow's sake; embsim always validates.
      output_shape: per-replica shape of the activations without dim; an int n is (n,). None: taken
        from `build` or from the first batch.
      name: shown in error messages.

    Raises:
      ValueError: any argument out of its range.
    """

    table: TableConfig
    max_sequence_length: int = 0
    validate_weights_and_indices: bool = True
    output_shape: int | Sequence[int] | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        where = _where("FeatureConfig", self.name)
        if not isinstance(self.table, TableConfig):
            raise ValueError(f"{where}: table is {self.table!r}; it must be a TableConfig")
        length = integer(f"{where}: max_sequence_length", self.max_sequence_length, minimum=0)
        object.__setattr__(self, "max_sequence_length", length)
        if not isinstance(self.validate_weights_and_indices, bool):
            raise ValueError(
                f"{where}: validate_weights_and_indices is {self.validate_weights_and_indices!r}; "
                "it must be True or False"
            )
        if self.output_shape is not None:
            object.__setattr__(self, "output_shape", _shape(where, self.output_shape))


def _where(kind: str, name: Any) -> str:
    """What messages call it. Raises ValueError: a name that is no string."""
    if name is not None and not isinstance(name, str):
        raise ValueError(f"{kind}: name is {name!r}; it must be a string or None")
    return f"{kind} {name!r}" if name else kind


def integer(
    what: str, value: Any, *, minimum: int | None = None, maximum: int | None = None
) -> int:
    """A Python int from any integer but a bool. Raises ValueError out of range, naming `what`."""
    required = "an int"
    if minimum is not None:
        required += f" >= {minimum}" if maximum is None else f" from {minimum} to {maximum}"
    if isinstance(value, bool | np.bool_ | np.ndarray) or not hasattr(type(value), "__index__"):
        raise ValueError(f"{what} is {value!r}; it must be {required}")
    number = operator.index(value)
    if (minimum is not None and number < minimum) or (maximum is not None and number > maximum):
        raise ValueError(f"{what} is {number}; it must be {required}")
    return number


def _shape(where: str, value: Any) -> tuple[int, ...]:
    axes = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    shape = tuple(
        integer(f"{where}: axis {i} of output_shape", axis, minimum=1)
        for i, axis in enumerate(axes)
    )
    if not shape:
        raise ValueError(f"{where}: output_shape is (); it must have at least one axis, the batch")
    return shape
