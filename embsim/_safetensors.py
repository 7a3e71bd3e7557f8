"""Named arrays in one file of the safetensors format: length of the header, JSON header, bytes of
the arrays.

Written in one pass that also computes the checksum, without a copy of the arrays; read by mapping
the file. The data start at a multiple of 64 and the widest items come first, so that every mapped
array is aligned.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CheckpointError

CHUNK = 2**24  # bytes
HEADER_BYTES_MAX = 10**8
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
_METADATA = "__metadata__"  # a key that the format keeps for itself

_FORMAT_NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
_NUMPY_NAMES = {name: dtype for dtype, name in _FORMAT_NAMES.items()}


def check_storable(key: str, dtype: Any, what: str) -> None:
    """TypeError for a dtype that the format does not have, ValueError for its one reserved key."""
    name = dtype.name if isinstance(dtype, np.dtype) else str(dtype)
    if name not in _FORMAT_NAMES:
        raise TypeError(
            f"{what}: found dtype {name}; a checkpoint holds {', '.join(_FORMAT_NAMES)}"
        )
    if key == _METADATA:
        raise ValueError(
            f"{what}: the key {_METADATA!r} is reserved by the safetensors format; use another"
        )


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[int, str]:
    """(bytes, SHA-256) of a new file, synchronised to the disk. Keys and dtypes are storable."""
    keys = sorted(arrays, key=lambda key: (-arrays[key].dtype.itemsize, key))
    header, offset = {}, 0
    for key in keys:
        array = arrays[key]
        span = [offset, offset + array.nbytes]
        header[key] = {
            "dtype": _FORMAT_NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": span,
        }
        offset = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    digest = hashlib.sha256()
    with path.open("xb") as file:
        prefix = np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8)
        for part in (prefix, *(arrays[key] for key in keys)):
            data = _bytes_of(part)
            for low in range(0, len(data), CHUNK):
                digest.update(data[low : low + CHUNK])
                file.write(data[low : low + CHUNK])
        file.flush()
        os.fsync(file.fileno())
    return 8 + len(text) + offset, digest.hexdigest()


def read_arrays(path: Path, size: int, sha256: str) -> dict[str, np.ndarray]:
    """Read-only arrays that lie in the mapped file, of which every byte was checked.

    Raises:
      CheckpointError: a file that is missing, of another size or checksum, or not of the format.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno()).st_size
            if found != size:
                raise CheckpointError(
                    f"file {path.name!r}: found {found} bytes, required {size}: it was truncated "
                    "or altered"
                )
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise CheckpointError(
            f"file {path.name!r}: found no such file, required {size} bytes"
        ) from None
    digest, view = hashlib.sha256(), memoryview(mapped)
    for low in range(0, size, CHUNK):
        digest.update(view[low : low + CHUNK])
    if digest.hexdigest() != sha256:
        raise CheckpointError(
            f"file {path.name!r}: found SHA-256 {digest.hexdigest()}, required {sha256}: it was "
            "altered"
        )
    try:
        return _parse(view)
    except CheckpointError:
        raise
    except MALFORMED as error:
        raise CheckpointError(
            f"file {path.name!r}: it is not of the safetensors format: {error!r}"
        ) from error


def _parse(view: memoryview) -> dict[str, np.ndarray]:
    length = int.from_bytes(view[:8], "little")
    if not 2 <= length <= min(len(view) - 8, HEADER_BYTES_MAX):
        raise ValueError(f"header of {length} bytes in a file of {len(view)}")
    header = json.loads(bytes(view[8 : 8 + length]))
    header.pop(_METADATA, None)
    data = view[8 + length :]
    arrays = {}
    for key, entry in header.items():
        dtype, shape = _dtype(_NUMPY_NAMES[entry["dtype"]]), tuple(entry["shape"])
        low, high = entry["data_offsets"]
        if not all(isinstance(axis, int) and axis >= 0 for axis in (*shape, low)):
            raise ValueError(f"shape {shape} at {low} of {key!r}")
        if high > len(data) or high - low != prod(shape) * dtype.itemsize:
            raise ValueError(f"bytes {low}..{high} of {key!r} with shape {shape}")
        arrays[key] = np.frombuffer(data[low:high], dtype).reshape(shape)
    return arrays


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        raise CheckpointError(
            f"found an array of {name}; NumPy needs the package ml_dtypes for it: import it first"
        ) from None


def _bytes_of(array: np.ndarray) -> memoryview:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8).data
