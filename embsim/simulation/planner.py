"""What TorchRec's planner would say of a workload's tables, for comparison.

Its estimate ranks plans of placement. It has no latencies, counts every id (no distinct rows), and
knows neither overlap, nor imbalance, nor the dense model; its bandwidths are constants, whatever
the chip. Constants and formulas: torchrec/distributed/planner, constants.py and shard_estimators.py
(published).
"""

from dataclasses import dataclass

from ..config import integer
from .workload import Table, Workload

HBM = 897e9  # bytes a second
INSIDE, ACROSS = 600e9, 12.5e9  # of links in a node and between nodes
BACKWARD = 2.0  # times the forward pass
INPUT, NUMBER = 8, 4  # bytes of an id, and of a weight or activation


@dataclass(frozen=True)
class Estimate:
    """Seconds of one step on one chip of several that have equal shares of all tables.

    Args:
      forward, backward: reading ids and rows and writing activations, over the memory's bandwidth.
      exchange: of activations, and of as many gradients.
    """

    forward: float
    backward: float
    exchange: float

    @property
    def seconds(self) -> float:
        """Of the step: one after the other."""
        return self.forward + self.backward + self.exchange


def estimate(workload: Workload, chips: int = 1, node: int = 8) -> Estimate:
    """As the planner has it, of whole tables in a device's memory, evenly placed.

    Args:
      node: chips that links join; more than these exchange over the network.
    """
    integer("planner: chips", chips, minimum=1)
    forward = sum(_forward(table, workload.samples) for table in workload.tables) / chips
    activations = workload.samples * workload.activations * NUMBER / chips
    exchange = 2 * activations / (INSIDE if chips <= node else ACROSS) if chips > 1 else 0.0
    return Estimate(forward, BACKWARD * forward, exchange)


def _forward(table: Table, samples: int) -> float:
    bag = table.ids * (INPUT + table.dim * NUMBER) + table.dim * NUMBER
    return table.tables * samples * bag * _penalty(table.dim) / HBM


def _penalty(dim: int) -> float:
    """Of rows that fill no whole block."""
    return 1.0 if dim >= 128 else 1.15 if dim >= 64 else 1.75
