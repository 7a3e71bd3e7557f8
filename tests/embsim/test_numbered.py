"""The directory of checkpoints under every fault that a test can make."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from embsim._manifest import Group
from embsim._numbered import find_checkpoint, load_arrays, save_arrays
from embsim.errors import CheckpointError

ROOT = Path(__file__).parents[2]


def groups(step: int) -> dict[str, Group]:
    return {
        "model": Group({"w": np.full(500, step)}, {"step": step}),
        "embedding": Group({"table": np.full((300, 4), step, np.float32)}, {"step": step}),
    }


def step_of(path) -> int:
    """The step of the checkpoint at `path`, after a check that nothing in it is of another."""
    found = load_arrays(path)
    steps = {found[name].meta["step"] for name in ("model", "embedding")}
    steps |= {int(x) for x in np.unique(found["model"].arrays["w"])}
    steps |= {int(x) for x in np.unique(found["embedding"].arrays["table"])}
    (step,) = steps
    return step


def listing(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_saves_are_numbered_and_the_newest_is_found(tmp_path):
    root = tmp_path / "a" / "b"
    assert [save_arrays(root, groups(step)) for step in (1, 2, 3)] == [
        str(root / number) for number in ("000001", "000002", "000003")
    ]
    assert step_of(root) == 3
    assert [step_of(root / number) for number in ("000001", "000002", "000003")] == [1, 2, 3]
    assert (root / "LATEST").read_text() == "000003\n"
    assert sorted(os.listdir(root)) == ["000001", "000002", "000003", "LATEST"]


def test_numbers_never_go_back(tmp_path):
    for step in (1, 2):
        save_arrays(tmp_path, groups(step))
    for file in (tmp_path / "000002").iterdir():
        file.unlink()
    (tmp_path / "000002").rmdir()
    assert save_arrays(tmp_path, groups(3)) == str(tmp_path / "000003")
    (tmp_path / "000003").rename(tmp_path / "1234567")
    assert save_arrays(tmp_path, groups(4)) == str(tmp_path / "1234568")
    assert step_of(tmp_path) == 4


def test_keep_retains_the_newest_complete_ones(tmp_path):
    for step in range(1, 6):
        save_arrays(tmp_path, groups(step))
    (tmp_path / "000004" / "model.safetensors").unlink()
    save_arrays(tmp_path, groups(6), keep=3)
    # 000004 is damaged: it does not count, and is left to its owner.
    assert sorted(os.listdir(tmp_path)) == ["000003", "000004", "000005", "000006", "LATEST"]
    save_arrays(tmp_path, groups(7), keep=1)
    assert sorted(os.listdir(tmp_path)) == ["000007", "LATEST"]


def test_without_latest_the_newest_complete_one_is_taken(tmp_path):
    for step in (1, 2, 3):
        save_arrays(tmp_path, groups(step))
    (tmp_path / "LATEST").unlink()
    assert step_of(tmp_path) == 3
    (tmp_path / "000003" / "manifest.json").write_text("{}")
    assert step_of(tmp_path) == 2


@pytest.mark.parametrize("content", ["000009\n", "", "../000001", "\xff" * 1000])
def test_a_wrong_latest_is_a_warning(tmp_path, content):
    for step in (1, 2):
        save_arrays(tmp_path, groups(step))
    (tmp_path / "LATEST").write_text(content)
    with pytest.warns(UserWarning, match="which is not there; taking '000002'"):
        assert find_checkpoint(tmp_path) == tmp_path / "000002"


def test_a_damaged_newest_one_is_an_error_that_names_the_others(tmp_path):
    for step in (1, 2, 3):
        save_arrays(tmp_path, groups(step))
    path = tmp_path / "000003" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    message = (
        r"checkpoint '.*000003': file 'model.safetensors': found \d+ bytes, required \d+: it was "
        "truncated or altered; other checkpoints beside it: 000001, 000002"
    )
    with pytest.raises(CheckpointError, match=message):
        load_arrays(tmp_path)
    assert step_of(tmp_path / "000002") == 2


def test_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*: found no such directory"):
        load_arrays(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"found \['file'\]; it must hold LATEST and a numb"):
        load_arrays(tmp_path)
    with pytest.raises(CheckpointError, match=r"found no such directory"):
        load_arrays(tmp_path / "file")


@pytest.mark.parametrize("call", ["fsync", "rename", "replace", "mkdir", "open"])
def test_a_failing_disk_changes_nothing(tmp_path, monkeypatch, call):
    """Each use of a system call fails in turn: the error is shown, the directory is as before."""
    save_arrays(tmp_path, groups(1))
    real, errors, turn = getattr(os, call), 0, 0
    while True:
        before, newest, uses = listing(tmp_path), step_of(tmp_path), 0

        def fail(*args, turn=turn, **kwargs):
            nonlocal uses
            uses += 1
            if uses == turn + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the disk")
            return real(*args, **kwargs)

        monkeypatch.setattr(os, call, fail)
        try:
            save_arrays(tmp_path, groups(newest + 1))
        except OSError as error:
            errors += 1
            assert error.errno == errno.ENOSPC
            assert "no checkpoint was saved in" in str(error)
            assert "No space left on device; earlier ones are unchanged: 'the disk'" in str(error)
            after = listing(tmp_path)
            assert {name: after[name] for name in before if name != "LATEST"}.items() <= (
                before.items()
            )
            # The last call of all synchronises LATEST: then the new checkpoint is there, whole.
            assert after == before or step_of(tmp_path) == newest + 1
        finally:
            monkeypatch.setattr(os, call, real)
        if uses <= turn:
            break
        turn += 1
    assert errors > 0
    save_arrays(tmp_path, groups(-1))
    assert step_of(tmp_path) == -1
    assert not list(tmp_path.glob(".saving-*"))


def test_everything_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    """Files, then their directory, then its name, then LATEST: what a power failure could undo."""
    root, synced, order = tmp_path / "root", set(), []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def recorded_fsync(descriptor):
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def checked_rename(source, target):
        assert {path.stat().st_ino for path in (source, *source.iterdir())} <= synced
        rename(source, target)
        order.append(target.name)
        synced.discard(root.stat().st_ino)

    def checked_replace(source, target):
        assert {source.stat().st_ino, root.stat().st_ino} <= synced
        replace(source, target)
        order.append(target.name)
        synced.discard(root.stat().st_ino)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", checked_rename)
    monkeypatch.setattr(os, "replace", checked_replace)
    save_arrays(root, groups(1))
    assert order == ["000001", "LATEST"]
    assert root.stat().st_ino in synced


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"no checkpoint was saved in .*/file"):
        save_arrays(tmp_path / "file", groups(1))
    with pytest.raises(OSError, match=r"no checkpoint was saved in .*/file/x"):
        save_arrays(tmp_path / "file" / "x", groups(1))
    assert (tmp_path / "file").read_text() == "mine"


def test_what_cannot_be_stored_leaves_no_trace(tmp_path):
    with pytest.raises(TypeError, match="complex128"):
        save_arrays(tmp_path / "new", {"g": Group({"x": np.zeros(2, complex)})})
    assert not (tmp_path / "new").exists()


def test_old_ones_that_cannot_be_deleted_are_a_warning(tmp_path, monkeypatch):
    save_arrays(tmp_path, groups(1))
    real = os.rename

    def rename(source, target):
        if Path(source).name == "000001":
            raise PermissionError(errno.EACCES, "Permission denied", str(source))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.warns(RuntimeWarning, match="000001' could not be deleted: .*Permission denied"):
        save_arrays(tmp_path, groups(2), keep=1)
    assert step_of(tmp_path) == 2


def test_two_savers_do_not_harm_each_other(tmp_path, monkeypatch):
    """A second save runs, whole, at every rename, mkdir and open of the first."""
    for call in ("rename", "mkdir", "open", "replace"):
        real = getattr(os, call)
        root = tmp_path / call
        inside = []

        def interrupted(*args, real=real, call=call, root=root, inside=inside, **kwargs):
            if len(inside) < 20:
                monkeypatch.setattr(os, call, real)
                inside.append(save_arrays(root, groups(5), keep=30))
                monkeypatch.setattr(os, call, interrupted)
            return real(*args, **kwargs)

        monkeypatch.setattr(os, call, interrupted)
        saved = save_arrays(root, groups(1), keep=30)
        monkeypatch.setattr(os, call, real)
        assert len({saved, *inside}) == len(inside) + 1
        assert step_of(saved) == 1
        assert all(step_of(other) == 5 for other in inside)
        assert not list(root.glob(".saving-*"))


KILLER = """
import os, random, resource, signal, sys, time
sys.path.insert(0, {tests!r})
from test_numbered import groups, save_arrays, step_of

