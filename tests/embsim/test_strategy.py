"""Strategies: scopes, runs, collectives, transactions, reductions."""

import contextvars
import random
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embsim.datasets import PerReplica
from embsim.errors import DeadlockError
from embsim.strategy import (
    ReduceOp,
    TPUStrategy,
    all_reduce,
    current_strategy,
    get_replica_context,
    refuse_tracing,
)


class Log:
    """A participant that writes down what it is told."""

    def __init__(self, calls=None, fail=False):
        self.calls = [] if calls is None else calls
        self.fail = fail

    def begin_run(self):
        if self.fail:
            raise OSError("cannot begin")
        self.calls.append("begin")

    def commit_run(self):
        self.calls.append("commit")

    def rollback_run(self):
        self.calls.append("rollback")


def replica_id():
    context = get_replica_context()
    assert context is not None
    return context.replica_id_in_sync_group


def meet(name, value=None, combine=lambda values: values):
    context = get_replica_context()
    assert context is not None
    return context.collective(name, value, combine)


def test_number_of_replicas_is_an_int_of_at_least_one():
    assert TPUStrategy().num_replicas_in_sync == 1
    assert TPUStrategy(4).num_replicas_in_sync == 4
    assert TPUStrategy(num_replicas=np.int64(2)).num_replicas_in_sync == 2
    assert TPUStrategy().embedding is None
    for wrong in (0, -1, True, 2.0, "2", None):
        with pytest.raises(ValueError, match=f"num_replicas is {wrong!r}; it must be an int >= 1"):
            TPUStrategy(wrong)


def test_scopes_nest_and_belong_to_a_thread():
    one, two = TPUStrategy(), TPUStrategy()
    seen = []
    scope = one.scope()
    with scope as entered, scope, two.scope():
        assert entered is one and current_strategy() is two
        thread = threading.Thread(target=lambda: seen.append(current_strategy()))
        thread.start()
        thread.join()
    assert seen == [None] and current_strategy() is None
    with pytest.raises(OSError), scope:
        raise OSError
    assert current_strategy() is None


@pytest.mark.parametrize("count", [1, 2, 4])
def test_run_hands_out_and_merges_per_replica_leaves(count):
    strategy = TPUStrategy(count)
    numbers = PerReplica(tuple(range(count))) if count > 1 else 0
    shared = np.ones(2)

    def fn(batch, other, *, scale):
        context = get_replica_context()
        assert context is not None and context.strategy is strategy is current_strategy()
        assert context.num_replicas_in_sync == count and other is shared
        assert batch["x"][0] == context.replica_id_in_sync_group
        return {"y": [batch["x"][0] * scale]}, None

    result, nothing = strategy.run(fn, args=({"x": [numbers]}, shared), kwargs={"scale": 10})
    assert nothing is None
    expected = tuple(10 * i for i in range(count))
    assert (result["y"][0].values if count > 1 else (result["y"][0],)) == expected
    assert strategy.experimental_local_results(result) == tuple({"y": [i]} for i in expected)
    assert strategy.experimental_local_results(3) == (3,)
    assert get_replica_context() is None and current_strategy() is None


@pytest.mark.parametrize("count", [1, 2])
def test_replicas_have_a_copy_of_the_callers_context(count):
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(1)

    def fn():
        seen = variable.get()
        variable.set(5 + replica_id())
        with pytest.raises(FloatingPointError):
            np.float32(1) / np.float32(0)
        in_combine = meet("x", None, lambda values: [variable.get()] * len(values))
        return seen, in_combine

    with np.errstate(divide="raise"):
        seen = TPUStrategy(count).run(fn)
    assert TPUStrategy(count).experimental_local_results(seen) == ((1, 1),) * count
    assert variable.get() == 1


