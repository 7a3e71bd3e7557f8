"""Where a row comes from: commit, versions, configuration."""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 2  # 2: git_changes, a hash, in place of git_dirty; rows_of_run
_PACKAGES = ("embsim", "numpy", "numba", "jax", "scikit-learn")


def of_code() -> dict[str, str | bool | int]:
    """Columns that are the same for every row of a study."""
    versions = {f"version_{name.replace('-', '_')}": _version(name) for name in _PACKAGES}
    return {
        "schema_version": SCHEMA_VERSION,
        "git_commit": _git("rev-parse", "HEAD") or "unknown",
        "git_changes": _changes(),
        "version_python": platform.python_version(),
        **versions,
    }


def of_params(params: Any) -> dict[str, Any]:
    """One column per parameter, without the axes (the records carry those), and a hash over all."""
    values = dataclasses.asdict(params)
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    fixed = {f"param_{k}": v for k, v in values.items() if k not in params.axes}
    return {"params_sha256": digest[:12], **fixed}


def _changes() -> str:
    """A hash over what differs from the commit, files that git does not know among it; "" if
    nothing does.
    """
    known, unknown = _git("diff", "HEAD"), _git("ls-files", "-z", "--others", "--exclude-standard")
    if not known and not unknown:
        return ""
    digest = hashlib.sha256(known.encode())
    for name in filter(None, unknown.split("\0")):
        path = Path(__file__).parent.parent / name
        digest.update(name.encode() + b"\0" + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()[:12]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _git(*arguments: str) -> str:
    root = Path(__file__).parent.parent
    try:
        done = subprocess.run(("git", *arguments), cwd=root, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
