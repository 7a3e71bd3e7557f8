"""Training by a schedule: the overlap compiled into one straight-line program per kind of tick.

The lookup of step k + 1 stands in one program with the dense step k and with an update, and depends
on neither, so that XLA may run them at once. Which lookups may, and what they read, is the law of
embsim.schedule; no number depends on it.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import jax
import numpy as np

from embsim.config import integer
from embsim.schedule import Schedule, checked

from ._prefetch import prefetched
from ._processes import Turn
from ._programs import DenseStep, programs
from ._ticks import Place, Tick, after, dense_ticks, lookup_ticks, step_ticks
from .embedding import Embedding
from .state import State
from .train_state import Example, Pending, Planned, TrainState, adopted


class Pipeline:
    """A run, step by step.

    Args:
      embedding: tables, features, mesh.
      dense_step: (carry, activations, inputs) -> (carry, gradients, metrics), pure: activations and
        gradients (d loss / d activations, or None for zeros) in the structure of feature_config.
      state: where the run begins. It is taken over, the carry too: every step donates its arrays,
        so that they cannot be used again, nor those of any earlier `Pipeline.state`.
      schedule: which version each lookup reads; sequential by default. A state that was left under
        another one goes on as after a drain.

    An error in `dense_step` while it is traced changes nothing; one that a device raises while it
    runs leaves no state to go on from: restore a checkpoint.

    Raises:
      TypeError: a state that is no TrainState.
      ValueError: one whose pending updates are not those between its version and its step, or
        whose next lookup has happened.
    """

    def __init__(
        self,
        embedding: Embedding,
        dense_step: DenseStep,
        state: TrainState,
        schedule: Schedule | None = None,
    ) -> None:
        self.embedding = embedding
        self.dense_step = dense_step
        self.schedule = checked(schedule)
        self.kinds: set[str] = set()  # of the ticks that ran
        self._programs = programs(embedding.functions, dense_step)
        self._looking = False
        self.restore(state)

    @property
    def state(self) -> TrainState:
        """The run as it is now; valid until the next step.

        Raises RuntimeError: inside as_if_drained(), whose tables are not those of the run.
        """
        self._not_looking("state")
        return self._state

    @property
    def carry(self) -> Any:
        """The dense step's, inside as_if_drained() too."""
        return self._state.carry

    def planned(self, example: Example | tuple[Any, ...], turn: Turn | None = None) -> Planned:
        """Check, plan and transfer a batch; for any thread.

        In a run of several processes: this process's samples, as for Embedding.plan.

        Raises:
          ValueError, TypeError: a batch that breaks a rule of docs/semantics.md section 2.
          CapacityError: a batch beyond the capacities.
          BackendError: in several processes, what has no class in embsim.errors, of another one.
        """
        with turn or self.embedding.processes.turn() as turn:
            features, inputs, weights = Example.of(example)
            plans, outputs = self.embedding.host_plans(features, weights)
            put = self.embedding.shards.put_own
            inputs = jax.tree.map(lambda leaf: put(np.array(leaf)), inputs)
            turn.same.append(f"inputs {jax.tree.map(self.embedding.shards.each, inputs)}")
            return Planned(plans, outputs, self.embedding.put_plan(plans, outputs, turn), inputs)

    def begin(self, planned: Planned) -> Any:
        """The lookup of the next training step. Returns its activations; for calls by hand, `step`
        does it otherwise."""
        place = self._place
        self._current = planned
        self._run(lookup_ticks(self.schedule, place), None)
        return self._activations

    def step(self, planned: Planned, following: Planned | None = None, inputs: Any = None) -> Any:
        """One training step, with the lookup of the following one where the law lets it not wait.

        Returns the metrics of the dense step. `inputs` replaces those of `planned`. Without
        `following` the state afterwards is whole and may be saved; no number depends on it.
        """
        place = self._place
        if place.looked_up and self._current is not planned:
            raise ValueError(
                f"step: the lookup of training step {place.step} was done for another batch; pass "
                "the one that was given to begin() or as following"
            )
        self._current = planned
        self._inputs = planned.inputs if inputs is None else inputs
        if place.looked_up:
            ticks = dense_ticks(self.schedule, place, following is not None)
        else:
            ticks = step_ticks(self.schedule, place, following is not None)
        return self._run(ticks, following)

    def drain(self) -> None:
        """Make every update visible to the lookups that follow: a pipeline bubble."""
        self._run([Tick(update=each.step) for each in self.state.pending], None)
        self._state = replace(self.state, start=self.state.step)
        self._current, self._activations = None, None

    def restore(self, state: TrainState) -> None:
        """Go on from `state`, which is taken over; a step that was looked up is forgotten."""
        self._not_looking("restore")
        self._state = adopted(state, self.schedule)
        self._current, self._inputs, self._activations = None, None, None

    @contextmanager
    def as_if_drained(self) -> Generator[State]:
        """Tables and slots with every submitted update in them, while the context is open; then
        the rows that pending updates touched are put back. Looking never changes training.

        Inside, nothing but `carry` and `planned` of this pipeline can be used; the tables are valid
        until the end of the context.
        """
        state, tables = self.state, self.state.tables
        saved: list[tuple[Pending, Any]] = []
        self._looking = True
        try:
            for each in state.pending:
                saved.append((each, self._programs.touched(tables, each.planned.plan)))
                tables = self._updated(tables, each)
            yield tables
        finally:
            for each, rows in reversed(saved):
                tables = self._programs.with_touched(tables, each.planned.plan, rows)
            self._state, self._looking = replace(state, tables=tables), False

    def _not_looking(self, what: str) -> None:
        if self._looking:
            raise RuntimeError(
                f"Pipeline.{what}: as_if_drained() is open: the tables have updates in them that "
                "the run must not see yet; do it before or after; Pipeline.carry is there inside"
            )

    @property
    def _place(self) -> Place:
        state = self.state
        return Place(state.step, state.version, state.start, self._activations is not None)

    def _run(self, ticks: list[Tick], following: Planned | None) -> Any:
        metrics = None
        for tick in ticks:
            self.kinds.add(tick.kind)
            if tick.dense is None and tick.lookup is None:
                due = self.state.pending[0]
                tables = self._updated(self.state.tables, due)
                self._state = replace(self.state, tables=tables, pending=self.state.pending[1:])
            else:
                metrics = self._run_one(tick, following)
            self._moved(tick)
        return metrics

    def _run_one(self, tick: Tick, following: Planned | None) -> Any:
        state, current = self.state, self._current
        assert current is not None
        looked_up = following if tick.lookup != state.step else current
        pending = state.pending
        if tick.dense is not None:
            rates = self.embedding.coefficients(tick.dense)
            pending = (*pending, Pending(tick.dense, current, None, rates))
        due = pending[0] if tick.update is not None else None
        tables, carry, found, gradients, metrics = self._programs.tick(
            state.tables,
            state.carry,
            self._activations,
            None if tick.dense is None else self._inputs,
            looked_up.plan if looked_up is not None and tick.lookup is not None else None,
            None if due is None else (due.planned.plan, due.gradients, due.coefficients),
            dense=tick.dense is not None,
            own=due is not None and due.step == tick.dense,
        )
        if tick.dense is not None:
            pending = (*pending[:-1], replace(pending[-1], gradients=gradients))
            self._current, self._activations = None, None
        if tick.lookup is not None and tick.lookup != tick.dense:
            self._current, self._activations = looked_up, found
        pending = pending[1:] if due is not None else pending
        self._state = replace(state, tables=tables, carry=carry, pending=pending)
        return metrics

    def _moved(self, tick: Tick) -> None:
        place = after(self._place, [tick])
        self._state = replace(self.state, step=place.step, version=place.version)

    def _updated(self, tables: State, due: Pending) -> State:
        what = (due.planned.plan, due.gradients, due.coefficients)
        return self._programs.tick(tables, None, None, None, None, what, dense=False, own=False)[0]


