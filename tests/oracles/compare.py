"""embsim beside a library: how far they are apart, in units of the computed bound.

A bound is embsim's own rounding steps plus the library's. A lookup is compared whole. Of a
trajectory each step starts from the library's own state, so that no step inherits a difference.
"""

from dataclasses import dataclass

import numpy as np

from tests.oracles import formulas
from tests.oracles.bounds import Ops, Ranged, exact, parameter, ratio, subnormals_are_zero
from tests.oracles.cases import Lookup, Trajectory
from tests.oracles.embsim_results import every_step, looked_up, one_step_each
from tests.oracles.models import (
    after_each_step,
    choose,
    contributions,
    lookup_model,
    rows_of,
    rule_of_embsim,
    stacked,
)

FLOAT64 = 2.0**-27  # of a float32 bound: optax runs in float64, and so does its formula here


@dataclass(frozen=True)
class Comparison:
    """Ratios |difference| / bound of one run: at most 1 is agreement, NaN is no bound."""

    library: str
    run: str
    ours: dict[str, np.ndarray]  # embsim, to the formula that docs/semantics.md gives
    theirs: dict[str, np.ndarray]  # the library, to its formula in formulas.py
    apart: dict[str, np.ndarray]  # embsim to the library
    carried: bool = False  # bounds of many steps, which may end at infinity

    @property
    def numbers(self):
        return sum(ratios.size for ratios in self.apart.values())

    @property
    def diverging(self):
        """Where embsim and the library are apart: name -> how many numbers."""
        counts = {name: int((ratios > 1).sum()) for name, ratios in self.apart.items()}
        return {name: count for name, count in counts.items() if count}

    @property
    def unbounded(self):
        every = [*self.ours.values(), *self.theirs.values(), *self.apart.values()]
        return sum(int(np.isnan(ratios).sum()) for ratios in every)

    @property
    def declared(self):
        return formulas.DIVERGENCES.get((self.library, self.run))

    @property
    def fault(self):
        """What is wrong, in words; None if all is as declared."""
        for who, ratios in (("embsim", self.ours), (self.library, self.theirs)):
            if worst(ratios) > 1:
                many = f"{worst(ratios):.3g} times the bound"
                return f"{self.run}: {who} does not do what its formula says: {many}"
        undeclared = set(self.diverging) - (self.declared[1] if self.declared else set())
        if undeclared:
            many = f"{worst(self.apart):.3g} times the bound"
            return f"{self.run}: embsim and {self.library} are apart, {self.diverging}, {many}"
        if self.unbounded and not self.carried:
            return f"{self.run}: {self.unbounded} numbers have no bound"
        return None

    @property
    def silent(self):
        """Arrays that are declared to diverge and do not."""
        return (self.declared[1] if self.declared else set()) - set(self.diverging)


def worst(ratios):
    """The largest of name -> ratios; 0 of none."""
    return max(float(np.max(r, initial=0, where=~np.isnan(r))) for r in ratios.values())


def compare(library, run, results):
    """results: what the library returned for run.case."""
    return (_lookup if isinstance(run.case, Lookup) else _trajectory)(library, run, results)


def _lookup(library, run, results):
    mine = looked_up(run.case)
    plain = formulas.plain_gains
    ours = lookup_model(run.case, plain, plain, gain_first=True)
    gains = formulas.lookup_gains(library, run)
    ways = [lookup_model(run.case, *gains, gain_first=first) for first in (True, False)]
    theirs = {
        name: Ranged(ways[0][name].value, np.maximum(ways[0][name].error, ways[1][name].error))
        for name in ours
    }
    return _compared(library, run, mine, results, ours, theirs)


def _compared(library, run, mine, results, ours, theirs, unit=1.0, carried=False):
    assert set(mine) == set(results) == set(ours) == set(theirs)
    found = Comparison(library, run.name, {}, {}, {}, carried)
    for name, got in mine.items():
        want, a, b = results[name], ours[name], theirs[name]
        assert got.shape == want.shape == a.value.shape, (name, got.shape, want.shape)
        found.ours[name] = ratio(got, a.value, a.error)
        found.theirs[name] = ratio(want, b.value, b.error * unit)
        found.apart[name] = ratio(got, want, a.error + b.error * unit)
    return found


# --- trajectories -------------------------------------------------------------------------------


def _trajectory(library, run, results):
    case = run.case
    before = {
        name: np.concatenate([first[None], results[name][:-1].astype(np.float32)])
        for name, first in _first(case).items()
    }
    mine = one_step_each(case, before)
    touched, parts = contributions(case)
    for who, after in ((library, results), ("embsim", mine)):
        _check_untouched_rows_stay(f"{run.name}: {who}", before, after, ~touched)
    models = []
    for flushes, rule, alone in _both(library, run):
        with subnormals_are_zero(flushes):
            state = {name: exact(array) for name, array in before.items()}
            models.append(after_each_step(state, parts, rule, alone))
    ours, theirs = ({name: rows_of(x, touched) for name, x in of.items()} for of in models)
    mine, results = ({name: x[touched] for name, x in of.items()} for of in (mine, results))
    unit = FLOAT64 if library == "optax" else 1.0
    return _compared(library, run, mine, results, ours, theirs, unit)


def compare_carried(library, run, results):
    """The whole trajectory from its first state, without ever looking at the library's: the bounds
    of all steps before are carried along.
    """
    case = run.case
    mine = every_step(case)
    _, parts = contributions(case)
    models = []
    for flushes, rule, alone in _both(library, run):
        with subnormals_are_zero(flushes):
            state = {name: exact(array[None]) for name, array in _first(case).items()}
            steps = []
            for step in range(len(case.rows)):
                now = [(there[step : step + 1], values[step : step + 1]) for there, values in parts]
                moved = sum(there for there, _ in now) > 0
                moved |= not case.options.get("lazy_adam", True)
                after = after_each_step(state, now, rule, alone)
                state = {name: choose(moved, after[name], state[name]) for name in state}
                steps.append(state)
            models.append({name: stacked([one[name] for one in steps]) for name in state})
    if library == "optax":
        models[1] = models[0]  # its state is rounded to float32 after each step, as embsim's is
    return _compared(library, run, mine, results, *models, carried=True)


def carried_runs(library, runs):
    """The trajectories that can be compared whole: one rate, and the same numbers at all steps."""
    same = {("tensorflow", "adam"), ("tensorflow", "adam_all_rows")}  # but for tiny velocities
    for name, run in runs.items():
        key = (library, name)
        one_rate = isinstance(run.case, Trajectory) and not run.case.rates
        if one_rate and (key not in formulas.DIVERGENCES or key in same):
            yield run


def _both(library, run):
    """(whether subnormals are 0, rule, whether contributions come alone): embsim, the library."""
    yield False, rule_of_embsim(run.case), formulas.one_by_one("embsim", run)
    yield formulas.flushes(library), _rule_of(library, run), formulas.one_by_one(library, run)


def _first(case):
    return {"w": case.table, **case.slots}


def _rule_of(library, run):
    formula = formulas.formula(library, run)
    if formula is None:
        number = formulas.in_float64 if library == "optax" else parameter
        return rule_of_embsim(run.case, number)
    p = formulas.hyperparameters(library, run)
    return lambda w, g, slots: formula(w, g, slots, p, Ops)


def _check_untouched_rows_stay(who, before, after, untouched):
    for name, array in before.items():
        same = np.array_equal(after[name][untouched], array[untouched], equal_nan=True)
        assert same, f"{who} changed {name} of a row that was not looked up"
