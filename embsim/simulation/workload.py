"""What is trained: tables, how ids fall on their rows, and what the dense model costs.

zoo.py has published ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from ..config import integer
from .popularity import Popularity, zipf


@dataclass(frozen=True)
class Table:
    """Tables of one kind.

    Args:
      rows, dim: of each.
      ids: that a sample has in each, on average.
      alpha: Zipf exponent of their popularity; 0: all rows alike.
      tables: how many of these there are.
      slots: numbers that the optimizer keeps for each weight; a rowwise slot is 1 / dim.
      law: the popularity itself, instead of `alpha`.
    """

    rows: int
    dim: int
    ids: float = 1.0
    alpha: float = 0.0
    tables: int = 1
    slots: float = 1.0
    law: Popularity | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "dim", "tables"):
            integer(f"workload: {name}", getattr(self, name), minimum=1)
        for name in ("ids", "alpha", "slots"):
            value = getattr(self, name)
            if not 0 <= value < np.inf:
                raise ValueError(f"workload: {name} is {value!r}; it must be a number >= 0")

    @cached_property
    def popularity(self) -> Popularity:
        """Of its rows."""
        return self.law or zipf(self.rows, self.alpha)

    @property
    def bytes(self) -> float:
        """Of all these tables with their slots, float32."""
        return 4.0 * self.rows * self.dim * (1 + self.slots) * self.tables


@dataclass(frozen=True)
class Workload:
    """A model and its batch.

    Args:
      name: for outputs.
      tables: of each kind.
      samples: of a global batch.
      macs: multiply-adds of the dense model for one sample, forwards.
      dense_weights: numbers that its gradients have.
      dense_features: numbers of a sample besides ids.
      pooled: bags are summed where their rows lie, every id read, and travel as activations;
        otherwise each chip asks for its distinct rows, and sums them itself.
      activation_size: bytes of a number that travels: 4, or 2.
      source: where it is from.
      doubtful: what of it is not published, said with every result.
    """

    name: str
    tables: tuple[Table, ...]
    samples: int
    macs: float
    dense_weights: float
    dense_features: int = 13
    source: str = ""
    doubtful: tuple[str, ...] = ()
    pooled: bool = False
    activation_size: int = 4

    def __post_init__(self) -> None:
        if self.activation_size not in (2, 4):
            raise ValueError(
                f"workload: activation_size is {self.activation_size!r}; it must be 2 or 4 bytes"
            )

    @property
    def ids(self) -> float:
        """Of one sample, in all tables."""
        return sum(table.ids * table.tables for table in self.tables)

    @property
    def bytes(self) -> float:
        """Of all tables with their slots."""
        return sum(table.bytes for table in self.tables)

    @property
    def activations(self) -> float:
        """Numbers that the lookups of one sample give, bags summed."""
        return float(sum(table.dim * table.tables for table in self.tables))


# --- dense models


def mlp(*widths: int) -> tuple[float, float]:
    """(multiply-adds of a sample, weights with biases) of layers of these widths.

    >>> mlp(13, 512, 256)
    (137728.0, 138496.0)
    """
    macs = float(sum(a * b for a, b in pairwise(widths)))
    return macs, macs + sum(widths[1:])


def dlrm(features: int, dim: int, bottom: Sequence[int], top: Sequence[int]) -> tuple[float, float]:
    """DLRM: the bottom MLP, all inner products of its result and the features, the top MLP."""
    products = features * (features + 1) // 2
    parts = mlp(*bottom), mlp(dim + products, *top), (float(products * dim), 0.0)
    return sum(part[0] for part in parts), sum(part[1] for part in parts)


def dcn(
    features: int, dim: int, bottom: Sequence[int], top: Sequence[int], layers: int, rank: int
) -> tuple[float, float]:
    """DLRM-DCNv2: as DLRM, with cross layers of low rank in place of the inner products."""
    width = (features + 1) * dim
    cross = 2.0 * layers * rank * width
    parts = mlp(*bottom), mlp(width, *top), (cross, cross + layers * width)
    return sum(part[0] for part in parts), sum(part[1] for part in parts)
