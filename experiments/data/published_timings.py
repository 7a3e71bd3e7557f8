"""Published throughputs of DLRM and DLRM-DCNv2, each with its source."""

from dataclasses import dataclass, replace

from embsim.simulation.hardware import Pod, chip
from embsim.simulation.workload import Workload
from embsim.simulation.zoo import workload

# Peak flop/s of one chip, of the arithmetic that was used.
PEAKS = {
    ("a100", "amp"): (3.12e14, "NVIDIA A100 data sheet, FP16"),
    ("a100", "tf32"): (1.56e14, "NVIDIA A100 data sheet, TF32"),
    ("a100-40", "tf32"): (1.56e14, "NVIDIA A100 data sheet, TF32"),
    ("v100", "amp"): (1.25e14, "NVIDIA V100 data sheet, FP16"),
    ("v100", "fp32"): (1.57e13, "NVIDIA V100 data sheet, FP32"),
    ("h100", "amp"): (9.9e14, "NVIDIA H100 data sheet, FP16"),
}
EXAMPLES = "NVIDIA DeepLearningExamples, DLRM_and_DCNv2/doc/DLRM.md"
HUGECTR = "MLPerf Training, NVIDIA's logs of DLRM-DCNv2 by HugeCTR"
TORCHREC = "facebookresearch/dlrm, torchrec_dlrm/README.MD"


@dataclass(frozen=True)
class Published:
    """One measurement.

    Args:
      software: whose; each has an overhead of its own.
      model: of the zoo.
      chip, chips: what it ran on.
      arithmetic: "amp" (16 bits), "tf32" or "fp32".
      samples: of a global batch.
      throughput: samples a second.
      source: where it is published.
    """

    software: str
    model: str
    chip: str
    chips: int
    arithmetic: str
    samples: int
    throughput: float
    source: str

    @property
    def name(self) -> str:
        kind = f"{self.chips} x {self.chip} {self.arithmetic}"
        return f"{self.software}, {self.model} {self.samples:,}, {kind}"

    def pod(self) -> Pod:
        """Of that hardware, with the peak of that arithmetic."""
        peak, source = PEAKS[self.chip, self.arithmetic]
        return Pod(chip(self.chip).with_number("peak_flops", peak, "published", source), self.chips)

    def workload(self) -> Workload:
        """As the zoo has it, in such batches; bags travel summed, in the numbers of the dense
        model."""
        size = 2 if self.arithmetic == "amp" else 4
        made = workload(self.model)
        return replace(made, samples=self.samples, pooled=True, activation_size=size)


def _example(kind: str, chips: int, arithmetic: str, throughput: float) -> Published:
    return Published(
        *("examples", "dlrm_mlperf", kind, chips, arithmetic, 65_536, throughput, EXAMPLES)
    )


def _hugectr(chips: int, samples: int, throughput: float) -> Published:
    return Published("hugectr", "dcnv2", "h100", chips, "amp", samples, throughput, HUGECTR)


def _torchrec(model: str, samples: int, throughput: float) -> Published:
    return Published("torchrec", model, "a100-40", 8, "tf32", samples, throughput, TORCHREC)


# In the order in which they are published. The first is of one half, the second of the other, ...
POINTS = (
    _example("a100", 1, "amp", 4.55e6),
    _example("a100", 1, "tf32", 2.84e6),
    _example("a100", 8, "amp", 13.8e6),
    _example("a100", 8, "tf32", 10.9e6),
    _example("v100", 1, "amp", 2.23e6),
    _example("v100", 1, "fp32", 0.663e6),
    _example("v100", 8, "amp", 6.31e6),
    _example("v100", 8, "fp32", 3.13e6),
    _example("v100", 16, "amp", 10.5e6),
    _hugectr(8, 55_296, 15.25e6),
    _hugectr(64, 135_168, 56.3e6),
    _hugectr(128, 135_168, 69.8e6),
    _torchrec("dlrm_mlperf", 2048, 204_800),
    _torchrec("dlrm_mlperf", 16_384, 925_696),
    _torchrec("dcnv2", 16_384, 901_120),
    _torchrec("dcnv2", 131_072, 1_190_128),
)
