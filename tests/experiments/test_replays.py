"""Training on flights by replays."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import embsim
from embsim.simulation.pipelines import sequential, stale
from experiments.data import flights
from experiments.models import deepfm
from experiments.replays import Setup, adagrad, auc, held_out_auc, scored, train

SETUP = Setup(embsim.Adagrad(learning_rate=0.2), adagrad(0.1), 64, dim=4, hidden=(8,))


def test_it_is_the_training_of_staleness_on_flights():
    """By the engine and deepfm.train_step, step by step."""
    data = flights.load().take(np.arange(640))
    result = train(SETUP, stale(1), data, 5)
    configs = [
        embsim.FeatureConfig(
            embsim.TableConfig(data.vocabulary_sizes[name], 4, initializer(place), name=name)
        )
        for place, name in enumerate(flights.FEATURES)
    ]
    engine = embsim.engine.Engine(configs, SETUP.optimizer, schedule=embsim.stale(1))
    model = deepfm.init(5, len(configs), 4, (8,))
    memory = deepfm.init_accumulators(model)
    for step in range(10):
        part = slice(64 * step, 64 * step + 64)
        engine.enqueue(engine.make_batch([data.ids[name][part] for name in flights.FEATURES]))
        found = dict(zip(flights.FEATURES, engine.dequeue(), strict=True))
        model, memory, z, slopes = deepfm.train_step(model, memory, found, data.labels[part], 0.1)
        engine.apply_gradients([slopes[name] for name in flights.FEATURES])
        np.testing.assert_allclose(result.scores[step], z, rtol=2e-4, atol=2e-5)
    labels, scores = scored(result, data)
    assert labels.shape == scores.shape == (10, 64)


def initializer(place):
    def made(shape, dtype):
        return np.random.default_rng([5, place]).normal(0.0, 0.03, shape).astype(dtype)

    return made


def test_held_out_samples_are_scored_by_the_final_tables():
    data, rest = (flights.load().take(np.arange(640) + at) for at in (0, 640))
    result = train(SETUP, sequential(), data, 0)
    vectors = {n: result.state.weights[n][rest.ids[n]] for n in flights.FEATURES}
    wanted = roc_auc_score(rest.labels, np.asarray(deepfm.logits(result.parameters[0], vectors)))
    assert held_out_auc(result, rest) == pytest.approx(wanted)


def test_what_diverged_has_no_auc():
    assert np.isnan(auc(np.array([0, 1]), np.array([np.nan, 1.0])))
    assert auc(np.array([[0, 1], [1, 0]]), np.array([[0.1, 0.9], [0.8, 0.2]])) == 1
