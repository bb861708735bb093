"""bpf(2) itself, for what the loader asks of it: maps, types and programs.

libbpf has calls of these names, but with other arguments in libbpf.so.0 (Ubuntu 22.04) than in libbpf.so.1: the system
call is the same everywhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import struct
from collections.abc import Mapping

from engine.errors import KernelError
from engine.kernel.objects import INSTRUCTION, Code, MapLayout

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "ppc64le": 361, "s390x": 351}
"""Of the system call, by machine."""
_MAP_CREATE, _PROG_LOAD, _BTF_LOAD = 0, 5, 18
SK_STORAGE = 24
_NAME_BYTES = 15
_LOG_BYTES = 1 << 24
"""What the verifier may say; it says less where it is refused early."""


def _bpf(command: int, attributes: bytes) -> int:
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise KernelError(f"bpf(2) has no known number on {platform.machine()}")
    ctypes.set_errno(0)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    library = ctypes.CDLL(None, use_errno=True)
    result = int(library.syscall(*map(ctypes.c_long, (number, command)), buffer, ctypes.c_ulong(len(attributes))))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def lift_memory_limit() -> None:
    """Before 5.11 maps count against RLIMIT_MEMLOCK, which is 64 KiB by default. For short-lived processes.

    Whoever may not lift it finds out when a map is created, if at all.
    """
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def create_map(layout: MapLayout) -> int:
    """Create a map; return its fd. OSError as the kernel says."""
    types, key_type, value_type = -1, 0, 0
    if layout.type == SK_STORAGE:
        types, key_type, value_type = _load_types(layout.value_size), 1, 3
    attributes = struct.pack(
        "=7I16sI3I", layout.type, layout.key_size, layout.value_size, layout.max_entries, layout.flags, 0, 0,
        layout.name.encode()[:_NAME_BYTES], 0, max(types, 0), key_type, value_type,
    )  # fmt: skip
    try:
        return _bpf(_MAP_CREATE, attributes)
    finally:
        if types >= 0:
            os.close(types)


def _load_types(value_size: int) -> int:
    """Load the types that socket storage insists on: 1 int, for the key; 2 char; 3 char[value_size]. Return the fd.

    linux/btf.h: a type is its name, its kind, its size, and what the kind adds.
    """
    strings = b"\0int\0char\0"
    types = struct.pack("=4I", 1, 1 << 24, 4, 1 << 24 | 32)
    types += struct.pack("=4I", 5, 1 << 24, 1, 8)
    types += struct.pack("=6I", 0, 3 << 24, 0, 2, 1, value_size)
    blob = struct.pack("=HBB5I", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings
    buffer = ctypes.create_string_buffer(blob, len(blob))
    return _bpf(_BTF_LOAD, struct.pack("=2Q4I", ctypes.addressof(buffer), 0, len(blob), 0, 0, 0))


class VerifierError(Exception):
    """The kernel did not take a program. `log`: what its verifier said, empty when it said nothing."""

    def __init__(self, reason: str, log: str) -> None:
        super().__init__(reason)
        self.log = log


def load_program(code: Code, kind: int, attach_type: int, licence: str, maps: Mapping[str, int]) -> int:
    """Load a program; `maps`: the descriptors of the maps that it names. VerifierError when the kernel refuses it."""
    instructions = ctypes.create_string_buffer(code.bound(maps), len(code.instructions))
    words = ctypes.create_string_buffer(licence.encode())

    def load(log: ctypes.Array[ctypes.c_char] | None) -> int:
        at, size = (ctypes.addressof(log), len(log)) if log is not None else (0, 0)
        attributes = struct.pack(
            "=2I2Q2IQ2I16s2I", kind, len(code.instructions) // INSTRUCTION, ctypes.addressof(instructions),
            ctypes.addressof(words), 1 if size else 0, size, at, 0, 0, code.name.encode()[:_NAME_BYTES], 0, attach_type,
        )  # fmt: skip
        return _bpf(_PROG_LOAD, attributes)

    try:
        return load(None)
    except OSError as error:
        reason = error.strerror
    # Once more for the reasons: to write them down costs the verifier more than to find them.
    log = ctypes.create_string_buffer(_LOG_BYTES)
    try:
        return load(log)
    except OSError as error:
        raise VerifierError(f"{code.name}: {reason}", log.value.decode(errors="replace")) from error
