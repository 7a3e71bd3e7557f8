"""Faults of precision: too little, and in one place too much."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ...backend import Parity
from ...optimizers import RowwiseAdagrad
from ...plan import LookupPlan
from ...reference import ReferenceBackend
from ...state import State
from ..embsim_engine import EmbsimEngine
from ._changed import OtherRule
from ._machines import Flushed, Flushing
from .mutant import mutant

Plans = Mapping[str, LookupPlan]
Arrays = Mapping[str, np.ndarray]
Numbers = Mapping[str, Mapping[str, np.float32]]


@mutant(
    killed_by="check_sgd_stays_within_computed_bounds",
    origin="half the memory: tables are often kept in bfloat16",
)
class WeightsAreBfloat16(EmbsimEngine):
    """Weights have the upper 16 bits of a float32."""

    def tables(self) -> Mapping[str, Any]:
        halves = np.uint32(0xFFFF0000)
        return {
            name: (np.asarray(array).view(np.uint32) & halves).view(np.float32)
            for name, array in super().tables().items()
        }


class _Estimates:
    """`ops`, of which `names` are wrong by a factor."""

    def __init__(self, ops: Any, names: tuple[str, ...], off: Any) -> None:
        self._ops, self._names, self._off = ops, names, off

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._ops, name)
        return (lambda *xs: operation(*xs) * self._off) if name in self._names else operation  # type: ignore[reportUnknownLambdaType]


@mutant(
    killed_by="check_adagrad_stays_within_computed_bounds",
    origin="hardware's reciprocal square root has about 12 bits, until a Newton step is added",
)
class RootsAreEstimates(OtherRule, off=1 + 2.0**-13):
    """Square roots are right to 13 bits."""

    def formula(self, optimizer: Any, ops: Any, w: Any, g: Any, slots: Any, c: Any) -> Any:
        return optimizer.rule(_Estimates(ops, ("sqrt",), c.off))(w, g, slots, c)


@mutant(
    killed_by="check_a_user_s_rule_stays_within_computed_bounds",
    origin="compilers make exp2(y * log2(x)) of a power, each of them in float32",
)
class PowersAreEstimates(OtherRule, off=1 + 2.0**-18):
    """Powers are right to 18 bits."""

    def formula(self, optimizer: Any, ops: Any, w: Any, g: Any, slots: Any, c: Any) -> Any:
        return optimizer.rule(_Estimates(ops, ("power",), c.off))(w, g, slots, c)


@mutant(
    killed_by="check_contributions_are_added_in_the_written_order",
    origin="an accumulator that is wider than float32 rounds once, where the law rounds each sum",
)
class SumsAreTakenInFloat64(ReferenceBackend):
    """Row gradients are summed in float64."""

    def update(self, state: State, plan: Plans, gradients: Arrays, coefficients: Numbers) -> State:
        plans: dict[str, LookupPlan] = {}
        summed: dict[str, np.ndarray] = {}
        for name, each in plan.items():
            rows, place = np.unique(each.row, return_inverse=True)
            wide = np.zeros((len(rows), gradients[name].shape[1]))
            np.add.at(wide, place, each.gain[:, None] * gradients[name][each.sample])
            splits, ones = np.arange(len(rows) + 1), np.ones(len(rows), np.float32)
            plans[name] = LookupPlan(each.table, each.num_rows, splits, rows, ones)
            summed[name] = wide.astype(np.float32)
        return super().update(state, plans, summed, coefficients)


@mutant(
    killed_by="check_adagrad_momentum_stays_within_computed_bounds",
    origin="Reason to expect it: 'too small to matter' is a threshold in the code, not 2^-126.",
)
class MoreThanSubnormalsIsZero(Flushing):
    """Numbers below 2^-96 are zero, and its parity allows only subnormal ones to be."""

    class _Array(Flushed):
        below: ClassVar[float] = 2.0**-96

    array: ClassVar[type[Flushed]] = _Array
    parity: ClassVar[Parity] = Parity(bitwise=True, subnormals=False)


@mutant(
    killed_by="check_put_state_and_get_state_keep_every_number",
    origin="Reason to expect it: a copy that goes through arithmetic, by a device without them.",
)
class SubnormalsAreNotStored(Flushing):
    """Subnormal numbers that are put come back as zero; its parity speaks of operations."""

    parity: ClassVar[Parity] = Parity(bitwise=True, subnormals=False)

    def put_state(self, state: State) -> State:
        for array in state.weights.values():
            array[abs(array) < 2.0**-126] = 0
        return super().put_state(state)


@mutant(
    killed_by="check_rowwise_adagrad_stays_within_computed_bounds",
    origin="Reason to expect it: what need not be to the bit is not looked at closely.",
)
class BoundedRulesLoseBits(ReferenceBackend):
    """RowwiseAdagrad's gradients lose half of their bits; its parity promises bounds for it."""

    parity: ClassVar[Parity] = Parity(bitwise=True, bounded=("RowwiseAdagrad",))

    def update(self, state: State, plan: Plans, gradients: Arrays, coefficients: Numbers) -> State:
        given = dict(gradients)
        for name in plan:
            if isinstance(state.specs[name].optimizer, RowwiseAdagrad):
                upper = given[name].view(np.uint32) & np.uint32(0xFFFFF000)
                given[name] = upper.view(np.float32)
        return super().update(state, plan, given, coefficients)
