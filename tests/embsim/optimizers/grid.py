"""Rows that try a rule's whole range: gradients from 1e-30 to 300, also where epsilon decides."""

import numpy as np

GRADIENTS = [s * g for g in (1e-30, 1e-20, 1e-10, 1e-7, 1e-4, 0.03, 1.0, 300.0) for s in (1, -1)]
WEIGHTS = [-2.0, -1e-3, 0.0, 0.7]


def grid(*slots):
    """w, g and the slots as rows: all combinations of WEIGHTS, 0 and GRADIENTS, and `slots`."""
    axes = np.meshgrid(WEIGHTS, [0.0, *GRADIENTS], *slots, indexing="ij")
    return [axis.ravel().astype(np.float32) for axis in axes]
