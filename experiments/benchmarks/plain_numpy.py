"""What a NumPy user would write, table by table: take, argsort, reduceat. For comparison only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import embsim
from embsim.optimizers import learning_rate_at


@dataclass
class PlainNumpy:
    """Tables and slots as arrays; bags of equal size, sum or mean, float32."""

    tables: list[np.ndarray]
    optimizer: embsim.SGD | embsim.Adagrad | embsim.RowwiseAdagrad | embsim.Adam
    combiner: str

    def __post_init__(self) -> None:
        self.slots = [
            [
                np.full_like(t[:, :1] if slot.rowwise else t, slot.initial)
                for slot in self.optimizer.slots
            ]
            for t in self.tables
        ]

    def lookup(self, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """`ids` [batch, pooling] per table."""
        out = []
        for table, rows in zip(self.tables, ids, strict=True):
            pooled = table[rows].sum(axis=1)
            if self.combiner == "mean":
                pooled *= np.float32(1.0 / rows.shape[1])
            out.append(pooled)
        return out

    def update(self, ids: Sequence[np.ndarray], gradients: Sequence[np.ndarray]) -> None:
        """Sum gradients of equal ids, then one step of the optimizer on each distinct row."""
        for t, (rows, gradient) in enumerate(zip(ids, gradients, strict=True)):
            flat = rows.reshape(-1)
            order = np.argsort(flat, kind="stable")
            ordered = flat[order]
            starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
            g = np.add.reduceat(gradient[order // rows.shape[1]], starts, axis=0)
            if self.combiner == "mean":
                g *= np.float32(1.0 / rows.shape[1])
            self._apply(t, ordered[starts], g)

    def _apply(self, t: int, unique: np.ndarray, g: np.ndarray) -> None:
        table, slots, optimizer = self.tables[t], self.slots[t], self.optimizer
        rate = np.float32(learning_rate_at(optimizer.learning_rate, 0))
        if isinstance(optimizer, embsim.Adagrad):
            slots[0][unique] += g * g
            table[unique] -= rate * g / np.sqrt(slots[0][unique])
        elif isinstance(optimizer, embsim.RowwiseAdagrad):
            slots[0][unique] += np.mean(g * g, axis=1, keepdims=True)
            root = np.sqrt(slots[0][unique]) + np.float32(optimizer.epsilon)
            table[unique] -= rate / root * g
        elif isinstance(optimizer, embsim.Adam):
            b1, b2 = np.float32(optimizer.beta_1), np.float32(optimizer.beta_2)
            c1, c2 = np.float32(1 - optimizer.beta_1), np.float32(1 - optimizer.beta_2)
            slots[0][unique] = m = b1 * slots[0][unique] + c1 * g
            slots[1][unique] = v = b2 * slots[1][unique] + c2 * (g * g)
            if optimizer.sum_inside_sqrt:
                root = np.sqrt(v + np.float32(optimizer.epsilon**2))
            else:
                root = np.sqrt(v) + np.float32(optimizer.epsilon)
            table[unique] -= rate * m / root
        else:
            table[unique] -= rate * g
