"""TensorFlow's checkpoint files, read without TensorFlow.

    PREFIX.index                   a LevelDB table: sorted keys and values in blocks
    PREFIX.data-00000-of-00002     the tensors' bytes

    key ""       header: how many data files, byte order
    key name     entry: dtype, shape, data file, offset, bytes, checksum; or, of a tensor that was
                 saved in pieces, where each piece lies in it
    key 0x00..   entry of one piece; the key is the name and the piece, encoded so that keys sort

Every block and every tensor is held to its CRC-32C. Sources: in TensorFlow tensor_bundle.h, .cc and
.proto, saved_tensor_slice_util.cc and ordered_code.cc; in LevelDB doc/table_format.md.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from embsim._numba import kernel
from embsim.errors import CheckpointError

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER_BYTES, _TRAILER_BYTES = 48, 5  # trailer of a block: compression, checksum
_MASK_DELTA = 0xA282EAD8  # stored checksums are rotated and moved by this
_MALFORMED = (IndexError, KeyError, ValueError, TypeError, OverflowError)
_STRING, _BFLOAT16 = 7, 14
# By number in types.proto. A bfloat16 is the upper half of a float32.
_FLOATS = {1: "<f4", 2: "<f8", _BFLOAT16: "<u2", 19: "<f2"}
_SIGNED = {3: "<i4", 5: "<i2", 6: "i1", 9: "<i8"}
_UNSIGNED = {4: "u1", 17: "<u2", 22: "<u4", 23: "<u8"}
_DTYPES = _FLOATS | _SIGNED | _UNSIGNED | {10: "?"}

Piece = tuple[tuple[int, int], ...]  # (start, length) by axis; length -1: all of it


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, and its CRC-32C; or its `pieces`, which have entries of their own."""

    dtype: int
    shard: int
    offset: int
    size: int
    checksum: int
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, eq=False)
class Bundle:
    """An opened checkpoint. `entries` by tensor name; those of the pieces are apart."""

    prefix: Path
    shards: int
    entries: Mapping[str, Entry]
    pieces: Mapping[bytes, Entry]

    def read(self, name: str) -> np.ndarray:
        """A tensor of numbers in memory of its own; bfloat16 comes as float32.

        Raises:
          CheckpointError: a data file that is missing, truncated or altered; a tensor that is not
            there, is not of numbers, or lacks a piece.
        """
        entry = self._entry(name)
        if not entry.pieces:
            return self._array(name, entry)
        whole, found = None, 0
        for piece in entry.pieces:
            key = _piece_key(name, piece)
            if key not in self.pieces:
                raise CheckpointError(f"{self.prefix}: tensor {name!r} lacks the piece {piece}")
            part = self._array(name, self.pieces[key])
            whole = np.empty(entry.shape, part.dtype) if whole is None else whole
            place = (slice(low, None if n < 0 else low + n) for low, n in piece)
            whole[tuple(place)] = part
            found += part.size
        if whole is None or found != whole.size:
            raise CheckpointError(
                f"{self.prefix}: the pieces of {name!r} have {found} items, not {prod(entry.shape)}"
            )
        return whole

    def read_string(self, name: str) -> bytes:
        """A tensor of one string. Raises CheckpointError as `read`."""
        entry = self._entry(name)
        if entry.dtype != _STRING or prod(entry.shape) != 1:
            raise CheckpointError(f"{self.prefix}: tensor {name!r} is not one string")
        stored = self._bytes(name, entry)
        length, start = _varint(stored.tobytes(), 0)  # length, checksum of the length, string
        lengths = np.frombuffer(length.to_bytes(4 if length < 2**32 else 8, "little"), np.uint8)
        self._check(name, entry, np.concatenate((lengths, stored[start:])))
        return stored[start + 4 :].tobytes()

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise CheckpointError(
                f"{self.prefix}: found no tensor {name!r}; there are {sorted(self.entries)}"
            )
        return self.entries[name]

    def _array(self, name: str, entry: Entry) -> np.ndarray:
        if entry.dtype not in _DTYPES:
            raise CheckpointError(
                f"{self.prefix}: tensor {name!r} has TensorFlow's dtype number {entry.dtype}; "
                f"numbers are {sorted(_DTYPES)}"
            )
        stored = self._bytes(name, entry)
        self._check(name, entry, stored)
        array = stored.view(_DTYPES[entry.dtype]).reshape(entry.shape)
        if entry.dtype == _BFLOAT16:
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array

    def _bytes(self, name: str, entry: Entry) -> np.ndarray:
        path = Path(f"{self.prefix}.data-{entry.shard:05d}-of-{self.shards:05d}")
        if not path.is_file():
            raise CheckpointError(f"tensor {name!r}: found no file {path}")
        stored = np.fromfile(path, np.uint8, entry.size, offset=entry.offset)
        if len(stored) != entry.size:
            raise CheckpointError(
                f"tensor {name!r}: found {len(stored)} bytes at {entry.offset} of {path}, required "
                f"{entry.size}: the file was truncated"
            )
        return stored

    def _check(self, name: str, entry: Entry, stored: np.ndarray) -> None:
        if masked_crc32c(stored) != entry.checksum:
            raise CheckpointError(
                f"{self.prefix}: tensor {name!r} does not have its CRC-32C: a data file was altered"
            )


