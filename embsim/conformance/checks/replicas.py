"""Replicas, shards and tables side by side: how the work is divided changes no number."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...config import FeatureConfig, TableConfig
from ...datasets import PerReplica
from ...optimizers import SGD
from ...placement import KINDS, Placement
from ...ragged import RaggedTensor
from ...strategy import get_replica_context
from ..adapter import Capabilities, arrays
from ..check import Draw, check
from ..difference import Difference, compare
from ..lockstep import replay
from ..program import Call, Look, Program, Setup, Train, Values
from ..strategies import batches as any_batches
from ..strategies import buckets, gradients, regimes, schedules, setups, to_the_bit
from ..subject import Subject
from ._visible import in_order, side_by_side, visible_rules, visible_setups, visible_steps


def _several(can: Capabilities) -> bool:
    """It can be started with several numbers of replicas."""
    return len(can.replicas) > 1


def _steps(draw: Draw, setup: Setup, can: Capabilities, regime: str, most: int) -> list[Train]:
    return [
        Train(
            draw(any_batches(setup, can, regime), "batch"),
            draw(gradients(setup, can, regime), "gradients"),
        )
        for _ in range(draw(st.integers(1, most), "steps"))
    ]


@check("7.2", when=_several, effort=0.5)
def check_the_number_of_replicas_changes_nothing(subject: Subject, draw: Draw) -> None:
    """The same steps with their samples on one replica, on two, on four: the same numbers."""
    can = subject.capabilities
    most = max(can.replicas)
    shapes = [each for each in buckets(can) if each.samples % most == 0] or buckets(can)
    regime = draw(regimes(can), "regime")
    setup: Setup = draw(setups(to_the_bit(can, regime), regime, shapes=shapes), "setup")
    steps = _steps(draw, setup, can, regime, 4)
    counts = [n for n in sorted(set(can.replicas)) if setup.samples % n == 0]
    for number in counts:
        program = Program(replace(setup, replicas=number), tuple(steps))
        try:
            replay(subject, program, watch=False)
        except Difference as difference:
            others = [n for n in counts if n < number]
            right = f"; with {others} replicas these steps are right" if others else ""
            difference.args = (f"with {number} replicas{right}: {difference}",)
            raise


def _rows_by_sample(subject: Subject, draw: Draw) -> Setup:
    """A table of as many rows as samples, several to each of the most replicas that it has."""
    can = subject.capabilities
    replicas = draw(st.sampled_from(sorted(can.replicas)), "replicas")
    samples = 4 if 4 % replicas == 0 else 2 * replicas
    table = TableConfig(samples, 1, Values(np.arange(samples)[:, None] + 1.0), SGD(1.0), "sum", "t")
    schedule = draw(schedules(can), "schedule")
    return Setup((FeatureConfig(table),), schedule, samples, replicas)


@check("7.2", when=lambda can: max(can.replicas) > 1)
def check_a_global_batch_is_that_of_its_replicas_in_order(subject: Subject, draw: Draw) -> None:
    """Sample s reads row p(s), and its gradient is s + 1: whose part goes where shows in both."""
    setup = _rows_by_sample(subject, draw)
    gradient = np.arange(1, setup.samples + 1, dtype=np.float32)[:, None]
    calls: list[Call] = []
    for _ in range(draw(st.integers(1, 3), "steps")):
        rows = draw(st.permutations(range(setup.samples)), "rows")
        calls.append(Train([[[row] for row in rows]], [gradient]))
    replay(subject, Program(setup, tuple(calls)), watch=False)


@check("3.1", "7.2")
def check_gradients_of_all_replicas_and_samples_are_added(subject: Subject, draw: Draw) -> None:
    """Sample s gives the same row the gradient 2^s, so that the row's change names the samples that
    were added; it is no mean, neither of replicas nor of samples.
    """
    setup = _rows_by_sample(subject, draw)
    row = draw(st.integers(0, setup.samples - 1), "row")
    gradient = 2.0 ** np.arange(setup.samples, dtype=np.float32)[:, None]
    program = Program(setup, (Train([[[row]] * setup.samples], [gradient]),))
    try:
        replay(subject, program, watch=False)
    except Difference as difference:
        if difference.step == 0 and difference.row == row:
            change = float(row + 1 - difference.found)
            added = [s for s in range(setup.samples) if int(change) >> s & 1]
            what = f"row {row} fell by {change}: the gradients of samples {added}"
            if change != int(change):
                what = f"row {row} fell by {change}, which is no sum of them"
            difference.args = (f"{what}; all {setup.samples} must be added: {difference}",)
        raise


@check("7.3", effort=0.5)
def check_where_rows_lie_changes_nothing(subject: Subject, draw: Draw) -> None:
    """Tables and ids renamed as any number of shards would lay the rows out, mod or div: the same
    activations, and the same tables in the other order.
    """
    can = subject.capabilities
    regime = draw(regimes(can), "regime")
    setup: Setup = draw(setups(to_the_bit(can, regime), regime), "setup")
    steps = _steps(draw, setup, can, regime, 3)
    shards, kind = draw(st.integers(1, 7), "shards"), draw(st.sampled_from(KINDS), "kind")
    order = {name: _laid_out(config, shards, kind) for name, config in setup.tables.items()}
    moved = Program(_moved(setup, order), tuple(_with_ids(setup, each, order) for each in steps))
    replay(subject, Program(setup, tuple(steps)), watch=False)
    try:
        replay(subject, moved, watch=False)
    except Difference as difference:
        what = f"rows in the order of {shards} shards, {kind}; in their own order all is right"
        difference.args = (f"{what}: {difference}",)
        raise


def _laid_out(config: TableConfig, shards: int, kind: str) -> list[int]:
    """The rows of all shards, one shard after the other."""
    rows = np.arange(config.vocabulary_size)
    parts = Placement(len(rows), shards, kind).split(rows)
    return [int(row) for part in parts for row in part]


def _moved(setup: Setup, order: dict[str, list[int]]) -> Setup:
    made = {
        config: replace(config, initializer=Values(setup.initial(name)[order[name]]))
        for name, config in setup.tables.items()
    }
    features = (replace(each, table=made[each.table]) for each in setup.features)
    return replace(setup, features=tuple(features))


def _with_ids(setup: Setup, step: Train, order: dict[str, list[int]]) -> Train:
    batch: list[Any] = []
    for feature, bags in zip(setup.features, step.batch, strict=True):
        place = {row: p for p, row in enumerate(order[str(feature.table.name)])}
        batch.append([[_renamed(item, place) for item in bag] for bag in bags])
    return Train(batch, step.gradients)


def _renamed(item: Any, place: dict[int, int]) -> Any:
    return (place[item[0]], item[1]) if isinstance(item, tuple) else place[item]


@check("7.3", "7.2")
def check_every_row_of_every_table_is_looked_up_where_it_is_updated(
    subject: Subject, draw: Draw
) -> None:
    """Each row of tables of 1 to 13 rows, one at a time: its own number comes back, its own row is
    moved.
    """
    can = subject.capabilities
    samples, rows = min(can.replicas), draw(st.integers(1, 13), "rows")
    table = TableConfig(rows, 1, Values(np.arange(rows)[:, None] + 1.0), SGD(1.0), "sum", "t")
    setup = Setup((FeatureConfig(table),), draw(schedules(can), "schedule"), samples, samples)
    first, stride = draw(st.integers(0, rows - 1), "first row"), draw(st.integers(1, 5), "stride")
    gradient = np.ones((samples, 1), np.float32)
    each = [(first + k * stride) % rows for k in range(min(rows, 5))]
    calls = [Train([[[row]] * samples], [gradient]) for row in each]
    replay(subject, Program(setup, tuple(calls)), watch=False)


@check("7.3", "10.15", needs=("several tables",))
def check_names_and_order_of_tables_and_features_change_nothing(
    subject: Subject, draw: Draw
) -> None:
    """Tables called otherwise, and features in another order: the same numbers for each."""
    can = subject.capabilities
    setup: Setup = draw(visible_setups(can, tables=2), "setup")
    steps = draw(visible_steps(setup, 1, 4), "steps")
    order = draw(st.permutations(range(len(setup.features))), "order of the features")
    names = draw(st.permutations(sorted(setup.tables)), "names")
    named = dict(zip(setup.tables.values(), names, strict=True))
    tables = {config: replace(config, name=name) for config, name in named.items()}
    features = [replace(each, table=tables[each.table]) for each in setup.features]
    other = replace(setup, features=tuple(features[i] for i in order))
    moved = [
        Train([each.batch[i] for i in order], [each.gradients[i] for i in order]) for each in steps
    ]
    replay(subject, Program(setup, tuple(steps)), watch=False)
    replay(subject, Program(other, tuple(moved)), watch=False)


@check("1.1", "7.3", needs=("several tables",), effort=0.5)
def check_tables_of_one_step_are_independent(subject: Subject, draw: Draw) -> None:
    """Trained together, each table gets what it gets when the others' bags are empty."""
    can = subject.capabilities
    rules = visible_rules(can, slots=True)
    setup: Setup = draw(visible_setups(can, tables=2, rules=rules), "setup")
    steps = draw(visible_steps(setup, 1, 4), "steps")
    alone = draw(st.sampled_from(sorted(setup.tables)), "the table that is trained alone")
    mine = [feature.table.name == alone for feature in setup.features]
    empty: list[Any] = [[]] * setup.samples
    single = [
        Train(
            [bags if own else empty for bags, own in zip(each.batch, mine, strict=True)],
            each.gradients,
        )
        for each in steps
    ]
    replay(subject, Program(setup, tuple(single)), watch=False)
    replay(subject, Program(setup, tuple(steps)), watch=False)


