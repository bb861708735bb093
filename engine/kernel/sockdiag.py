"""sock_diag(7): which sockets there are, and the end of one of them.

A destroy always carries the socket's 64-bit cookie. Without it, destroying a connection that is already gone finds the
listener on that port, and ends the server.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from engine.abi.records import Tuple
from engine.errors import KernelError, PrivilegeError
from engine.kernel import netns
from engine.model.net import to_key

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_SOCK_DESTROY = 21
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_F_REQUEST, _F_ACK, _F_DUMP = 1, 4, 0x300
_HEADER = struct.Struct("=IHHII")
# struct inet_diag_req_v2 up to the socket id, struct inet_diag_sockid (linux/inet_diag.h)
_REQUEST = struct.Struct("=BBBxI")
_ID = struct.Struct("!HH16s16s")
_TAIL = struct.Struct("=IQ")
_MESSAGE = struct.Struct("=BBBB")
_INODE_AND_UID = struct.Struct("=IIIII")
ESTABLISHED, SYN_SENT, LISTEN = 1, 2, 10
_ALL_STATES = 0xFFFFFFFF
_NO_COOKIE = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True)
class SocketInfo:
    """`state` TCP_* of net/tcp_states.h; `inode` is what /proc/PID/fd shows as socket:[inode]."""

    flow: Tuple
    state: int
    cookie: int
    uid: int
    inode: int


class SockDiag:
    """One netlink socket, bound to the network namespace that it was made in."""

    def __init__(self) -> None:
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
        self._netlink.settimeout(2)
        self._sequence = 0

    def sockets(self, transport: int = socket.IPPROTO_TCP) -> Iterator[SocketInfo]:
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, transport, 0, _ALL_STATES) + bytes(48)
            for message in self._ask(_SOCK_DIAG_BY_FAMILY, _F_REQUEST | _F_DUMP, request):
                yield _socket_info(message, family, transport)

    def destroy(self, flow: Tuple, cookie: int, owner: int = 0) -> bool:
        """End the socket with this cookie: its owner sees ECONNABORTED, a TCP peer a reset. False when it is gone.

        A socket of a container is found in no other network namespace than its own: that of process `owner`.
        """
        if not cookie:
            return False
        if self._destroy(flow, cookie):
            return True
        namespace = netns.of_process(owner)
        if namespace is None:
            return False
        try:
            elsewhere = netns.within(namespace, SockDiag)
        except OSError as error:
            raise KernelError(f"A socket of process {owner} could not be ended: {error.strerror}") from error
        finally:
            os.close(namespace)
        try:
            return elsewhere._destroy(flow, cookie)
        finally:
            elsewhere.close()

    def destroy_peer(self, flow: Tuple) -> bool:
        """End the TCP socket that packets with this tuple come in for. False when there is none but a listener."""
        mine = flow.reversed()
        found = self._look_up(mine, _NO_COOKIE)
        return found is not None and found.state != LISTEN and self._destroy(mine, found.cookie)

    def _look_up(self, flow: Tuple, cookie: int) -> SocketInfo | None:
        """Return the socket of this very flow."""
        # Of UDP sockets the kernel takes source for destination here, "for historical reasons" (net/ipv4/udp_diag.c).
        asked = flow.reversed() if flow.transport == socket.IPPROTO_UDP else flow
        for family in _families(flow.src, flow.dst):
            request = _request(asked, family, cookie)
            with contextlib.suppress(OSError):
                for message in self._ask(_SOCK_DIAG_BY_FAMILY, _F_REQUEST, request, many=False):
                    found = _socket_info(message, family, flow.transport)
                    if found.flow == flow:
                        return found
        return None

    def _destroy(self, flow: Tuple, cookie: int) -> bool:
        # A datagram socket that is not connected speaks to others too: what it sends to this one is dropped anyway.
        if flow.transport == socket.IPPROTO_UDP and self._look_up(flow, cookie) is None:
            return False
        for family in _families(flow.src, flow.dst):
            try:
                list(self._ask(_SOCK_DESTROY, _F_REQUEST | _F_ACK, _request(flow, family, cookie)))
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINVAL):
                    continue
                if error.errno == errno.EPERM:
                    raise PrivilegeError("Ending a socket needs CAP_NET_ADMIN", hint="Run it as root.") from error
                raise KernelError(f"A socket could not be ended: {error.strerror}") from error
            return True
        return False

    def can_destroy(self) -> bool:
        """Say whether the kernel ends sockets (CONFIG_INET_DIAG_DESTROY), by asking for one that cannot exist."""
        nowhere = _MAPPED + b"\x7f\xff\xff\xfe"
        request = (
            _REQUEST.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, _ALL_STATES)
            + _ID.pack(1, 1, _ipv4(nowhere), _ipv4(nowhere))
            + _TAIL.pack(0, (1 << 63) - 1)
        )
        try:
            list(self._ask(_SOCK_DESTROY, _F_REQUEST | _F_ACK, request))
        except OSError as error:
            return error.errno == errno.ENOENT
        return True

    def _ask(self, kind: int, flags: int, body: bytes, *, many: bool = True) -> Iterator[bytes]:
        self._sequence += 1
        self._netlink.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)
        while True:
            data = self._netlink.recv(1 << 16)
            at = 0
            while at < len(data):
                size, message, _, sequence, _ = _HEADER.unpack_from(data, at)
                payload = data[at + _HEADER.size : at + size]
                at += (size + 3) & ~3
                if sequence != self._sequence:
                    continue
                if message == _NLMSG_DONE:
                    return
                if message == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", payload)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                yield payload
                if not many:
                    return

    def close(self) -> None:
        self._netlink.close()


def _request(flow: Tuple, family: int, cookie: int) -> bytes:
    addresses = (flow.src, flow.dst) if family == socket.AF_INET6 else (_ipv4(flow.src), _ipv4(flow.dst))
    return (
        _REQUEST.pack(family, flow.transport, 0, _ALL_STATES)
        + _ID.pack(flow.sport, flow.dport, *addresses)
        + _TAIL.pack(0, cookie)
    )


def _families(src: bytes, dst: bytes) -> tuple[int, ...]:
    mapped = src.startswith(_MAPPED) and dst.startswith(_MAPPED)
    # An IPv6 socket that speaks IPv4 is found under IPv6 with mapped addresses.
    return (socket.AF_INET, socket.AF_INET6) if mapped else (socket.AF_INET6,)


_MAPPED = b"\0" * 10 + b"\xff\xff"


def _ipv4(key: bytes) -> bytes:
    return key[12:] + bytes(12)


def _socket_info(message: bytes, family: int, transport: int) -> SocketInfo:
    _, state, _, _ = _MESSAGE.unpack_from(message)
    sport, dport, src, dst = _ID.unpack_from(message, 4)
    _, cookie = _TAIL.unpack_from(message, 40)
    _, _, _, uid, inode = _INODE_AND_UID.unpack_from(message, 52)
    if family == socket.AF_INET:
        src, dst = (to_key(ip_address(address[:4])) for address in (src, dst))
    return SocketInfo(Tuple(src, dst, sport, dport, transport), state, cookie, uid, inode)
