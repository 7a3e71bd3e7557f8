"""Queues, versions, looks, transactions and threads of the engine."""

import threading
import time

import numpy as np
import pytest

import embsim
from embsim import Engine, FeatureConfig, TableConfig, TPUEmbedding


def make(replicas: int = 1, schedule: embsim.Schedule | None = None, optimizer=None, **options):
    table = TableConfig(4, 1, initializer=lambda shape, dtype: np.zeros(shape, dtype), name="t")
    strategy = embsim.TPUStrategy(replicas)
    with strategy.scope():
        embedding = TPUEmbedding(
            FeatureConfig(table), optimizer or embsim.SGD(1.0), schedule=schedule, **options
        )
    return strategy, embedding, table


def train(embedding: TPUEmbedding, samples: int = 1) -> float:
    """One step with gradient 1 on row 2; returns what the lookup read."""
    embedding.enqueue(np.full(samples, 2))
    read = float(embedding.dequeue()[0, 0])
    embedding.apply_gradients(np.ones((samples, 1), np.float32))
    return read


READS = {
    embsim.sequential(): [0, -1, -2, -3, -4],
    embsim.tpu_embedding_pipelined(): [0, 0, -1, -2, -3],
    embsim.sparsecore_loop(2): [0, 0, -2, -2, -4],
    embsim.sparsecore_loop(1): [0, -1, -2, -3, -4],
    embsim.semi_sync(3): [0, -1, -2, -2, -3],
    embsim.stale(3): [0, 0, 0, 0, -1],
}


@pytest.mark.parametrize("schedule", READS, ids=str)
def test_unit_gradients_show_which_version_each_step_reads(schedule: embsim.Schedule) -> None:
    _, embedding, table = make(schedule=schedule)
    assert [train(embedding) for _ in range(5)] == READS[schedule]
    assert embedding.embedding_tables[table][2, 0] == -5


@pytest.mark.parametrize("schedule", READS, ids=str)
def test_enqueueing_far_ahead_gives_the_same_numbers(schedule: embsim.Schedule) -> None:
    _, embedding, _ = make(schedule=schedule)
    for _ in range(5):
        embedding.enqueue(np.array([2]))
    read = []
    for _ in range(5):
        read.append(float(embedding.dequeue()[0, 0]))
        embedding.apply_gradients(np.ones((1, 1), np.float32))
    assert read == READS[schedule]


def test_looks_between_any_two_steps_change_no_later_bit(tmp_path) -> None:
    def program(look: bool) -> tuple[list[bytes], bytes]:
        _, embedding, table = make(schedule=embsim.stale(2), optimizer=embsim.Adam(0.1))
        rng = np.random.default_rng(0)
        seen = []
        for step in range(8):
            ids, gradient = rng.integers(0, 4, 3), rng.normal(size=(3, 1)).astype(np.float32)
            if look:
                _ = embedding.embedding_tables[table].sum()
                embedding.enqueue(ids, training=False)
                embedding.dequeue()
                embedding.save(tmp_path / str(step))
                embedding.snapshot()
            embedding.enqueue(ids)
            seen.append(embedding.dequeue().tobytes())
            embedding.apply_gradients(gradient)
        return seen, embedding.embedding_tables[table].tobytes()

    assert program(look=True) == program(look=False)


def test_an_inference_lookup_sees_every_submitted_update() -> None:
    _, embedding, table = make(schedule=embsim.stale(3))
    for step in range(4):
        train(embedding)
        embedding.enqueue(np.array([2]), training=False)
        assert embedding.dequeue()[0, 0] == -(step + 1)
        assert embedding.embedding_tables[table][2, 0] == -(step + 1)
        assert embedding.snapshot().step == step + 1


def test_drain_makes_updates_visible_and_moves_start() -> None:
    _, embedding, _ = make(schedule=embsim.stale(2))
    reads = [train(embedding) for _ in range(3)]
    embedding.drain()
    reads += [train(embedding) for _ in range(4)]
    assert reads == [0, 0, 0, -3, -3, -3, -4]


