"""io_uring by its system calls alone (io_uring(7)): enough to connect and to send with no such call of its own."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct
from types import TracebackType

from engine.kernel import syscalls

_ENTRIES = 4
_PARAMS_BYTES = 120
_SQE_BYTES, _CQE_BYTES = 64, 16
_OFF_SQES = 0x10000000
_OP_CONNECT, _OP_SEND = 16, 26
_GETEVENTS, _SQ_WAKEUP = 1, 2
_SETUP_SQPOLL, _POLL_MILLISECONDS = 2, 1000
_FEAT_SINGLE_MMAP = 1


class Ring:
    """One request at a time. OSError where the kernel has no io_uring, forbids it, or the request fails."""

    def __init__(self, *, polled: bool = False) -> None:
        """`polled`: requests are taken by a thread of the kernel's (IORING_SETUP_SQPOLL), which makes the calls."""
        params = bytearray(_PARAMS_BYTES)
        if polled:
            struct.pack_into("=I", params, 8, _SETUP_SQPOLL)
            struct.pack_into("=I", params, 16, _POLL_MILLISECONDS)
        self._fd = syscalls.call(syscalls.IO_URING_SETUP, _ENTRIES, syscalls.address(params))
        self._wakeup = _SQ_WAKEUP if polled else 0
        # struct io_uring_params: nine words and three reserved, then struct io_sqring_offsets, io_cqring_offsets.
        entries, completions, _, _, _, features = struct.unpack_from("=6I", params)
        self._sq = struct.unpack_from("=7I", params, 40)
        self._cq = struct.unpack_from("=6I", params, 80)
        if not features & _FEAT_SINGLE_MMAP:
            os.close(self._fd)
            raise OSError(errno.ENOSYS, "io_uring without IORING_FEAT_SINGLE_MMAP (before Linux 5.4)")
        size = max(self._sq[6] + 4 * entries, self._cq[5] + _CQE_BYTES * completions)
        self._ring = mmap.mmap(self._fd, size, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        self._sqes = mmap.mmap(self._fd, entries * _SQE_BYTES, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=_OFF_SQES)

    def __enter__(self) -> Ring:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._ring.close()
        self._sqes.close()
        os.close(self._fd)

    def connect(self, fd: int, address: str, port: int) -> None:
        where = struct.pack("!H", port) + socket.inet_aton(address) + bytes(8)
        to = bytearray(struct.pack("=H", socket.AF_INET) + where)
        # A connect has the address's length where others have an offset.
        self._do(struct.pack("=BBHiQQII", _OP_CONNECT, 0, 0, fd, len(to), syscalls.address(to), 0, 0))

    def send(self, fd: int, data: bytes) -> None:
        kept = bytearray(data)
        self._do(struct.pack("=BBHiQQII", _OP_SEND, 0, 0, fd, 0, syscalls.address(kept), len(kept), 0))

    def _do(self, request: bytes) -> None:
        """Put one request in, enter, take its result out."""
        _, tail_at, mask_at, _, _, _, array_at = self._sq
        tail, mask = self._word(tail_at), self._word(mask_at)
        slot = tail & mask
        self._sqes[slot * _SQE_BYTES : (slot + 1) * _SQE_BYTES] = request.ljust(_SQE_BYTES, b"\0")
        struct.pack_into("=I", self._ring, array_at + 4 * slot, slot)
        struct.pack_into("=I", self._ring, tail_at, tail + 1)
        syscalls.call(syscalls.IO_URING_ENTER, self._fd, 1, 1, _GETEVENTS | self._wakeup, 0, 0)
        head_at, _, mask_at, _, _, cqes_at = self._cq
        head = self._word(head_at)
        (result,) = struct.unpack_from("=8xi4x", self._ring, cqes_at + _CQE_BYTES * (head & self._word(mask_at)))
        struct.pack_into("=I", self._ring, head_at, head + 1)
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def _word(self, at: int) -> int:
        (value,) = struct.unpack_from("=I", self._ring, at)
        return int(value)
