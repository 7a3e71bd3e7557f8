import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embsim._manifest import (
    MANIFEST,
    Group,
    check_groups,
    is_complete,
    read_groups,
    write_groups,
)
from embsim.errors import CheckpointError

GROUPS = {
    "model": Group({"w": np.arange(3.0)}, {"step": 7, "rate": 0.1, "nan": float("nan")}),
    "../a b/É": Group({"tables/../x": np.float32([[1, 2]])}, [None, "text"]),
    "Model": Group({}, None),
}


def test_groups_come_back(tmp_path):
    write_groups(tmp_path, GROUPS)
    found = read_groups(tmp_path)
    assert list(found) == list(GROUPS)
    for name, group in GROUPS.items():
        assert repr(found[name].meta) == repr(group.meta)
        assert found[name].arrays.keys() == group.arrays.keys()
        for key, array in group.arrays.items():
            np.testing.assert_array_equal(found[name].arrays[key], array)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {MANIFEST, "model.safetensors", "group-1.safetensors", "group-2.safetensors"}
    assert is_complete(tmp_path)


def test_manifest_is_json_that_says_what_each_file_holds(tmp_path):
    write_groups(tmp_path, GROUPS)
    entry = json.loads((tmp_path / MANIFEST).read_text())["manifest"]["groups"]["model"]
    content = (tmp_path / "model.safetensors").read_bytes()
    assert entry["bytes"] == len(content)
    assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert entry["arrays"] == {"w": {"dtype": "float64", "shape": [3]}}


def test_only_what_is_asked_for_is_read(tmp_path):
    write_groups(tmp_path, GROUPS)
    (tmp_path / "group-1.safetensors").unlink()
    assert list(read_groups(tmp_path, ["model"])) == ["model"]
    with pytest.raises(CheckpointError, match=r"file 'group-1.safetensors': found no such file"):
        read_groups(tmp_path)
    assert not is_complete(tmp_path)
    message = r"found \['../a b/É', 'Model', 'model'\], required \['x'\]: there is no 'x'"
    with pytest.raises(CheckpointError, match=message):
        read_groups(tmp_path, ["x"])


def test_every_flipped_bit_and_every_truncation_of_the_manifest_is_found(tmp_path):
    write_groups(tmp_path, {"model": GROUPS["model"]})
    path = tmp_path / MANIFEST
    content = path.read_bytes()
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        with pytest.raises(CheckpointError, match=r"file 'manifest.json': found SHA-256 \w+, req"):
            read_groups(tmp_path)
        path.write_bytes(content[:i])
        with pytest.raises(CheckpointError, match=r"file 'manifest.json': found SHA-256 \w+, req"):
            read_groups(tmp_path)
        assert not is_complete(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"file 'manifest.json': found no such file"):
        read_groups(tmp_path)


def write_manifest(directory, manifest):
    body = b'"manifest": %s}\n' % json.dumps(manifest).encode()
    first = b'{"sha256": "%s",\n' % hashlib.sha256(body).hexdigest().encode()
    (directory / MANIFEST).write_bytes(first + body)


def test_another_version_is_refused(tmp_path):
    write_manifest(tmp_path, {"format": "embsim checkpoint", "version": 2, "groups": {}})
    with pytest.raises(CheckpointError, match=r"found .*version 2; this embsim reads .*version 1"):
        read_groups(tmp_path)


ENTRY = {"file": "a.safetensors", "bytes": 8, "sha256": "0" * 64, "arrays": {}}


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../a.safetensors"},
        {"file": "/etc/passwd"},
        {"file": "a\0.safetensors"},
        {"file": 3},
        {"bytes": 0},
        {"bytes": -1},
        {"bytes": "8"},
        {"sha256": None},
        {"arrays": []},
    ],
    ids=str,
)
def test_a_malformed_entry_is_refused(tmp_path, change):
    _assert_malformed(tmp_path, {"a": {**ENTRY, **change}})


json_values = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*ENTRY, "x"]), inner)
    ),
    max_leaves=8,
)


@given(json_values.filter(lambda value: value != {}))
def test_any_other_entries_are_refused(tmp_path_factory, groups):
    _assert_malformed(tmp_path_factory.mktemp("checkpoint"), groups)


def _assert_malformed(directory, groups):
    manifest = {"format": "embsim checkpoint", "version": 1, "groups": groups}
    write_manifest(directory, manifest)
    with pytest.raises(CheckpointError, match=r"file 'manifest.json': it is malformed"):
        read_groups(directory)


def test_deep_nesting_is_refused(tmp_path):
    body = b'"manifest": ' + b"[" * 100_000
    first = b'{"sha256": "%s",\n' % hashlib.sha256(body).hexdigest().encode()
    (tmp_path / MANIFEST).write_bytes(first + body)
    with pytest.raises(CheckpointError, match="it is malformed"):
        read_groups(tmp_path)


def test_what_cannot_be_stored_is_refused():
    with pytest.raises(TypeError, match="array 'x' of 'g': found dtype complex128"):
        check_groups({"g": Group({"x": np.zeros(2, complex)})})
    with pytest.raises(TypeError, match=r"meta of group 'g': .*type set is not JSON"):
        check_groups({"g": Group({}, {"x": {1}})})
