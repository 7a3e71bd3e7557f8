"""Workloads from ids that a user has measured: a file, its batches, and what they move.

A file is an .npz. A feature `clicks` of n consecutive samples is either

    clicks            int [n, ids]      as many ids in each sample
or  clicks.values     int [all ids]     sample by sample
    clicks.lengths    int [n]           how many of them each sample has

and may have `clicks.rows`, the rows of its table; by default the largest id and one. Each feature
has a table of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ..config import integer
from .popularity import counted as law_of
from .popularity import uniform
from .traffic import FLOAT, LARGEST, Traffic, counted
from .workload import Table, Workload

PARTS = (".values", ".lengths", ".rows")


@dataclass(frozen=True, eq=False)
class Feature:
    """Ids of consecutive samples.

    Args:
      values: int64 [ids], sample by sample.
      lengths: int64 [samples].
      rows: of its table.
    """

    values: np.ndarray
    lengths: np.ndarray
    rows: int


@dataclass(frozen=True, eq=False)
class Measured:
    """Args:
    workload: whose laws are the shares of all ids measured. What they make one expect has too few
      distinct rows and too many stale lookups, unless there are many batches.
    batches: by step and table, int64 [ids], and the ends of the samples in it, int64 [samples].
    """

    workload: Workload
    batches: list[list[tuple[np.ndarray, np.ndarray]]]

    def traffic(self, chips: int = 1, depths: Sequence[int] = (1,)) -> Traffic:
        """Counted in the last batch.

        Raises:
          ValueError: too few batches for `depths`, or samples that are no multiple of chips.
        """
        chips = integer("measured: chips", chips, minimum=1)
        if self.workload.samples % chips:
            raise ValueError(
                f"measured: {self.workload.samples} samples; it must be a multiple of {chips} chips"
            )
        whole = counted(
            self.workload, [[ids for ids, _ in step] for step in self.batches], 1, depths
        )
        load, asked_bytes = np.zeros(chips, np.int64), 0
        for table, (ids, ends) in zip(self.workload.tables, self.batches[-1], strict=True):
            part = self.workload.samples // chips
            for of_chip in np.split(ids, ends[part - 1 : -1 : part]):
                distinct = np.unique(of_chip)
                load += np.bincount(distinct % chips, minlength=chips)
                asked_bytes += len(distinct) * table.dim * FLOAT
        names = ("samples", "ids", "changed", "changed_bytes", "activation_bytes", "input_bytes")
        return replace(
            whole,
            **{name: getattr(whole, name) / chips for name in names},
            asked=float(load.sum()) / chips,
            **dict.fromkeys(("asked_bytes", "read_bytes", "exchanged_bytes"), asked_bytes / chips),
            imbalance=float(load.max() / load.mean()) if load.any() else 1.0,
        )


def measured(name: str, features: Mapping[str, Feature], samples: int, dim: int) -> Measured:
    """Consecutive batches of so many samples; what is left over at the end is not used.

    No dense model. Adagrad's slots: as many numbers as weights.

    Raises:
      ValueError: fewer samples than a batch.
    """
    samples = integer("measured: samples", samples, minimum=1)
    had = min((len(feature.lengths) for feature in features.values()), default=0)
    if had < samples:
        raise ValueError(f"measured: {had} samples in {name}; a batch needs {samples}")
    steps = had // samples
    tables: list[Table] = []
    batches: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(steps)]
    for feature in features.values():
        ends = np.cumsum(feature.lengths[: steps * samples])
        used = feature.values[: ends[-1]]
        law = law_of(used, feature.rows) if len(used) else uniform(feature.rows)
        tables.append(Table(feature.rows, dim, len(used) / len(ends), law=law))
        for step, inside in enumerate(np.split(ends, steps)):
            first = ends[step * samples - 1] if step else 0
            batches[step].append((used[first : inside[-1]], inside - first))
    workload = Workload(
        *(name, tuple(tables), samples, 0.0, 0.0, 0),
        source="measured ids",
        doubtful=(f"{name}: no dense model; Adagrad's slots (assumed)",),
    )
    return Measured(workload, batches)


def load(path: Path) -> dict[str, Feature]:
    """Features of a file, in its order.

    Raises:
      ValueError: no such file, or one of another form.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except (OSError, EOFError, ValueError, AttributeError, TypeError, BadZipFile) as error:
        raise ValueError(f"ids of {path}: it must be an .npz of arrays: {error}") from error
    features: dict[str, Feature] = {}
    for key in arrays:
        name = key.rpartition(".")[0] if key.endswith(PARTS) else key
        if name not in features:
            features[name] = _feature(f"ids of {path}: feature {name!r}", name, arrays)
    if not features:
        raise ValueError(f"ids of {path}: it has no arrays; a feature is one, or .values, .lengths")
    found = {name: len(feature.lengths) for name, feature in features.items()}
    if len(set(found.values())) > 1:
        raise ValueError(f"ids of {path}: samples are {found}; all features must have as many")
    return features


def _feature(where: str, name: str, arrays: Mapping[str, np.ndarray]) -> Feature:
    whole, values, lengths, rows = (arrays.get(name + end) for end in ("", *PARTS))
    if whole is not None and (values is not None or lengths is not None):
        raise ValueError(f"{where} is both an array and .values or .lengths; it must be one form")
    if whole is not None:
        whole = _integers(where, whole, 2)
        values, lengths = whole.reshape(-1), np.full(len(whole), whole.shape[1], np.int64)
    if values is None or lengths is None:
        lacks = " and ".join(end for end in PARTS[:2] if name + end not in arrays)
        raise ValueError(f"{where} lacks {lacks}; it must be [samples, ids], or both of these")
    values = _integers(f"{where}, .values", values, 1)
    lengths = _integers(f"{where}, .lengths", lengths, 1)
    if lengths.sum() != len(values):
        raise ValueError(
            f"{where}: lengths add up to {lengths.sum()}, and there are {len(values)} values; they "
            "must be equal"
        )
    most = int(values.max(initial=-1)) + 1
    size = most if rows is None else int(_integers(f"{where}, .rows", rows, 0))
    if not max(most, 1) <= size <= LARGEST:
        raise ValueError(
            f"{where}: ids up to {most - 1} in a table of {size} rows; ids must be less than rows, "
            f"and these 1 to {LARGEST}; number or hash the ids first"
        )
    return Feature(values, lengths, size)


def _integers(where: str, array: np.ndarray, axes: int) -> np.ndarray:
    if not np.issubdtype(array.dtype, np.integer) or array.ndim != axes:
        raise ValueError(
            f"{where} is {array.dtype} {list(array.shape)}; it must be integers of {axes} axes"
        )
    if array.size and not 0 <= array.min() <= array.max() < 2**63:
        raise ValueError(
            f"{where} has {array.min()} .. {array.max()}; it must be from 0 to 2 ** 63 - 1"
        )
    return array.astype(np.int64)
