"""Programs in which every batch, gradient and version shows, for checks of one decision.

Random programs often draw empty bags and zeros. Here all rows of a table differ, every batch reads
rows 0 and 1 of every table, row 1 once, twice or three times by turns, and every step's gradient
moves both. Numbers are those of the exact regime: integers up to 4, 'sum', SGD and Counting.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...config import FeatureConfig, TableConfig
from ...optimizers import SGD
from ...schedule import Schedule
from ..adapter import Capabilities, asked_of_optimizer
from ..difference import Difference
from ..lockstep import Lockstep, explained
from ..program import Call, Dequeue, Program, Rates, Setup, Train, Values
from ..rules import Counting
from ..strategies import INTEGERS, buckets, schedules, tables_of
from ..subject import Subject

Steps = list[Train]
LOOPS = (None, None, None, 2, 3)


def in_order(can: Capabilities) -> bool:
    """Activations come back from the dequeue of their own batch."""
    return can.output_shift == 0


def refuses_calls(can: Capabilities) -> bool:
    """Calls that could never be served are refused."""
    return can.errors and in_order(can)


def pipelines(can: Capabilities) -> bool:
    """Some schedule keeps updates in flight from one step to the next."""
    stale = can.schedules is None or any(each.staleness > 0 for each in can.schedules)
    return stale and in_order(can)


def stale_schedules(can: Capabilities) -> st.SearchStrategy[Schedule]:
    """Those under which updates are in flight."""
    if can.schedules is not None:
        return st.sampled_from([each for each in can.schedules if each.staleness > 0])
    return st.builds(
        Schedule,
        staleness=st.sampled_from((1, 2, 3)),
        drain_every=st.sampled_from(LOOPS),
        warmup_steps=st.sampled_from((0, 0, 1)),
    )


def visible_rules(can: Capabilities, *, slots: bool = False) -> st.SearchStrategy[Any]:
    """Exact optimizers that always move a row; `slots`: those that have some, if it may."""
    made = [kind(rate) for kind in (SGD, Counting) for rate in (1.0, 0.5, Rates((1.0, 0.5)))]
    offered = [each for each in made if can.offers(*asked_of_optimizer(each))]
    with_slots = [each for each in offered if each.slots]
    return st.sampled_from(with_slots if slots and with_slots else offered)


@st.composite
def visible_setups(
    draw: Any,
    can: Capabilities,
    *,
    schedule: st.SearchStrategy[Schedule] | None = None,
    rules: st.SearchStrategy[Any] | None = None,
    tables: int = 1,
    capacity: int = 8,
) -> Setup:
    """A Setup of at least `tables` tables (if it may), of which no two rows are equal."""
    simple = [
        each
        for each in buckets(can)
        if all(1 < rows < 10 for rows, _ in each.tables)
        and not any(length for _, length in each.features)
    ]
    enough = [each for each in simple if len(each.tables) >= tables]
    bucket = draw(st.sampled_from(enough or simple))
    first = draw(st.sampled_from((1.0, -60.0, 7.0)))
    configs: list[TableConfig] = []
    for number, (rows, dim) in enumerate(bucket.tables):
        values = first + 10 * number + np.arange(rows * dim).reshape(rows, dim)
        rule = draw(visible_rules(can) if rules is None else rules)
        configs.append(TableConfig(rows, dim, Values(values), rule, "sum", f"t{number}"))
    counts = [n for n in can.replicas if bucket.samples % n == 0]
    return Setup(
        tuple(FeatureConfig(configs[table]) for table, _ in bucket.features),
        draw(schedules(can) if schedule is None else schedule),
        samples=bucket.samples,
        replicas=draw(st.sampled_from(counts)),
        queue_capacity=capacity,
    )


@st.composite
def visible_steps(draw: Any, setup: Setup, least: int, most: int, first: int = 0) -> Steps:
    """`least` to `most` training steps, none like its neighbours; `first` is the first's number."""
    count = draw(st.integers(least, most))
    return [draw(_step(setup, first + number)) for number in range(count)]


@st.composite
def _step(draw: Any, setup: Setup, number: int) -> Train:
    batch: list[Any] = []
    gradients: list[np.ndarray] = []
    for place, feature in enumerate(setup.features):
        ids = st.integers(0, feature.table.vocabulary_size - 1)
        more = setup.samples - 1
        rest = draw(st.lists(st.lists(ids, max_size=3), min_size=more, max_size=more))
        batch.append([[0, *[1] * (1 + number % 3)], *rest])
        gradient = np.array(draw(tables_of(setup.activation_shape(place), INTEGERS)))  # type: ignore[arg-type]
        gradient[0] = 1 + number % 4
        gradients.append(gradient)
    return Train(batch, gradients)


@dataclass
class Pair:
    """A subject beside the law, and the calls that were made: a failure shows the program, and the
    `notes` of what no Call says.
    """

    subject: Subject
    both: Lockstep
    calls: list[Call] = field(default_factory=list[Call])
    notes: list[str] = field(default_factory=list[str])

    @property
    def engine(self) -> Any:
        return self.both.engine

    @property
    def law(self) -> Any:
        return self.both.law

    def do(self, *calls: Call) -> None:
        """Each on both sides."""
        for call in calls:
            self.calls.append(call)
            for _, single in Program(self.both.setup, (call,)).single_calls:
                self.both.do(single)

    def refused(self, what: str, call: Callable[[], Any], *kinds: type[Exception]) -> Exception:
        """`call`, on the subject alone, must raise one of `kinds`; the error."""
        wanted = " or ".join(kind.__name__ for kind in kinds)
        try:
            call()
        except kinds as error:
            return error
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
            raise Difference(f"{what} must raise {wanted}, but raised {found}") from error
        raise Difference(f"{what} must raise {wanted}, but returned")

    def dequeue(self) -> Any:
        """A legal Dequeue on both sides; the arrays that the subject returned."""
        self.calls.append(Dequeue())
        found = self.engine.dequeue()
        self.both.compare_activations(found)
        return found


@contextmanager
def side_by_side(subject: Subject, setup: Setup, *, watch: bool = True) -> Generator[Pair]:
    """A Pair, closed at the end; a Difference gets the program that shows it."""
    pair = Pair(subject, Lockstep(subject, setup, watch=watch))
    try:
        yield pair
        pair.both.end()
    except Difference as difference:
        program = Program(setup, tuple(pair.calls))
        difference.call = len(pair.calls) - 1
        what = "; ".join([difference.what, *pair.notes])
        difference.args = (explained(what, subject, program),)
        raise
    finally:
        pair.engine.close()