def test_tables_are_views_while_nothing_is_pending_and_read_only_always() -> None:
    _, embedding, table = make()
    view = embedding.embedding_tables[table]
    copy = embedding.snapshot().embedding_tables[table]
    train(embedding)
    assert view[2, 0] == -1
    assert copy[2, 0] == 0
    embedding.enqueue(np.array([2]))
    for array in (view, copy, embedding.dequeue()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_abandoned_steps_return_the_activations_that_they_returned() -> None:
    _, embedding, _ = make(schedule=embsim.stale(1))
    train(embedding)
    train(embedding)
    for _ in range(2):
        embedding.enqueue(np.array([2]))
    first, second = embedding.dequeue(), None
    with pytest.raises(embsim.DeadlockError):
        _ = embedding.embedding_tables
    second = embedding.dequeue()
    assert (first[0, 0], second[0, 0]) == (-1, -2)
    assert embedding.abandon() == 2
    assert embedding.abandon() == 0
    assert next(iter(embedding.embedding_tables.values()))[2, 0] == -2
    assert embedding.dequeue() is first
    assert embedding.dequeue() is second
    for _ in range(2):
        embedding.apply_gradients(np.ones((1, 1), np.float32))
    assert train(embedding) == -3


def test_an_abandoned_step_is_looked_up_anew_after_a_drain() -> None:
    _, embedding, _ = make(schedule=embsim.stale(1))
    train(embedding)
    embedding.enqueue(np.array([2]))
    assert embedding.dequeue()[0, 0] == 0
    embedding.abandon()
    embedding.drain()
    assert embedding.dequeue()[0, 0] == -1


def test_the_callers_memory_is_never_kept() -> None:
    """Ids and gradients may be overwritten as soon as the call has returned."""
    _, embedding, table = make(schedule=embsim.stale(1))
    ids, gradient = np.array([2], np.int32), np.ones((1, 1), np.float32)
    embedding.enqueue(ids)
    ids[:] = 0
    embedding.dequeue()
    embedding.apply_gradients(gradient)
    gradient[:] = 100
    assert embedding.embedding_tables[table][:, 0].tolist() == [0, 0, -1, 0]


def test_replicas_sum_their_gradients_and_get_their_own_part() -> None:
    strategy, embedding, table = make(replicas=2, schedule=embsim.stale(1))

    def body(ids: np.ndarray) -> np.ndarray:
        embedding.enqueue(ids)
        activations = embedding.dequeue()
        embedding.apply_gradients(np.ones_like(activations))
        return activations

    parts = embsim.PerReplica((np.array([2, 1]), np.array([2, 3])))
    for _ in range(3):
        result = strategy.run(body, args=(parts,))
    assert [part[:, 0].tolist() for part in result.values] == [[-2, -1], [-2, -1]]
    assert embedding.embedding_tables[table][:, 0].tolist() == [0, -3, -6, -3]


def test_a_missing_gradient_on_one_replica_is_zeros_there() -> None:
    strategy, embedding, table = make(replicas=2)
    embedding.enqueue(embsim.PerReplica((np.array([1]), np.array([2]))))

    def body() -> None:
        embedding.dequeue()
        first = embsim.get_replica_context().replica_id_in_sync_group == 0
        embedding.apply_gradients(np.ones((1, 1), np.float32) if first else None)

    strategy.run(body)
    assert embedding.embedding_tables[table][:, 0].tolist() == [0, -1, 0, 0]


@pytest.mark.parametrize(
    "schedule", [embsim.sequential(), embsim.stale(1), embsim.stale(2)], ids=str
)
@pytest.mark.parametrize("late", [False, True], ids=["first step fails", "third step fails"])
def test_an_exception_in_a_replica_undoes_the_run(schedule: embsim.Schedule, late: bool) -> None:
    strategy, embedding, table = make(replicas=2, schedule=schedule)
    _, other, other_table = make(replicas=2, schedule=schedule)

    def body(ids: np.ndarray, fails: bool) -> np.ndarray:
        embedding.enqueue(ids)
        activations = embedding.dequeue()
        embedding.apply_gradients(np.ones_like(activations))
        if fails and embsim.get_replica_context().replica_id_in_sync_group == 1:
            raise KeyError("a bug of the model")
        return activations

    ids = embsim.PerReplica((np.array([2]), np.array([2])))
    reads = []
    for step in range(5):
        if step == (2 if late else 0):
            with pytest.raises(KeyError, match="a bug of the model"):
                strategy.run(body, args=(ids, True))
        reads.append(strategy.run(body, args=(ids, False)).values[0][0, 0])
    assert reads == [train(other, 2) for _ in range(5)]
    np.testing.assert_array_equal(
        embedding.embedding_tables[table], other.embedding_tables[other_table]
    )


def test_a_failed_first_run_leaves_the_batch_size_open() -> None:
    strategy, embedding, _ = make(replicas=1)

    def body(samples: int) -> None:
        embedding.enqueue(np.zeros(samples, np.int32))
        raise KeyError("stop")

    with pytest.raises(KeyError):
        strategy.run(body, args=(3,))
    embedding.enqueue(np.zeros(5, np.int32))


def test_several_steps_in_one_run_equal_several_runs() -> None:
    strategy, embedding, table = make(replicas=2)
    other_strategy, other, other_table = make(replicas=2)
    ids = embsim.PerReplica((np.array([2]), np.array([1])))

    def body(which: TPUEmbedding, steps: int, ids: np.ndarray) -> float:
        for _ in range(steps):
            which.enqueue(ids)
            activations = which.dequeue()
            which.apply_gradients(activations + 1)
        return float(activations[0, 0])

    once = strategy.run(body, args=(embedding, 3, ids))
    for _ in range(3):
        last = other_strategy.run(body, args=(other, 1, ids))
    assert once.values == last.values
    np.testing.assert_array_equal(
        embedding.embedding_tables[table], other.embedding_tables[other_table]
    )


def test_parts_enqueued_by_device_make_one_batch() -> None:
    _, embedding, _ = make(replicas=2)
    embedding.enqueue(np.array([1]), device="/job:worker/TPU:1")
    with pytest.raises(embsim.DeadlockError), pytest.MonkeyPatch.context():
        embedding.build(1)
        embedding.dequeue()
    with pytest.raises(ValueError, match=r"'TPU:1' already has its part.*\[0\]"):
        embedding.enqueue(np.array([1]), device="TPU:1")
    with pytest.raises(ValueError, match=r"'TPU:2'; it must name one of the 2 replicas"):
        embedding.enqueue(np.array([1]), device="TPU:2")
    embedding.enqueue(np.array([3]), device="TPU:0")
    assert embedding.dequeue().shape == (2, 1)


def test_a_loader_thread_waits_for_room_and_loses_nothing() -> None:
    _, embedding, table = make(queue_capacity=2, schedule=embsim.stale(1))
    steps = 200

    def load() -> None:
        for _ in range(steps):
            embedding.enqueue(np.array([2]), blocking=True, timeout=30)

    loader = threading.Thread(target=load)
    loader.start()
    done = 0
    while done < steps:
        try:
            embedding.dequeue()
        except (embsim.DeadlockError, RuntimeError):
            time.sleep(0.0005)
            continue
        embedding.apply_gradients(np.ones((1, 1), np.float32))
        done += 1
    loader.join()
    assert embedding.embedding_tables[table][2, 0] == -steps


def test_close_warns_of_lost_work_unless_an_error_is_on_its_way() -> None:
    _, embedding, _ = make(schedule=embsim.stale(1))
    train(embedding)
    with pytest.warns(UserWarning, match="1 updates not yet applied"):
        embedding.close()
    _, embedding, _ = make()
    embedding.enqueue(np.array([2]))
    with pytest.raises(KeyError):
        try:
            raise KeyError("on its way")
        finally:
            embedding.close()
    _, embedding, _ = make()
    train(embedding)
    embedding.close()


def test_a_restored_run_goes_on_bit_for_bit(tmp_path) -> None:
    def data(rng: np.random.Generator):
        return rng.integers(0, 4, 3), rng.normal(size=(3, 1)).astype(np.float32)

    def run(embedding: TPUEmbedding, rng: np.random.Generator, steps: int) -> list[bytes]:
        seen = []
        for _ in range(steps):
            ids, gradient = data(rng)
            embedding.enqueue(ids)
            seen.append(embedding.dequeue().tobytes())
            embedding.apply_gradients(gradient)
        return seen

    options = {"schedule": embsim.stale(2), "optimizer": embsim.FTRL(lambda t: 0.1 / (t + 1))}
    _, whole, table = make(**options)
    rng = np.random.default_rng(1)
    run(whole, rng, 5)
    whole.save(tmp_path)
    expected = run(whole, rng, 5)
    _, resumed, resumed_table = make(**options)
    resumed.restore(tmp_path)
    rng = np.random.default_rng(1)
    for _ in range(5):
        data(rng)
    assert run(resumed, rng, 5) == expected
    np.testing.assert_array_equal(
        resumed.embedding_tables[resumed_table], whole.embedding_tables[table]
    )


def test_a_checkpoint_under_another_schedule_goes_on_as_after_a_drain(tmp_path) -> None:
    _, saved, _ = make(schedule=embsim.stale(2))
    for _ in range(3):
        train(saved)
    saved.save(tmp_path)
    for schedule in (embsim.sequential(), embsim.stale(1), embsim.stale(5)):
        _, resumed, _ = make(schedule=schedule)
        resumed.restore(tmp_path)
        assert train(resumed) == -3


def test_engine_works_without_a_strategy() -> None:
    table = TableConfig(4, 2, initializer=lambda shape, dtype: np.ones(shape, dtype))
    engine = Engine([FeatureConfig(table), FeatureConfig(table)], embsim.SGD(1.0))
    engine.enqueue(engine.make_batch([np.array([0, 1]), [[2, 3], []]]))
    first, second = engine.dequeue()
    assert first.tolist() == [[1, 1], [1, 1]]
    assert second.tolist() == [[1, 1], [0, 0]]
    engine.apply_gradients([first, second])
    assert engine.read().weights["table_0"].tolist() == [[0, 0], [0, 0], [0.5, 0.5], [0.5, 0.5]]
    assert engine.progress.submitted == 1


def test_a_failed_run_keeps_what_a_loader_enqueued_meanwhile() -> None:
    strategy, embedding, _ = make(replicas=2)
    embedding.enqueue(np.array([1, 1]))

    def body() -> None:
        if embsim.get_replica_context().replica_id_in_sync_group == 0:
            loader = threading.Thread(target=embedding.enqueue, args=(np.array([3, 3]),))
            loader.start()
            loader.join()
        embedding.dequeue()
        embedding.apply_gradients(np.ones((1, 1), np.float32))
        embedding.dequeue()
        raise KeyError("a bug of the model")

    with pytest.raises(KeyError):
        strategy.run(body)
    rows = [entry.plans["t"].row.tolist() for entry in embedding._engine._queue.queued]
    assert rows == [[1, 1], [3, 3]]


def test_after_a_lost_step_discard_makes_room_for_a_restore(tmp_path) -> None:
    _, embedding, table = make()
    train(embedding)
    embedding.save(tmp_path)
    train(embedding)
    for _ in range(2):
        embedding.enqueue(np.array([2]))
    embedding.dequeue()
    assert embedding.abandon() == 1
    assert embedding.discard() == 2
    embedding.restore(tmp_path)
    assert embedding.embedding_tables[table][2, 0] == -1
    assert train(embedding) == -1


def test_a_save_that_fails_drains_nothing(tmp_path) -> None:
    _, embedding, _ = make(schedule=embsim.stale(1))
    train(embedding)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        embedding.save(tmp_path / "file", drain=True)
    assert train(embedding) == 0
    embedding.save(tmp_path / "good", drain=True)
    assert train(embedding) == -2


def test_parts_by_device_are_never_dropped_silently() -> None:
    _, embedding, _ = make(replicas=2)
    embedding.enqueue(np.array([1]), device="TPU:0")
    with pytest.raises(ValueError, match=r"replicas \[0\] have enqueued their part .*\[1\] first"):
        embedding.enqueue(np.array([1, 1]))
    with pytest.raises(ValueError, match="training is False for 'TPU:1' and True for the parts"):
        embedding.enqueue(np.array([1]), device="TPU:1", training=False)
    embedding.discard()
    embedding.enqueue(np.array([1, 1]))


def test_discarding_abandoned_steps_counts_as_a_drain() -> None:
    """Their lookups brought the tables to a version; later steps must not claim an older one."""
    _, embedding, _ = make(schedule=embsim.stale(1))
    for _ in range(2):
        embedding.enqueue(np.array([2]))
    embedding.dequeue()
    embedding.dequeue()
    embedding.apply_gradients(np.ones((1, 1), np.float32))
    embedding.abandon()
    assert embedding.discard() == 1
    assert embedding._engine.progress.start == 1
    assert [train(embedding) for _ in range(3)] == [-1, -1, -2]


def test_a_batch_of_other_tables_is_refused() -> None:
    small = Engine([FeatureConfig(TableConfig(3, 1))], embsim.SGD())
    large = Engine([FeatureConfig(TableConfig(9, 1))], embsim.SGD())
    with pytest.raises(ValueError, match=r"tables of \(9,\) rows by feature.*have \(3,\)"):
        small.enqueue(large.make_batch([[8]]))
    with pytest.raises(ValueError, match="found 2 features"):
        small.make_batch([[1], [2]])


def test_the_configurations_containers_may_be_changed_afterwards() -> None:
    table = TableConfig(3, 1)
    config = {"a": FeatureConfig(table), "b": FeatureConfig(table)}
    with embsim.TPUStrategy(1).scope():
        embedding = TPUEmbedding(config, embsim.SGD())
    del config["b"]
    embedding.enqueue({"a": [0], "b": [1]})
    assert sorted(embedding.dequeue()) == ["a", "b"]


def test_calls_between_runs_are_refused_while_another_thread_runs() -> None:
    strategy, embedding, _ = make()
    errors = []

    def outside() -> None:
        save = lambda: embedding.save("never written")  # noqa: E731
        for call in (embedding.drain, embedding.abandon, embedding.discard, save):
            try:
                call()
            except RuntimeError as error:
                errors.append(str(error))

    def body() -> None:
        thread = threading.Thread(target=outside)
        thread.start()
        thread.join()

    strategy.run(body)
    assert len(errors) == 4
    assert all("a strategy.run is in progress" in error for error in errors)


def test_coefficients_go_by_name_whatever_their_order() -> None:
    class Own:
        slots = ()

        def __init__(self, learning_rate):
            self.learning_rate = learning_rate

        def coefficients(self, learning_rate):
            if learning_rate == 0.125:
                return {"lr": learning_rate}
            pair = {"lr": learning_rate, "k": 4.0}
            return pair if learning_rate >= 1 else dict(reversed(pair.items()))

        def rule(self, ops):
            return lambda w, g, slots, c: (w - c.lr * g * c.k / c.k, slots)

    _, embedding, table = make(optimizer=Own(lambda t: [1.0, 0.25, 0.125][t]))
    train(embedding)
    train(embedding)
    assert embedding.embedding_tables[table][2, 0] == -1.25
    with pytest.raises(ValueError, match=r"coefficients \['lr'\] at rate 0.125, \['k', 'lr'\]"):
        train(embedding)
    assert embedding.abandon() == 1
    assert embedding.embedding_tables[table][2, 0] == -1.25


def test_a_saved_embedding_closes_without_a_warning(tmp_path) -> None:
    _, embedding, _ = make(schedule=embsim.stale(1))
    train(embedding)
    embedding.save(tmp_path)
    embedding.close()
    _, resumed, _ = make(schedule=embsim.stale(1))
    resumed.restore(tmp_path)
    resumed.close()


def test_of_two_first_batches_one_fixes_the_batch_size() -> None:
    for _ in range(20):
        _, embedding, _ = make()
        refused = []

        def load(samples: int, embedding=embedding, refused=refused) -> None:
            try:
                embedding.enqueue(np.zeros(samples, np.int32))
            except ValueError as error:
                refused.append(error)

        loaders = [threading.Thread(target=load, args=(samples,)) for samples in (1, 2)]
        for loader in loaders:
            loader.start()
        for loader in loaders:
            loader.join()
        assert len(refused) == 1
        assert len(embedding._engine._queue.queued) == 1
