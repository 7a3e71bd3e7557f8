"""What embsim computes for a case: the engine and the definition, which must agree to the bit."""

import dataclasses
import functools

import numpy as np

import embsim
from embsim import optimizers
from embsim.definition import Definition
from tests.oracles.cases import Feature, digest


def remembered(function):
    """Several libraries, or kinds of input, are asked the same case."""
    known = {}

    @functools.wraps(function)
    def wrapper(case, before=None):
        key = case.name, digest(case), *(array.tobytes() for array in (before or {}).values())
        if key not in known:
            known[key] = function(case) if before is None else function(case, before)
        return known[key]

    return wrapper


@remembered
def looked_up(case):
    """Activations, and row gradients: what SGD of rate -1 leaves in a table of zeros."""
    first, _ = _engine_step(case.table, case.combiner, case.features, embsim.SGD(1.0))
    zeros = np.zeros_like(case.table)
    _, gradient = _engine_step(zeros, case.combiner, case.features, embsim.SGD(-1.0))
    found = {f"activations {i}": a for i, a in enumerate(first)} | {"row gradients": gradient["w"]}
    _same(case.name, found, _of_the_definition(case))
    return found


@remembered
def one_step_each(case, before):
    """The state after each step, [steps, rows, dim], every one from the state `before` it.

    All steps of one rate are one step of a table that holds the states before them one after the
    other.
    """
    steps, rows = case.rows.shape[0], len(case.table)
    groups = [np.arange(steps)] if case.rates is None else [[step] for step in range(steps)]
    found = {name: np.empty_like(array) for name, array in before.items()}
    for group in groups:
        state = {name: array[group].reshape(-1, array.shape[-1]) for name, array in before.items()}
        ids = (case.rows[group] + rows * np.arange(len(group))[:, None]).ravel()
        gradients = case.gradients[group].reshape(len(ids), -1)
        feature = Feature([[i] for i in ids.tolist()], None, 0, None, gradients)
        optimizer = dataclasses.replace(
            getattr(optimizers, case.optimizer)(**case.options), learning_rate=case.rate(group[0])
        )
        w, slots = state["w"], {name: a for name, a in state.items() if name != "w"}
        started = optimizer
        if slots:
            given = {"slot_variable_creation_fn": lambda *_, slots=slots: slots}
            started = dataclasses.replace(optimizer, **given)
        _, after = _engine_step(w, "sum", [feature], started)
        _same(case.name, after, _definition_step(w, slots, feature, optimizer))
        for name, array in after.items():
            found[name][group] = array.reshape(found[name][group].shape)
    return found


@remembered
def every_step(case):
    """The states of a whole trajectory, [steps, rows, dim]: one embedding, many steps."""
    optimizer = getattr(optimizers, case.optimizer)(**case.options)
    config = embsim.TableConfig(*case.table.shape, lambda *_: case.table, combiner="sum", name="t")
    with embsim.TPUStrategy(num_replicas=1).scope():
        embedding = embsim.TPUEmbedding([embsim.FeatureConfig(config)], optimizer)
    rules = {config: _RuleMadeOnce(optimizer)}
    law = Definition([embsim.FeatureConfig(config)], rules, {config: case.table})
    states = []
    for rows, gradients in zip(case.rows, case.gradients, strict=True):
        embedding.enqueue([rows])
        embedding.dequeue()
        embedding.apply_gradients([gradients])
        slots = embedding.slot_variables[config]
        now = {"w": embedding.embedding_tables[config], **slots}
        states.append({name: array.copy() for name, array in now.items()})
        law.dequeue([[[row] for row in rows.tolist()]])
        law.apply_gradients([gradients])
        _same(case.name, states[-1], dict(zip(now, law.versions[-1][config], strict=True)))
    embedding.close()
    return {name: np.stack([state[name] for state in states]) for name in states[0]}