def test_misuse_of_run():
    strategy = TPUStrategy(2)
    with pytest.raises(TypeError, match=r"args is a ndarray; it must be a tuple: args=\(x,\)"):
        strategy.run(lambda x: x, args=np.ones(2))
    with pytest.raises(ValueError, match="found 3 values under 2 replicas"):
        strategy.run(lambda x: x, args=(PerReplica((1, 2, 3)),))
    for outer in (TPUStrategy(1), strategy):
        with pytest.raises(RuntimeError, match="inside a replica; runs cannot be nested"):
            outer.run(lambda: TPUStrategy(1).run(lambda: 0))
    errors = []

    def fn():
        if replica_id() == 0:
            for call in (lambda: strategy.run(lambda: 0), lambda: strategy.add_participant(Log())):
                thread = threading.Thread(target=lambda call=call: _catch(call, errors))
                thread.start()
                thread.join()

    strategy.run(fn)
    assert len(errors) == 2 and all("this strategy is in a run" in str(error) for error in errors)
    assert strategy.run(lambda: 7).values == (7, 7)


def _catch(call, errors):
    try:
        call()
    except RuntimeError as error:
        errors.append(error)


def test_engine_calls_are_refused_under_tracing():
    strategy = TPUStrategy(1)
    refuse_tracing("dequeue")
    with pytest.raises(RuntimeError, match=r"strategy\.run: called while JAX traces a function"):
        jax.jit(lambda x: strategy.run(lambda: x))(1.0)
    for transform in (jax.jit, jax.grad):
        with pytest.raises(RuntimeError, match="all_reduce: called while JAX traces"):
            strategy.run(lambda t=transform: t(all_reduce)(1.0))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_all_reduce_of_structures(count):
    total, largest = sum(range(count)), count - 1

    def fn():
        i = replica_id()
        value = {"a": [np.full(2, i, np.float32)], "b": jnp.float32(i), "c": (i, None)}
        return (
            all_reduce(value),
            all_reduce(value, "MEAN"),
            strategy.all_reduce(value, ReduceOp.MAX),
        )

    strategy = TPUStrategy(count)
    for results in strategy.experimental_local_results(strategy.run(fn)):
        for result, expected in zip(results, (total, total / count, largest), strict=True):
            assert result["a"][0].tolist() == [expected] * 2
            assert result["a"][0].dtype == np.float32 and isinstance(result["b"], jax.Array)
            assert result["b"] == expected and result["c"] == (expected, None)


def test_all_reduce_adds_left_to_right_and_gives_each_replica_its_own_array():
    values = tuple(np.array([x], np.float32) for x in (1e8, 1.0, -1e8, 1.0))

    def fn(value):
        context = get_replica_context()
        assert context is not None
        result = context.all_reduce("sum", value)
        meet("all have it")
        result += replica_id()
        return result

    results = TPUStrategy(4).run(fn, args=(PerReplica(values),))
    assert [float(result[0]) for result in results.values] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("values", "op", "error", "message"),
    [
        ((np.ones(2), np.ones(1)), "sum", ValueError, r"shapes are \(2,\), \(1,\)"),
        ((np.ones(2), None), "sum", ValueError, r"shapes are \(2,\), None"),
        (({"a": 1}, {"b": 1}), "sum", ValueError, "'a' in replica 0 and a dict with the keys 'b'"),
        ((True, False), "mean", TypeError, "values are bool"),
        ((1, 2), "median", ValueError, "op is 'median'; it must be one of 'sum', 'mean', 'max'"),
    ],
)
def test_all_reduce_errors(values, op, error, message):
    with pytest.raises(error, match=message):
        TPUStrategy(2).run(lambda value: all_reduce(value, op), args=(PerReplica(values),))


def test_collectives_belong_to_their_replica():
    with pytest.raises(RuntimeError, match=r"all_reduce: called outside of strategy\.run"):
        all_reduce(1.0)
    one, two = TPUStrategy(2), TPUStrategy(2)
    with pytest.raises(RuntimeError, match=r"outside of strategy\.run"):
        one.all_reduce(1.0)
    with pytest.raises(RuntimeError, match="in a replica of another strategy"):
        one.run(lambda: two.all_reduce(1.0))
    context = one.run(get_replica_context)[0]
    with pytest.raises(RuntimeError, match="dequeue: called outside the replica's own thread"):
        context.collective("dequeue", None, list)
    with pytest.raises(RuntimeError, match=r"outside of strategy\.run"):  # combine is no replica
        one.run(lambda: meet("x", 1, lambda values: [all_reduce(v) for v in values]))


