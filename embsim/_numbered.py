"""Numbered checkpoints in a directory that holds the newest one whole, even if a save is killed.

    root/000001/  manifest.json  model.safetensors  embedding.safetensors
    root/000002/  ...
    root/LATEST                  "000002", replaced atomically
    root/.saving-<random>/       a save under way, or what is left of one that was killed

A save writes beside the numbered directories, synchronises every file and directory to the disk,
renames its directory to the next number, and then replaces LATEST. It holds a lock on its own
directory while it lives: a later save removes those of which the lock is free. Needs a file system
with atomic renames.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ._manifest import MANIFEST, Group, check_groups, is_complete, read_groups, write_groups
from .errors import CheckpointError

LATEST = "LATEST"
_SAVING = ".saving-"
_NUMBER = re.compile(r"[0-9]{6,}")


def save_arrays(
    root: str | os.PathLike[str], groups: Mapping[str, Group], keep: int | None = None
) -> str:
    """A new numbered checkpoint of all groups; its path.

    `keep` n: then delete all but the newest n complete ones. None: delete nothing.

    Raises:
      TypeError, ValueError: something that cannot be stored; nothing was written.
      OSError: the disk is full or cannot be written; the checkpoints that were there are untouched,
        nothing else is left.
    """
    check_groups(groups)
    root = Path(root)
    try:
        if not root.is_dir():
            root.mkdir(parents=True, exist_ok=True)
            _sync(root.parent)
        with _workspace(root) as work:
            new = work / "checkpoint"
            new.mkdir()
            write_groups(new, groups)
            _sync(new)
            saved = _publish(root, work, new)
            if keep is not None:
                _retire(root, work, keep, saved)
    except OSError as error:
        reason = error.strerror or error
        text = f"no checkpoint was saved in '{root}': {reason}; earlier ones are unchanged"
        details = (error.errno, text, error.filename) if error.errno else (text,)
        raise OSError(*details) from error
    return str(saved)


def load_arrays(
    path: str | os.PathLike[str], names: Sequence[str] | None = None
) -> dict[str, Group]:
    """The groups `names` (None: all) of a checkpoint, every byte of them checked.

    Which one `path` means is decided by find_checkpoint. The arrays are read-only views of the
    mapped files.

    Raises:
      CheckpointError: no checkpoint; a file missing, truncated or altered; no such group.
    """
    directory = find_checkpoint(path)
    try:
        return read_groups(directory, names)
    except CheckpointError as error:
        others = [other.name for other in _numbered(directory.parent) if other != directory]
        hint = f"; other checkpoints beside it: {', '.join(others)}" if others else ""
        raise CheckpointError(f"checkpoint '{directory}': {error}{hint}") from error


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """`path` itself if it is one numbered checkpoint; else the one that its LATEST names.

    Without LATEST (a save was killed before it could write the first) the newest complete one; so
    too, with a warning, if LATEST names one that is not there. A damaged one that LATEST names is
    an error: older ones are never taken silently.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"checkpoint: found {path!r}; the path must be a str or os.PathLike")
    root = Path(path)
    if (root / MANIFEST).is_file():
        return root
    named = _pointer(root)
    if named and (root / named).is_dir():
        return root / named
    for directory in reversed(_numbered(root)):
        if is_complete(directory):
            if named is not None:
                warnings.warn(
                    f"'{root / LATEST}' names {named!r}, which is not there; taking "
                    f"{directory.name!r}, the newest complete one",
                    stacklevel=2,
                )
            return directory
    found = sorted(os.listdir(root)) if root.is_dir() else "no such directory"
    raise CheckpointError(
        f"no checkpoint in '{root}': found {found}; it must hold {LATEST} and a numbered "
        f"directory, or {MANIFEST} if it is one checkpoint"
    )


@contextmanager
def _workspace(root: Path) -> Generator[Path, None, None]:
    """A new, locked directory in `root`, removed at the end whatever happens."""
    for leftover in root.glob(f"{_SAVING}*"):
        _remove_if_abandoned(leftover)
    work, lock = _locked_directory(root)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def _locked_directory(root: Path) -> tuple[Path, int]:
    while True:
        work = root / f"{_SAVING}{secrets.token_hex(8)}"
        work.mkdir()
        try:
            lock = os.open(work, os.O_RDONLY)
            if _try_lock(lock) is not False and work.is_dir():
                return work, lock
            os.close(lock)
        except FileNotFoundError:
            pass  # another save took it for a leftover, in the instant before it was locked
        except BaseException:
            work.rmdir()
            raise


def _remove_if_abandoned(leftover: Path) -> None:
    with suppress(OSError):
        lock = os.open(leftover, os.O_RDONLY)
        try:
            if _try_lock(lock):
                shutil.rmtree(leftover, ignore_errors=True)
        finally:
            os.close(lock)


def _try_lock(descriptor: int) -> bool | None:
    """True: locked. False: another process or thread holds it. None: this file system has no
    locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _publish(root: Path, work: Path, new: Path) -> Path:
    """Give `new` the next number, then point LATEST at it."""
    taken = [int(path.name) for path in _numbered(root)] + [int(_pointer(root) or 0)]
    number = max(taken) + 1
    while True:
        saved = root / f"{number:06d}"
        _write_pointer(work / LATEST, saved.name)
        try:
            os.rename(new, saved)
            break
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            number += 1  # another save was faster
    try:
        _sync(root)
        os.replace(work / LATEST, root / LATEST)
    except BaseException:
        if _pointer(root) != saved.name:
            with suppress(OSError):
                os.rename(saved, work / "withdrawn")
        raise
    _sync(root)
    return saved


def _retire(root: Path, work: Path, keep: int, saved: Path) -> None:
    """Move all but the newest `keep` complete checkpoints away; they are deleted with the
    workspace."""
    kept = 0
    for directory in reversed(_numbered(root)):
        if kept < keep:
            kept += directory == saved or is_complete(directory)
        elif directory.name not in (saved.name, _pointer(root)):
            try:
                os.rename(directory, work / directory.name)
            except OSError as error:
                warnings.warn(
                    f"checkpoint '{directory}' could not be deleted: {error}",
                    RuntimeWarning,
                    stacklevel=4,
                )


def _numbered(root: Path) -> list[Path]:
    """Oldest first."""
    if not root.is_dir():
        return []
    return sorted(
        (path for path in root.iterdir() if _NUMBER.fullmatch(path.name) and path.is_dir()),
        key=lambda path: int(path.name),
    )


def _pointer(root: Path) -> str | None:
    """What LATEST names; "" if that cannot be the name of a checkpoint; None without LATEST."""
    try:
        with (root / LATEST).open("rb") as file:
            name = file.read(100).decode("ascii", "replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return name if _NUMBER.fullmatch(name) else ""


def _write_pointer(path: Path, name: str) -> None:
    with path.open("w") as file:
        file.write(name + "\n")
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
