"""Work inside another network namespace, without leaving one's own."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_CLONE_NEWNET = 0x40000000
T = TypeVar("T")


def within(namespace: int, work: Callable[[], T]) -> T:
    """Run `work` in the network namespace of a descriptor, in a thread of its own: setns(2) moves the calling thread
    alone. What it raises is raised here."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def of_process(process: int) -> int | None:
    """Return a descriptor of a process's network namespace; None when it is ours, or the process is gone."""
    try:
        theirs = Path(f"/proc/{process}/ns/net")
        if not process or theirs.samefile("/proc/self/ns/net"):
            return None
        return os.open(theirs, os.O_RDONLY)
    except OSError:
        return None
