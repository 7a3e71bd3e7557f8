"""What one process and several train: a model of two tables, in two regimes.

Modules are imported inside functions: JAX must not start before the worker has set it up.
"""

import threading

import numpy as np

F = np.float32
SAMPLES, STEPS = 16, 4


def features(exact):
    """`seen` and `liked` share a table. The rules of the exact regime have no product that is
    rounded, which might be fused with the sum after it."""
    import embsim

    def initial(shape, dtype):
        return np.random.default_rng(shape[0]).integers(-3, 4, shape).astype(dtype)

    def table(name, rows, optimizer):
        initializer, combiner = (initial, "sum") if exact else (None, "mean")
        return embsim.TableConfig(rows, 4, initializer, optimizer, combiner, name)

    rules = embsim.SGD(0.5), embsim.Adagrad(0.5)
    if not exact:
        rules = embsim.Adam(0.1, lazy_adam=False), embsim.RowwiseAdagrad(0.1)
    users, items = table("users", 50, rules[0]), table("items", 300, rules[1])
    return {
        "user": embsim.FeatureConfig(users),
        "seen": embsim.FeatureConfig(items),
        "liked": embsim.FeatureConfig(items),
    }


def batches(exact):
    """Global batches (ids, labels, weights). After the first one bag is long, so that one process
    needs more capacity; `user` has one id in each bag, but for empty ones on the first device."""
    rng = np.random.default_rng(7)
    for step in range(STEPS):
        longest = [8 if step and sample == 3 else 1 for sample in range(SAMPLES)]
        seen = [rng.integers(0, 300, rng.integers(n // 2, n + 1)).tolist() for n in longest]
        ids = {
            "user": [[]] * step + [[int(rng.integers(0, 9))] for _ in range(SAMPLES - step)],
            "seen": seen,
            "liked": rng.integers(0, 300, SAMPLES),
        }
        gains = [0.5, 1.0, 2.0, -1.0] if exact else [0.3, 1.0, 1.7, -0.4]
        of_seen = [[gains[(i + j) % 4] for j in range(len(bag))] for i, bag in enumerate(seen)]
        weights = {"user": None, "seen": of_seen, "liked": None}
        yield ids, rng.integers(-1, 2, SAMPLES).astype(F), weights


def part(batch, places, each):
    """The samples of the devices at these places of the mesh, `each` on every device."""
    rows = [row for place in places for row in range(place * each, (place + 1) * each)]

    def take(leaf):
        return None if leaf is None else [leaf[row] for row in rows]

    ids, labels, weights = batch
    return (
        {k: np.array(take(v)) if isinstance(v, np.ndarray) else take(v) for k, v in ids.items()},
        np.array(take(labels)),
        {name: take(leaf) for name, leaf in weights.items()},
    )


def exact_step(xp):
    """A dense step in small whole numbers, with xp = numpy or jax.numpy: (parameters, activations,
    labels) -> (parameters, gradients)."""

    def step(w, activations, labels):
        bounded = {k: xp.clip(xp.round(v), -2, 2) for k, v in activations.items()}
        gradients = {k: b * labels[:, None] + xp.clip(w[k], -1, 1) for k, b in bounded.items()}
        return {k: w[k] - b.sum(0) for k, b in bounded.items()}, gradients

    return step


def loss(w, activations, labels):
    import jax.numpy as jnp
    import optax

    vectors = jnp.concatenate([activations[name] for name in sorted(activations)], axis=-1)
    logits = jnp.tanh(vectors @ w["hidden"]) @ w["out"]
    return optax.sigmoid_binary_cross_entropy(logits, labels > 0).mean()


def initial_parameters():
    rng = np.random.default_rng(3)
    shapes = {"hidden": (12, 8), "out": (8,)}
    return {name: rng.normal(size=shape).astype(F) for name, shape in shapes.items()}


def dense(regime):
    """carry, and the dense step of `train`, whose metrics are activations and slopes.

    In the regime "frozen" the gradients of activations are those at the initial parameters, so that
    no sum over the whole batch comes into the tables.
    """
    import jax
    import jax.numpy as jnp
    import optax

    if regime == "exact":
        step = exact_step(jnp)

        def exact_dense(w, activations, labels):
            return *step(w, activations, labels), (activations, None)

        return {name: np.zeros(4, F) for name in features(True)}, exact_dense
    optimizer, initial = optax.adam(0.05), initial_parameters()

    def real_dense(carry, activations, labels):
        w, state = carry
        slopes = jax.grad(loss)(w, activations, labels)
        at = initial if regime == "frozen" else w
        gradients = jax.grad(loss, argnums=1)(at, activations, labels)
        changes, state = optimizer.update(slopes, state, w)
        made = optax.apply_updates(w, changes), state
        return made, gradients, (activations, slopes)

    return (initial, optimizer.init(initial)), real_dense


def trained(mesh, regime, schedule):
    """By name: tables, slots, dense parameters, the first slopes, and the activations of every step
    that are on this process's devices."""
    import jax

    from embsim.schedule import schedule_of
    from embsim_tpu import Embedding, TrainState, train

    exact = regime == "exact"
    embedding = Embedding(features(exact), mesh=mesh)
    carry, dense_step = dense(regime)
    put = embedding.shards.put_replicated
    state = TrainState(embedding.init(1), jax.tree.map(lambda x: put(np.array(x)), carry))
    found = {}

    def keep(step, metrics):
        activations, slopes = metrics
        found.update(flat(slopes, "slopes") if step == 0 else {})
        for name, array in activations.items():
            parts = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
            found[f"activations {step} {name}"] = np.concatenate([p.data for p in parts])

    own, paused = embedding.shards.own, threading.Event()

    def data():
        """On process 0 the last batch comes after the first pause, on the others before it."""
        for number, batch in enumerate(batches(exact)):
            if exact and number == STEPS - 1 and jax.process_index() == 0:
                assert paused.wait(100)
            yield part(batch, own, SAMPLES // mesh.size)

    def look(pipeline):
        """Plan another batch while the thread of `train` plans, too."""
        pipeline.planned(part(next(batches(exact)), own, 1))
        paused.set()

    state = train(
        embedding,
        dense_step,
        data(),
        state,
        schedule=schedule_of(schedule),
        pause_every=2 if exact else None,
        on_step=keep,
        on_pause=look,
    )
    return found | arrays_of(embedding.get(state.tables)) | flat(state.carry)


def arrays_of(state):
    found = {f"table {name}": np.asarray(array) for name, array in state.weights.items()}
    for name, slots in state.slots.items():
        found |= {f"slot {name} {slot}": np.asarray(array) for slot, array in slots.items()}
    return found


def flat(tree, what="dense"):
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {f"{what} {jax.tree_util.keystr(path)}": np.asarray(leaf) for path, leaf in leaves}


def by_class(backend, schedule):
    """embsim.TPUEmbedding, in the exact regime: the same global calls in every process."""
    import embsim
    from embsim.schedule import schedule_of

    with embsim.TPUStrategy(num_replicas=1).scope():
        embedding = embsim.TPUEmbedding(
            features(True), schedule=schedule_of(schedule), backend=backend
        )
    w, step, found = {name: np.zeros(4, F) for name in features(True)}, exact_step(np), {}
    for number, (ids, labels, weights) in enumerate(batches(True)):
        embedding.enqueue(ids, weights)
        activations = embedding.dequeue()
        found |= {f"activations {number} {name}": array for name, array in activations.items()}
        w, gradients = step(w, activations, labels)
        embedding.apply_gradients(gradients)
    embedding.drain()
    found |= {f"table {config.name}": array for config, array in embedding.embedding_tables.items()}
    for config, slots in embedding.slot_variables.items():
        found |= {f"slot {config.name} {slot}": array for slot, array in slots.items()}
    embedding.close()
    return found | flat(w)
