"""Where `make tpu-check` ran: versions and devices, nothing that names a person or a machine."""

import getpass
import os
import re
import socket
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

import jax

# Directories; "jit(f)/jvp" and the like are none.
DIRECTORIES = re.compile(r"(?<![\w)\].:/])(?:~?/[^\s/:'\"<>|,;()]+)*/(?=[^\s/])")


def no_tpu() -> str | None:
    """Why there is no TPU here; None if there is."""
    if jax.default_backend() == "tpu":
        return None
    kinds = sorted({device.device_kind for device in jax.devices()})
    try:
        jax.devices("tpu")
        why = "JAX_PLATFORMS puts another platform before it"
    except RuntimeError as error:
        why = scrubbed(str(error).splitlines()[0])
    return (
        f"checks on a TPU: JAX found {len(jax.devices())} devices of kind {', '.join(kinds)} "
        f"({why}); a TPU that no other process uses is required, with libtpu: pip install "
        "'jax[tpu]'; or pass --interpret to try it on CPU"
    )


def facts() -> dict[str, Any]:
    device = jax.local_devices()[0]
    packages = ("embsim", "jax", "jaxlib", "libtpu", "numpy")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": python_version(),
        **{name: _version(name) for name in packages},
        "platform": device.platform,
        "device_kind": device.device_kind,
        "devices": jax.device_count(),
        "local_devices": jax.local_device_count(),
        "processes": jax.process_count(),
        **{name: scrubbed(os.environ.get(name, "")) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the checkout; with "+" where files that git knows differ from it."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        found, changed = (
            subprocess.run(
                ["git", "-C", str(root), *arguments],
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{found}+" if changed else found


def scrubbed(value: Any) -> Any:
    """Strings, also inside dicts and lists, without directories, and names of the user and host."""
    if isinstance(value, dict):
        return {name: scrubbed(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [scrubbed(each) for each in value]
    if not isinstance(value, str):
        return value
    text = DIRECTORIES.sub("", value)
    for name, instead in ((socket.gethostname(), "HOST"), (_user(), "USER")):
        if len(name) > 2 and name not in ("root", "localhost"):
            text = re.sub(rf"\b{re.escape(name)}\b", instead, text)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return ""