def train(
    embedding: Embedding,
    dense_step: DenseStep,
    data: Iterable[Example | tuple[Any, ...]],
    state: TrainState,
    *,
    schedule: Schedule | None = None,
    steps: int | None = None,
    prefetch: int = 2,
    pause_every: int | None = None,
    on_step: Callable[[int, Any], None] | None = None,
    on_pause: Callable[[Pipeline], None] | None = None,
    drain: bool = True,
) -> TrainState:
    """Train on `data`, one item a step, and return the state after the last.

    Args:
      embedding, dense_step, state, schedule: as for `Pipeline`.
      data: Examples, or tuples of them, from training step state.step on. Of several processes each
        gives its own samples, as for `Embedding.plan`, and as many batches.
      steps: training steps at which to stop, counted from the beginning of the run, not from
        `state`; None is the end of the data.
      prefetch: batches that a thread checks, plans and transfers ahead; 0: no thread.
      pause_every: at every so many steps the next lookup waits, which changes no number, and
        on_pause(pipeline) is called: pipeline.state may be saved, and as_if_drained() looked at.
        It is called after the last step, too, before the drain.
      on_step: is given the step and the dense step's metrics, device arrays: to look at them
        waits for the device.
      drain: apply what is pending at the end. False: leave it pending, to go on later as if never
        stopped.

    Raises:
      what `data`, planning or `dense_step` raise, where the step would have been; the thread is
        stopped. `state` was taken over: keep what on_pause gives to go on from, in a checkpoint.
      ValueError: steps < 0, pause_every < 1 or prefetch < 0.
    """
    for name, value, least in (
        ("steps", steps, 0),
        ("pause_every", pause_every, 1),
        ("prefetch", prefetch, 0),
    ):
        if value is not None or name == "prefetch":
            integer(f"train: {name}", value, minimum=least)
    pipeline = Pipeline(embedding, dense_step, state, schedule)
    left = None if steps is None else max(0, steps - state.step)
    processes = embedding.processes.branch()
    planned = processes.together(islice(data, left), pipeline.planned)
    with closing(prefetched(planned, lambda each: each, prefetch)) as batches, processes:
        current = next(batches, None)
        while current is not None:
            following = next(batches, None)
            number = pipeline.state.step
            ends = following is None
            pauses = ends or (pause_every is not None and (number + 1) % pause_every == 0)
            metrics = pipeline.step(current, None if pauses else following)
            if on_step is not None:
                on_step(number, metrics)
            if pauses and on_pause is not None:
                on_pause(pipeline)
            current = following
    if drain:
        pipeline.drain()
    return pipeline.state
