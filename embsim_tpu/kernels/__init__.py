"""Which code does the arithmetic of a table's steps, chosen in one place: docs/hardware.md."""

from jax.experimental.pallas import tpu as pltpu

from embsim.errors import BackendError
from embsim.optimizers import Optimizer

from ..ops import Ops
from .base import Formula, Kernels
from .launch import Launch
from .tensorcore import TensorCore
from .xla import Xla

__all__ = ["NAMES", "Formula", "Kernels", "choose"]

NAMES = ("auto", "xla", "pallas", "pallas-exact", "sparsecore")

# By device_kind: the widths for which "pallas" has fewer bundles than XLA, in a lookup and in an
# update, by `python -m embsim_tpu.aot report`, which counts 32, 128 and 256. Of narrow rows updates
# have as many or more. On other kinds XLA takes gathers to SparseCores, of which nothing can be
# counted, or shares them between two TensorCores.
FEWER_BUNDLES = {
    "TPU v4": range(65, 2**20),
    "TPU v5 lite": range(65, 2**20),
    "TPU v6 lite": range(65, 2**20),
}

# Kinds on which `make tpu-check` has passed. "auto" takes no kernel that has never run.
RAN: frozenset[str] = frozenset()


def choose(
    name: str,
    platform: str,
    dim: int = 1,
    optimizer: Optimizer | None = None,
    kind: str = "",
    bfloat16: bool = False,
) -> Kernels:
    """The kernels of that name for a table on "cpu", "gpu" or "tpu", of that device_kind; held as
    bfloat16, if so.

    Raises:
      ValueError: another name; kernels that the platform does not have.
      BackendError: an optimizer that the kernels cannot compute; bfloat16 that they do not hold.
    """
    if name not in NAMES:
        raise ValueError(f"kernels is {name!r}; it must be one of {NAMES}")
    if name == "auto":
        fewer = not bfloat16 and dim in FEWER_BUNDLES.get(kind, ())
        name = "pallas" if kind in RAN and fewer else "xla"
    if name == "xla":
        return Xla(Ops(exact=platform == "cpu"), bfloat16)
    if platform == "gpu":
        raise ValueError(
            f"kernels is {name!r}, which are a TPU's; on GPU it must be 'auto' or 'xla'"
        )
    on_cpu = platform == "cpu"
    if name == "sparsecore":
        if bfloat16:
            raise BackendError(
                "kernels is 'sparsecore', which hold no bfloat16 tables: SparseCores copy words of "
                "32 bits; use 'auto', 'xla', 'pallas' or 'pallas-exact'"
            )
        from .sparsecore_table import SparseCore  # JAX has moved what it needs, and may again

        return SparseCore.of(dim, optimizer, interpret=pltpu.InterpretParams() if on_cpu else None)
    launch = Launch(interpret=True, unroll=2) if on_cpu else Launch()
    exact = name == "pallas-exact"
    return TensorCore.of(dim, optimizer, exact=exact, launch=launch, bfloat16=bfloat16)
