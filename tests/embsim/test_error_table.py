"""Every row of the error table of docs/semantics.md section 6: type, message, nothing changed."""

import re
from collections.abc import Callable

import jax
import numpy as np
import pytest

import embsim
from embsim import DeadlockError, FeatureConfig, RaggedTensor, TableConfig, TPUEmbedding

DIM = 2


def config() -> dict[str, FeatureConfig]:
    clicks = TableConfig(8, DIM, name="clicks")
    items = TableConfig(6, DIM, name="items", combiner="sum")
    return {"clicked": FeatureConfig(clicks), "item": FeatureConfig(items)}


def batch(samples: int = 4) -> dict[str, object]:
    bags = [[sample % 8, (3 * sample) % 8] for sample in range(samples)]
    return {
        "clicked": RaggedTensor.from_lists(bags, np.int32),
        "item": np.arange(samples, dtype=np.int32) % 6,
    }


def gradients(samples: int = 4) -> dict[str, np.ndarray]:
    return {name: np.ones((samples, DIM), np.float32) for name in ("clicked", "item")}


def make(replicas: int = 2, **options: object) -> tuple[embsim.TPUStrategy, TPUEmbedding]:
    strategy = embsim.TPUStrategy(replicas)
    with strategy.scope():
        return strategy, TPUEmbedding(config(), embsim.Adagrad(0.1), **options)


def everything(embedding: TPUEmbedding) -> tuple[object, ...]:
    """Tables, slots, queues, pending updates and counts, by value."""
    engine = embedding._engine
    store = engine._store
    state = store.backend.get_state(store.state)
    arrays = [array.tobytes() for array in state.weights.values()]
    arrays += [a.tobytes() for slots in state.slots.values() for a in slots.values()]
    pending = [(u.step, [g.tobytes() for g in u.gradients.values()]) for u in store.pending]
    queue = [(id(e.plans), e.activations is None) for e in engine._queue.queued]
    waiting = [(id(e.plans), e.activations is None) for e in engine._queue.waiting]
    border = embedding._border
    counts = (engine.progress, store.version, list(border._shapes), sorted(border._parts))
    return (*arrays, pending, queue, waiting, counts)


def refuses(
    embedding: TPUEmbedding, call: Callable[[], object], error: type[Exception], match: str
) -> None:
    """`call` raises `error` with a message that matches, and leaves everything as it was."""
    before = everything(embedding)
    with pytest.raises(error, match=match):
        call()
    assert everything(embedding) == before


def step(embedding: TPUEmbedding) -> None:
    embedding.enqueue(batch())
    embedding.dequeue()
    embedding.apply_gradients(gradients())


def test_dequeue_with_nothing_enqueued_names_the_missing_enqueue() -> None:
    _, embedding = make()
    step(embedding)
    refuses(embedding, embedding.dequeue, DeadlockError, r"dequeue: nothing .*call: enqueue")


def test_enqueue_into_a_full_queue_names_capacity_and_contents() -> None:
    _, embedding = make(queue_capacity=2)
    step(embedding)
    embedding.enqueue(batch())
    embedding.enqueue(batch(), training=False)
    match = r"capacity 2 is full .*\['training', 'inference'\].*missing call: dequeue"
    refuses(embedding, lambda: embedding.enqueue(batch()), DeadlockError, match)
    late = lambda: embedding.enqueue(batch(), blocking=True, timeout=0.02)  # noqa: E731
    refuses(embedding, late, DeadlockError, match)


def test_dequeue_before_the_gradients_it_must_see_names_the_step() -> None:
    _, embedding = make(schedule=embsim.stale(1))
    for _ in range(3):
        embedding.enqueue(batch())
    embedding.dequeue()
    embedding.dequeue()
    match = r"training step 2: it reads version 1, but gradients were given for 0 steps"
    refuses(embedding, embedding.dequeue, DeadlockError, match)
    embedding.apply_gradients(gradients())
    embedding.dequeue()


