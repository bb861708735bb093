"""The head of an HTTP/1 request: the first bytes of a stream in, method, host and target out.

Read as leniently as servers read (RFC 9112 sections 2.2 and 3: empty lines in front, bare line feeds, runs of white
space), because a request that only the server understands is a way around a rule. Where two servers could read two
hosts, it is malformed. Later requests of the connection are not read.
"""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect_left
from dataclasses import dataclass

from engine.model.facts import Http
from engine.model.name import normalise

LIMIT = 16 * 1024
"""Bytes of a request line and its fields; servers refuse more than 8 to 16 KiB."""
NOT_HTTP = Http()
_FEW = 2048

# Of any length, and a version of more digits than there ever was: nginx serves both.
_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BEGINNING = re.compile(rb"[ \t\v\f\r]*(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:[ \t\v\f\r].*)?)?", re.DOTALL)
_VERSION = re.compile(rb"HTTP/[0-9]{1,3}\.[0-9]{1,3}", re.IGNORECASE)
_CLAIM = b"HTTP/"
_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)(.*)", re.DOTALL)
_PORT = re.compile(rb":[0-9]*$")


@dataclass(frozen=True)
class Unread:
    """Why a request cannot be read. `partial`: not whole; else it contradicts itself."""

    why: str
    partial: bool = False


class HttpAssembler:
    """Reads a head however it is cut. `feed` takes the next bytes of the stream and returns None while more are needed,
    then the reading: NOT_HTTP where it is something else."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._bytes = bytearray()
        self._reading: Http | Unread | None = None

    def feed(self, data: bytes) -> Http | Unread | None:
        """Take the next bytes of the stream."""
        if self._reading is None:
            self._bytes += data[: self._limit + 1 - len(self._bytes)]
            self._reading = read(bytes(self._bytes))
            if self._reading is None and len(self._bytes) > self._limit:
                self._reading = Unread(f"a request head of more than {self._limit} bytes", partial=True)
        return self._reading

    @property
    def taken(self) -> int:
        """How many bytes of the stream the reading rests on: whatever follows them, it is the same."""
        if self._reading is None or len(self._bytes) <= _FEW:
            return len(self._bytes)
        # The start of a long transfer in another protocol: far less of it has decided.
        data = bytes(self._bytes)
        return bisect_left(range(len(data)), True, key=lambda count: read(data[:count]) is not None)


def read(data: bytes) -> Http | Unread | None:
    """Read the beginning of a stream; None when it may still become a request head."""
    begun = data.lstrip(b"\r\n")
    line, ended, rest = begun.partition(b"\n")
    if not ended:
        return None if _BEGINNING.fullmatch(begun) else NOT_HTTP
    words = line.split()
    if not words or not _METHOD.fullmatch(words[0]):
        return NOT_HTTP
    if len(words) == 2 and words[0] == b"GET":
        return _request(words[0], words[1], [])  # HTTP/0.9: no fields
    if len(words) != 3 or not _VERSION.fullmatch(words[2]):
        # Some server may understand what calls itself a request.
        claims = any(word[: len(_CLAIM)].upper() == _CLAIM for word in words[1:])
        return Unread("a request line of another form") if claims else NOT_HTTP
    hosts: list[bytes] = []
    while True:
        line, ended, rest = rest.partition(b"\n")
        if not ended:
            return None
        line = line.removesuffix(b"\r")
        if not line:
            return _request(words[0], words[1], hosts)
        name, colon, value = line.partition(b":")
        if line[:1] in (b" ", b"\t") or not colon or name != name.strip() or b"\r" in line or b"\0" in line:
            return Unread("a field that servers read in two ways")
        if name.lower() == b"host":
            hosts.append(value.strip(b" \t"))


def _request(method: bytes, target: bytes, hosts: list[bytes]) -> Http | Unread:
    if len(set(hosts)) > 1:
        return Unread("two Host fields")
    authority, path = hosts[0] if hosts else b"", target
    if absolute := _ABSOLUTE.fullmatch(target):
        # RFC 9112 section 3.2.2: the target's own host, whatever the field says.
        authority, path = absolute[1], absolute[2] or b"/"
    elif method == b"CONNECT":
        authority, path = target, b""
    host = _host(authority)
    if host is None:
        return Unread("a host that is none")
    return Http(method.decode("ascii"), host, path.decode("ascii", "backslashreplace"))


def _host(authority: bytes) -> str | None:
    """The host without user and port, as names are written everywhere; empty where there is none."""
    host = _PORT.sub(b"", authority.rpartition(b"@")[2])
    if not host:
        return ""
    try:
        return str(ipaddress.ip_address(host.removeprefix(b"[").removesuffix(b"]").decode("ascii", "replace")))
    except ValueError:
        return normalise(host)[0] or None