root = sys.argv[1]
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock")

def child(body):
    pid = os.fork()
    if pid:
        return pid
    try:
        body()
    finally:
        os._exit(0)

def at_every_system_call():
    done, stop = 0, 1
    while True:
        def body():
            seen = [0]
            def hook(event, args):
                if event in EVENTS:
                    seen[0] += 1
                    if seen[0] == stop:
                        os._exit(9)
            sys.addaudithook(hook)
            save_arrays(root, groups(done + 1), keep=2)
        if os.waitstatus_to_exitcode(os.waitpid(child(body), 0)[1]) == 0:
            break
        if os.path.exists(root) and (done or any(n.isdecimal() for n in os.listdir(root))):
            found = step_of(root)
            assert found in (done, done + 1), (stop, found, done)
            done = max(done, found)
        stop += 1
    assert step_of(root) == done + 1
    assert not [name for name in os.listdir(root) if name.startswith(".")]
    print(stop, "system calls")

def at_random_moments():
    random.seed(0)
    newest = step_of(root)
    for kill in range(10):
        def body():
            for step in range(newest + 1, newest + 10_000):
                save_arrays(root, groups(step), keep=3)
        pid = child(body)
        time.sleep(random.uniform(0.02, 0.15))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found = step_of(root)
        assert found >= newest, (found, newest)
        newest = found
    print(newest, "saves")

def with_a_full_disk():
    newest, before = step_of(root), sorted(os.listdir(root))
    def body():
        for limit in (0, 100, 1000, 4000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                save_arrays(root, groups(-1))
            except OSError as error:
                if "no checkpoint was saved" in str(error):
                    continue
            os._exit(1)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child(body), 0)[1]) == 7
    assert step_of(root) == newest
    assert [name for name in sorted(os.listdir(root)) if name not in before] == []

at_every_system_call()
at_random_moments()
with_a_full_disk()
"""


def test_a_killed_save_leaves_the_newest_complete_one(tmp_path):
    """SIGKILL, _exit at every system call, and a file size limit, in one process without pytest."""
    script = KILLER.format(tests=str(Path(__file__).parent))
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "root")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    calls, saves = (int(line.split()[0]) for line in found.stdout.splitlines())
    assert calls > 20
    assert saves > 10