def test_dequeue_in_a_sequential_run_waits_for_the_last_step() -> None:
    _, embedding = make()
    embedding.enqueue(batch())
    embedding.enqueue(batch())
    embedding.dequeue()
    match = r"training step 1: it reads version 1, .*apply_gradients for training step 0"
    refuses(embedding, embedding.dequeue, DeadlockError, match)


LOOKS: dict[str, Callable[[TPUEmbedding, str], object]] = {
    "embedding_tables": lambda e, _: e.embedding_tables,
    "slot_variables": lambda e, _: e.slot_variables,
    "snapshot": lambda e, _: e.snapshot(),
    "drain": lambda e, _: e.drain(),
    "save": lambda e, path: e.save(path),
}


@pytest.mark.parametrize("look", sorted(LOOKS))
def test_looks_while_a_step_waits_for_gradients_name_the_step(look: str, tmp_path) -> None:
    _, embedding = make(schedule=embsim.stale(2))
    step(embedding)
    embedding.enqueue(batch())
    embedding.dequeue()
    match = rf"{look}: training step 1 was dequeued and waits for gradients .*or abandon"
    call = lambda: LOOKS[look](embedding, str(tmp_path))  # noqa: E731
    refuses(embedding, call, DeadlockError, match)
    assert list(tmp_path.iterdir()) == []


def test_restore_and_inference_dequeue_while_a_step_waits_for_gradients(tmp_path) -> None:
    _, embedding = make()
    step(embedding)
    embedding.save(tmp_path)
    embedding.enqueue(batch())
    embedding.enqueue(batch(), training=False)
    embedding.dequeue()
    match = r"restore: training step 1 was dequeued and waits"
    refuses(embedding, lambda: embedding.restore(tmp_path), DeadlockError, match)
    match = r"dequeue of an inference step: training step 1 was dequeued and waits"
    refuses(embedding, embedding.dequeue, DeadlockError, match)


def test_restore_with_batches_in_the_queue(tmp_path) -> None:
    _, embedding = make()
    step(embedding)
    embedding.save(tmp_path)
    embedding.enqueue(batch())
    match = r"restore: batches are enqueued .*dequeue them first"
    refuses(embedding, lambda: embedding.restore(tmp_path), RuntimeError, match)


@pytest.mark.parametrize("training", [None, False])
def test_gradients_that_no_step_waits_for(training: bool | None) -> None:
    _, embedding = make()
    embedding.enqueue(batch(), training=False)
    if training is False:
        embedding.dequeue()
    match = r"no dequeued training step waits for gradients .*missing call: dequeue"
    refuses(embedding, lambda: embedding.apply_gradients(gradients()), DeadlockError, match)


def test_replicas_that_make_different_calls_are_named() -> None:
    strategy, embedding = make()
    step(embedding)
    embedding.enqueue(batch())

    def body() -> None:
        if embsim.get_replica_context().replica_id_in_sync_group == 0:
            embedding.dequeue()
        else:
            embedding.apply_gradients(gradients(2))

    match = r"replica 0.*TPUEmbedding.dequeue.*replica 1.*TPUEmbedding.apply_gradients"
    refuses(embedding, lambda: strategy.run(body), DeadlockError, match)


@pytest.mark.parametrize("call", ["enqueue", "dequeue", "apply_gradients"])
def test_engine_calls_outside_a_strategy(call: str) -> None:
    embedding = TPUEmbedding(config(), embsim.SGD())
    arguments = {"enqueue": (batch(),), "dequeue": (), "apply_gradients": (gradients(),)}[call]
    match = rf"{call}: this embedding was created outside the scope of a TPUStrategy"
    refuses(embedding, lambda: getattr(embedding, call)(*arguments), RuntimeError, match)


TRACED: dict[str, Callable[[TPUEmbedding], object]] = {
    "enqueue": lambda e: e.enqueue(batch()),
    "dequeue": lambda e: e.dequeue(),
    "apply_gradients": lambda e: e.apply_gradients(gradients()),
    "embedding_tables": lambda e: e.embedding_tables,
    "snapshot": lambda e: e.snapshot(),
    "drain": lambda e: e.drain(),
    "save": lambda e: e.save("nowhere"),
    "abandon": lambda e: e.abandon(),
    "build": lambda e: e.build(2),
}


