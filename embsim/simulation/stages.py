"""How long each stage of a batch takes: a roofline with latencies.

    what the busiest chip moves or computes / (what the hardware can * a fraction) + latencies

What no one has published, those fractions above all, is named in Assumptions, can be given, and is
said with every result.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from .hardware import Pod
from .operations import Operations
from .pipelines import Pipeline
from .traffic import FLOAT, ID, Traffic
from .workload import Workload

FLOPS_PER_MAC = 6  # 2 forwards, 4 backwards


@dataclass(frozen=True)
class Assumptions:
    """What no one has published.

    Args:
      gather_efficiency: of a memory's bandwidth, where single rows are read and written.
      link_efficiency: of the links', in exchanges.
      flop_efficiency: of the peak, in the dense model.
      overhead: seconds that a dense step takes besides: launches, synchronization.
      imbalance: a factor on the busiest shard, besides what popularity makes.
      host_seconds_per_id: of one core, to sort ids and to find the distinct ones.
      host_cores: that prepare input for one chip.
      pulled, pushed: of a step's distinct rows, what a cache with clocks fetches and sends.
    """

    gather_efficiency: float = 0.6
    link_efficiency: float = 0.8
    flop_efficiency: float = 0.37
    overhead: float = 1e-3
    imbalance: float = 1.0
    host_seconds_per_id: float = 1e-8
    host_cores: float = 16.0
    pulled: float = 0.2
    pushed: float = 0.2

    def __post_init__(self) -> None:
        for each in fields(self):
            value, zero = getattr(self, each.name), each.name in ("overhead", "pulled", "pushed")
            if not (0 < value < np.inf or (value == 0 and zero)):
                least = ">= 0" if zero else "> 0"
                raise ValueError(
                    f"assumptions: {each.name} is {value!r}; it must be a number {least}"
                )

    def text(self) -> list[str]:
        """Each, as it is said with a result."""
        return [f"{each.name} {getattr(self, each.name):g} (assumed)" for each in fields(self)]


@dataclass(frozen=True)
class Jitter:
    """How times vary: each is multiplied by exp(sigma * normal), those of slow workers also by a
    factor.

    Args:
      sigma: >= 0.
      slow: factors by worker.
      seed: of the generator.
    """

    sigma: float = 0.0
    slow: Mapping[int, float] | None = None
    seed: int = 0

    def factors(self, operations: Operations) -> np.ndarray:
        """float64 [operations]."""
        draw = np.random.default_rng(self.seed)
        factors = np.exp(self.sigma * draw.standard_normal(len(operations)))
        for worker, factor in (self.slow or {}).items():
            factors[operations.worker == worker] *= factor
        return factors


def works(workload: Workload, traffic: Traffic, pod: Pod, assumed: Assumptions) -> dict[str, float]:
    """Seconds of each kind of work of one batch, whole, without overlap."""
    chip, busiest = pod.chip, traffic.imbalance * assumed.imbalance
    memory = chip.hbm_bandwidth * assumed.gather_efficiency
    sent, changed = traffic.exchanged_bytes * busiest, traffic.changed_bytes * busiest
    flops = FLOPS_PER_MAC * workload.macs * traffic.samples
    reduced = pod.all_reduce(workload.dense_weights * FLOAT, assumed.link_efficiency)
    compute = flops / (chip.peak_flops * assumed.flop_efficiency) + assumed.overhead
    sorted_ids = 0.0 if workload.pooled else traffic.ids  # every id is read, as it comes
    tables = sum(4.0 * t.rows * t.dim * t.tables for t in workload.tables)
    return {
        "host_prep": sorted_ids * assumed.host_seconds_per_id / assumed.host_cores,
        "h2d": traffic.input_bytes / chip.pcie_bandwidth,
        "id_a2a": pod.all_to_all(traffic.asked * ID * busiest, assumed.link_efficiency),
        "lookup": (traffic.read_bytes * busiest + traffic.activation_bytes) / memory,
        "emb_a2a": pod.all_to_all(sent, assumed.link_efficiency),
        "dense": compute + reduced,
        "grad_a2a": pod.all_to_all(sent, assumed.link_efficiency),
        "update": (sent + 2 * changed) / memory,
        "all_reduce": reduced,
        "pull": traffic.asked_bytes / chip.network_bandwidth,
        "push": traffic.asked_bytes / chip.network_bandwidth,
        "fetch": traffic.changed_bytes / chip.pcie_bandwidth,
        "evict": traffic.changed_bytes / chip.pcie_bandwidth,
        "sync": 2 * tables / chip.network_bandwidth,
        "snapshot": tables / pod.chips / chip.network_bandwidth,
        "clock": 0.0,
    }


def shares(pipeline: Pipeline, traffic: Traffic, assumed: Assumptions) -> dict[str, float]:
    """Parts of a work, by the names that stages have for them.

    Raises:
      ValueError: conflicts with as many steps as the schedule needs have not been counted.
    """
    needed = any(stage.share == "conflict" for stage in pipeline.operations(1).stages)
    if needed and pipeline.depth not in traffic.conflict:
        raise ValueError(
            f"{pipeline.name}: the traffic has conflicts of the depths {tuple(traffic.conflict)}, "
            f"not of {pipeline.depth}; give it as one of `depths`"
        )
    conflict = traffic.conflict.get(pipeline.depth, 0.0)
    return {
        "": 1.0,
        "conflict": conflict,
        "quiet": 1 - conflict,
        "missed": traffic.cold,
        "pulled": assumed.pulled,
        "pushed": assumed.pushed,
    }


def seconds(
    operations: Operations,
    works: Mapping[str, float],
    shares: Mapping[str, float],
    jitter: Jitter | None = None,
) -> np.ndarray:
    """float64 [operations]."""
    each = [works[stage.work] * shares[stage.share] for stage in operations.stages]
    found = np.array(each)[operations.stage]
    return found if jitter is None else found * jitter.factors(operations)
