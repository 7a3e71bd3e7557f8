"""optax in float64 as an outside oracle over several steps of one row; bounds as in rounding.py."""

import jax
import numpy as np
import optax

from tests.embsim.optimizers.rounding import bounded_update, check_within, exact, float32_update


def check_trajectory(optimizer, transformation, w=(0.7, -2.0, 0.01, 5.0), steps=6, seed=0):
    """`steps` updates with the same gradients: each row stays within the bound accumulated so far.

    The gradients have magnitudes from 1e-3 to 1e3 in one row.
    """
    random = np.random.default_rng(seed)
    w = np.asarray(w, np.float32)
    rows = [np.full(w.shape, slot.initial, np.float32) for slot in optimizer.slots]
    mine, bounded = (w, tuple(rows)), (exact(w), tuple(map(exact, rows)))
    with jax.enable_x64(True):
        theirs = jax.numpy.asarray(w, "float64")
        state = transformation.init(theirs)
        for step in range(steps):
            g = (random.normal(size=w.shape) * 10.0 ** random.integers(-3, 4, w.shape)).astype("f4")
            mine = float32_update(optimizer, *_with(mine, g), step)
            bounded = bounded_update(optimizer, *_with(bounded, exact(g)), step)
            change, state = transformation.update(jax.numpy.asarray(g, "float64"), state, theirs)
            theirs = optax.apply_updates(theirs, change)
            assert theirs.dtype == "float64"
            check_within(f"w after step {step}", mine[0], np.asarray(theirs), bounded[0].error)


def _with(state, g):
    w, slots = state
    return w, g, slots