def test_combine_runs_once_in_replica_order():
    runs = []

    def combine(values):
        runs.append(values)
        return [value * 10 for value in values]

    def fn():
        time.sleep(0.01 * (3 - replica_id()))  # the last replica comes first
        return meet("lookup", replica_id(), combine)

    result = TPUStrategy(4).run(fn)
    assert result.values == (0, 10, 20, 30) and runs == [[0, 1, 2, 3]]


class TwoArgumentsError(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


@pytest.mark.parametrize("error", [ValueError("bad batch"), TwoArgumentsError(1, 2)])
def test_what_combine_raises_is_raised_in_all_replicas(error):
    seen = {}

    def combine(_):
        raise error

    def fn(caught):
        try:
            meet("enqueue", None, combine)
        except type(error) as raised:
            seen[replica_id()] = raised
            if not caught:
                raise
        return all_reduce(1)

    strategy = TPUStrategy(2)
    assert strategy.run(fn, args=(True,)).values == (2, 2)  # the run goes on if all catch it
    assert set(seen) == {0, 1} and {str(raised) for raised in seen.values()} == {str(error)}
    assert seen[0] is error
    assert (seen[1] is error) == (type(error) is TwoArgumentsError)  # which cannot be copied
    with pytest.raises(type(error), match=str(error)):
        strategy.run(fn, args=(False,))


def test_different_calls_are_a_deadlock_in_all_replicas():
    seen = set()

    def fn():
        i = replica_id()
        try:
            meet("dequeue") if i == 0 else all_reduce(1.0)
        except DeadlockError:
            seen.add(i)
            raise

    log = Log()
    strategy = TPUStrategy(2)
    strategy.add_participant(log)
    message = (
        r"^strategy.run: replica 0 calls dequeue\(\) while replica 1 calls all_reduce\('sum'\); "
        "all replicas must make the same engine calls in the same order$"
    )
    with pytest.raises(DeadlockError, match=message):
        strategy.run(fn)
    assert seen == {0, 1} and log.calls == ["begin", "rollback"]


@pytest.mark.parametrize("swallow", [False, True])
def test_a_replica_that_returns_while_others_wait_is_a_deadlock(swallow):
    def fn():
        if replica_id() == 2:
            return
        try:
            meet("apply_gradients()" if replica_id() else "dequeue()")
        except DeadlockError:
            if not swallow:
                raise
            meet("again")

    message = (
        r"replica 0 calls dequeue\(\) while replicas 1, 3 call apply_gradients\(\) "
        "while replica 2 has returned; all"
    )
    with pytest.raises(DeadlockError, match=message):
        TPUStrategy(4).run(fn)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("late", [False, True])
def test_an_exception_in_a_replica_undoes_the_run_and_comes_out_as_it_is(count, late):
    original = KeyError("mine")
    cleaned = []

    def fn():
        i = replica_id()
        try:
            meet("dequeue")
            if i == count - 1:
                time.sleep(0.01 * late)
                raise original
            meet("apply_gradients")
        finally:
            cleaned.append(i)
            if i == 0 and count > 1:
                raise ZeroDivisionError("raised while the abort passes: not the cause")

    calls: list[str] = []
    strategy = TPUStrategy(count)
    strategy.add_participant(Log(calls))
    strategy.add_participant(Log(calls))
    with pytest.raises(KeyError) as caught:
        strategy.run(fn)
    assert caught.value is original and sorted(cleaned) == list(range(count))
    assert calls == ["begin"] * 2 + ["rollback"] * 2
    assert threading.active_count() == len(threading.enumerate())
    assert not [t for t in threading.enumerate() if t.name.startswith("replica-")]
    strategy.run(lambda: meet("dequeue"))
    assert calls[4:] == ["begin"] * 2 + ["commit"] * 2


def test_the_exception_of_the_lowest_replica_wins():
    def fn():
        time.sleep(0.02 * (3 - replica_id()))
        if replica_id():
            raise ValueError(f"from replica {replica_id()}")
        meet("dequeue")

    with pytest.raises(ValueError, match="from replica 1"):
        TPUStrategy(4).run(fn)


def test_participants_come_and_go():
    calls: list[str] = []
    strategy = TPUStrategy(2)
    failing, log = Log(calls, fail=True), Log(calls)
    strategy.add_participant(log)
    strategy.add_participant(failing)
    started = []
    with pytest.raises(OSError, match="cannot begin"):
        strategy.run(lambda: started.append(1))
    assert calls == ["begin", "rollback"] and not started
    strategy.remove_participant(failing)
    strategy.remove_participant(log)
    strategy.run(lambda: 0)
    assert calls == ["begin", "rollback"]


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals")
def test_ctrl_c_stops_the_replicas_at_their_next_call_and_undoes_the_run():
    log = Log()
    strategy = TPUStrategy(2)
    strategy.add_participant(log)
    main = threading.main_thread().ident
    assert main is not None

    def fn():
        for step in range(100_000):
            meet("dequeue")
            if step == 3 and replica_id() == 0:
                signal.pthread_kill(main, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        strategy.run(fn)
    assert log.calls == ["begin", "rollback"]
    assert not [t for t in threading.enumerate() if t.name.startswith("replica-")]
    assert strategy.run(lambda: all_reduce(1)).values == (2, 2)


def test_300_runs_with_random_sleeps_give_one_result_each_and_never_hang():
    strategy = TPUStrategy(4)

    def fn(seed, fault):
        delays = random.Random(100 * seed + replica_id())
        total = 0
        for step in range(3):
            if delays.random() < 0.3:
                time.sleep(delays.random() * 1e-3)
            if fault == "raise" and step == seed % 3 and replica_id() == seed % 4:
                raise ValueError(f"run {seed}")
            if fault == "return" and step == seed % 3 and replica_id() == seed % 4:
                return None
            total = all_reduce(np.float32(total + replica_id()))
        return total

    for seed in range(300):
        fault = ("none", "none", "raise", "return")[seed % 4]
        if fault == "none":
            assert strategy.run(fn, args=(seed, fault)).values == (126.0,) * 4
        else:
            error = ValueError if fault == "raise" else DeadlockError
            with pytest.raises(error, match=f"run {seed}|replica {seed % 4} has returned"):
                strategy.run(fn, args=(seed, fault))


def test_reduce_across_replicas_and_along_an_axis():
    strategy = TPUStrategy(2)
    value = PerReplica((np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])))
    assert strategy.reduce("SUM", value, axis=None).tolist() == [5.0, 7.0, 9.0]
    assert strategy.reduce(ReduceOp.MEAN, value).tolist() == [2.5, 3.5, 4.5]
    assert strategy.reduce("max", value).tolist() == [4.0, 5.0, 6.0]
    assert strategy.reduce("min", value).tolist() == [1.0, 2.0, 3.0]
    assert strategy.reduce("sum", value, axis=0) == 21.0
    assert strategy.reduce("min", value, axis=-1) == 1.0
    uneven = PerReplica((np.ones((3, 2)), np.full((1, 2), 5.0)))
    assert strategy.reduce("mean", uneven, axis=0).tolist() == [2.0, 2.0]
    assert strategy.reduce("mean", uneven, axis=(0, 1)) == 2.0
    nested = {"loss": PerReplica((1, 2)), "jax": (PerReplica((jnp.ones(2), jnp.ones(2))),)}
    reduced = strategy.reduce("mean", nested)
    assert reduced["loss"] == 1.5 and isinstance(reduced["jax"][0], jax.Array)
    nan = strategy.reduce("max", PerReplica((np.float32("nan"), np.float32(1))))
    assert np.isnan(nan)


def test_reduce_of_plain_values():
    assert TPUStrategy(1).reduce("sum", 3.0) == 3.0
    assert TPUStrategy(1).reduce("mean", np.array([1.0, 3.0]), axis=0) == 2.0
    assert TPUStrategy(4).reduce("mean", np.array([1.0, 3.0]), axis=0) == 2.0
    assert TPUStrategy(4).reduce("max", 3) == 3
    with pytest.raises(ValueError, match="sum of a plain float over 4 replicas; pass the Per"):
        TPUStrategy(4).reduce("sum", 3.0)
    with pytest.raises(ValueError, match="op is 'product'; it must be one of 'sum'"):
        TPUStrategy(1).reduce("product", 3.0)
