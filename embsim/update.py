"""The optimizer's rule on the rows of a plan: the only place where a table changes."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32

from ._codegen import update_kernel
from ._threads import Task, even_ranges, parallel, ranges
from .optimizers import Optimizer, updates_every_row
from .plan import LookupPlan

CHUNK = 2**18  # floats of the gradients, or of the table, that a task goes through


def update(
    table: Float32[np.ndarray, "rows dim"],
    slots: Mapping[str, np.ndarray],
    plan: LookupPlan,
    gradients: Float32[np.ndarray, "samples dim"],
    optimizer: Optimizer,
    coefficients: Mapping[str, np.float32],
) -> None:
    """rule(w, G.T @ gradients, slots; coefficients) on each touched row; all other rows stay as
    they are.

    Per row: sum its contributions in order, clip the sum, decay w, apply the rule, clip w. A
    non-lazy optimizer updates every row, with gradient 0 where nothing was looked up.

    With use_gradient_accumulation=False each contribution is an update of its own, in that order.

    `slots` by name, [rows, dim] or [rows, 1]; `coefficients` as `optimizers.coefficients` made
    them, in that order.

    In place; `slots` in the order of the optimizer's own.
    """
    tasks = update_tasks(table, list(slots.values()), plan, gradients, optimizer, coefficients)
    parallel(tasks, work(table, plan, optimizer))


def update_tasks(
    table: np.ndarray,
    slots: Sequence[np.ndarray],
    plan: LookupPlan,
    gradients: np.ndarray,
    optimizer: Optimizer,
    coefficients: Mapping[str, np.float32],
) -> list[Task]:
    """The update as independent pieces, so that a step's tables share one round of threads."""
    kernel = update_kernel(optimizer)
    c = np.array(list(coefficients.values()), np.float32)
    rows, chunk = plan.by_row, max(1, CHUNK // table.shape[1])
    if updates_every_row(optimizer):
        pieces = ranges(len(table), chunk)
    else:
        pieces = even_ranges(rows.starts, chunk)
    return [
        lambda lo=lo, hi=hi: kernel(
            lo,
            hi,
            rows.unique,
            rows.starts,
            rows.sample,
            rows.gain,
            gradients,
            table,
            tuple(slots),
            c,
        )
        for lo, hi in pieces
    ]


def work(table: np.ndarray, plan: LookupPlan, optimizer: Optimizer) -> int:
    """Floats that an update goes through, about."""
    rows = len(table) if updates_every_row(optimizer) else len(plan.by_row.unique)
    return (len(plan.row) + rows) * table.shape[1]
