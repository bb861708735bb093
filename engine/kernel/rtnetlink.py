"""The few messages of rtnetlink(7) that the gate needs: about links, their clsact qdisc, and the BPF filters on it.

By hand and not by pyroute2, which costs the engine 19 MiB and its first use 130 ms: a start and an interface that has
just come up are unguarded for as long as the attaching takes.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType

from engine.errors import InterfaceError, KernelError, PrivilegeError

ETHERNET, LOOPBACK = 1, 772
"""ARPHRD_* of linux/if_arp.h."""
GROUP_LINK, GROUP_TC = 1, 8
"""RTMGRP_* of linux/rtnetlink.h: what a socket hears of without asking."""

NEEDS = "Guarding interfaces needs root with its capabilities, CAP_NET_ADMIN among them."

_MESSAGE = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, hardware type, index, flags, change
_TC = struct.Struct("=B3xiIII")  # struct tcmsg: family, index, handle, parent, info
_ATTRIBUTE = struct.Struct("=HH")
_REQUEST, _ACK, _DUMP, _REPLACE, _EXCLUSIVE, _CREATE, _INTERRUPTED = 1, 4, 0x300, 0x100, 0x200, 0x400, 0x10
_ERROR, _DONE = 2, 3
NESTED = 1 << 15
"""Added to the type of an attribute that holds attributes."""
_TYPE_MASK = 0x3FFF
_IFLA_IFNAME = 3
_TCA_KIND, _TCA_OPTIONS = 1, 2
_BPF_FD, _BPF_NAME, _BPF_FLAGS, _BPF_ID = 6, 7, 8, 11
_DIRECT_ACTION = 1
_CLSACT, _CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_ETH_P_ALL = 3
_BUFFER = 1 << 17


class Type(IntEnum):
    """RTM_* of linux/rtnetlink.h."""

    NEW_LINK = 16
    DEL_LINK = 17
    GET_LINK = 18
    SET_LINK = 19
    NEW_QDISC = 36
    DEL_QDISC = 37
    NEW_FILTER = 44
    DEL_FILTER = 45
    GET_FILTER = 46


class Parent(IntEnum):
    """Where on clsact a filter hangs."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3


@dataclass(frozen=True)
class Link:
    """One interface. `hardware`: ARPHRD_*."""

    index: int
    name: str
    hardware: int


@dataclass(frozen=True)
class Filter:
    """A BPF filter. `program`: the program's id."""

    handle: int
    priority: int
    name: str
    program: int
    direct_action: bool


@dataclass(frozen=True)
class Message:
    type: int
    body: bytes


# ---- bytes and values