def _engine_step(table, combiner, features, optimizer):
    """(activations, table and slots after one step), through the public API."""
    config = embsim.TableConfig(*table.shape, lambda *_: table, combiner=combiner, name="t")
    configs = [
        embsim.FeatureConfig(config, max_sequence_length=f.length, output_shape=f.output_shape)
        for f in features
    ]
    strategy = embsim.TPUStrategy(num_replicas=1)
    with strategy.scope():
        embedding = embsim.TPUEmbedding(configs, optimizer)
    ids = [_tensor(feature.bags, np.int32) for feature in features]
    weights = [_tensor(f.weights, np.float32) if f.weights else None for f in features]
    embedding.enqueue(ids, weights if any(w is not None for w in weights) else None)
    activations = embedding.dequeue()
    embedding.apply_gradients([feature.gradients for feature in features])
    after = {"w": embedding.embedding_tables[config].copy()}
    for name, array in embedding.slot_variables[config].items():
        after[name] = array.copy()
    embedding.close()
    return activations, after


def _tensor(bags, dtype):
    """Ragged, or sparse where there are holes."""
    if all(x is not None for bag in bags for x in bag):
        return embsim.RaggedTensor.from_lists(bags, dtype)
    places = [(b, p) for b, bag in enumerate(bags) for p, x in enumerate(bag) if x is not None]
    values = np.array([x for bag in bags for x in bag if x is not None], dtype)
    return embsim.SparseTensor(np.array(places), values, (len(bags), max(map(len, bags))))


def _of_the_definition(case):
    results = {}
    for table, rate in ((case.table, 1.0), (np.zeros_like(case.table), -1.0)):
        config = embsim.TableConfig(*table.shape, combiner=case.combiner)
        configs, batch, gradients = [], [], []
        for f in case.features:
            flat = f.gradients.reshape(-1, table.shape[1])
            shaped = f.output_shape and len(flat) > len(f.bags)
            length = len(flat) // len(f.bags) if shaped else f.length
            configs.append(embsim.FeatureConfig(config, max_sequence_length=length))
            batch.append(_pairs(f))
            gradients.append(flat.reshape(len(f.bags), *([length] if length else []), -1))
        law = Definition(configs, {config: embsim.SGD(rate)}, {config: table})
        activations = law.dequeue(batch)
        law.apply_gradients(gradients)
        if rate == 1.0:
            for i, (a, f) in enumerate(zip(activations, case.features, strict=True)):
                results[f"activations {i}"] = a.reshape(f.gradients.shape)
        else:
            results["row gradients"] = law.versions[-1][config][0]
    return results


class _RuleMadeOnce:
    """An optimizer for the definition, which asks for the rule at every row: annotations of a rule
    that is made anew are checked anew, which takes longer than the rule.
    """

    def __init__(self, optimizer):
        self._optimizer, self._rule = optimizer, optimizer.rule(optimizers.NumpyOps)

    def __getattr__(self, name):
        return getattr(self._optimizer, name)

    def rule(self, ops):
        assert ops is optimizers.NumpyOps
        return self._rule


def _pairs(feature):
    if feature.weights is None:
        return feature.bags
    return [
        list(zip(bag, map(np.float32, weights), strict=True))
        for bag, weights in zip(feature.bags, feature.weights, strict=True)
    ]


def _definition_step(w, slots, feature, optimizer):
    config = embsim.TableConfig(*w.shape, combiner="sum")
    version = {config: [w, *slots.values()]}
    law = Definition(
        [embsim.FeatureConfig(config)],
        {config: _RuleMadeOnce(optimizer)},
        {config: w},
        versions=[version],
    )
    law.dequeue([feature.bags])
    law.apply_gradients([feature.gradients])
    return dict(zip(("w", *slots), law.versions[-1][config], strict=True))


def _same(what, engine, definition):
    assert set(engine) == set(definition)
    for name, got in engine.items():
        equal = np.array_equal(got, definition[name], equal_nan=True)
        assert equal, f"{what}: {name} of the engine is not the definition's"
