"""The fixture of TensorFlow's own TPUEmbedding tests: two tables, three features, one step.

The goldens follow from TensorFlow's published formulas, printed with six decimals: the formula in
float64 must print the same, and float32 may add the rule's own roundings, which are computed.
"""

import numpy as np
import pytest

import embsim
from embsim.definition import Definition
from embsim.optimizers import FTRL, SGD, Adagrad, AdagradMomentum, Adam
from tests.embsim.optimizers.rounding import bounded_update, coefficient, exact

WATCHED = [[0], [0, 1], [0, 1], [1]]
FAVORITED = [[0, 1], [1], [0], [0, 1]]
FRIENDS = [[3], [0, 1, 2], [3], [0, 1, 2]]
VIDEO = np.arange(32, dtype=np.float32).reshape(8, 4)
USER = np.arange(32, dtype=np.float32).reshape(16, 2)
LOSS = 335.0
REPLICAS_OF_THE_LOSS = 2

ACTIVATIONS = {
    "watched": "0 1 2 3 | 4 6 8 10 | 4 6 8 10 | 4 5 6 7",
    "favorited": "4 6 8 10 | 4 5 6 7 | 0 1 2 3 | 4 6 8 10",
    "friends": "6 7 | 2 3 | 6 7 | 2 3",
}
GOLDENS = {
    "SGD": {
        "video 0": "-0.8 -0.3 0.2 0.7",
        "user 0": "-0.066667 0.9",
        "user 3": "5.4 6.3",
    },
    "Adagrad": {
        "video 0": "-0.099922 0.90003 1.900015 2.900009",
        "user 0": "-0.090351 0.904654",
        "user 3": "5.900139 6.900102",
        "accumulators": "64.1 169.1 324.1 529.1",
    },
    "Adam": {
        "video 0": "-0.316228 0.683772 1.683772 2.683772",
        "user 0": "-0.316228 0.683772",
        "user 3": "5.683772 6.683772",
        "momenta": "0.8 1.3 1.8 2.3",
        "velocities": "0.064 0.169 0.324 0.529",
    },
    "AdagradMomentum": {
        "video 0": "-0.814465 0.03939 0.92832 1.836617",
        "user 0": "-0.241414 0.675105",
        "user 3": "5.262938 6.222211",
        "accumulators": "6.4 16.9 32.4 52.9",
        "momenta": "4.286658 5.055845 5.640419 6.12307",
    },
    "FTRL": {
        "video 0": "-0.099922 0.875712 1.864884 2.858766",
        "user 0": "-0.090351 0.603142",
        "user 3": "5.584349 6.584196",
        "accumulators": "64.1 169.1 324.1 529.1",
        "linears": "8 -113.876178 -335.730996 -657.578381",
    },
}
OPTIMIZERS = {
    "SGD": SGD(0.1),
    "Adagrad": Adagrad(0.1),
    "Adam": Adam(0.1),
    "AdagradMomentum": AdagradMomentum(
        0.1, momentum=0.9, use_nesterov=True, exponent=3, epsilon=0.1, beta2=0.9
    ),
    "FTRL": FTRL(0.1),
}


HALF_A_DIGIT = 0.5e-6 * (1 + 2.0**-20)  # the goldens are decimal, the comparison is not


def row_gradient(row):
    """sum of gain * 2 a / 4, by hand. A friend in a bag of three has gain 1/3, rounded."""
    if row == "video 0":
        return exact([8.0, 13.0, 18.0, 23.0])
    if row == "user 3":
        return exact([6.0, 7.0])
    third = coefficient(np.full(2, 1 / 3))
    once = third * exact([1.0, 1.5])
    return once + once


def bounded_row(optimizer, row):
    """The row and its slots after the step, each with the bound of a float32 result."""
    table, index = row.split()
    w = {"video": VIDEO, "user": USER}[table][int(index)]
    slots = [coefficient(np.full(w.shape, slot.initial)) for slot in optimizer.slots]
    return bounded_update(optimizer, exact(w), row_gradient(row), tuple(slots))


def check(got, bounded, printed):
    want = np.array(printed.split(), np.float64)
    assert (abs(bounded.value - want) <= HALF_A_DIGIT).all(), f"{bounded.value}: {printed}"
    assert got.dtype == np.float32
    assert got.shape == want.shape
    bound = HALF_A_DIGIT + bounded.error
    assert (abs(got - want) <= bound).all(), f"{got} is not {printed} within {bound}"


def configuration():
    video = embsim.TableConfig(8, 4, lambda *_: VIDEO, combiner="sum", name="video")
    user = embsim.TableConfig(16, 2, lambda *_: USER, combiner="mean", name="user")
    features = {
        "watched": embsim.FeatureConfig(video),
        "favorited": embsim.FeatureConfig(video),
        "friends": embsim.FeatureConfig(user),
    }
    return video, user, features


