"""Which resolvers this host asks: only their answers are believed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from engine.model import net
from engine.model.net import IPAddress
from engine.runtime.orders import resolvers

RESOLV_CONF = Path("/etc/resolv.conf")
BEHIND_STUB = Path("/run/systemd/resolve/resolv.conf")
"""Where systemd-resolved lists the servers that it asks itself (systemd-resolved.service(8))."""

_Mark = tuple[int, int, int, int] | None


class Resolvers:
    """Call it for the addresses in force now, as 16 key bytes.

    `configured`: these and no others. Empty: the name servers of `file` and, if one of them is on loopback (a stub,
    whose own questions are the ones that leave the host), those of `behind` too. The files are looked at with each
    call, two stat(2), and read again when they have changed; one that cannot be read names nobody.
    """

    def __init__(
        self, configured: Iterable[IPAddress] = (), *, file: Path = RESOLV_CONF, behind: Path = BEHIND_STUB
    ) -> None:
        self._configured = frozenset(net.to_key(address) for address in configured)
        self._files = (file, behind)
        self._marks: tuple[_Mark, _Mark] | None = None
        self._found: frozenset[bytes] = frozenset()

    def __call__(self) -> frozenset[bytes]:
        if self._configured:
            return self._configured
        marks = (_mark(self._files[0]), _mark(self._files[1]))
        if marks != self._marks:
            self._marks = marks
            self._found = self._read()
        return self._found

    def _read(self) -> frozenset[bytes]:
        own = _servers(self._files[0])
        stub = any(address.is_loopback for address in own)
        return frozenset(net.to_key(address) for address in [*own, *(_servers(self._files[1]) if stub else ())])


def _servers(file: Path) -> list[IPAddress]:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [net.canonical(one.prefix.network_address) for one in resolvers(text)]


def _mark(file: Path) -> _Mark:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
