"""Checks in a process of their own: a kernel that was never run may crash its process, or hang."""

import json
import os
import queue
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from ..backend import BITWISE_FLAGS
from .facts import scrubbed

Event = dict[str, Any]  # facts, refused, begin, told or result
MARK = "\x1e"  # begins a line of JSON; all else that the process prints is not ours
SILENT_SECONDS = 240.0  # after which it hangs: a compilation takes seconds
DEATHS_MAX = 2  # of one kind of kernels, after which its other checks are left out


def isolated(
    names: Sequence[str],
    kernels: Mapping[str, str],
    command: Sequence[str],
    emit: Callable[[Event], None],
) -> None:
    """Run `command --only NAME ...`; where it dies, that is the result of the check that ran, and
    another process runs the rest. `kernels` by check."""
    left, deaths = list(names), Counter[str]()
    while left:
        current, started = None, False
        with _child([*command, *(f"--only={name}" for name in left)]) as (lines, why):
            for event in lines:
                started = True
                if "refused" not in event or len(left) == len(names):
                    emit(event)
                if "refused" in event:
                    for name in left if len(left) < len(names) else ():
                        emit(_ended(name, "failed", f"after another ended: {event['refused']}"))
                    return
                current = event.get("begin", current)
                if "result" in event:
                    left.remove(event["result"]["name"])
                    current = None
            if not left:
                return
            reason = why()
        if current is None:
            when = "between two checks" if started else "before the first check"
            for name in left:
                emit(_ended(name, "failed", f"the process {when}: {reason}"))
            return
        emit(_ended(current, "failed", reason))
        left.remove(current)
        deaths[kernels[current]] += 1
        if deaths[kernels[current]] >= DEATHS_MAX:
            for name in [each for each in left if kernels[each] == kernels[current]]:
                emit(_ended(name, "skipped", f"{DEATHS_MAX} checks of these kernels ended badly"))
                left.remove(name)


def _ended(name: str, status: str, why: str) -> Event:
    first, _, whole = why.partition("\n")
    data = {"error": whole} if whole else {}
    return {
        "result": {"name": name, "status": status, "note": first, "data": data, "seconds": None}
    }


@contextmanager
def _child(command: Sequence[str]) -> Generator[tuple[Iterator[Event], Callable[[], str]]]:
    """Its events, and why they ended. It does not get the terminal's Ctrl-C."""
    environment = dict(os.environ)
    if "--interpret" in command:
        flags = [environment.get("XLA_FLAGS", ""), *BITWISE_FLAGS]
        if "device_count" not in flags[0]:
            flags.append("--xla_force_host_platform_device_count=2")
        environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags).strip()}
    found: queue.Queue[str | None] = queue.Queue()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,
        )
        assert process.stdout is not None
        reader = threading.Thread(target=_read, args=(process.stdout, found), daemon=True)
        reader.start()
        silent: list[bool] = []
        try:
            yield _events(found, silent), lambda: _why(process, bool(silent), errors)
        finally:
            process.kill()
            process.wait()
            reader.join()
            process.stdout.close()


def _read(stream: IO[str], found: "queue.Queue[str | None]") -> None:
    for line in stream:
        found.put(line)
    found.put(None)


def _events(found: "queue.Queue[str | None]", silent: list[bool]) -> Iterator[Event]:
    while True:
        try:
            line = found.get(timeout=SILENT_SECONDS)
        except queue.Empty:
            silent.append(True)
            return
        if line is None:
            return
        if line.startswith(MARK):
            yield json.loads(line[len(MARK) :])


def _why(process: "subprocess.Popen[str]", silent: bool, errors: IO[str]) -> str:
    if silent:
        process.kill()
        first = f"said nothing for {SILENT_SECONDS:.0f} s, and was ended"
    else:
        code = process.wait()
        first = f"ended by signal {-code}" if code < 0 else f"ended with status {code}"
    errors.seek(0)
    return f"{first}\n{scrubbed(errors.read()[-20_000:])}"
