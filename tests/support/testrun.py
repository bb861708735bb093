"""BPF_PROG_TEST_RUN: one packet through one program, without a network."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import NamedTuple

from engine.abi.numbers import Counter
from engine.kernel import libbpf

_BPF_PROG_TEST_RUN = 10
_SYSCALL = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
_ROOM = 4096
SHORTEST = 14 + 40
"""BPF_PROG_TEST_RUN refuses what is shorter than the headers that its type promises; tests/host_c truncates further."""
LOOPBACK = 1
"""TEST_RUN's packets belong to the loopback device of the namespace."""
PASS, SHOT, REDIRECT = -1, 2, 7
"""TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT (linux/pkt_cls.h)."""


class _Attributes(ctypes.Structure):
    """The `test` member of union bpf_attr (linux/bpf.h), up to what 5.10 knows."""

    _fields_ = (
        ("prog_fd", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("data_in", ctypes.c_uint64),
        ("data_out", ctypes.c_uint64),
        ("repeat", ctypes.c_uint32),
        ("duration", ctypes.c_uint32),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_uint64),
        ("ctx_out", ctypes.c_uint64),
    )


_CONTEXT = struct.Struct("=8xI20xI220x")
"""struct __sk_buff (linux/bpf.h), with room for later fields: `mark` and `priority`."""


class Run(NamedTuple):
    """`action`: what the program returned, signed; `frame`: the packet as it was then, and its mark."""

    action: int
    frame: bytes
    mark: int


class TestRun:
    """Runs one program, in the network namespace of the calling thread (its loopback is the packet's device)."""

    __test__ = False

    def __init__(self, pin: Path) -> None:
        self._program = libbpf.obj_get(pin)
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._out = ctypes.create_string_buffer(_ROOM)
        self._context = ctypes.create_string_buffer(_CONTEXT.size)

    def __call__(self, frame: bytes, mark: int = 0) -> Run:
        """OSError EINVAL: shorter than a link header, or more than about 3,600 bytes."""
        given = ctypes.create_string_buffer(frame, len(frame))
        context = ctypes.create_string_buffer(_CONTEXT.pack(mark, 0), _CONTEXT.size)
        asked = _Attributes(
            prog_fd=self._program, data_size_in=len(frame), data_size_out=_ROOM, data_in=ctypes.addressof(given),
            data_out=ctypes.addressof(self._out), repeat=1, ctx_size_in=_CONTEXT.size, ctx_size_out=_CONTEXT.size,
            ctx_in=ctypes.addressof(context), ctx_out=ctypes.addressof(self._context),
        )  # fmt: skip
        if self._call(_SYSCALL, _BPF_PROG_TEST_RUN, ctypes.byref(asked), ctypes.sizeof(asked)) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "BPF_PROG_TEST_RUN")
        marked, _ = _CONTEXT.unpack(self._context.raw)
        return Run(ctypes.c_int32(asked.retval).value, self._out.raw[: asked.data_size_out], marked)

    def close(self) -> None:
        os.close(self._program)


def counted(before: dict[Counter, int], after: dict[Counter, int]) -> dict[Counter, int]:
    """Return what moved between two readings of the counters, and by how much."""
    return {which: after[which] - before[which] for which in after if after[which] != before[which]}
