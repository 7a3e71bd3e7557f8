"""Frappe: does a user use an app in this context? In libFM's format, as NFM's authors give it out.

    1 4:1 957:1 4718:1 5259:1 ...          label (1 or -1), then a feature:1 for each of ten fields

Field by field the features become ids. There is no time: samples stay in the order of the files.
Research only: it may not be redistributed.
"""

import re
from pathlib import Path

import numpy as np

from .samples import Samples, encoded

_LINE = re.compile(r"(-?[01])((?: \d+:1)+)\s*")


def load(paths: tuple[Path, ...]) -> Samples:
    """The lines of all files, one after the other.

    Raises:
      ValueError: a line that is not in the format, or has another number of features.
    """
    labels: list[bool] = []
    rows: list[list[int]] = []
    for path in paths:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            match = _LINE.fullmatch(line)
            values = [int(each[:-2]) for each in match[2].split()] if match else []
            if match is None or len(values) != len(rows[0] if rows else values):
                raise ValueError(
                    f"data: frappe: {path}, line {number}: found {line[:60]!r}; required: 1 or "
                    f"-1, then features FEATURE:1, {len(rows[0]) if rows else 'as many'} as in all"
                )
            labels.append(match[1] == "1")
            rows.append(values)
    if not rows:
        raise ValueError(f"data: frappe: found no lines in {', '.join(map(str, paths))}")
    columns = {f"field_{i}": np.array(values) for i, values in enumerate(zip(*rows, strict=True))}
    return encoded(columns, labels, np.arange(len(labels)))
