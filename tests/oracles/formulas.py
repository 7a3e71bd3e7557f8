"""Each library's formulas, as far as they differ from embsim's rules, and where that shows.

A formula has the form of a rule, (w, g, slots, p, ops) -> (w, slots), with `p` the run's
hyperparameters. It is written from the library's documentation and behaviour and is judged by the
library: numbers that a library really returned must lie within the bounds of its formula.
"""

from types import SimpleNamespace

import numpy as np

from tests.oracles.bounds import HALF_ULP, Ops, Ranged, exact, parameter, total

# --- optimizers ---------------------------------------------------------------------------------


def sqrt_plus_epsilon(w, g, slots, p, ops):
    """TensorFlow's and FBGEMM's Adagrad: epsilon stands outside the root."""
    (a,) = slots
    a = a + g * g
    return w - (p.lr * g) / (ops.sqrt(a) + p.eps), (a,)


def torch_adagrad(w, g, slots, p, ops):
    """The quotient first, then the rate."""
    (a,) = slots
    a = a + g * g
    return w - p.lr * (g / (ops.sqrt(a) + p.eps)), (a,)


def tensorflow_ftrl(w, g, slots, p, ops):
    """beta comes as beta / (2 lr) more of l2, as the op has no argument for it."""
    a, z = slots
    n = a + g * g
    root = p.power == -0.5
    x, y = (ops.sqrt(s) if root else ops.power(s, p.q) for s in (n, a))
    if p.multiply:
        z = z + (p.lr * g - (x - y) * w)
        limit, denominator = p.lr * p.l1, x + p.two * p.l2 * p.lr
    else:
        z = z + (g - ((x - y) / p.lr) * w)
        limit, denominator = p.l1, x / p.lr + p.two * p.l2
    w = (ops.minimum(ops.maximum(z, -limit), limit) - z) / denominator
    return w, (n, z)


def tensorflow_adam(w, g, slots, p, ops):
    """m + (g - m) * (1 - b1), with the betas rounded to float32 before 1 - b is computed."""
    m, v = slots
    m = m + (g - m) * (p.one - p.b1)
    v = v + (g * g - v) * (p.one - p.b2)
    return w - (p.lr * m) / (ops.sqrt(v) + p.eps), (m, v)


def torch_sparse_adam(w, g, slots, p, ops):
    """The same with 1 - b in float64. The rate corrects the bias; epsilon is not corrected."""
    m, v = slots
    m = m + (g - m) * p.c1
    v = v + (g * g - v) * p.c2
    return w - p.corrected * (m / (ops.sqrt(v) + p.eps)), (m, v)


def optax_adagrad(w, g, slots, p, ops):
    """epsilon stands inside the root."""
    (a,) = slots
    a = a + g * g
    return w - p.lr * (g / ops.sqrt(a + p.eps)), (a,)


def optax_adam(w, g, slots, p, ops):
    """The textbook's: epsilon is added after the bias of v was corrected."""
    m, v = slots
    m = p.b1 * m + p.c1 * g
    v = p.b2 * v + p.c2 * (g * g)
    return w - p.lr * ((m / p.bias1) / (ops.sqrt(v / p.bias2) + p.eps)), (m, v)


def one_by_one(library, run):
    """torch.optim.SGD adds the contributions of a sparse gradient to the row one after another."""
    alone = not run.case.options.get("use_gradient_accumulation", True)
    return alone or (library == "torch" and run.case.optimizer == "SGD")


def flushes(library):
    """TensorFlow's CPU kernels run with subnormal results set to 0."""
    return library == "tensorflow"


FORMULAS = {
    ("tensorflow", "Adagrad"): sqrt_plus_epsilon,
    ("tensorflow", "FTRL"): tensorflow_ftrl,
    ("tensorflow", "Adam"): tensorflow_adam,
    ("torch", "Adagrad"): torch_adagrad,
    ("torch", "Adam"): torch_sparse_adam,
    ("fbgemm", "Adagrad"): sqrt_plus_epsilon,
    ("optax", "Adagrad"): optax_adagrad,
    ("optax", "adam_textbook/corrected"): optax_adam,
}  # by library and optimizer, or run; for all others the rule of embsim


def formula(library, run):
    """The library's, or None: the same as embsim's, operation by operation."""
    return FORMULAS.get((library, run.name)) or FORMULAS.get((library, run.case.optimizer))


def in_float64(x):
    """A number as optax has it, in units of FLOAT64."""
    return Ranged(np.float64(x), HALF_ULP * abs(np.float64(x)))