def dense(activations):
    """The gradient of loss / replicas; loss: of a replica, sum of mean over samples of a . a."""
    samples = {name: len(a) // REPLICAS_OF_THE_LOSS for name, a in activations.items()}
    loss = sum((a**2).sum() / samples[name] for name, a in activations.items())
    assert loss == REPLICAS_OF_THE_LOSS * LOSS
    return {
        name: np.float32(2) * a / np.float32(samples[name] * REPLICAS_OF_THE_LOSS)
        for name, a in activations.items()
    }


def check_activations(activations):
    for name, printed in ACTIVATIONS.items():
        want = [[float(x) for x in row.split()] for row in printed.split("|")]
        assert np.array_equal(activations[name], np.array(want, np.float32)), name


def check_tables(name, video, user, slots):
    goldens, optimizer = GOLDENS[name], OPTIMIZERS[name]
    for row, got in (("video 0", video[0]), ("user 0", user[0]), ("user 3", user[3])):
        check(got, bounded_row(optimizer, row)[0], goldens[row])
    assert set(slots) == set(goldens) - {"video 0", "user 0", "user 3"}
    bounded_slots = bounded_row(optimizer, "video 0")[1]
    for (slot, values), bounded in zip(slots.items(), bounded_slots, strict=True):
        check(values[0], bounded, goldens[slot])
    assert np.array_equal(video[2:], VIDEO[2:])
    assert np.array_equal(user[4:], USER[4:])
    for slot, values in slots.items():
        assert (values[2:] == values[2]).all(), f"{slot} of a row that was not looked up"


@pytest.mark.parametrize("name", GOLDENS)
def test_the_definition(name):
    video, user, features = configuration()
    names, configs = zip(*sorted(features.items()), strict=True)
    optimizer = OPTIMIZERS[name]
    law = Definition(configs, {video: optimizer, user: optimizer}, {video: VIDEO, user: USER})
    batch = {"watched": WATCHED, "favorited": FAVORITED, "friends": FRIENDS}
    activations = dict(zip(names, law.dequeue([batch[n] for n in names]), strict=True))
    check_activations(activations)
    gradients = dense(activations)
    law.apply_gradients([gradients[n] for n in names])
    (video_rows, *slots), (user_rows, *_) = (law.versions[-1][table] for table in (video, user))
    slot_names = [slot.name for slot in optimizer.slots]
    check_tables(name, video_rows, user_rows, dict(zip(slot_names, slots, strict=True)))


@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize("name", GOLDENS)
def test_the_engine(name, replicas):
    video, user, features = configuration()
    strategy = embsim.TPUStrategy(num_replicas=replicas)
    with strategy.scope():
        embedding = embsim.TPUEmbedding(features, OPTIMIZERS[name])
    embedding.build(per_replica_batch_size=4 // replicas)
    batch = {"watched": WATCHED, "favorited": FAVORITED, "friends": FRIENDS}
    ragged = {n: embsim.RaggedTensor.from_lists(bags, np.int32) for n, bags in batch.items()}
    embedding.enqueue(ragged)
    activations = embedding.dequeue()
    check_activations(activations)
    embedding.apply_gradients(dense(activations))
    tables, slots = embedding.embedding_tables, embedding.slot_variables
    check_tables(name, tables[video], tables[user], slots[video])
    embedding.close()


@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize("name", GOLDENS)
def test_the_engine_inside_run(name, replicas):
    """Each replica feeds its own part, one feature as sparse; gradients are summed."""
    video, user, features = configuration()
    strategy = embsim.TPUStrategy(num_replicas=replicas)
    with strategy.scope():
        embedding = embsim.TPUEmbedding(features, OPTIMIZERS[name])
    per_replica = 4 // replicas
    embedding.build(per_replica_batch_size=per_replica)
    batch = {"watched": WATCHED, "favorited": FAVORITED, "friends": FRIENDS}

    def step():
        context = embsim.get_replica_context()
        mine = slice(
            context.replica_id_in_sync_group * per_replica,
            (context.replica_id_in_sync_group + 1) * per_replica,
        )
        local = {n: embsim.RaggedTensor.from_lists(b[mine], np.int32) for n, b in batch.items()}
        local["friends"] = sparse(batch["friends"][mine])
        embedding.enqueue(local)
        activations = embedding.dequeue()
        factor = np.float32(2) / np.float32(4)
        embedding.apply_gradients({n: factor * a for n, a in activations.items()})
        return activations

    parts = strategy.experimental_local_results(strategy.run(step))
    check_activations({n: np.concatenate([part[n] for part in parts]) for n in features})
    tables, slots = embedding.embedding_tables, embedding.slot_variables
    check_tables(name, tables[video], tables[user], slots[video])
    embedding.close()


def sparse(bags):
    indices = [(sample, column) for sample, bag in enumerate(bags) for column in range(len(bag))]
    values = np.array([i for bag in bags for i in bag], np.int64)
    width = max(len(bag) for bag in bags)
    return embsim.SparseTensor(np.array(indices), values, (len(bags), width))
