"""Backends and engines that do unusual things and change nothing: they must pass every check."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from ...backend import Parity
from ...errors import BackendError
from ...optimizers import SGD, accumulates_gradients
from ...plan import LookupPlan
from ...reference import ReferenceBackend
from ...schedule import tpu_embedding_pipelined
from ...state import Rows, State
from ..adapter import OPTIMIZERS, REFUSABLE, Capabilities, asked_for
from ..embsim_engine import EmbsimEngine
from ..program import Batch, Setup
from ._machines import Flushed, Flushing, RowByRow, SumsSquaresBackwards

Arrays = dict[str, np.ndarray]


class CopiesEverything(ReferenceBackend):
    """Takes and gives copies, and destroys every state that is no longer in use."""

    def put_state(self, state: State) -> State:
        return self._taken(super().put_state(state))

    def get_state(self, state: State) -> State:
        return state.copied()

    def read_rows(self, state: State, table: str, rows: np.ndarray) -> Rows:
        return super().read_rows(state, table, rows.copy())

    def put_plan(self, plans: Mapping[str, LookupPlan]) -> dict[str, LookupPlan]:
        return {
            name: replace(p, splits=p.splits.copy(), row=p.row.copy(), gain=p.gain.copy())
            for name, p in plans.items()
        }

    def lookup(self, state: State, plan: Mapping[str, LookupPlan]) -> Arrays:
        return {name: each.copy() for name, each in super().lookup(state, plan).items()}

    def update(
        self,
        state: State,
        plan: Mapping[str, LookupPlan],
        gradients: Mapping[str, np.ndarray],
        coefficients: Mapping[str, Mapping[str, np.float32]],
    ) -> State:
        own = {name: np.array(g) for name, g in gradients.items()}
        return self._taken(super().update(state, plan, own, dict(coefficients)))

    def _taken(self, state: State) -> State:
        weights = {name: np.array(array) for name, array in state.weights.items()}
        slots = {
            name: {slot: np.array(array) for slot, array in each.items()}
            for name, each in state.slots.items()
        }
        for array in _arrays(state):
            if array.flags.writeable:
                array.fill(np.nan)
        return replace(state, weights=weights, slots=slots)


class SplitsLookups(ReferenceBackend):
    """Looks up the first half of the samples and the second half on their own."""

    def lookup(self, state: State, plan: Mapping[str, LookupPlan]) -> Arrays:
        halves = [
            super(SplitsLookups, self).lookup(
                state, {name: _half(each, second) for name, each in plan.items()}
            )
            for second in (False, True)
        ]
        return {name: np.concatenate([half[name] for half in halves]) for name in plan}


class SumsBackwards(ReferenceBackend):
    """Sums bags and row gradients from the last to the first: right, and not to the bit."""

    parity: ClassVar[Parity] = Parity(
        refuses={"use_gradient_accumulation=False": "contributions come in the other order"}
    )

    def put_state(self, state: State) -> State:
        for spec in state.specs.values():
            if spec.optimizer is not None and not accumulates_gradients(spec.optimizer):
                raise BackendError(f"table {spec.name!r}: contributions come in the other order")
        return super().put_state(state)

    def lookup(self, state: State, plan: Mapping[str, LookupPlan]) -> Arrays:
        found = super().lookup(state, {name: _backwards(each) for name, each in plan.items()})
        return {name: np.ascontiguousarray(each[::-1]) for name, each in found.items()}

    def update(
        self,
        state: State,
        plan: Mapping[str, LookupPlan],
        gradients: Mapping[str, np.ndarray],
        coefficients: Mapping[str, Mapping[str, np.float32]],
    ) -> State:
        turned = {name: np.ascontiguousarray(g[::-1]) for name, g in gradients.items()}
        plans = {name: _backwards(each) for name, each in plan.items()}
        return super().update(state, plans, turned, coefficients)


class NotPromised(Exception):  # noqa: N818 (what it is, not what went wrong)
    """A call or a setup that the engine's capabilities do not offer: the fault is the kit's."""


class PromisesLittle(EmbsimEngine):
    """Takes one batch at a time, shows nothing before its only drain, and refuses nearly all."""

    capabilities = Capabilities(
        refuses=dict.fromkeys(REFUSABLE, "to see that it is not asked for"),
        schedules=(tpu_embedding_pipelined(),),
        ahead=1,
        in_flight=1,
        drain_points="end",
        looks=False,
        errors=False,
    )

    def __init__(self, setup: Setup) -> None:
        asked = asked_for(setup) & set(self.capabilities.refuses)
        _promised(not asked, f"a setup with {sorted(asked)}")
        _promised(setup.schedule in (self.capabilities.schedules or ()), str(setup.schedule))
        _promised(setup.replicas in self.capabilities.replicas, f"{setup.replicas} replicas")
        super().__init__(setup)
        self.enqueued = self.waiting = self.drains = 0
        self.shown = True  # no step was begun since the beginning or the drain

    def enqueue(self, batch: Batch, training: bool = True) -> None:
        _promised(not self.enqueued and not self.drains, "a batch ahead, or after the drain")
        _promised(training, "inference")
        weights = any(isinstance(item, tuple) for bags in batch for bag in bags for item in bag)
        _promised(not weights, "weights")
        super().enqueue(batch, training)
        self.enqueued, self.shown = 1, False

    def dequeue(self) -> Sequence[Any] | None:
        _promised(self.enqueued == 1 and not self.waiting, "a dequeue")
        self.enqueued, self.waiting = 0, 1
        return super().dequeue()

    def apply_gradients(self, gradients: Sequence[Any]) -> None:
        _promised(self.waiting == 1, "apply_gradients")
        _promised(all(g is not None for g in gradients), "gradients of None")
        super().apply_gradients(gradients)
        self.waiting = 0

    def drain(self) -> None:
        _promised(not self.enqueued and not self.waiting and not self.drains, "a drain")
        super().drain()
        self.drains, self.shown = 1, True

    def tables(self) -> Mapping[str, Any]:
        _promised(self.shown, "tables before the drain")
        return super().tables()

    def slots(self) -> Mapping[str, Mapping[str, Any]]:
        _promised(self.shown, "slots before the drain")
        return super().slots()

    def save(self) -> Any:
        raise NotPromised("save")

    def restore(self, saved: Any) -> None:
        raise NotPromised("restore")


class GivesOutputsLate(EmbsimEngine):
    """The first dequeue after a drain gives None, each other the activations of the batch before.

    As a pipeline does that is filled by its first steps.
    """

    capabilities = Capabilities(bitwise=True, output_shift=1, refuses={"inference": "no shift"})

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.filled = False

    def dequeue(self) -> Sequence[Any] | None:
        if not self.filled:
            self.filled = True
            return None
        return super().dequeue()

    def drain(self) -> None:
        self.filled = False
        super().drain()


class FlushesSubnormals(Flushing):
    """Takes subnormal numbers for zero in every operation, and says so."""

    parity: ClassVar[Parity] = Parity(bitwise=True, subnormals=False)


class FlushesProducts(FlushesSubnormals):
    """Takes them for zero in products alone."""

    class _Array(Flushed):
        kept: ClassVar[tuple[str, ...]] = ("add", "subtract", "divide", "sqrt")

    array: ClassVar[type[Flushed]] = _Array


class BoundsAllRules(RowByRow):
    """All rules but SGD's are computed in float64, and it says so."""

    parity: ClassVar[Parity] = Parity(
        bitwise=True, bounded=(*OPTIMIZERS[1:], "a user's optimizer", "power")
    )

    def of_rule(self, optimizer: Any, array: np.ndarray) -> np.ndarray:
        return array if isinstance(optimizer, SGD) else array.astype(np.float64)


