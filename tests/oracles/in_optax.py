"""optax in float64, each step from float32 state: its own roundings are next to nothing."""

import importlib.metadata

import numpy as np


def versions():
    return {name: importlib.metadata.version(name) for name in ("optax", "jax", "numpy")}


def train(case, eps=0.0):
    """float64 [steps, rows, dim]; the state before a step is the last one rounded to float32."""
    import jax
    import optax

    made, names = _transformation(optax, case, eps)
    arrays = {"w": case.table, **case.slots}
    states = {name: [] for name in arrays}
    with jax.enable_x64(True):
        for step, (rows, gradients) in enumerate(zip(case.rows, case.gradients, strict=True)):
            unique, place = np.unique(rows, return_inverse=True)
            g = np.zeros((len(unique), gradients.shape[1]))
            np.add.at(g, place, gradients.astype(np.float64))
            before = {name: jax.numpy.asarray(a[unique], "float64") for name, a in arrays.items()}
            count = step if case.rates else 10**7  # the correction of the bias is 1 by then
            state = made.init(before["w"])
            for slot, name in names.items():
                state = optax.tree.set(state, **{name: before[slot]})
            if case.optimizer == "Adam":
                state = optax.tree.set(state, count=jax.numpy.asarray(count))
            change, state = made.update(jax.numpy.asarray(g), state, before["w"])
            after = {"w": optax.apply_updates(before["w"], change)}
            after |= {slot: optax.tree.get(state, name) for slot, name in names.items()}
            for name, array in arrays.items():
                new = array.astype(np.float64)
                assert after[name].dtype == "float64"
                new[unique] = after[name]
                states[name].append(new)
                arrays[name] = new.astype(np.float32)
    return {name: np.stack(found) for name, found in states.items()}


def _transformation(optax, case, eps):
    o, rate = case.options, case.options["learning_rate"]
    if case.optimizer == "SGD":
        return optax.sgd(rate), {}
    if case.optimizer == "Adagrad":
        rss = optax.scale_by_rss(initial_accumulator_value=0.1, eps=eps)
        return optax.chain(rss, optax.scale(-rate)), {"accumulators": "sum_of_squares"}
    if case.optimizer == "AdagradMomentum":
        inner, slot = optax.scale_by_rss(initial_accumulator_value=0.0, eps=1e-10), "sum_of_squares"
        if "beta2" in o:
            inner, slot = optax.scale_by_rms(decay=o["beta2"], eps=1e-10), "nu"
        trace = optax.trace(decay=o["momentum"], nesterov=o.get("use_nesterov", False))
        made = optax.chain(inner, trace, optax.scale(-rate))
        return made, {"accumulators": slot, "momenta": "trace"}
    betas, epsilon = (o.get("beta_1", 0.9), o.get("beta_2", 0.999)), o.get("epsilon", 1e-7)
    inside = o.get("sum_inside_sqrt", True)
    where = {"eps": 0.0, "eps_root": epsilon**2} if inside else {"eps": epsilon}
    return optax.adam(rate, *betas, **where), {"momenta": "mu", "velocities": "nu"}


def refusals():
    return {}
