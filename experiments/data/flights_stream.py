"""The flights of `flights.py` as a stream: nine fields, no numeric feature, 327,346 samples.

The last tenth of the year by scheduled departure (late November and December) is held out, in both
orders. Of its flights some ids were never trained: every airport x day, and month 12. That is what
a model meets that was trained until yesterday.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from . import flights
from .streams import Examples, check_batches, full_batches, padded, rebatched, unmasked

ORDERS = ("time", "shuffled")


def stream(
    order: str = "time", epochs: int = 1, seed: int = 0, held_out_share: float = 0.1
) -> "FlightsStream":
    """`epochs` passes over the training flights; an epoch drops what fills no batch.

    Args:
      order: 'time', by scheduled departure, or 'shuffled', anew in every epoch.
      epochs: one pass of the stream has so many.
      seed: of the shuffles.
      held_out_share: of all flights, the last ones.
    """
    return FlightsStream(order, epochs, seed, held_out_share)


@dataclass(frozen=True)
class FlightsStream:
    """See `stream`."""

    order: str
    epochs: int
    seed: int
    held_out_share: float

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"flights: order is {self.order!r}; it must be one of {ORDERS}")
        if self.epochs < 1 or self.seed < 0 or not 0 < self.held_out_share < 1:
            raise ValueError(
                f"flights: epochs is {self.epochs}, seed {self.seed}, held_out_share "
                f"{self.held_out_share}; they must be >= 1, >= 0 and between 0 and 1"
            )

    @property
    def names(self) -> tuple[str, ...]:
        return flights.FEATURES

    @property
    def vocabulary_sizes(self) -> tuple[int, ...]:
        sizes = flights.load().vocabulary_sizes
        return tuple(sizes[name] for name in self.names)

    @property
    def num_dense(self) -> int:
        return 0

    @property
    def num_training(self) -> int:
        """Flights of one epoch."""
        total = len(flights.load())
        return total - max(1, round(self.held_out_share * total))

    def num_steps(self, batch_size: int) -> int:
        return self.epochs * full_batches(self.num_training, batch_size)

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Examples]:
        check_batches(batch_size, start)
        steps = full_batches(self.num_training, batch_size)
        return self._batches(batch_size, *divmod(start, steps), steps)

    def held_out(self, batch_size: int) -> Iterator[Examples]:
        check_batches(batch_size)
        last = _at(np.arange(self.num_training, len(flights.load())))
        return (padded(examples, batch_size) for examples in rebatched([last], batch_size))

    def _batches(
        self, batch_size: int, first_epoch: int, first_step: int, steps: int
    ) -> Iterator[Examples]:
        for epoch in range(first_epoch, self.epochs):
            order = self._order(epoch)
            for step in range(first_step, steps):
                yield _at(order[step * batch_size : (step + 1) * batch_size])
            first_step = 0

    def _order(self, epoch: int) -> np.ndarray:
        if self.order == "time":
            return np.arange(self.num_training)
        return np.random.default_rng((self.seed, epoch)).permutation(self.num_training)


def _at(positions: np.ndarray) -> Examples:
    return unmasked(_ids()[positions], None, flights.load().labels[positions])


@lru_cache(maxsize=1)
def _ids() -> np.ndarray:
    """[flights, fields] int32."""
    ids = flights.load().ids
    return np.stack([ids[name] for name in flights.FEATURES], axis=1)