def open_bundle(path: Any) -> Bundle:
    """The checkpoint of a prefix ('run/ckpt-7') or a file of it, of a directory (the newest one, as
    its file `checkpoint` says), or of a SavedModel's directory. Tensors are not yet read.

    Raises:
      CheckpointError: no checkpoint there; an index that is truncated, altered or of another kind.
    """
    prefix = _prefix(Path(path))
    index = Path(f"{prefix}.index")
    if not index.is_file():
        raise CheckpointError(
            f"open checkpoint: found no file {index}; pass what tf.train.Checkpoint.save returned, "
            "such as 'run/ckpt-7', or a directory with the file 'checkpoint' of TensorFlow"
        )
    data = index.read_bytes()
    try:
        if not data.endswith(_MAGIC):
            raise ValueError("it does not end as the index of a TensorFlow checkpoint does")
        values = dict(_table(data))
        header = proto_fields(values.pop(b""))
        if header.get(2, [0]) != [0]:
            raise ValueError("big-endian data")
        entries = {key: _parsed_entry(value) for key, value in values.items()}
        whole = {key.decode(): e for key, e in entries.items() if key[0]}
        pieces = {key: e for key, e in entries.items() if not key[0]}
        return Bundle(prefix, int(header[1][0]), whole, pieces)
    except _MALFORMED as error:
        raise CheckpointError(f"open checkpoint: {index} cannot be read: {error!r}") from error


def _prefix(path: Path) -> Path:
    if file := re.fullmatch(r"(.+)\.(index|data-\d+-of-\d+)", path.name):
        return path.with_name(file[1])
    if (path / "variables/variables.index").is_file():
        return path / "variables/variables"
    if (path / "checkpoint").is_file():
        text = (path / "checkpoint").read_text()
        newest = re.search(r'^model_checkpoint_path: "(.*)"$', text, re.MULTILINE)
        return path / newest[1] if newest else path
    return path


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values. The footer: where a meta block and the index block lie."""
    (*_, offset, size), _ = _varints(data, len(data) - _FOOTER_BYTES, 4)
    for _, value in _block(data, offset, size):
        (offset, size), _ = _varints(value, 0, 2)
        yield from _block(data, offset, size)


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Entries, each: bytes that its key shares with the last one, rest of key, value."""
    stored = data[offset : offset + size + 1]
    trailer = data[offset + size : offset + size + _TRAILER_BYTES]
    checksum = int.from_bytes(trailer[1:], "little")
    if len(trailer) < _TRAILER_BYTES or masked_crc32c(np.frombuffer(stored, np.uint8)) != checksum:
        raise ValueError(f"the block at {offset} does not have its CRC-32C")
    if trailer[0]:
        raise ValueError(f"compression {trailer[0]}; TensorFlow writes none")
    block, key, at = stored[:-1], b"", 0
    end = size - 4 - 4 * int.from_bytes(block[-4:], "little")  # restart points and their number
    while at < end:
        (shared, rest, length), at = _varints(block, at, 3)
        key = key[:shared] + block[at : at + rest]
        yield key, block[at + rest : at + rest + length]
        at += rest + length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(number, position after it): seven bits a byte, the lowest first."""
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at


def _varints(data: bytes, at: int, count: int) -> tuple[list[int], int]:
    numbers = [0] * count
    for i in range(count):
        numbers[i], at = _varint(data, at)
    return numbers, at


def proto_fields(data: bytes) -> dict[int, list[Any]]:
    """A protocol buffer: field number -> its values, each an int or bytes."""
    fields: dict[int, list[Any]] = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = int.from_bytes(data[at : at + size], "little"), at + size
        elif kind == 2:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            raise ValueError(f"wire type {kind}")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def messages(fields: Mapping[int, list[Any]], number: int) -> list[dict[int, list[Any]]]:
    """The messages in one field of another."""
    return [proto_fields(data) for data in fields.get(number, [])]


def _parsed_entry(data: bytes) -> Entry:
    fields = proto_fields(data)
    dtype, shard, offset, size, checksum = (fields.get(i, [0])[0] for i in (1, 3, 4, 5, 6))
    axes = (axis for shape in messages(fields, 2) for axis in messages(shape, 2))
    shape = tuple(axis.get(1, [0])[0] for axis in axes)
    pieces = tuple(
        tuple((axis.get(1, [0])[0], axis.get(2, [-1])[0]) for axis in messages(piece, 1))
        for piece in messages(fields, 7)
    )
    return Entry(dtype, shard, offset, size, checksum, shape, pieces)


def _piece_key(name: str, piece: Piece) -> bytes:
    """0, name, rank, and (start, length) of each axis, in an order-preserving code."""
    text = name.encode().replace(b"\x00", b"\x00\xff")
    places = b"".join(_signed(number) for axis in piece for number in axis)
    return b"\x00" + text + b"\x00\x01" + bytes([1, len(piece)]) + places


def _signed(number: int) -> bytes:
    """As many leading ones as bytes, exclusive-or the number in two's complement."""
    size = 1
    while not -(1 << (7 * size - 1)) <= number < 1 << (7 * size - 1):
        size += 1
    code = number & ((1 << 8 * size) - 1)
    return (code ^ (((1 << size) - 1) << 7 * size)).to_bytes(size, "big")


def masked_crc32c(data: np.ndarray) -> int:
    """CRC-32C (Castagnoli) of bytes, as TensorFlow and LevelDB store it."""
    crc = int(_crc32c(data, _CRC_TABLE))
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def _crc_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0x82F63B78), table >> 1)
    return table.astype(np.uint32)


_CRC_TABLE = _crc_table()


@kernel
def _crc32c(data, table):
    crc = np.uint32(0xFFFFFFFF)
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ np.uint32(0xFFFFFFFF)