def messages(data: bytes) -> Iterator[Message]:
    """Split what one recv() returned. Stops at what is no whole message; KernelError for an error that it tells."""
    at = 0
    while at + _MESSAGE.size <= len(data):
        length, kind, _, _, _ = _MESSAGE.unpack_from(data, at)
        if length < _MESSAGE.size or at + length > len(data):
            return
        yield Message(kind, data[at + _MESSAGE.size : at + length])
        at += (length + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """Return the attributes by type; of two of one type the last."""
    found: dict[int, bytes] = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > len(data):
            break
        found[kind & _TYPE_MASK] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def attribute(kind: int, data: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(data)
    return _ATTRIBUTE.pack(length, kind) + data + bytes(-length % 4)


def link_header(index: int = 0, flags: int = 0) -> bytes:
    """struct ifinfomsg: about this interface; these flags are to be on, the others stay."""
    return _LINK.pack(socket.AF_UNSPEC, 0, index, flags, flags)


def link_of(body: bytes) -> Link | None:
    """Read the body of NEW_LINK or DEL_LINK; None where it is not about the interface itself.

    A bridge says with the same messages, in its own address family, which ports it has: a port that leaves is no
    interface that is gone.
    """
    if len(body) < _LINK.size:
        return None
    family, hardware, index, _, _ = _LINK.unpack_from(body)
    name = attributes(body[_LINK.size :]).get(_IFLA_IFNAME)
    if family != socket.AF_UNSPEC or name is None:
        return None
    return Link(index, _text(name), hardware)


def interface_of(body: bytes) -> int:
    """Return the interface that a message about a qdisc or a filter is about, 0 for none."""
    return int(_TC.unpack_from(body)[1]) if len(body) >= _TC.size else 0


def filter_of(body: bytes) -> Filter | None:
    """Read the body of NEW_FILTER; None where it is no BPF filter."""
    if len(body) < _TC.size:
        return None
    _, _, handle, _, info = _TC.unpack_from(body)
    said = attributes(body[_TC.size :])
    if _text(said.get(_TCA_KIND, b"")) != "bpf" or _TCA_OPTIONS not in said or not handle:
        return None
    options = attributes(said[_TCA_OPTIONS])
    return Filter(
        handle, info >> 16, _text(options.get(_BPF_NAME, b"")), _number(options.get(_BPF_ID, b"")),
        bool(_number(options.get(_BPF_FLAGS, b"")) & _DIRECT_ACTION),
    )  # fmt: skip


def _text(data: bytes) -> str:
    return os.fsdecode(data.rstrip(b"\0"))


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _tc(index: int, handle: int, parent: int, info: int = 0) -> bytes:
    return _TC.pack(socket.AF_UNSPEC, index, handle, parent, info)


def _info(priority: int) -> int:
    return priority << 16 | socket.htons(_ETH_P_ALL)


# ---- the socket


class RouteSocket:
    """Asks, and waits for the answer. For the network namespace of the thread that made it."""

    def __init__(self) -> None:
        self._socket = open_socket()
        self._numbers = itertools.count(1)

    def __enter__(self) -> RouteSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def links(self) -> list[Link]:
        found = (link_of(each.body) for each in self._dump("list the interfaces", Type.GET_LINK, link_header()))
        return [link for link in found if link is not None]

    def facts(self, index: int) -> dict[int, bytes]:
        """Return the attributes (IFLA_*) of one interface."""
        doing = f"look at interface {index}"
        try:
            self._send(Type.GET_LINK, _ACK, link_header(index))
            for message in self._answer() or ():
                return attributes(message.body[_LINK.size :])
        except OSError as error:
            raise _refused(doing, error) from error
        raise KernelError(f"The kernel did not answer when asked to {doing}")

    def add_link(self, doing: str, facts: bytes) -> None:
        self._ask(doing, Type.NEW_LINK, _CREATE | _EXCLUSIVE, link_header() + facts)

    def set_link(self, doing: str, index: int, facts: bytes, flags: int = 0) -> None:
        """Change attributes of an interface, and switch on `flags` (IFF_*)."""
        self._ask(doing, Type.SET_LINK, 0, link_header(index, flags) + facts)

    def remove_link(self, doing: str, index: int) -> None:
        self._ask(doing, Type.DEL_LINK, 0, link_header(index))

    def filters(self, index: int, parent: Parent) -> list[Filter]:
        """Return the BPF filters there; none where the interface has no clsact."""
        found = (filter_of(each.body) for each in self._filters(index, parent))
        return [one for one in found if one is not None]

    def is_bare(self, index: int) -> bool:
        """Does no filter of any kind hang on the interface's clsact?"""
        return not any(self._filters(index, parent) for parent in Parent)

    def _filters(self, index: int, parent: Parent) -> list[Message]:
        return self._dump(f"list the filters of interface {index}", Type.GET_FILTER, _tc(index, 0, parent))

    def add_clsact(self, index: int) -> None:
        """Give the interface a clsact qdisc, or leave the one that it has."""
        self._ask(
            f"prepare interface {index} for filters", Type.NEW_QDISC, _CREATE | _REPLACE,
            _tc(index, _CLSACT_HANDLE, _CLSACT) + attribute(_TCA_KIND, b"clsact\0"),
        )  # fmt: skip

    def remove_clsact(self, index: int) -> None:
        self._ask(f"clear interface {index}", Type.DEL_QDISC, 0, _tc(index, _CLSACT_HANDLE, _CLSACT))

    def replace_filter(self, index: int, parent: Parent, handle: int, priority: int, program: int, name: str) -> None:
        """Put a program there, in place of the one with this handle and priority. `program`: its fd."""
        options = (
            attribute(_BPF_FD, program.to_bytes(4, "little"))
            + attribute(_BPF_NAME, name.encode() + b"\0")
            + attribute(_BPF_FLAGS, _DIRECT_ACTION.to_bytes(4, "little"))
        )
        self._ask(
            f"attach {name} to interface {index}", Type.NEW_FILTER, _CREATE | _REPLACE,
            _tc(index, handle, parent, _info(priority)) + attribute(_TCA_KIND, b"bpf\0")
            + attribute(_TCA_OPTIONS | NESTED, options),
        )  # fmt: skip

    def remove_filter(self, index: int, parent: Parent, handle: int, priority: int) -> None:
        self._ask(
            f"detach a filter from interface {index}", Type.DEL_FILTER, 0,
            _tc(index, handle, parent, _info(priority)) + attribute(_TCA_KIND, b"bpf\0"),
        )  # fmt: skip

    # ---- request and answer

    def _ask(self, doing: str, kind: Type, flags: int, body: bytes) -> None:
        try:
            self._send(kind, _ACK | flags, body)
            self._answer()
        except OSError as error:
            raise _refused(doing, error) from error

    def _dump(self, doing: str, kind: Type, body: bytes) -> list[Message]:
        try:
            while True:
                self._send(kind, _DUMP, body)
                found = self._answer()
                if found is not None:
                    return found
        except OSError as error:
            if kind is Type.GET_FILTER and error.errno in {errno.EINVAL, errno.ENODEV, errno.ENOENT}:
                return []  # no clsact, no interface: no filters
            raise _refused(doing, error) from error

    def _send(self, kind: Type, flags: int, body: bytes) -> None:
        self._number = next(self._numbers)
        self._socket.send(_MESSAGE.pack(_MESSAGE.size + len(body), kind, _REQUEST | flags, self._number, 0) + body)

    def _answer(self) -> list[Message] | None:
        """Read to the end of the answer. None: what was listed changed meanwhile, and has to be listed again."""
        found: list[Message] = []
        whole = True
        while True:
            data = self._socket.recv(_BUFFER)
            at = 0
            for message in messages(data):
                length, _, flags, number, _ = _MESSAGE.unpack_from(data, at)
                at += (length + 3) & ~3
                if number != self._number:
                    continue
                whole = whole and not flags & _INTERRUPTED
                if message.type == _DONE:
                    return found if whole else None
                if message.type == _ERROR:
                    code = -int.from_bytes(message.body[:4], "little", signed=True)
                    if code:
                        raise OSError(code, os.strerror(code))
                    return found
                found.append(message)


def open_socket(groups: int = 0) -> socket.socket:
    """Open a netlink socket that hears of `groups`, strict about what it is asked."""
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        opened.bind((0, groups))
    except OSError as error:
        raise KernelError(f"No netlink socket can be opened: {error.strerror}") from error
    return opened


def _refused(doing: str, error: OSError) -> KernelError | PrivilegeError | InterfaceError:
    said = f"The kernel refused to {doing}: {error.strerror}"
    if error.errno in {errno.EPERM, errno.EACCES}:
        return PrivilegeError(said, hint=NEEDS)
    if error.errno == errno.ENODEV:
        return InterfaceError(said, hint="It is gone. It is guarded again as soon as it is back.")
    return KernelError(said)
