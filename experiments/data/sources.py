"""The sources of `samples.py`, by name, each with the licence of its data."""

import dataclasses
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from . import adult, criteo, flights, frappe, movielens
from .samples import Samples, Source
from .synthetic import PRESETS, stream

CRITEO_LINES = 1_000_000
SYNTHETIC_SAMPLES = 400_000


def _given(what: str, path: Path | None) -> tuple[Path, ...]:
    """The files at `path`, which the user must give."""
    if path is None or not path.exists():
        raise FileNotFoundError(
            f"data: {what} is read from a path of your own, found {path or 'none'}; required: "
            f"{what}=PATH. It is not downloaded: its licence is its owner's"
        )
    return tuple(sorted(path.iterdir())) if path.is_dir() else (path,)


def _flights_path(path: Path | None) -> tuple[Path, ...]:
    if path is not None:
        raise ValueError(f"data: flights={path}: flights come from an installed package, no path")
    return (flights.path(),)


def _criteo(paths: tuple[Path, ...]) -> Samples:
    """Categories as they are hashed; each count becomes a field, floor(log2(1 + count))."""
    pieces = list(islice(criteo.stream(paths).in_order(), CRITEO_LINES // criteo.BLOCK_LINES + 1))
    ids = np.concatenate([piece.ids for piece in pieces])[:CRITEO_LINES]
    counts = np.concatenate([piece.dense for piece in pieces])[:CRITEO_LINES]
    labels = np.concatenate([piece.labels for piece in pieces])[:CRITEO_LINES]
    columns = {name: ids[:, i] for i, name in enumerate(criteo.CATEGORIES)}
    sizes = dict.fromkeys(columns, criteo.stream(paths).vocabulary_sizes[0])
    buckets = np.floor(counts / np.log(2.0) + 1e-6).astype(np.int32)  # of log(1 + count)
    for i in range(criteo.NUM_DENSE):
        columns[f"I{i + 1}"], sizes[f"I{i + 1}"] = buckets[:, i], int(buckets[:, i].max()) + 1
    return Samples(columns, sizes, labels, np.arange(len(labels)))


def synthetic(preset: str) -> Source:
    """Clicks of a known law; their oracle is `draw` of the same stream."""
    if preset not in PRESETS:
        raise ValueError(f"data: synthetic:{preset}: presets are {', '.join(PRESETS)}")
    made = dataclasses.replace(stream(preset), num_samples=SYNTHETIC_SAMPLES)

    def load(paths: tuple[Path, ...]) -> Samples:
        examples, _ = made.draw(0, SYNTHETIC_SAMPLES)
        ids = {name: examples.ids[:, i] for i, name in enumerate(made.names)}
        sizes = dict(zip(made.names, made.vocabulary_sizes, strict=True))
        return Samples(ids, sizes, examples.labels, np.arange(SYNTHETIC_SAMPLES))

    return Source("none: drawn by experiments/data/synthetic.py", load, lambda path: ())


SOURCES = {
    "flights": Source("CC0", lambda paths: flights.load(), _flights_path),
    "movielens": Source(
        "GroupLens: research only, no redistribution, no commercial use without permission",
        movielens.load,
        movielens.find,
    ),
    "adult": Source("UCI Machine Learning Repository: CC BY 4.0", adult.load, adult.find),
    "frappe": Source(
        "Frappe: research only, no redistribution, no commercial use",
        frappe.load,
        partial(_given, "frappe"),
    ),
    "criteo": Source(
        "Criteo's own terms; the terabyte log is CC BY-NC-SA 4.0",
        _criteo,
        partial(_given, "criteo"),
    ),
}
