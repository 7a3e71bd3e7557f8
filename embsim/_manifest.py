"""What one checkpoint holds: manifest.json, and one safetensors file per group of arrays.

    {"sha256": "<of all bytes after this line>",
    "manifest": {"format": "embsim checkpoint", "version": 1, "groups": {"<name>": {
        "file": ..., "bytes": ..., "sha256": ...,
        "arrays": {"<key>": {"dtype": ..., "shape": [...]}},
        "meta": <any JSON>}}}}

Every byte of every file is covered by a checksum. JSON and raw numbers only: reading one never runs
code of its maker.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ._safetensors import MALFORMED, check_storable, read_arrays, write_arrays
from .errors import CheckpointError

MANIFEST = "manifest.json"
FORMAT = "embsim checkpoint"
VERSION = 1
_FIRST_LINE = re.compile(rb'\{"sha256": "([0-9a-f]{64})",\n')
_PLAIN_NAME = re.compile(r"[a-z0-9_]{1,64}")  # lower case: some file systems do not tell a from A
_FILE_NAME = re.compile(r"[a-z0-9_-]{1,64}\.safetensors")


@dataclass(frozen=True, eq=False)
class Group:
    """Arrays by name, and what else must be known, as JSON (tuples come back as lists)."""

    arrays: Mapping[str, np.ndarray]
    meta: Any = None


def check_groups(groups: Mapping[str, Group]) -> None:
    """Before anything is written: all of it can be stored.

    Raises:
      TypeError: a dtype that no file holds; meta that is no JSON.
      ValueError: the key that the format reserves.
    """
    for name, group in groups.items():
        for key, array in group.arrays.items():
            check_storable(key, array.dtype, f"array {key!r} of {name!r}")
        try:
            json.dumps(group.meta)
        except (TypeError, ValueError) as error:
            raise TypeError(f"meta of group {name!r}: {error}; it must be JSON") from error


def write_groups(directory: Path, groups: Mapping[str, Group]) -> None:
    """All files of a checkpoint, synchronised to the disk, into an empty directory."""
    entries = {}
    for i, (name, group) in enumerate(groups.items()):
        file = f"{name if _PLAIN_NAME.fullmatch(name) else f'group-{i}'}.safetensors"
        size, digest = write_arrays(directory / file, group.arrays)
        arrays = {
            key: {"dtype": a.dtype.name, "shape": list(a.shape)} for key, a in group.arrays.items()
        }
        entries[name] = {
            "file": file,
            "bytes": size,
            "sha256": digest,
            "arrays": arrays,
            "meta": group.meta,
        }
    manifest = {"format": FORMAT, "version": VERSION, "groups": entries}
    write_sealed(directory / MANIFEST, manifest)


def write_sealed(path: Path, manifest: Any) -> None:
    """A new JSON file {"sha256": of all but its first line, "manifest": manifest}, synchronised to
    the disk."""
    body = f'"manifest": {json.dumps(manifest, indent=1)}}}\n'.encode()
    with path.open("xb") as out:
        out.write(b'{"sha256": "%s",\n' % hashlib.sha256(body).hexdigest().encode())
        out.write(body)
        out.flush()
        os.fsync(out.fileno())


def read_groups(directory: Path, names: Sequence[str] | None = None) -> dict[str, Group]:
    """The groups `names`, or all of them. Only their files are read, and of those every byte is
    checked.

    Raises:
      CheckpointError: a file missing, truncated, altered or malformed; a group that is not there.
    """
    entries = _read_manifest(directory)
    wanted = list(entries) if names is None else list(names)
    missing = [name for name in wanted if name not in entries]
    if missing:
        raise CheckpointError(
            f"found {sorted(entries)}, required {sorted(wanted)}: there is no "
            f"{', '.join(map(repr, missing))}"
        )
    return {name: _read_group(directory, name, entries[name]) for name in wanted}


def is_complete(directory: Path) -> bool:
    """The manifest is whole and every file is there in its size (their contents are not read)."""
    try:
        entries = _read_manifest(directory)
        return all(
            (directory / entry["file"]).stat().st_size == entry["bytes"]
            for entry in entries.values()
        )
    except (CheckpointError, OSError):
        return False


def _read_manifest(directory: Path) -> dict[str, dict[str, Any]]:
    """The entry of each group: the kinds of its fields are checked."""
    try:
        text = (directory / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise CheckpointError(
            f"file {MANIFEST!r}: found no such file, required in every checkpoint"
        ) from None
    line = _FIRST_LINE.match(text)
    required = line[1].decode() if line else "in its first line"
    digest = hashlib.sha256(text[line.end() :] if line else text).hexdigest()
    if digest != required:
        raise CheckpointError(
            f"file {MANIFEST!r}: found SHA-256 {digest}, required {required}: it was truncated or "
            "altered"
        )
    try:
        manifest = json.loads(text)["manifest"]
        if manifest["format"] != FORMAT or manifest["version"] != VERSION:
            raise CheckpointError(
                f"file {MANIFEST!r}: found format {manifest['format']!r}, version "
                f"{manifest['version']!r}; this embsim reads {FORMAT!r}, version {VERSION}"
            )
        return {name: _checked_entry(entry) for name, entry in manifest["groups"].items()}
    except CheckpointError:
        raise
    except MALFORMED as error:
        raise CheckpointError(f"file {MANIFEST!r}: it is malformed: {error!r}") from error


def _checked_entry(entry: dict[str, Any]) -> dict[str, Any]:
    fields = (("file", str), ("bytes", int), ("sha256", str), ("arrays", dict))
    if not all(isinstance(entry[field], kind) for field, kind in fields):
        raise ValueError(f"fields of {entry}")
    if not _FILE_NAME.fullmatch(entry["file"]) or entry["bytes"] < 8:
        raise ValueError(f"file {entry['file']!r} of {entry['bytes']} bytes")
    return {"meta": None, **entry}


def _read_group(directory: Path, name: str, entry: Mapping[str, Any]) -> Group:
    arrays = read_arrays(directory / entry["file"], entry["bytes"], entry["sha256"])
    found = {
        key: {"dtype": array.dtype.name, "shape": list(array.shape)}
        for key, array in arrays.items()
    }
    if found != entry["arrays"]:
        raise CheckpointError(
            f"file {entry['file']!r}: found the arrays {found}, required {entry['arrays']} of "
            f"group {name!r}"
        )
    return Group(arrays, entry["meta"])
