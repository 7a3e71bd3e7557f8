"""Schedules as operations with waits: what may overlap, and what a lookup is then to see.

The constructors of schedule.py are here under their own names, and those that need a clock. Each
gives a Pipeline; its operations for so many steps are data, to which timeline.py gives times.

A batch goes through these stages, on these resources:

    host_prep  h2d   id_a2a  lookup  emb_a2a  dense  grad_a2a  update
    host       pcie  link    sparse  link     dense  link      sparse

`sparse` is what reads and writes tables (SparseCores, a GPU's memory), `dense` what multiplies
matrices, `link` what connects chips. Ids may be exchanged as early as one likes, and what was read
may travel as late: staleness comes from the order of lookups and updates alone.

With several workers, each with its own clock, batch c * workers + w is step c of worker w.
"""

import ast

from .base import Pipeline, Rule
from .caches import offload, replica_sync, row_clocks, serving_snapshot
from .synchronous import (
    accumulate,
    lookahead,
    of_schedule,
    semi_sync,
    sequential,
    sparsecore_loop,
    stale,
    tpu_embedding_pipelined,
)
from .workers import bounded_async, full_async, hybrid

CONSTRUCTORS = (
    sequential,
    tpu_embedding_pipelined,
    stale,
    sparsecore_loop,
    lookahead,
    semi_sync,
    bounded_async,
    full_async,
    hybrid,
    accumulate,
    row_clocks,
    offload,
    replica_sync,
    serving_snapshot,
)
__all__ = [
    "CONSTRUCTORS",
    "Pipeline",
    "Rule",
    "accumulate",
    "bounded_async",
    "full_async",
    "hybrid",
    "lookahead",
    "of_schedule",
    "offload",
    "pipeline_of",
    "replica_sync",
    "row_clocks",
    "semi_sync",
    "sequential",
    "serving_snapshot",
    "sparsecore_loop",
    "stale",
    "tpu_embedding_pipelined",
]


def pipeline_of(text: str) -> Pipeline:
    """A schedule as it is written, for command lines: "lookahead(8)", "offload(locked=False)".

    Raises:
      ValueError: another name, or arguments that the constructor does not take.
    """
    constructors = {each.__name__: each for each in CONSTRUCTORS}
    try:
        called = ast.parse(text.strip(), mode="eval").body
        call = called if isinstance(called, ast.Call) else ast.Call(called, [], [])
        if not isinstance(call.func, ast.Name):
            raise TypeError("it is no call")
        arguments = [ast.literal_eval(each) for each in call.args]
        named = {each.arg or "": ast.literal_eval(each.value) for each in call.keywords}
        return constructors[call.func.id](*arguments, **named)
    except (SyntaxError, TypeError, ValueError, KeyError) as error:
        names = ", ".join(constructors)
        raise ValueError(
            f"schedule is {text!r}: {error}; it must be a call of one of {names}"
        ) from error
