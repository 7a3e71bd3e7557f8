"""A training run that is stopped, and goes on as if never stopped; what is refused.

Moves between meshes and backends are in test_moved_runs, what the files survive in test_orbax.
"""

import threading
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import embsim
from embsim.errors import CheckpointError
from embsim_tpu import Embedding, Example, TrainState, _orbax, train
from embsim_tpu.checkpoint import Checkpoints, from_embsim, to_embsim

F = np.float32
SAMPLES = 8
STALE = embsim.stale(2)
ADAM = optax.adam(0.01)


def features(rows=50, dim=4, users="users", rule=None):
    rule = rule or embsim.Adagrad(0.1)
    items = embsim.TableConfig(rows, dim, optimizer=rule, name="the.items/1", combiner="mean")
    user = embsim.TableConfig(9, 3, optimizer=embsim.Adam(0.1, lazy_adam=False), name=users)
    return {
        "seen": embsim.FeatureConfig(items, name="seen"),
        "order": embsim.FeatureConfig(items, max_sequence_length=2, name="order"),
        "user": embsim.FeatureConfig(user, name="user"),
    }


def batches(first, last):
    """Numbers whose sums depend on their order. The third has no ids of `user`."""
    for k in range(first, last):
        rng = np.random.default_rng(k)
        ids = {
            name: [list(rng.integers(0, rows, n)) for n in rng.integers(0, 5, SAMPLES)]
            for name, rows in (("seen", 50), ("order", 50), ("user", 0 if k == 2 else 9))
            if rows
        }
        ids.setdefault("user", [[] for _ in range(SAMPLES)])
        yield Example(ids, np.linspace(0, k, SAMPLES, dtype=F))


def dense_step(carry, activations, inputs):
    """`order` gets no gradient."""

    def loss(params, given):
        products = {name: jnp.tanh(x @ params[name]) for name, x in given.items()}
        return sum(jnp.mean(x**2) for x in products.values()) + jnp.mean(inputs)

    given = {name: activations[name] for name in ("seen", "user")}
    value, (grads, gradients) = jax.value_and_grad(loss, (0, 1))(carry["params"], given)
    updates, adam = ADAM.update(grads, carry["adam"], carry["params"])
    carry = {
        "params": optax.apply_updates(carry["params"], updates),
        "adam": adam,
        "key": jax.random.split(carry["key"])[0],
        "rate": carry["rate"] * 0.5,
        "nothing": carry["nothing"],
    }
    return carry, {**gradients, "order": None}, value


def first_carry(width=2):
    params = {name: jnp.full((n, width), 0.3) for name, n in (("seen", 4), ("user", 3))}
    return {
        "params": params,
        "adam": ADAM.init(params),
        "key": jax.random.key(3),
        "rate": 1.0,  # weakly typed, and so it must stay
        "nothing": (None, np.zeros((0, 3), F)),
    }


def mesh_of(devices):
    return None if devices == 0 else jax.sharding.Mesh(np.array(jax.devices()[:devices]), "x")


class Run:
    """Training from the beginning or from a state; `losses` of its steps."""

    def __init__(self, schedule=STALE, devices=0, **options):
        self.embedding = Embedding(features(**options), mesh=mesh_of(devices))
        self.schedule = schedule
        self.state = TrainState(self.embedding.init(), first_carry())
        self.losses = []

    def to(self, steps, **options):
        self.state = train(
            self.embedding,
            dense_step,
            batches(self.state.step, steps),
            self.state,
            schedule=self.schedule,
            on_step=lambda step, loss: self.losses.append(np.asarray(loss)),
            **options,
        )
        return self

    def checkpoints(self, path, **options):
        return Checkpoints(path, self.embedding, **options)

    @property
    def numbers(self):
        """All of tables, slots and carry."""
        found = self.embedding.get(self.state.tables)
        carry = {**self.state.carry, "key": jax.random.key_data(self.state.carry["key"])}
        return jax.tree.map(np.array, (dict(found.weights), dict(found.slots), carry))


def check_same(got, want):
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        same = one.dtype == other.dtype and one.tobytes() == other.tobytes()
        assert same, f"{jax.tree_util.keystr(path)}:\n{one}\nrequired:\n{other}"


@pytest.mark.parametrize(
    ("devices", "schedule"),
    [
        (0, embsim.sequential()),
        (0, embsim.stale(2)),
        (8, embsim.tpu_embedding_pipelined()),
        (8, embsim.stale(2)),
        (8, embsim.sparsecore_loop(5)),
    ],
    ids=str,
)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path, devices, schedule):
    whole = Run(schedule, devices).to(8)
    first = Run(schedule, devices)
    with first.checkpoints(tmp_path) as checkpoints:
        first.to(4, drain=False, pause_every=3, on_pause=lambda p: checkpoints.save(p.state))
    assert checkpoints.steps == [3, 4]
    second = Run(schedule, devices)
    second.state, _ = second.checkpoints(tmp_path).restore(first_carry())
    assert len(second.state.pending) == len(first.state.pending)
    second.to(8)
    assert [*first.losses, *second.losses] == whole.losses
    check_same(second.numbers, whole.numbers)
    types = [jax.tree.map(jax.typeof, run.state.carry) for run in (second, whole)]
    assert types[0] == types[1]


