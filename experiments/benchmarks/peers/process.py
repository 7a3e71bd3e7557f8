"""The peers, the environments of their libraries, and the processes that they run in."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
HERE = __name__.rpartition(".")[0]


@dataclass(frozen=True)
class Peer:
    """
    Args:
      label: in tables.
      module: what steps in the worker; see job.Steps.
      library: of tests/oracles/requirements-<library>.txt, which `make oracles` installs in
        .venv-oracles-<library>; None: this environment has it.
    """

    label: str
    module: str
    library: str | None = None

    def python(self, environments: Path) -> Path:
        if self.library is None:
            return Path(sys.executable)
        return environments / f".venv-oracles-{self.library}" / "bin" / "python"


FLOOR = "floor"
PEERS = {
    "embsim": Peer("embsim", f"{HERE}.in_embsim"),
    "embsim_jax": Peer("embsim, JAX", f"{HERE}.in_embsim_jax"),
    "fbgemm": Peer("FBGEMM", f"{HERE}.in_fbgemm", "fbgemm"),
    "fbgemm_pair": Peer("FBGEMM x 2", f"{HERE}.in_fbgemm_pair", "fbgemm"),
    "torch": Peer("PyTorch", f"{HERE}.in_torch", "torch"),
    "tensorflow": Peer("TensorFlow", f"{HERE}.in_tensorflow", "tensorflow"),
    "numpy": Peer("NumPy", f"{HERE}.in_numpy"),
    FLOOR: Peer("floor", f"{HERE}.floor"),
}


class PeerError(Exception):
    """A worker cannot be started, or its library refuses or fails; says what it said."""

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class Worker:
    """A peer in its process."""

    def __init__(self, peer: Peer, threads: int, environments: Path, log: Path) -> None:
        """
        Raises:
          PeerError: its environment is not there, or its library cannot be imported.
        """
        python = peer.python(environments)
        if not python.exists():
            raise PeerError(
                f"{peer.label}: there is no {python}; --install makes it, or --environments says "
                "where it is"
            )
        self.peer, self._log = peer, log
        command = [str(python), "-m", f"{HERE}.worker", peer.module, str(threads)]
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=_environment(threads),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        try:
            found = self.ask(do="versions")
        except PeerError:
            self.close()
            raise
        self.versions = ", ".join(f"{name} {version}" for name, version in found.items())

    def ask(self, **request: Any) -> dict[str, Any]:
        """Raises PeerError: it answered with an error, or it died."""
        given, taken = self._process.stdin, self._process.stdout
        assert given is not None and taken is not None
        try:
            print(json.dumps(request), file=given, flush=True)
            line = taken.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status, last = self._process.wait(), self._log.read_text().strip().splitlines()[-1:]
            said = last[0] if last else "nothing"
            raise PeerError(f"{self.peer.label}: its process ended with {status}; it said: {said}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{self.peer.label}: {answer['error']}", answer["kind"])
        return answer

    def close(self) -> None:
        with suppress(BrokenPipeError):  # it has died
            self._process.communicate()


def install(names: Sequence[str], environments: Path) -> None:
    """As `make oracles` does.

    Raises:
      subprocess.CalledProcessError: pip or venv failed; what it said is on the terminal.
    """
    for library in sorted({PEERS[name].library or "" for name in names} - {""}):
        pins = ROOT / "tests" / "oracles" / f"requirements-{library}.txt"
        place = environments / f".venv-oracles-{library}"
        done = place / "installed"
        if done.exists() and done.stat().st_mtime > pins.stat().st_mtime:
            continue
        print(f"installing {pins.relative_to(ROOT)} in {place}", file=sys.stderr)
        if not (place / "bin" / "python").exists():
            subprocess.run([sys.executable, "-m", "venv", place], check=True)
        pip = [place / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run(
            [*pip, "install", "--requirement", pins, "--editable", "."], cwd=ROOT, check=True
        )
        done.touch()


def _environment(threads: int) -> dict[str, str]:
    """Threads of libraries that read them here; waiting threads leave their core to others; malloc
    asks for huge pages, as NumPy does."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "EMBSIM_NUM_THREADS")
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {
        **{name: str(threads) for name in names},
        "OMP_WAIT_POLICY": "passive",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "PYTHONPATH": path,
    }
