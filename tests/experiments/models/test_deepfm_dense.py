"""DeepFM in a replay: the steps of deepfm.train_step."""

import numpy as np

import embsim
from embsim.simulation.pipelines import pipeline_of
from embsim.simulation.replay import replay
from embsim.simulation.timeline import run
from experiments.models import deepfm
from experiments.models.deepfm_dense import dense
from experiments.replays import adagrad


def test_it_trains_as_train_step_does():
    draw = np.random.default_rng(0)
    activations = {name: draw.normal(size=(8, 4)).astype(np.float32) for name in "ab"}
    labels = draw.integers(0, 2, 8).astype(np.float32)
    made = dense(3, 2, 4, (5,), adagrad(0.1))
    scores, found, slopes = made.gradients(made.parameters, activations, labels)
    parameters, _ = made.update(made.parameters, slopes)
    model = deepfm.init(3, 2, 4, (5,))
    wanted = deepfm.train_step(model, deepfm.init_accumulators(model), activations, labels, 0.1)
    np.testing.assert_allclose(scores, wanted[2], rtol=1e-6)
    for name in "ab":
        np.testing.assert_allclose(found[name], wanted[3][name], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(parameters["linear"], wanted[0]["linear"], rtol=1e-5)
    mine, other = (each["layers"][0]["weights"] for each in (parameters, wanted[0]))
    np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-7)


def test_it_learns_in_a_replay():
    draw = np.random.default_rng(1)
    ids = draw.integers(0, 20, 64)
    labels = (ids % 2).astype(np.float32)
    features = {"f": embsim.FeatureConfig(embsim.TableConfig(20, 4, name="f"), name="f")}
    pipeline = pipeline_of("tpu_embedding_pipelined()")
    timeline = run(pipeline.operations(40), 1.0)
    batches = [({"f": ids}, labels)] * 40
    args = features, embsim.Adagrad(0.3), batches, dense(0, 1, 4, (8,), adagrad(0.1))
    scores = replay(timeline, pipeline, *args).scores

    def loss(z):
        return float(np.mean(np.logaddexp(0, z) - labels * z))

    assert loss(scores[-1]) < loss(scores[0]) / 2
