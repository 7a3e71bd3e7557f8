"""What a formula gives for a whole case, with bounds: embsim's formula, or a library's."""

from types import SimpleNamespace

import numpy as np

from embsim import optimizers
from tests.oracles.bounds import Ops, Ranged, exact, parameter, total, zeros

# --- lookups ------------------------------------------------------------------------------------


def lookup_model(case, forward, backward, gain_first):
    """Activations and row gradients with their bounds. `forward` and `backward` give the gains of
    the two; gain_first: w / d comes before w * row.
    """
    results, contributions = {}, {}
    table = exact(case.table)
    for number, feature in enumerate(case.features):
        gradients = exact(feature.gradients)
        shape, dim = feature.gradients.shape, case.table.shape[1]
        flat = Ranged(gradients.value.reshape(-1, dim), gradients.error.reshape(-1, dim))
        found = zeros(flat.value.shape)
        sequence = feature.length or len(flat.value) // len(feature.bags)
        combined = len(flat.value) == len(feature.bags) and not feature.length
        for sample, bag in enumerate(feature.bags):
            if combined and bag:
                weights = feature.weights[sample] if feature.weights else np.ones(len(bag))
                g, rows = flat[sample], table[bag]
                _put(found, sample, _activation(rows, forward(weights, case.combiner), gain_first))
                given = _contributions(g, backward(weights, case.combiner), gain_first)
                parts = list(zip(bag, given, strict=True))
            elif not combined:
                places = [(p, r) for p, r in enumerate(bag[:sequence]) if r is not None]
                for p, row in places:
                    _put(found, sample * sequence + p, table[row])
                parts = [(row, flat[sample * sequence + p]) for p, row in places]
            else:
                parts = []
            for row, part in parts:
                contributions.setdefault(row, []).append(part)
        results[f"activations {number}"] = Ranged(
            found.value.reshape(shape), found.error.reshape(shape)
        )
    gradient = zeros(case.table.shape)
    for row, parts in contributions.items():
        _put(gradient, row, total(parts))
    return results | {"row gradients": gradient}


def _activation(rows, gains, gain_first):
    """sum(w / d * row), or sum(w * row) / d."""
    weights, d = gains
    rows = [rows[j] for j in range(len(weights))]
    if d.value == 0:
        return zeros(rows[0].value.shape)
    if gain_first:
        return total([w / d * row for w, row in zip(weights, rows, strict=True)])
    return total([w * row for w, row in zip(weights, rows, strict=True)]) * (exact(1) / d)


def _contributions(g, gains, gain_first):
    """w / d * g, or w * (g / d), of each id."""
    weights, d = gains
    if d.value == 0:
        return [zeros(g.value.shape) for _ in weights]
    scaled = g * (exact(1) / d)
    return [w / d * g if gain_first else w * scaled for w in weights]


def _put(array, place, item):
    array.value[place], array.error[place] = item.value, item.error


# --- trajectories -------------------------------------------------------------------------------


def rule_of_embsim(case, number=parameter):
    """(w, g, slots) -> (w, slots): the optimizer's rule, coefficients as docs/semantics.md, 4.7."""
    optimizer = optimizer_of(case)
    asked = [optimizer.coefficients(rate) for rate in case.rates or [case.rate(0)]]
    numbers = {name: np.array([each[name] for each in asked]) for name in asked[0]}
    c = SimpleNamespace(**{name: number(x[:, None, None]) for name, x in numbers.items()})
    rule = optimizer.rule(Ops)
    return lambda w, g, slots: rule(w, g, slots, c)


def optimizer_of(case):
    return getattr(optimizers, case.optimizer)(**case.options)


def contributions(case):
    """touched [steps, rows], and a list of (whether there is a k-th contribution, which)."""
    steps, samples = case.rows.shape
    shape = (steps, len(case.table))
    seen = np.zeros(shape, int)
    parts = []
    for step in range(steps):
        for sample in range(samples):
            row = case.rows[step, sample]
            k = seen[step, row]
            if k == len(parts):
                parts.append((np.zeros(shape, bool), np.zeros((*shape, case.table.shape[1]))))
            parts[k][0][step, row] = True
            parts[k][1][step, row] = case.gradients[step, sample]
            seen[step, row] += 1
    touched = seen > 0 if case.options.get("lazy_adam", True) else np.ones(shape, bool)
    return touched, parts


def after_each_step(before, parts, rule, alone):
    """name -> Ranged [steps, rows, dim]: `rule` once on a row, or alone on each contribution."""
    w, *slots = before.values()
    with np.errstate(all="ignore"):
        if not alone:
            counts = sum(there.astype(int) for there, _ in parts)[..., None]
            g = total([exact(values) for _, values in parts], counts)
            w, slots = rule(w, g, tuple(slots))
        else:
            for there, values in parts:
                new, new_slots = rule(w, exact(values), tuple(slots))
                w = choose(there, new, w)
                slots = [choose(there, a, b) for a, b in zip(new_slots, slots, strict=True)]
    return dict(zip(before, (w, *slots), strict=True))


def choose(there, new, old):
    there = there[..., None]
    new.error = np.broadcast_to(new.error, new.value.shape)
    return Ranged(np.where(there, new.value, old.value), np.where(there, new.error, old.error))


def rows_of(x, touched):
    return Ranged(x.value[touched], np.broadcast_to(x.error, x.value.shape)[touched])


def stacked(items):
    return Ranged(
        *(
            np.concatenate([np.broadcast_to(getattr(x, part), x.value.shape) for x in items])
            for part in ("value", "error")
        )
    )
