"""Named arrays, sharded or not, in a directory that Orbax writes, and a manifest of its files.

    manifest.json     what else must be known, and size and SHA-256 of every other file
    ...               Orbax's: Zarr arrays in OCDBT; each process wrote its shards

Orbax and TensorStore do not notice a bit that flips in an array's data (orbax-checkpoint 0.12.8,
tensorstore 0.1.86): OCDBT has checksums of its index alone. The manifest covers every byte.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from math import gcd, prod
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from jax.experimental import multihost_utils

from embsim._manifest import write_sealed
from embsim._memory import aligned_empty
from embsim.errors import CheckpointError

from ._mesh import Shards
from .placement import Placement

ITEM = "state"
MANIFEST = "manifest.json"
FORMAT = "embsim_tpu checkpoint"
VERSION = 1
CHUNK_BYTES = 2**26  # of an array's file format: what is read at once when a table is laid out anew
_FIRST_LINE = re.compile(rb'\{"sha256": "([0-9a-f]{64})",\n')
_HASHERS = 4  # threads
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError)

Abstract = Mapping[str, jax.ShapeDtypeStruct]


class Handler(ocp.PyTreeCheckpointHandler):
    """Orbax's, with a manifest: `meta`, set before a save, is JSON that is stored in it.

    Orbax renames the directory to its final name after `finalize`.
    """

    meta: Any = None

    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        if jax.process_index() == 0:
            write_manifest(Path(directory), self.meta)


def save_args(arrays: Mapping[str, Any]) -> ocp.args.Composite:
    """Of a save. Arrays without items, which Orbax refuses, are left out."""
    item = {key: array for key, array in arrays.items() if array.size}
    chunks = {key: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES) for key in item}
    return ocp.args.Composite(**{ITEM: ocp.args.PyTreeSave(item, save_args=chunks)})


def read_arrays(directory: Path, wanted: Abstract) -> dict[str, Any]:
    """By key: on the devices of its sharding, or on the host where it has none."""
    there = {key: each for key, each in wanted.items() if prod(each.shape)}
    arguments = {key: _restore_args(each) for key, each in there.items()}
    found: dict[str, Any] = {}
    if there:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            found = reader.restore(
                directory,
                args=ocp.args.PyTreeRestore(there, restore_args=arguments, partial_restore=True),
            )
    return {key: found[key] if key in found else _empty(each) for key, each in wanted.items()}


def _restore_args(wanted: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
    if wanted.sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(
        sharding=wanted.sharding, global_shape=wanted.shape, dtype=wanted.dtype
    )


def _empty(wanted: jax.ShapeDtypeStruct) -> Any:
    array = np.zeros(wanted.shape, wanted.dtype)
    return array if wanted.sharding is None else jax.device_put(array, wanted.sharding)


def read_table(directory: Path, key: str, saved: Placement, width: int, shards: Shards) -> Any:
    """An array of rows that was saved in the layout `saved`, in the layout of `shards`.

    Each process reads the shards that hold rows of its own. Memory on the host: its part of this
    one array, and a chunk.
    """
    new, split = Placement(saved.num_rows, shards.size), shards.split
    shape = (new.num_shards * new.local_rows, width)

    def place(index: Any) -> int:
        return (index[0].start or 0) // new.local_rows

    mine = [place(index) for index in split.addressable_devices_indices_map(shape).values()]
    parts = {shard: aligned_empty((new.local_rows, width), np.float32) for shard in mine}
    store = _open(directory, key)
    chunk = store.chunk_layout.read_chunk.shape[0]
    common = gcd(saved.num_shards, new.num_shards)
    for shard, part in parts.items():
        part[new.rows_in_shard(shard) :] = 0
    for shard in range(saved.num_shards):
        takers = [p for p in parts if (p - shard) % common == 0]
        first, count = shard * saved.local_rows, saved.rows_in_shard(shard)
        for low in range(0, count if takers else 0, chunk):
            high = min(low + chunk, count)
            block = np.asarray(store[first + low : first + high].read().result())
            rows = np.asarray(saved.global_row(shard, np.arange(low, high)))
            for p in takers:
                its = new.shard_of(rows) == p
                parts[p][new.local_row(rows[its])] = block[its]
    return jax.make_array_from_callback(shape, split, lambda index: parts[place(index)])


def _open(directory: Path, key: str) -> Any:
    base = {"driver": "file", "path": f"{directory}/"}
    kvstore = {"driver": "ocdbt", "base": base, "path": f"{key}/"}
    return tensorstore.open({"driver": "zarr", "kvstore": kvstore}, read=True).result()


def write_manifest(directory: Path, meta: Any) -> None:
    """Synchronised to the disk."""
    names = sorted(_files(directory))
    with ThreadPoolExecutor(_HASHERS) as pool:
        digests = list(pool.map(lambda name: _digest(directory / name), names))
    files = {name: list(each) for name, each in zip(names, digests, strict=True)}
    manifest = {"format": FORMAT, "version": VERSION, "files": files, "meta": meta}
    write_sealed(directory / MANIFEST, manifest)


def read_manifest(directory: Path) -> Any:
    """`meta`. Every byte of every file is checked; of several processes each checks a part.

    Raises:
      CheckpointError: a file that is missing, truncated or altered.
    """
    error, meta = None, None
    try:
        meta, files = _manifest(directory)
        mine = sorted(files.items())[jax.process_index() :: jax.process_count()]
        with ThreadPoolExecutor(_HASHERS) as pool:
            list(pool.map(lambda item: _check(directory, item[0], *item[1]), mine))
    except CheckpointError as found:
        error = found
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(error is not None))
        if error is None and failed.any():
            wrong = [int(i) for i in np.flatnonzero(failed)]
            error = CheckpointError(f"checkpoint '{directory}': processes {wrong} found an error")
    if error is not None:
        raise error
    return meta


def _manifest(directory: Path) -> tuple[Any, dict[str, tuple[int, str]]]:
    try:
        text = (directory / MANIFEST).read_bytes()
    except FileNotFoundError:
        found = sorted(os.listdir(directory)) if directory.is_dir() else "no such directory"
        raise CheckpointError(
            f"checkpoint '{directory}': found {found}, required the file {MANIFEST!r}"
        ) from None
    line = _FIRST_LINE.match(text)
    digest = hashlib.sha256(text[line.end() :] if line else text).hexdigest()
    if line is None or line[1].decode() != digest:
        raise CheckpointError(
            f"checkpoint '{directory}': file {MANIFEST!r} was truncated or altered: it does not "
            "have the SHA-256 of its first line"
        )
    try:
        manifest = json.loads(text)["manifest"]
        if (manifest["format"], manifest["version"]) != (FORMAT, VERSION):
            raise CheckpointError(
                f"checkpoint '{directory}': found format {manifest['format']!r}, version "
                f"{manifest['version']!r}; this embsim_tpu reads {FORMAT!r}, version {VERSION}"
            )
        return manifest["meta"], {k: (n, digest) for k, (n, digest) in manifest["files"].items()}
    except _MALFORMED as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"checkpoint '{directory}': file {MANIFEST!r} is malformed: {error!r}"
        ) from error


def _check(directory: Path, name: str, size: int, digest: str) -> None:
    try:
        found = (directory / name).stat().st_size
        if found != size:
            raise CheckpointError(
                f"checkpoint '{directory}': file {name!r} has {found} bytes, required {size}: it "
                "was truncated or altered"
            )
        if _digest(directory / name)[1] != digest:
            raise CheckpointError(
                f"checkpoint '{directory}': file {name!r} does not have its SHA-256: it was altered"
            )
    except FileNotFoundError:
        raise CheckpointError(
            f"checkpoint '{directory}': found no file {name!r}, required {size} bytes"
        ) from None


def _digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _files(directory: Path) -> list[str]:
    return [str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()]
