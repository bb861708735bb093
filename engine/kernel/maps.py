"""One pinned map, opened by path: bytes in, bytes out."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.errors import KernelError
from engine.kernel import libbpf


class Map:
    """A map of fixed key and value size. Not for per-CPU maps: see PerCpuMap."""

    def __init__(self, path: Path) -> None:
        try:
            self.fd = libbpf.obj_get(path)
        except OSError as error:
            raise KernelError(
                f"The kernel map {path.name} cannot be opened: {error.strerror}", hint="Start the engine again as root."
            ) from error
        info = libbpf.map_info(self.fd)
        self.name = path.name
        self.key_size = int(info.key_size)
        self.value_size = int(info.value_size)
        self.max_entries = int(info.max_entries)
        self._value = ctypes.create_string_buffer(self.value_size)

    def get(self, key: bytes) -> bytes | None:
        return self._value.raw if libbpf.map_lookup(self.fd, key, self._value) else None

    def put(self, key: bytes, value: bytes) -> None:
        """Insert or replace. OSError: E2BIG or ENOSPC when the map is full, ENOMEM."""
        assert len(key) == self.key_size, self.name  # noqa: S101 - a short key would be read past its end
        assert len(value) == self.value_size, self.name  # noqa: S101
        libbpf.map_update(self.fd, key, value)

    def put_all(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        """Insert many: by batch where the kernel can, else one by one."""
        if not entries:
            return
        try:
            keys = b"".join(key for key, _ in entries)
            libbpf.map_update_batch(self.fd, keys, b"".join(value for _, value in entries), len(entries))
        except OSError as error:
            if error.errno not in libbpf.UNSUPPORTED:
                raise
            for key, value in entries:
                self.put(key, value)

    def remove(self, key: bytes) -> bool:
        return libbpf.map_delete(self.fd, key)

    def walk(self) -> Iterator[bytes]:
        """Walk the keys. Entries that come or go meanwhile may be missed or met; a walk never runs for ever."""
        following = ctypes.create_string_buffer(self.key_size)
        key: bytes | None = None
        for _ in range(2 * self.max_entries):
            if not libbpf.map_next_key(self.fd, key, following):
                return
            key = following.raw
            yield key

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        for key in list(self.walk()):
            value = self.get(key)
            if value is not None:
                yield key, value

    def close(self) -> None:
        os.close(self.fd)


class PerCpuMap(Map):
    """A per-CPU array of u64: `sums()` adds up what every possible CPU counted."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        cpus = Path("/sys/devices/system/cpu/possible").read_text().strip()
        self._cpus = int(cpus.rpartition("-")[2].rpartition(",")[2]) + 1
        self._values = (ctypes.c_uint64 * self._cpus)()
        self._buffer = (ctypes.c_char * ctypes.sizeof(self._values)).from_buffer(self._values)

    def sums(self) -> list[int]:
        totals = []
        for index in range(self.max_entries):
            libbpf.map_lookup(self.fd, index.to_bytes(4, "little"), self._buffer)
            totals.append(sum(self._values))
        return totals