def test_the_carry_is_put_where_it_was_or_as_the_given_one(tmp_path):
    """On the same mesh as it was split; elsewhere as the given one if that is on the mesh."""
    run = Run(devices=8)
    split = jax.sharding.NamedSharding(mesh_of(8), jax.sharding.PartitionSpec("x"))
    carry = {"a": jax.device_put(np.arange(16, dtype=F), split)}
    run.state = replace(run.state, carry=carry)
    with run.checkpoints(tmp_path) as checkpoints:
        checkpoints.save(run.state)
    template = {"a": jax.ShapeDtypeStruct((16,), F)}
    again, _ = run.checkpoints(tmp_path).restore(template)
    assert again.carry["a"].sharding == split
    two = Run(devices=2)
    on_two, _ = two.checkpoints(tmp_path).restore(template)
    assert on_two.carry["a"].sharding == two.embedding.shards.replicated
    given = {"a": jax.device_put(np.zeros(16, F), two.embedding.shards.split)}
    as_given, _ = two.checkpoints(tmp_path).restore(given)
    assert as_given.carry["a"].sharding == given["a"].sharding
    for state in (again, on_two, as_given):
        assert (np.asarray(state.carry["a"]) == np.arange(16)).all()
    alone, _ = Run().checkpoints(tmp_path).restore(carry)  # on eight devices: not on this one
    assert alone.carry["a"].devices() == {jax.devices()[0]}


@pytest.fixture
def slow_disk(monkeypatch):
    """Saves do not end before it is set."""
    event, write = threading.Event(), _orbax.write_manifest

    def slow(*arguments):
        assert event.wait(60)
        write(*arguments)

    monkeypatch.setattr(_orbax, "write_manifest", slow)
    return event


@pytest.mark.parametrize("devices", [0, 8])
def test_training_goes_on_while_a_save_is_under_way(tmp_path, slow_disk, devices):
    """The steps donate the arrays that are being saved."""
    run = Run(devices=devices, rows=20_000).to(3, drain=False)
    required, pending = run.numbers, len(run.state.pending)
    with run.checkpoints(tmp_path) as checkpoints:
        checkpoints.save(run.state, {"position": 7})
        run.to(6)
        assert checkpoints.latest is None
        slow_disk.set()
        checkpoints.wait()
        assert checkpoints.latest == 3
    with pytest.raises(AssertionError, match="required"):
        check_same(run.numbers, required)
    again = Run(devices=devices, rows=20_000)
    again.state, extra = again.checkpoints(tmp_path).restore(first_carry())
    check_same(again.numbers, required)
    assert (extra, len(again.state.pending)) == ({"position": 7}, pending)


def test_a_save_that_fails_is_an_error_of_the_next_call_and_changes_nothing(tmp_path, monkeypatch):
    run = Run()
    with run.checkpoints(tmp_path) as checkpoints:
        checkpoints.save(run.state)
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(_orbax, "write_manifest", lambda *_: 1 / 0)
            checkpoints.save(run.to(1, drain=False).state)
            with pytest.raises(ZeroDivisionError):
                checkpoints.wait()
        assert checkpoints.latest == 0
        checkpoints.restore(first_carry())
        checkpoints.save(run.to(2, drain=False).state)
    assert checkpoints.steps == [0, 2]


def test_old_ones_are_removed(tmp_path):
    run = Run()
    for keep, required in ((2, [1, 2]), (None, [1, 2, 3, 4]), (1, [5])):
        with run.checkpoints(tmp_path, keep=keep, asynchronous=keep is not None) as checkpoints:
            for _ in range(3 if keep == 2 else 2 if keep is None else 1):
                checkpoints.save(replace(run.state, step=run.state.step, version=run.state.step))
                step = run.state.step + 1
                run.state = replace(run.state, step=step, version=step, start=step)
        assert checkpoints.steps == required


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 51}, r"'the.items/1' has .* \(50, 4\) in the checkpoint and \(51, 4\)"),
        ({"dim": 5}, r"'the.items/1' has .* \(50, 4\) in the checkpoint and \(50, 5\)"),
        ({"users": "people"}, r"\['the.items/1', 'users'\], the embedding has \['people', 'the.it"),
        ({"rule": embsim.SGD(0.1)}, r"slot variables {'accumulators': 4} .* SGD needs {}"),
        ({"rule": embsim.RowwiseAdagrad(0.1)}, r"{'accumulators': 4} .* {'accumulators': 1}"),
        ({"rule": embsim.Adagrad(0.1, clipvalue=1.0)}, r"pending for table 'the.items/1' are of"),
    ],
)
def test_another_model_is_refused(tmp_path, options, message):
    run = Run().to(3, drain=False)
    with run.checkpoints(tmp_path / "orbax") as checkpoints:
        checkpoints.save(run.state)
    to_embsim(tmp_path / "embsim", run.embedding, run.state)
    other = Run(**options)
    with pytest.raises(CheckpointError, match=message):
        other.checkpoints(tmp_path / "orbax").restore(first_carry())
    with pytest.raises(CheckpointError, match=message):
        from_embsim(tmp_path / "embsim", other.embedding)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda carry: first_carry(width=3), r"32 \[4, 2\] at \['adam'\].*\['seen'\] .* \[4, 3\]"),
        (lambda carry: {**carry, "rate": 1}, r"float32 \[\] at \['rate'\] .* int32 \[\]"),
        (lambda carry: {**carry, "key": None}, r"key<fry> \[\] at \['key'\] .* and nothing"),
        (lambda carry: {**carry, "more": 1.0}, r"nothing at \['more'\] .* float32 \[\]"),
        (lambda carry: None, r"has int32 \[\] at \['adam'\]\[0\].count .* and nothing"),
    ],
)  # fmt: skip
def test_another_carry_is_refused(tmp_path, change, message):
    run = Run()
    with run.checkpoints(tmp_path) as checkpoints:
        checkpoints.save(run.state)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.restore(change(first_carry()))


