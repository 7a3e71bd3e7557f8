"""Gradients of stale rows, changed before the optimizer sees them.

A compensation is a function f(gradient, now, read, age) -> gradient of one table's rows in a step:

    gradient   float32 [rows, dim], duplicates summed
    now, read  float32 [rows, dim], the rows as the update finds them, and as the lookup read them
    age        int64 [rows, 1], updates that the row has had in between

Where nothing is stale (age 0) it should return the gradient as it is.
"""

from collections.abc import Callable

import numpy as np

Compensation = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def dc_asgd(strength: float) -> Compensation:
    """g + strength * g * g * (now - read): the gradient at the rows as they are now, to first
    order, with g * g for the Hessian (Zheng et al. 2017)."""

    def compensate(
        gradient: np.ndarray, now: np.ndarray, read: np.ndarray, age: np.ndarray
    ) -> np.ndarray:
        return gradient + np.float32(strength) * gradient * gradient * (now - read)

    return compensate


def decayed() -> Compensation:
    """g / (1 + age)."""

    def compensate(
        gradient: np.ndarray, now: np.ndarray, read: np.ndarray, age: np.ndarray
    ) -> np.ndarray:
        return gradient / (1 + age).astype(np.float32)

    return compensate


def drop_if_older(age: int) -> Compensation:
    """0 for rows that have had more than so many updates, as GBA drops what is too stale."""
    most = age

    def compensate(
        gradient: np.ndarray, now: np.ndarray, read: np.ndarray, age: np.ndarray
    ) -> np.ndarray:
        return np.where(age > most, np.float32(0), gradient)

    return compensate
