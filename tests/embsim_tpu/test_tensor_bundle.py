"""Checkpoints that TensorFlow wrote (files/make_tensorflow_files.py) against what TensorFlow reads
from them (expected.npz)."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from embsim.errors import CheckpointError
from embsim_tpu._tensor_bundle import masked_crc32c, open_bundle

FILES = Path(__file__).parent / "files"
CHECKPOINTS = sorted(path.parent.name for path in FILES.glob("*/expected.npz"))
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
ITEM = "model/tables/item/.ATTRIBUTES/VARIABLE_VALUE"


def copied(name, to):
    return Path(shutil.copytree(FILES / name, to / name))


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_tensor_is_what_tensorflow_reads(name):
    bundle = open_bundle(FILES / name)
    expected = np.load(FILES / name / "expected.npz")
    assert set(expected) == {key for key, entry in bundle.entries.items() if entry.dtype != 7}
    for key, array in expected.items():
        found = bundle.read(key)
        assert (found.dtype, found.shape) == (array.dtype, array.shape), key
        assert found.tobytes() == array.tobytes(), key
        assert found.flags.writeable


def test_the_files_have_pieces_several_data_files_and_every_dtype():
    bundle = open_bundle(FILES / "three_hosts")
    assert bundle.shards == 5
    assert len(bundle.entries[ITEM].pieces) == 5
    (item,) = open_bundle(FILES / "saver").entries.values()
    # numbers that take one byte of a key, and two
    assert [axes[0] for axes in item.pieces] == [(0, 100), (100, 100), (200, 100)]
    (item,) = open_bundle(FILES / "columns").entries.values()
    assert item.pieces == (((0, -1), (0, 2)), ((0, -1), (2, 3)))  # all rows
    assert len({entry.dtype for entry in open_bundle(FILES / "dtypes").entries.values()}) == 14


def test_strings():
    bundle = open_bundle(FILES / "dtypes")
    assert bundle.read_string("text/.ATTRIBUTES/VARIABLE_VALUE") == b"a string"
    assert b"VARIABLE_VALUE" in bundle.read_string(GRAPH)
    with pytest.raises(CheckpointError, match=r"'scalar/.*' is not one string"):
        bundle.read_string("scalar/.ATTRIBUTES/VARIABLE_VALUE")
    with pytest.raises(CheckpointError, match="TensorFlow's dtype number 7"):
        bundle.read(GRAPH)


def test_the_checksum_is_castagnolis():
    crc = 0xE3069283  # of these nine digits, by RFC 3720
    digits = np.frombuffer(b"123456789", np.uint8)
    assert masked_crc32c(digits) == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def test_a_checkpoint_is_found_by_prefix_index_directory_and_in_a_saved_model(tmp_path):
    directory = FILES / "one_host"
    prefix = directory / "model-1"
    for path in (prefix, str(prefix), directory / "model-1.index", directory):
        assert open_bundle(path).prefix == prefix
    shutil.copytree(directory, tmp_path / "variables")
    for file in (tmp_path / "variables").glob("model-1.*"):
        file.rename(file.with_name(file.name.replace("model-1", "variables")))
    assert open_bundle(tmp_path).read(ITEM).shape == (13, 4)


@pytest.mark.parametrize("path", ["one_host/model-2", "", "nowhere/model"])
def test_no_checkpoint_there(path):
    with pytest.raises(CheckpointError, match=r"found no file .*\.index; pass what tf\.train"):
        open_bundle(FILES / path)


def test_an_altered_index_is_refused(tmp_path):
    index = copied("one_host", tmp_path) / "model-1.index"
    original = index.read_bytes()
    for place in (0, 100, len(original) - 60, len(original) - 1):
        flip(index, place)
        with pytest.raises(CheckpointError, match="cannot be read"):
            open_bundle(index)
        index.write_bytes(original)
    for size in (0, 10, 48, len(original) - 1):
        index.write_bytes(original[:size])
        with pytest.raises(CheckpointError, match="cannot be read"):
            open_bundle(index)
    index.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="does not end as the index"):
        open_bundle(index)


def test_altered_data_are_refused(tmp_path):
    data = copied("one_host", tmp_path) / "model-1.data-00000-of-00001"
    bundle, original = open_bundle(tmp_path / "one_host"), data.read_bytes()
    flip(data, bundle.entries[ITEM].offset)
    with pytest.raises(CheckpointError, match=r"'model/tables/item/.*its CRC-32C: a data file was"):
        bundle.read(ITEM)
    data.write_bytes(original)
    flip(data, bundle.entries[GRAPH].offset + 9)
    with pytest.raises(CheckpointError, match="its CRC-32C"):
        bundle.read_string(GRAPH)
    data.write_bytes(original[: bundle.entries[ITEM].offset + 7])
    with pytest.raises(CheckpointError, match=r"found 7 bytes at .*, required 208: .* truncated"):
        bundle.read(ITEM)
    data.unlink()
    with pytest.raises(CheckpointError, match=r"found no file .*data-00000-of-00001"):
        bundle.read(ITEM)


def test_a_tensor_that_is_not_there():
    with pytest.raises(CheckpointError, match=r"found no tensor 'user'; there are \['item'\]"):
        open_bundle(FILES / "saver").read("user")


def test_a_piece_that_is_not_there():
    bundle = open_bundle(FILES / "saver")
    keys = list(bundle.pieces)
    assert len(keys) == 3
    del bundle.pieces[keys[1]]
    with pytest.raises(CheckpointError, match=r"'item' lacks the piece \(\(100, 100\)"):
        bundle.read("item")
    item = dataclasses.replace(bundle.entries["item"], pieces=bundle.entries["item"].pieces[:1])
    with pytest.raises(CheckpointError, match="the pieces of 'item' have 300 items, not 900"):
        dataclasses.replace(bundle, entries={"item": item}).read("item")
