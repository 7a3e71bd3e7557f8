"""TensorFlow on a CPU: serving_embedding_lookup and its gradient, and the raw optimizer ops."""

import importlib.metadata
import os

import numpy as np


def versions():
    return {name: importlib.metadata.version(name) for name in ("tensorflow_cpu", "numpy")}


def _tensorflow():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # its order of sums is the processor's
    import tensorflow

    return tensorflow


def lookup(case, kind, validate=True):
    """kind: the features as sparse or as ragged tensors."""
    tf = _tensorflow()
    embedding = tf.tpu.experimental.embedding
    rows, dim = case.table.shape
    table = embedding.TableConfig(rows, dim, combiner=case.combiner, name="t")
    variable = tf.Variable(case.table)
    configs, inputs, weights = [], [], []
    for feature in case.features:
        configs.append(
            embedding.FeatureConfig(
                table,
                max_sequence_length=feature.length,
                validate_weights_and_indices=validate,
                output_shape=feature.output_shape,
            )
        )
        form = _sparse if kind == "sparse" else _ragged
        inputs.append(form(tf, feature.bags, np.int64))
        given = feature.weights is not None
        weights.append(form(tf, feature.weights, np.float32) if given else None)
    with tf.GradientTape() as tape:
        found = embedding.serving_embedding_lookup(inputs, weights, {table: variable}, configs)
        loss = sum(
            tf.reduce_sum(activations * feature.gradients)
            for activations, feature in zip(found, case.features, strict=True)
        )
    gradient = tf.convert_to_tensor(tape.gradient(loss, variable))
    results = {f"activations {i}": array.numpy() for i, array in enumerate(found)}
    return results | {"row gradients": gradient.numpy()}


def _sparse(tf, bags, dtype):
    places = [(b, p) for b, bag in enumerate(bags) for p, x in enumerate(bag) if x is not None]
    values = [x for bag in bags for x in bag if x is not None]
    width = max(len(bag) for bag in bags)
    indices = np.array(places, np.int64).reshape(-1, 2)
    return tf.SparseTensor(indices, np.array(values, dtype), (len(bags), width))


def _ragged(tf, bags, dtype):
    lengths = np.array([len(bag) for bag in bags], np.int64)
    values = np.array([x for bag in bags for x in bag], dtype)
    return tf.RaggedTensor.from_row_lengths(values, lengths)


def train(case, **options):
    tf = _tensorflow()
    o = case.options
    w = tf.Variable(case.table)
    slots = {name: tf.Variable(array) for name, array in case.slots.items()}
    states = {"w": [], **{name: [] for name in slots}}
    for step, (rows, gradients) in enumerate(zip(case.rows, case.gradients, strict=True)):
        rows, gradients = tf.constant(rows), tf.constant(gradients)
        if o.get("use_gradient_accumulation", True):
            unique, place = tf.unique(rows)
            gradients = tf.math.unsorted_segment_sum(gradients, place, tf.size(unique))
            rows = unique
        if not o.get("lazy_adam", True):
            gradients = tf.scatter_nd(rows[:, None], gradients, case.table.shape)
            rows = tf.range(len(case.table), dtype=rows.dtype)
        rate = tf.constant(case.rate(step), tf.float32)
        STEPS[case.optimizer](tf, w, slots, rows, gradients, rate, o, **options)
        for name, variable in {"w": w, **slots}.items():
            states[name].append(variable.numpy().copy())
    return {name: np.stack(arrays) for name, arrays in states.items()}


def _sgd(tf, w, slots, rows, gradients, rate, o):
    tf.raw_ops.ResourceScatterSub(resource=w.handle, indices=rows, updates=rate * gradients)


def _adagrad(tf, w, slots, rows, gradients, rate, o, epsilon=0.0):
    tf.raw_ops.ResourceSparseApplyAdagradV2(
        var=w.handle,
        accum=slots["accumulators"].handle,
        lr=rate,
        epsilon=epsilon,
        grad=gradients,
        indices=rows,
    )


def _ftrl(tf, w, slots, rows, gradients, rate, o):
    """beta is not an argument: it acts as beta / (2 lr) more of l2."""
    l2 = o.get("l2_regularization_strength", 0.0) + o.get("beta", 0.0) / (2 * o["learning_rate"])
    tf.raw_ops.ResourceSparseApplyFtrlV2(
        var=w.handle,
        accum=slots["accumulators"].handle,
        linear=slots["linears"].handle,
        grad=gradients,
        indices=rows,
        lr=rate,
        l1=o.get("l1_regularization_strength", 0.0),
        l2=l2,
        l2_shrinkage=0.0,
        lr_power=o.get("learning_rate_power", -0.5),
        multiply_linear_by_lr=o.get("multiply_linear_by_learning_rate", False),
    )


def _adam(tf, w, slots, rows, gradients, rate, o):
    """Powers of the betas of 0: no correction of the bias. Rows are taken out and put back."""
    taken = [tf.Variable(tf.gather(v, rows)) for v in (w, slots["momenta"], slots["velocities"])]
    tf.raw_ops.ResourceApplyAdam(
        var=taken[0].handle,
        m=taken[1].handle,
        v=taken[2].handle,
        beta1_power=0.0,
        beta2_power=0.0,
        lr=rate,
        beta1=o.get("beta_1", 0.9),
        beta2=o.get("beta_2", 0.999),
        epsilon=o.get("epsilon", 1e-7),
        grad=gradients,
        use_nesterov=False,
    )
    for variable, part in zip((w, slots["momenta"], slots["velocities"]), taken, strict=True):
        tf.raw_ops.ResourceScatterUpdate(resource=variable.handle, indices=rows, updates=part)


STEPS = {"SGD": _sgd, "Adagrad": _adagrad, "FTRL": _ftrl, "Adam": _adam}


def refusals():
    return {}
