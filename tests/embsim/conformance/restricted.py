"""Right engines that do less than embsim, and raise where the kit asks for more."""

from dataclasses import replace

from embsim import sequential, tpu_embedding_pipelined
from embsim.conformance import Capabilities, EmbsimEngine
from embsim.conformance.adapter import asked_for

ONLY_SGD = (
    "Adagrad", "RowwiseAdagrad", "AdagradMomentum", "Adam", "FTRL", "a user's optimizer", "power",
    "quantization_config", "clipvalue", "clip_weight", "weight_decay_factor",
    "use_gradient_accumulation=False", "lazy_adam=False", "combiner='mean'", "combiner='sqrtn'",
    "weights", "max_sequence_length", "shared tables", "several tables",
    "a learning-rate callable", "gradients of None", "inference", "checkpoints",
)  # fmt: skip


class AskedForMore(Exception):  # noqa: N818
    """The kit made a call that the engine does not declare."""


class Restricted(EmbsimEngine):
    """embsim's engine, held to its own capabilities."""

    def __init__(self, setup):
        can = self.capabilities
        self.drained, self.ended = True, False
        self.require(not asked_for(setup) & set(can.refuses), "a refused configuration")
        schedules = can.schedules or (setup.schedule,)
        self.require(setup.schedule in schedules, f"{setup.schedule}")
        self.require(setup.replicas in can.replicas, f"{setup.replicas} replicas")
        super().__init__(setup)

    def require(self, holds, what):
        if not holds:
            raise AskedForMore(what)

    @property
    def engine(self):
        return self.embedding._engine

    def legally(self, call, *arguments):
        self.require(not self.ended, "a call after the only drain")
        try:
            return call(*arguments)
        except RuntimeError as error:
            self.require(self.capabilities.errors, f"{call.__name__}, which raises: {error}")
            raise

    def enqueue(self, batch, training=True):
        can, queued = self.capabilities, len(self.engine._queue.queued)
        limit = max(can.ahead, self.setup.queue_capacity if can.errors else 0) + can.output_shift
        self.require(queued < limit or can.errors, f"{queued + 1} batches ahead")
        self.require(training or can.offers("inference"), "inference")
        self.require(training or can.looks or self.drained, "inference without a drain")
        weighted = any(isinstance(item, tuple) for bags in batch for bag in bags for item in bag)
        self.require(not weighted or can.offers("weights"), "weights")
        self.legally(super().enqueue, batch, training)

    def dequeue(self):
        waiting = len(self.engine._queue.waiting)
        limit = self.capabilities.in_flight + self.capabilities.output_shift
        training = [entry.training for entry in self.engine._queue.queued[:1]] == [True]
        self.require(not training or waiting < limit, f"{waiting + 1} steps in flight")
        return self.legally(super().dequeue)

    def apply_gradients(self, gradients):
        given = all(g is not None for g in gradients)
        self.require(given or self.capabilities.offers("gradients of None"), "gradients of None")
        self.legally(super().apply_gradients, gradients)
        self.drained = False

    def drain(self):
        self.legally(super().drain)
        self.ended, self.drained = self.capabilities.drain_points == "end", True

    def tables(self):
        self.require(self.capabilities.looks or self.drained, "tables without a drain")
        return super().tables()

    def slots(self):
        self.require(self.capabilities.looks or self.drained, "slots without a drain")
        return super().slots()

    def save(self):
        self.require(self.capabilities.offers("checkpoints"), "checkpoints")
        return self.legally(super().save)


class Late(Restricted):
    """Lookups are made at once, and handed out one dequeue later."""

    capabilities = Capabilities(
        bitwise=True,
        schedules=(tpu_embedding_pipelined(),),
        output_shift=1,
        looks=False,
        errors=False,
        in_flight=1,
        refuses={"inference": "it only trains", "checkpoints": "it has none"},
    )

    def __init__(self, setup):
        super().__init__(setup)
        self.held = None

    def dequeue(self):
        early, self.held = self.held, None
        if self.engine._queue.queued:
            self.held = super().dequeue()
        return early


class LateToTheEnd(Late):
    """As Late, and drained once."""

    capabilities = replace(Late.capabilities, drain_points="end")


class DrainedOnce(Restricted):
    """It may be looked at, and drained at the end."""

    capabilities = Capabilities(bitwise=True, drain_points="end", replicas=(1, 2, 4))


class OneByOne(Restricted):
    """Sequential, SGD alone, two replicas, nothing ahead, no looks and no errors."""

    capabilities = Capabilities(
        refuses=dict.fromkeys(ONLY_SGD, "not written yet"),
        schedules=(sequential(),),
        ahead=1,
        in_flight=1,
        looks=False,
        errors=False,
        replicas=(2,),
    )


class LooksAfterDrains(Restricted):
    """Any schedule; tables and inference after drains alone."""

    capabilities = Capabilities(looks=False, ahead=3, in_flight=2)


RESTRICTED = (Late, LateToTheEnd, DrainedOnce, OneByOne, LooksAfterDrains)