def _parts(setup: Setup, values: Sequence[Any]) -> PerReplica:
    """One list of global values per feature -> each replica's part of all of them."""
    size = setup.samples // setup.replicas
    starts = [replica * size for replica in range(setup.replicas)]
    return PerReplica(tuple([each[low : low + size] for each in values] for low in starts))


def _ids(bags: Any) -> list[RaggedTensor]:
    return [RaggedTensor(ids, splits) for ids, splits, _ in arrays(bags)]


@check("7.1", "7.2", backend=True, when=in_order)
def check_each_replica_of_a_run_gets_its_own_part(subject: Subject, draw: Draw) -> None:
    """Per-replica ids go in, the same replica's activations come out, its gradients go to them."""
    setup: Setup = draw(visible_setups(subject.capabilities), "setup")
    steps = draw(visible_steps(setup, 1, 5), "steps")
    with side_by_side(subject, setup) as pair:
        pair.notes.append("each step was made in a run of its own")
        embedding, run = pair.engine.embedding, pair.engine.strategy.run
        for each in steps:
            found: dict[int, list[Any]] = {}

            def body(bags: Any, slopes: Any, found: dict[int, list[Any]] = found) -> None:
                embedding.enqueue(_ids(bags))
                context = get_replica_context()
                assert context is not None
                found[context.replica_id_in_sync_group] = embedding.dequeue()
                embedding.apply_gradients(list(slopes))

            run(body, args=(_parts(setup, each.batch), _parts(setup, each.gradients)))
            whole = [np.concatenate(parts) for parts in zip(*(found[r] for r in sorted(found)),
                                                            strict=True)]  # fmt: skip
            pair.both.queue.append((each.batch, True))
            pair.both.compare_activations(whole)
            pair.law.apply_gradients(each.gradients)
            pair.do(Look())


