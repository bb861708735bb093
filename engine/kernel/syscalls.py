"""Raw system calls, for what Python has no function for: connect(2) with no family, sendmmsg(2), io_uring(7)."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import TypeAlias

Writable: TypeAlias = "bytearray | memoryview"

IO_URING_SETUP, IO_URING_ENTER = 425, 426
_NUMBERS = {"x86_64": {"connect": 42, "sendmmsg": 307}, "aarch64": {"connect": 203, "sendmmsg": 269}}
_libc = ctypes.CDLL(None, use_errno=True)


def number(name: str) -> int:
    """Return the number of a call that has another one on each architecture. OSError where it is not known."""
    found = _NUMBERS.get(platform.machine(), {}).get(name)
    if found is None:
        raise OSError(f"the number of {name}(2) on {platform.machine()} is not known")
    return found


def call(number_: int, *arguments: int) -> int:
    """Make a system call with up to six numbers or addresses, and return its result. OSError when it fails."""
    result = int(_libc.syscall(ctypes.c_long(number_), *(ctypes.c_long(each) for each in arguments)))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def address(buffer: Writable) -> int:
    """Return where a writable buffer is. It stays there for as long as the caller keeps it and does not resize it."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