@pytest.mark.parametrize("kind", ["state", "orbax", "embsim"])
@pytest.mark.parametrize(
    "schedule", [embsim.sequential(), embsim.stale(1), embsim.stale(5)], ids=str
)
def test_under_another_schedule_a_run_goes_on_as_after_a_drain(tmp_path, kind, schedule):
    """Of stale(2), with two updates pending; to the bit."""
    run, drained = Run().to(3, drain=False), Run().to(3)
    assert len(run.state.pending) == 2 and not drained.state.pending
    state = run.state
    if kind == "orbax":
        with run.checkpoints(tmp_path) as checkpoints:
            checkpoints.save(run.state)
        state, _ = run.checkpoints(tmp_path).restore(first_carry())
    elif kind == "embsim":
        to_embsim(tmp_path, run.embedding, run.state)
        state = from_embsim(tmp_path, run.embedding, run.state.carry)
    ends = []
    for start in (state, drained.state):
        other = Run(schedule)
        other.state = start
        ends.append(other.to(8).numbers)
    check_same(*ends)


def test_a_run_keeps_its_schedule_and_the_start_of_its_last_drain(tmp_path):
    run = Run(embsim.sequential()).to(3)
    run.state = replace(run.state, start=2)
    with run.checkpoints(tmp_path / "orbax") as checkpoints:
        checkpoints.save(run.state)
    to_embsim(tmp_path / "embsim", run.embedding, run.state)
    for state in (
        run.checkpoints(tmp_path / "orbax").restore(first_carry())[0],
        from_embsim(tmp_path / "embsim", run.embedding),
    ):
        assert (state.step, state.version, state.start) == (3, 3, 2)
        assert state.schedule == embsim.sequential()


def test_what_cannot_be_saved_or_found(tmp_path):
    run = Run()
    checkpoints = run.checkpoints(tmp_path / "new")
    assert (checkpoints.latest, checkpoints.steps) == (None, [])
    with pytest.raises(CheckpointError, match=r"of the steps \[\] in .*new', required any"):
        checkpoints.restore(first_carry())
    with pytest.raises(TypeError, match="a str at \\['a'\\]; leaves must be arrays or numbers"):
        checkpoints.save(replace(run.state, carry={"a": "b"}))
    with pytest.raises(TypeError, match=r"extra is {1, 2}: .*must be JSON"):
        checkpoints.save(run.state, {1, 2})
    with pytest.raises(ValueError, match=r"keep is 0; it must be an int >= 1"):
        run.checkpoints(tmp_path, keep=0)
    assert not (tmp_path / "new").exists()
    with checkpoints:
        checkpoints.save(run.to(2, drain=False).state)
        with pytest.raises(ValueError, match=r"training step 2: .* of step 2, and steps must"):
            checkpoints.save(run.state)
    with pytest.raises(CheckpointError, match=r"of the steps \[2\] in .*, required 1"):
        checkpoints.restore(first_carry(), step=1)


def test_a_state_that_is_not_between_two_steps_is_refused(tmp_path):
    run = Run().to(3, drain=False)
    for state in (
        replace(run.state, version=2, pending=run.state.pending[1:]),
        replace(run.state, pending=run.state.pending[1:]),
    ):
        with pytest.raises(ValueError, match="after 3 training steps the tables are at version"):
            Checkpoints(tmp_path, run.embedding).save(state)
        with pytest.raises(ValueError, match="give a state between two steps"):
            to_embsim(tmp_path, run.embedding, state)
    with pytest.raises(TypeError, match="save: found a State; it must be a TrainState"):
        Checkpoints(tmp_path, run.embedding).save(run.state.tables)
    assert not list(tmp_path.iterdir())
