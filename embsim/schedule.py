"""Staleness: which version of the tables each lookup reads. The only place that knows.

A version is a number of applied updates. Training steps are numbered 0, 1, 2, ... in dequeue order
and step t makes version t + 1. `start` is the number of steps that had been dequeued at the last
drain.

    r(t) = t                                        for t < warmup_steps, afterwards
    r(t) = max(start, warmup_steps - 1, (t // drain_every) * drain_every, t - staleness)

    >>> [tpu_embedding_pipelined().version_read(t) for t in range(5)]
    [0, 0, 1, 2, 3]
    >>> [sparsecore_loop(2).version_read(t) for t in range(5)]
    [0, 0, 2, 2, 4]
"""

from collections.abc import Iterator
from dataclasses import dataclass

from .config import integer
from .errors import DeadlockError


@dataclass(frozen=True)
class Schedule:
    """How old the tables are that a lookup reads, as data.

    Args:
      staleness: s >= 0, updates that a lookup may miss; exact, not a bound.
      drain_every: D >= 1, steps in a compiled loop at whose end everything is applied; None: one
        endless loop. Loops begin at absolute multiples of D.
      warmup_steps: M >= 0, steps that are run at staleness 0 first.

    Raises:
      ValueError: any of them out of range.
    """

    staleness: int = 0
    drain_every: int | None = None
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        for name, minimum in (("staleness", 0), ("warmup_steps", 0), ("drain_every", 1)):
            value = getattr(self, name)
            if value is not None or name != "drain_every":
                number = integer(f"Schedule: {name}", value, minimum=minimum)
                object.__setattr__(self, name, number)

    def version_read(self, step: int, start: int = 0) -> int:
        """r(step): the number of updates that the lookup of training step `step` sees.

        Never decreases.
        """
        if step < self.warmup_steps:
            return step
        loop = 0 if self.drain_every is None else step // self.drain_every * self.drain_every
        return max(start, self.warmup_steps - 1, loop, step - self.staleness)

    def events(self, steps: int) -> Iterator[tuple[str, int]]:
        """The order of a run of `steps` steps: ("lookup", t) and ("update", t), each as late as the
        law allows.

        >>> [f"{name[0]}{step}" for name, step in tpu_embedding_pipelined().events(3)]
        ['l0', 'l1', 'u0', 'l2', 'u1', 'u2']
        """
        applied = 0
        for step in range(steps):
            while applied < self.version_read(step):
                yield "update", applied
                applied += 1
            yield "lookup", step
        for step in range(applied, steps):
            yield "update", step


def sequential() -> Schedule:
    """Every lookup sees every earlier update: pipeline_execution_with_tensor_core=False."""
    return Schedule()


def tpu_embedding_pipelined() -> Schedule:
    """Lookups one step old: pipeline_execution_with_tensor_core=True.

    Steps 0 and 1 both read the initial tables.
    """
    return Schedule(staleness=1)


def sparsecore_loop(n: int) -> Schedule:
    """One step old inside compiled loops of `n` steps, drained at each loop's end: TensorFlow's
    SparseCore path.
    """
    return Schedule(staleness=1, drain_every=n)


def semi_sync(start_batch: int) -> Schedule:
    """Synchronous for `start_batch` steps, then one step old: TorchRec's semi-sync pipeline."""
    return Schedule(staleness=1, warmup_steps=start_batch)


def stale(k: int) -> Schedule:
    """Lookups `k` steps old."""
    return Schedule(staleness=k)


def schedule_of(text: str) -> Schedule:
    """A schedule by its constructor's name, for command lines: "stale(2)", "sequential".

    Raises:
      ValueError: another name, or arguments that the constructor does not take.

    >>> schedule_of("sparsecore_loop(100)")
    Schedule(staleness=1, drain_every=100, warmup_steps=0)
    """
    made = (sequential, tpu_embedding_pipelined, sparsecore_loop, semi_sync, stale)
    constructors = {each.__name__: each for each in made}
    name, opened, inside = text.strip().partition("(")
    try:
        arguments = [int(number) for number in inside.removesuffix(")").split(",") if number]
        if name not in constructors or inside.endswith(")") != bool(opened):
            raise TypeError
        return constructors[name](*arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"schedule is {text!r}; it must be one of sequential, tpu_embedding_pipelined, "
            "sparsecore_loop(n), semi_sync(start_batch), stale(k), with whole numbers in range"
        ) from error


@dataclass(frozen=True)
class Progress:
    """Counts of training steps: dequeued >= submitted (gradients given); `start` as at the last
    drain.
    """

    dequeued: int = 0
    submitted: int = 0
    start: int = 0


def visible(schedule: Schedule, progress: Progress) -> int:
    """The number of submitted updates that every later lookup sees: these may be applied, no
    others.
    """
    return min(progress.submitted, schedule.version_read(progress.dequeued, progress.start))


def check_training_dequeue(schedule: Schedule, progress: Progress, queue: str) -> None:
    """Raises DeadlockError if the next training step would read an update whose gradients were
    never given.
    """
    step = progress.dequeued
    needed = schedule.version_read(step, progress.start)
    if needed > progress.submitted:
        raise DeadlockError(
            f"dequeue of training step {step}: it reads version {needed}, but gradients were "
            f"given for {progress.submitted} steps ({queue}); missing call: apply_gradients for "
            f"training step {progress.submitted}"
        )


def check_nothing_waits(call: str, progress: Progress, queue: str) -> None:
    """Raises DeadlockError if a dequeued training step still waits for its gradients."""
    if progress.dequeued > progress.submitted:
        raise DeadlockError(
            f"{call}: training step {progress.submitted} was dequeued and waits for gradients "
            f"({queue}); missing call: apply_gradients for training step {progress.submitted}, or "
            "abandon()"
        )


def check_gradients_expected(progress: Progress, queue: str) -> None:
    """Raises DeadlockError if no dequeued training step waits for gradients."""
    if progress.dequeued == progress.submitted:
        raise DeadlockError(
            f"apply_gradients: no dequeued training step waits for gradients ({queue}); missing "
            "call: dequeue of a batch that was enqueued with training=True"
        )


def checked(schedule: Schedule | None) -> Schedule:
    """The schedule itself; sequential() for None. Raises ValueError for anything else."""
    if schedule is None:
        return sequential()
    if not isinstance(schedule, Schedule):
        raise ValueError(
            f"schedule is {schedule!r}; it must be one of embsim.sequential(), "
            "tpu_embedding_pipelined(), sparsecore_loop(n), semi_sync(start_batch), stale(k), or a "
            "Schedule"
        )
    return schedule


def agreed(pipelined: bool, schedule: Schedule | None) -> Schedule | None:
    """The schedule that pipeline_execution_with_tensor_core and `schedule` name together."""
    if not isinstance(pipelined, bool):
        raise TypeError(
            f"pipeline_execution_with_tensor_core is {pipelined!r}; it must be True or False"
        )
    if not pipelined:
        return schedule
    if isinstance(schedule, Schedule) and schedule.staleness != 1:
        raise ValueError(
            "pipeline_execution_with_tensor_core=True reads tables one step old, but schedule is "
            f"{schedule}; leave one of them out"
        )
    return schedule or tpu_embedding_pipelined()