@pytest.mark.parametrize("call", sorted(TRACED))
def test_engine_calls_under_jax_tracing(call: str) -> None:
    _, embedding = make()
    step(embedding)

    @jax.jit
    def traced(x: jax.Array) -> jax.Array:
        TRACED[call](embedding)
        return x

    match = rf"{call}: called while JAX traces a function"
    refuses(embedding, lambda: traced(1.0), RuntimeError, match)


@pytest.mark.parametrize("call", ["dequeue", "apply_gradients"])
def test_calls_before_the_embedding_is_built(call: str) -> None:
    _, embedding = make()
    arguments = (gradients(),) if call == "apply_gradients" else ()
    match = rf"{call}: the embedding is not built; call build or enqueue first"
    refuses(embedding, lambda: getattr(embedding, call)(*arguments), RuntimeError, match)


def test_build_without_a_batch_size_under_a_strategy() -> None:
    _, embedding = make()
    refuses(embedding, embedding.build, ValueError, r"build: no batch size is known")
    TPUEmbedding(config(), None).build()  # outside a strategy none is needed


def test_another_batch_size_than_the_built_one() -> None:
    _, embedding = make()
    embedding.build(per_replica_batch_size=2)
    refuses(
        embedding, lambda: embedding.enqueue(batch(6)), ValueError, r"feature '.*\(6,\).*\(4,\)"
    )


def test_a_global_batch_that_the_replicas_do_not_divide() -> None:
    _, embedding = make()
    match = r"found 5 samples for 2 replicas"
    refuses(embedding, lambda: embedding.enqueue(batch(5)), ValueError, match)


WRONG_TYPE = [list(batch().values()), tuple(batch().values())]
WRONG_KEYS = [{"clicked": batch()["clicked"]}, {**batch(), "more": batch()["item"]}]


@pytest.mark.parametrize("features", WRONG_TYPE)
def test_structures_of_another_type(features: object) -> None:
    _, embedding = make()
    embedding.enqueue(batch())
    embedding.dequeue()
    refuses(embedding, lambda: embedding.enqueue(features), TypeError, r"features")
    refuses(embedding, lambda: embedding.enqueue(batch(), features), TypeError, r"weights")
    refuses(embedding, lambda: embedding.apply_gradients(features), TypeError, r"gradients")


@pytest.mark.parametrize("features", WRONG_KEYS)
def test_structures_of_other_keys(features: object) -> None:
    _, embedding = make()
    embedding.enqueue(batch())
    embedding.dequeue()
    refuses(embedding, lambda: embedding.enqueue(features), ValueError, r"features.*(item|more)")
    refuses(embedding, lambda: embedding.enqueue(batch(), features), ValueError, r"weights")
    refuses(embedding, lambda: embedding.apply_gradients(features), ValueError, r"gradients")


def test_structures_of_another_length() -> None:
    strategy = embsim.TPUStrategy(1)
    table = TableConfig(8, DIM)
    with strategy.scope():
        embedding = TPUEmbedding([FeatureConfig(table), FeatureConfig(table)], embsim.SGD())
    ids = np.zeros(3, np.int32)
    refuses(embedding, lambda: embedding.enqueue([ids]), ValueError, r"features.* 1.* 2")
    refuses(embedding, lambda: embedding.enqueue((ids, ids)), TypeError, r"features.*tuple.*list")


BAD_GRADIENTS = {
    "a list is no array": ([[1.0, 1.0]] * 4, ValueError, r"'item' is a list, not an array"),
    "another shape": (np.ones((4, 3), np.float32), ValueError, r"\(4, 3\).*shape \(4, 2\)"),
    "another batch": (np.ones((3, 2), np.float32), ValueError, r"\(3, 2\).*shape \(4, 2\)"),
    "integers": (np.ones((4, 2), np.int64), TypeError, r"dtype int64; it must be a float"),
    "truth values": (np.ones((4, 2), bool), TypeError, r"dtype bool"),
}


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("what", sorted(BAD_GRADIENTS))
def test_gradients_of_another_kind_or_shape(what: str, waits: bool) -> None:
    """Validated before queues are looked at: also when no step waits for gradients."""
    _, embedding = make()
    embedding.enqueue(batch())
    if waits:
        embedding.dequeue()
    bad, error, match = BAD_GRADIENTS[what]
    call = lambda: embedding.apply_gradients({**gradients(), "item": bad})  # noqa: E731
    refuses(embedding, call, error, match)


