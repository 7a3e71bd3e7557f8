"""The three CPU workloads: shapes of published recommender benchmarks, ids uniform or Zipf."""

from dataclasses import dataclass, replace

import numpy as np

import embsim


@dataclass(frozen=True)
class Workload:
    """`tables` tables of `rows` x `dim`, one feature each; `pooling` ids a bag."""

    name: str
    tables: int
    rows: int
    dim: int
    batch: int
    pooling: int
    combiner: str

    def scaled(self, divisor: int) -> "Workload":
        """Smaller tables and batches, for a quick look."""
        return replace(self, rows=max(1, self.rows // divisor), batch=max(1, self.batch // divisor))

    def ids(self, rng: np.random.Generator, alpha: float) -> list[embsim.RaggedTensor]:
        """One batch: uniform ids for alpha 0, else Zipf(alpha) ranks spread over the table."""
        splits = np.arange(self.batch + 1) * self.pooling
        count = self.batch * self.pooling
        return [
            embsim.RaggedTensor(draw(rng, self.rows, count, alpha), splits)
            for _ in range(self.tables)
        ]

    def configs(self) -> list[embsim.FeatureConfig]:
        return [
            embsim.FeatureConfig(
                embsim.TableConfig(
                    self.rows, self.dim, small_values, combiner=self.combiner, name=f"table_{t}"
                )
            )
            for t in range(self.tables)
        ]


WORKLOADS = {
    "W1": Workload("W1", 8, 1_000_000, 64, 4096, 20, "sum"),
    "W2": Workload("W2", 26, 200_000, 16, 8192, 1, "sum"),
    "W3": Workload("W3", 1, 4_000_000, 128, 4096, 32, "mean"),
}


def draw(rng: np.random.Generator, rows: int, count: int, alpha: float) -> np.ndarray:
    """[count] int32 ids: ranks of a Zipf law on 1..rows by inverse CDF, spread over the table."""
    if alpha == 0:
        return rng.integers(0, rows, count, dtype=np.int32)
    cdf = np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -alpha)
    ranks = np.searchsorted(cdf, rng.random(count) * cdf[-1])
    unit = 2_654_435_761 % rows or 1
    while np.gcd(unit, rows) != 1:
        unit += 1
    return (ranks * unit % rows).astype(np.int32)


def small_values(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Multiples of 2^-6 that differ between rows: cheap to make, not all zero."""
    rows, columns = np.arange(shape[0]) % 127, np.arange(shape[1]) % 127
    steps = rows.astype(np.int16)[:, None] + columns.astype(
        np.int16
    )  # little memory for large ones
    steps %= 127
    steps -= 63
    made = steps.astype(dtype)
    made /= np.array(64, dtype)
    return made
