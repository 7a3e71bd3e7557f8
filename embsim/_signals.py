"""Ctrl-C between whole operations, never inside one."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def ctrl_c_waits() -> Generator[None]:
    """Hold a Ctrl-C back until the block has ended, then let it through.

    Only the main thread is ever interrupted; in others nothing is done.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    held_back: list[tuple[Any, ...]] = []
    signal.signal(signal.SIGINT, lambda *arguments: held_back.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held_back:
            before(*held_back[0])
