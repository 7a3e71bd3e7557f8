"""Programs on an engine whose outputs come late: loops that are filled, run and emptied."""

from collections import deque
from collections.abc import Sequence
from typing import Any

from .difference import Difference
from .program import Apply, Batch, Dequeue, Drain, Enqueue, Gradients, Program


def run_shifted(pair: Any, program: Program) -> None:
    """The training steps of `program` on a Lockstep whose outputs come `output_shift` dequeues
    late.

    The n-th Apply is for the n-th batch. A loop ends at each Drain, or, where drains are offered at
    the end alone, once; all other calls are left out.
    """
    loop: list[tuple[Batch, Gradients]] = []
    batches: deque[Batch] = deque()
    anywhere = pair.capabilities.drain_points == "any"
    for number, call in [*program.single_calls, (len(program.calls), None)]:
        if isinstance(call, Enqueue) and call.training:
            batches.append(call.batch)
        elif isinstance(call, Apply) and batches:
            loop.append((batches.popleft(), call.gradients))
        elif call is None or (isinstance(call, Drain) and anywhere):
            pair.at = number
            _one_loop(pair, loop)
            loop = []
            pair.make(Drain())
            pair.compare_state("Drain")


def _one_loop(pair: Any, loop: Sequence[tuple[Batch, Gradients]]) -> None:
    shift = pair.capabilities.output_shift
    for number in range(len(loop) + shift if loop else 0):
        if number < len(loop):
            pair.make(Enqueue(loop[number][0]))
        if number < shift:
            early = pair.engine.dequeue()
            if early is not None:
                raise Difference(
                    f"dequeue {number} of a loop returned {early!r}; it must be None, because "
                    f"output_shift is {shift}"
                )
            continue
        pair.make(Dequeue())
        pair.make(Apply(loop[number - shift][1]))
        if pair.watch and pair.may_look:
            pair.compare_state("Apply")