def hyperparameters(library, run):
    """Numbers that a library's formula may use, as Ranged: one for all steps, or one for each."""
    case, o = run.case, run.case.options
    lr, t = o["learning_rate"], np.arange(1.0, len(case.rows) + 1)[:, None, None]
    b1, b2 = o.get("beta_1", 0.9), o.get("beta_2", 0.999)
    bias1, bias2 = 1 - b1**t, 1 - b2**t
    eps = o.get("epsilon", 1e-7) if case.optimizer == "Adam" else 0.0
    eps = run.options.get("eps", run.options.get("epsilon", eps))
    power = o.get("learning_rate_power", -0.5)
    l2 = o.get("l2_regularization_strength", 0.0) + o.get("beta", 0.0) / (2 * lr)
    numbers = {
        "lr": lr,
        "corrected": lr * np.sqrt(bias2) / bias1,
        "bias1": bias1,
        "bias2": bias2,
        "eps": eps,
        "c1": 1 - b1,
        "c2": 1 - b2,
        "q": -power,
        "l1": o.get("l1_regularization_strength", 0.0),
        "l2": l2,
    }
    rounded = in_float64 if library == "optax" else parameter
    p = SimpleNamespace(**{name: rounded(x) for name, x in numbers.items()})
    for name in ("bias1", "bias2"):  # one minus a power, which has the rounding of 1
        getattr(p, name).error = np.full(t.shape, HALF_ULP)
    p.one, p.two, p.power = exact(1), exact(2), power
    p.multiply = o.get("multiply_linear_by_learning_rate", False)
    floats = library == "tensorflow"  # its betas are float32 tensors
    p.b1, p.b2 = (exact(b) if floats else rounded(b) for b in (b1, b2))
    return p


# --- lookups ------------------------------------------------------------------------------------


def plain_gains(weights, combiner):
    """(weights in use, denominator) of a bag: embsim's and most libraries' meaning."""
    weights = [exact(w) for w in weights]
    if combiner == "sum":
        return weights, exact(1)
    if combiner == "mean":
        return weights, total(weights)
    return weights, Ops.sqrt(total([w * w for w in weights]))


def positive_gains(weights, combiner):
    """TensorFlow's safe sparse lookup drops weights <= 0, but for sum."""
    return plain_gains(weights if combiner == "sum" else np.maximum(weights, 0), combiner)


def gains_by_count(weights, combiner):
    """FBGEMM's mean divides by the number of ids, whatever their weights."""
    return [exact(w) for w in weights], exact(1 if combiner == "sum" else len(weights))


def gains_without_mean(weights, combiner):
    """FBGEMM's backward pass of a weighted mean on a CPU: the weights alone."""
    return [exact(w) for w in weights], exact(1)


def lookup_gains(library, run):
    """The library's gains forward and backward."""
    if run.options.get("kind") == "sparse" and run.options.get("validate", True):
        return positive_gains, positive_gains
    if library == "fbgemm":
        weighted = any(feature.weights for feature in run.case.features)
        return gains_by_count, gains_without_mean if weighted else gains_by_count
    return plain_gains, plain_gains


# --- known divergences --------------------------------------------------------------------------

BOTH = {"activations 0", "row gradients"}
ADAM = {"w", "velocities"}

# (library, run) -> (the row of the table in docs/oracles.md, the arrays in which it shows). These
# runs must differ from embsim in just these arrays, all others nowhere; and in all of them the
# library must do what its formula above says.
DIVERGENCES: dict[tuple[str, str], tuple[str, set[str]]] = {
    ("tensorflow", "lookup/signs_mean/safe"): ("D1", BOTH),
    ("tensorflow", "lookup/signs_sqrtn/safe"): ("D1", BOTH),
    ("tensorflow", "adam"): ("D2", {"velocities"}),
    ("tensorflow", "adam_all_rows"): ("D2", {"velocities"}),
    ("tensorflow", "adam_default_betas"): ("D3", ADAM),
    ("tensorflow", "adam_beyond"): ("D4", ADAM),
    ("tensorflow", "adam_inside/outside_in_tensorflow"): ("D5", ADAM),
    ("tensorflow", "adagrad_small/keras_epsilon"): ("D6", {"w"}),
    ("torch", "adagrad_small/default_eps"): ("D6", {"w"}),
    ("fbgemm", "adagrad_small/default_eps"): ("D6", {"w"}),
    ("optax", "adagrad_small/default_eps"): ("D7", {"w"}),
    ("torch", "adam_default_betas/sparse_adam"): ("D8", {"w"}),
    ("optax", "adam_textbook/corrected"): ("D9", {"w"}),
    ("fbgemm", "lookup/weighted_mean"): ("D10", BOTH),
    ("fbgemm", "lookup/signs_mean"): ("D10", BOTH),
    ("fbgemm", "lookup/shared_mean"): ("D10", {"activations 1", "row gradients"}),
    ("fbgemm", "lookup/random_weighted_mean"): ("D10", BOTH),
}
