"""DNS over UDP, the least of it (RFC 1035): one question for an IPv4 address, one answer."""

from __future__ import annotations

import secrets
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any

from engine.lab.dialogue import SECONDS, why

PORT = 53
TTL = 300
_HEAD = struct.Struct("!6H")
_QUERY, _ANSWER, _NO_SUCH_NAME = 0x0100, 0x8180, 0x8183
_A_IN = struct.pack("!2H", 1, 1)
_TO_THE_QUESTION = b"\xc0\x0c"
"""In place of a name: the one that stands behind the head (section 4.1.4)."""


def question(name: str, number: int) -> bytes:
    """A question for the name's IPv4 addresses."""
    labels = b"".join(bytes([len(label)]) + label.encode("ascii") for label in name.split("."))
    return _HEAD.pack(number, _QUERY, 1, 0, 0, 0) + labels + b"\0" + _A_IN


def answer(query: bytes, names: Mapping[str, str]) -> bytes:
    """The answer to such a question. ValueError when it is none."""
    number, _, questions, *_ = _HEAD.unpack_from(query.ljust(_HEAD.size, b"\0"))
    labels, at = [], _HEAD.size
    while at < len(query) and query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]])
        at += 1 + query[at]
    asked = query[_HEAD.size : at + 1 + len(_A_IN)]
    if questions != 1 or not asked.endswith(b"\0" + _A_IN):
        raise ValueError("no question for an IPv4 address")
    address = names.get(b".".join(labels).decode("ascii").lower())
    if address is None:
        return _HEAD.pack(number, _NO_SUCH_NAME, 1, 0, 0, 0) + asked
    data = socket.inet_aton(address)
    record = _TO_THE_QUESTION + _A_IN + struct.pack("!IH", TTL, len(data)) + data
    return _HEAD.pack(number, _ANSWER, 1, 1, 0, 0) + asked + record


class Resolver:
    """Answers questions at an address for as long as its program runs."""

    def __init__(self, address: str, names: Mapping[str, str]) -> None:
        self._names = names
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, PORT))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            query, asker = self._socket.recvfrom(512)
            try:
                reply = answer(query, self._names)
            except ValueError:
                continue
            self._socket.sendto(reply, asker)


def look_up(resolver: str, name: str) -> dict[str, Any]:
    """Ask a resolver for a name's address: `address`, or `error`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(SECONDS)
        try:
            asking.connect((resolver, PORT))
            query = question(name, secrets.randbits(16))
            asking.send(query)
            reply = asking.recv(512)
        except OSError as error:
            return {"error": why(error)}
    if reply[:2] != query[:2] or int.from_bytes(reply[2:4], "big") != _ANSWER:
        return {"error": "no such name"}
    return {"address": socket.inet_ntoa(reply[-4:])}
