"""Which library is asked which of the cases, and with what options of its own."""

from dataclasses import dataclass, field
from functools import lru_cache

from tests.oracles.cases import Lookup, Trajectory, lookups, trajectories


@dataclass(frozen=True)
class Run:
    """One case, as one library is asked for it; `options` are for the library alone."""

    name: str
    case: Lookup | Trajectory
    options: dict = field(default_factory=dict)


@lru_cache
def runs(library, seed=0, steps=30):
    """name -> Run."""
    looked, trained = lookups(seed), trajectories(seed, steps)
    return {run.name: run for run in RUNS[library](looked, trained)}


# It has no sum inside the root, no schedule here, and reads subnormal slots as 0.
NOT_IN_TENSORFLOW = ("adam_inside", "adam_textbook", "adagrad_subnormal")


def _tensorflow(looked, trained):
    for name, case in looked.items():
        holes = any(None in bag for feature in case.features for bag in feature.bags)
        if not holes:
            yield Run(f"lookup/{name}/ragged", case, {"kind": "ragged"})
        if any(feature.output_shape for feature in case.features):
            continue  # of ragged features only
        yield Run(f"lookup/{name}/safe", case, {"kind": "sparse"})
        sequence = any(feature.length for feature in case.features)
        if not sequence and all(feature.bags[-1] for feature in case.features):
            # without validation TensorFlow has no rows for empty bags at the end
            yield Run(f"lookup/{name}/unsafe", case, {"kind": "sparse", "validate": False})
    for name, case in trained.items():
        in_tensorflow = case.optimizer in ("SGD", "Adagrad", "FTRL", "Adam")
        if in_tensorflow and name not in NOT_IN_TENSORFLOW:
            yield Run(name, case)
    yield Run("adam_inside/outside_in_tensorflow", trained["adam_inside"])
    yield Run("adagrad_small/keras_epsilon", trained["adagrad_small"], {"epsilon": 1e-7})


def _in_bags(name, case):
    """Whether layers of bags without sqrtn can do it."""
    return not name.startswith(("sequence", "reshaped")) and case.combiner != "sqrtn"


def _torch(looked, trained):
    for name, case in looked.items():
        weighted_mean = case.combiner == "mean" and any(f.weights for f in case.features)
        if _in_bags(name, case) and not weighted_mean:
            yield Run(f"lookup/{name}", case)
    yield Run("sgd", trained["sgd"])
    yield Run("sgd_beyond", trained["sgd_beyond"])
    for name in ("adagrad", "adagrad_small", "adagrad_subnormal", "adagrad_beyond"):
        yield Run(name, trained[name], {"eps": 0.0})
    yield Run("adagrad_small/default_eps", trained["adagrad_small"], {"eps": 1e-10})
    yield Run("adam_textbook/sparse_adam", trained["adam_textbook"])
    yield Run("adam_default_betas/sparse_adam", trained["adam_default_betas"])


def _fbgemm(looked, trained):
    for name, case in looked.items():
        if _in_bags(name, case):
            yield Run(f"lookup/{name}", case)
    for name in ("sgd", "sgd_beyond"):
        yield Run(name, trained[name])
    for name in ("adagrad", "adagrad_small", "adagrad_subnormal", "adagrad_beyond"):
        yield Run(name, trained[name], {"eps": 0.0})
    yield Run("adagrad_small/default_eps", trained["adagrad_small"], {"eps": 1e-8})
    for name in ("rowwise_adagrad", "rowwise_adagrad_started", "rowwise_adagrad_beyond"):
        yield Run(name, trained[name], {"eps": trained[name].options["epsilon"]})


def _optax(looked, trained):
    names = ("sgd", "adagrad", "adagrad_small", "momentum", "momentum_nesterov")
    for name in (*names, "momentum_decaying", "adam_inside", "adam_default_betas"):
        yield Run(name, trained[name])
    yield Run("adagrad_small/default_eps", trained["adagrad_small"], {"eps": 1e-7})
    yield Run("adam_textbook/corrected", trained["adam_textbook"])


RUNS = {"tensorflow": _tensorflow, "torch": _torch, "fbgemm": _fbgemm, "optax": _optax}