@check("7.1", "6.4", backend=True, when=in_order)
def check_an_exception_in_one_replica_undoes_its_run(subject: Subject, draw: Draw) -> None:
    """Raised after the enqueue, the dequeue or the gradients: tables, slots, the queue and the
    number of the step are as before, and the run can be made again.
    """
    can = subject.capabilities
    rules = visible_rules(can, slots=True)
    setup: Setup = draw(visible_setups(can, rules=rules), "setup")
    steps = draw(visible_steps(setup, 2, 5), "steps")
    done = draw(st.integers(0, len(steps) - 1), "steps before")
    after = draw(st.sampled_from(("enqueue", "dequeue", "apply_gradients")), "raises after")
    who = draw(st.integers(0, setup.replicas - 1), "in replica")
    with side_by_side(subject, setup) as pair:
        pair.do(*steps[:done])
        embedding, run = pair.engine.embedding, pair.engine.strategy.run
        before = {name: np.array(table) for name, table in pair.engine.tables().items()}

        def body(bags: Any, slopes: Any) -> None:
            context = get_replica_context()
            raises = context is not None and context.replica_id_in_sync_group == who
            calls = {
                "enqueue": lambda: embedding.enqueue(_ids(bags)),
                "dequeue": embedding.dequeue,
                "apply_gradients": lambda: embedding.apply_gradients(list(slopes)),
            }
            for name, call in calls.items():
                call()
                if name == after and raises:
                    raise ArithmeticError("raised on purpose")

        args = _parts(setup, steps[done].batch), _parts(setup, steps[done].gradients)
        what = f"after step {done - 1} a run of step {done} raised in replica {who} after {after}"
        pair.notes.append(what)
        pair.refused("the run", lambda: run(body, args=args), ArithmeticError)
        for name, table in pair.engine.tables().items():
            compare(f"table {name!r}, {what}", np.asarray(table), before[name], table=name)
        pair.do(Look(), *steps[done:])