class BoundsRowwiseAdagrad(SumsSquaresBackwards):
    """Adds RowwiseAdagrad's squares backwards, and says so."""

    parity: ClassVar[Parity] = Parity(bitwise=True, bounded=("RowwiseAdagrad",))


CONTROLS: tuple[Any, ...] = (
    CopiesEverything(),
    SplitsLookups(),
    SumsBackwards(),
    FlushesSubnormals(),
    FlushesProducts(),
    BoundsRowwiseAdagrad(),
    BoundsAllRules(),
    PromisesLittle,
    GivesOutputsLate,
)


def _promised(promised: bool, what: str) -> None:
    if not promised:
        raise NotPromised(what)


def _arrays(state: State) -> Iterator[np.ndarray]:
    yield from state.weights.values()
    for each in state.slots.values():
        yield from each.values()


def _half(plan: LookupPlan, second: bool) -> LookupPlan:
    middle = plan.samples // 2
    samples = slice(middle, None) if second else slice(0, middle + 1)
    splits = plan.splits[samples]
    ids = slice(int(splits[0]), int(splits[-1]))
    return replace(plan, splits=splits - splits[0], row=plan.row[ids], gain=plan.gain[ids])


def _backwards(plan: LookupPlan) -> LookupPlan:
    """The last sample first, each from its last id to its first."""
    splits, row, gain = len(plan.row) - plan.splits[::-1], plan.row[::-1], plan.gain[::-1]
    return replace(plan, splits=splits, row=row.copy(), gain=gain.copy())