@pytest.mark.parametrize("optimizer", ["adam", embsim.Adam, 0.1])
def test_unsupported_optimizers(optimizer: object) -> None:
    strategy = embsim.TPUStrategy(1)
    with strategy.scope(), pytest.raises(ValueError, match=r"is an unsupported optimizer class"):
        TPUEmbedding(config(), optimizer)
    with strategy.scope(), pytest.raises(ValueError, match=r"table 'clicks' has no optimizer"):
        TPUEmbedding(config(), None)
    assert strategy.embedding is None


def test_two_tables_of_one_name() -> None:
    features = [
        FeatureConfig(TableConfig(4, 2, name="t")),
        FeatureConfig(TableConfig(4, 2, name="t")),
    ]
    with pytest.raises(ValueError, match=r"tables 0 and 1 are both named 't'"):
        TPUEmbedding(features, embsim.SGD())
    collides = [FeatureConfig(TableConfig(4, 2, name="table_1")), FeatureConfig(TableConfig(4, 2))]
    with pytest.raises(ValueError, match=r"both named 'table_1'"):
        TPUEmbedding(collides, embsim.SGD())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_on_request_only(value: float) -> None:
    bad = gradients()
    bad["item"][2, 1] = value
    weights = {
        "clicked": RaggedTensor.from_lists([[1, value]] + [[1, 1]] * 3, np.float32),
        "item": None,
    }
    for checked in (False, True):
        _, embedding = make(check_numerics=checked)
        if checked:
            match = r"feature 'clicked'.* sample 0.* position 1"
            refuses(embedding, lambda e=embedding: e.enqueue(batch(), weights), ValueError, match)
        embedding.enqueue(batch(), None if checked else weights)
        embedding.dequeue()
        if checked:
            match = rf"feature 'item' is {re.escape(str(np.float32(value)))} at \(2, 1\)"
            refuses(embedding, lambda e=embedding: e.apply_gradients(bad), ValueError, match)
        else:
            embedding.apply_gradients(bad)


def test_a_second_live_embedding_under_one_strategy() -> None:
    strategy, embedding = make()
    with strategy.scope(), pytest.raises(RuntimeError, match=r"already holds a live embedding"):
        TPUEmbedding(config(), embsim.SGD())
    with strategy.scope():
        beside = TPUEmbedding(config(), embsim.SGD(), initialize_tpu_embedding=False)
    match = r"created with initialize_tpu_embedding=False"
    refuses(beside, lambda: beside.enqueue(batch()), RuntimeError, match)
    embedding.close()
    with strategy.scope():
        TPUEmbedding(config(), embsim.SGD())


def test_every_call_on_a_closed_embedding() -> None:
    _, embedding = make()
    embedding.build(2)
    embedding.close()
    for call in (embedding.drain, embedding.snapshot, embedding.dequeue, embedding.abandon):
        with pytest.raises(RuntimeError, match=r"was closed; make a new one"):
            call()


def test_schedule_and_flag_that_contradict_each_other() -> None:
    for schedule in (embsim.sequential(), embsim.stale(2)):
        with pytest.raises(ValueError, match=r"reads tables one step old, but schedule is"):
            TPUEmbedding(config(), embsim.SGD(), True, schedule=schedule)
    TPUEmbedding(config(), embsim.SGD(), True, schedule=embsim.tpu_embedding_pipelined())


def test_calls_that_belong_between_runs_are_refused_inside_one() -> None:
    strategy, embedding = make()
    step(embedding)
    for call in (
        embedding.drain,
        embedding.snapshot,
        embedding.abandon,
        lambda: embedding.save("x"),
    ):
        match = r"called inside strategy.run"
        refuses(embedding, lambda call=call: strategy.run(call), RuntimeError, match)
