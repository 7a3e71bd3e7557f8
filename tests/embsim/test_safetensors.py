import hashlib
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from embsim._safetensors import check_storable, read_arrays, write_arrays
from embsim.errors import CheckpointError

ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "int64": np.array([-(2**63), 2**63 - 1]),
    "bool": np.array([True, False, True]),
    "uint8": np.arange(5, dtype=np.uint8),
    "float16": np.float16([0.5, np.inf]),
    "nan with its payload": np.array([0x7FC12345], np.uint32).view(np.float32),
    "no rank": np.array(2.5),
    "no items": np.zeros((0, 7), np.float32),
    "": np.int8([1]),
    'a/b\n"c" é \\': np.int16([1, -2]),
    "big endian": np.array([1.5, 2.5], ">f4"),
    "columns": np.arange(6.0).reshape(2, 3).T,
    "every second": np.arange(6)[::2],
}


def test_arrays_come_back(tmp_path):
    size, digest = write_arrays(tmp_path / "a", ARRAYS)
    content = (tmp_path / "a").read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (size, digest)
    found = read_arrays(tmp_path / "a", size, digest)
    assert set(found) == set(ARRAYS)
    for key, array in ARRAYS.items():
        assert found[key].dtype.name == array.dtype.name
        assert found[key].shape == array.shape
        assert found[key].tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()
        assert found[key].flags.aligned
        assert not found[key].flags.writeable


def test_the_safetensors_library_reads_them(tmp_path):
    write_arrays(tmp_path / "a", ARRAYS)
    found = safetensors.numpy.load_file(tmp_path / "a")
    assert set(found) == set(ARRAYS)
    for key, array in ARRAYS.items():
        np.testing.assert_array_equal(found[key], array)


def test_files_of_the_safetensors_library_are_read(tmp_path):
    path = tmp_path / "a"
    plain = {key: ARRAYS[key] for key in ("float32", "int64", "bool", "no rank", "no items")}
    safetensors.numpy.save_file(plain, path, metadata={"made by": "the library"})
    found = read_arrays(path, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    for key, array in plain.items():
        np.testing.assert_array_equal(found[key], array)


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_narrow_floats_come_back(tmp_path, name):
    array = np.array([1.5, -2.0, np.nan], np.dtype(getattr(ml_dtypes, name)))
    found = read_arrays(tmp_path / "a", *write_arrays(tmp_path / "a", {"x": array}))["x"]
    assert found.dtype == array.dtype
    assert found.tobytes() == array.tobytes()


def test_no_arrays_make_a_file(tmp_path):
    assert read_arrays(tmp_path / "a", *write_arrays(tmp_path / "a", {})) == {}


def test_every_flipped_bit_and_every_truncation_is_found(tmp_path):
    path = tmp_path / "a"
    size, digest = write_arrays(path, {"x": np.arange(3, dtype=np.int16)})
    content = path.read_bytes()
    for i in range(size):
        path.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        with pytest.raises(
            CheckpointError, match=rf"file 'a': found SHA-256 \w+, required {digest}"
        ):
            read_arrays(path, size, digest)
        path.write_bytes(content[:i])
        with pytest.raises(CheckpointError, match=f"file 'a': found {i} bytes, required {size}"):
            read_arrays(path, size, digest)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"found no such file, required {size} bytes"):
        read_arrays(path, size, digest)


HEADERS = [
    {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
    {"x": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
    {"x": {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}},
    {"x": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}},
    {"x": {"dtype": "F32", "shape": [0, 10**30], "data_offsets": [0, 0]}},
    {"x": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
    {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0.0, 8.0]}},
    {"x": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}},
    {"x": {"shape": [2], "data_offsets": [0, 8]}},
    {"x": []},
    [],
    3,
]


@pytest.mark.parametrize("header", HEADERS, ids=json.dumps)
def test_a_malformed_header_is_refused_before_any_allocation(tmp_path, header):
    _assert_refused(tmp_path / "a", json.dumps(header).encode())


@given(st.binary(max_size=200))
def test_any_other_header_is_refused(tmp_path_factory, text):
    _assert_refused(tmp_path_factory.mktemp("file") / "a", text)


def _assert_refused(path, text):
    for length in (len(text), 2**63):
        content = length.to_bytes(8, "little") + text + bytes(8)
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="file 'a': it is not of the safetensors format"):
            read_arrays(path, len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("dtype", ["complex64", "longdouble", "U3", "O", "M8[s]", "i4,f4"])
def test_dtypes_without_a_name_are_refused(dtype):
    with pytest.raises(
        TypeError, match=r"array 'x': found dtype .*; a checkpoint holds bool, uint8"
    ):
        check_storable("x", np.dtype(dtype), "array 'x'")


def test_the_reserved_key_is_refused():
    with pytest.raises(ValueError, match="the key '__metadata__' is reserved"):
        check_storable("__metadata__", np.dtype("float32"), "array")
