"""Network namespaces with programs in them: the stage of every test that makes real traffic."""

from __future__ import annotations

import ast
import ctypes
import errno
import itertools
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

DEADLINE = 60.0
"""Seconds until whatever is awaited counts as not coming. Never waited for in a test that passes."""
_NUMBER = itertools.count()
_CLONE_NEWNET = 0x40000000
_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_AUXDATA, _PACKET_QDISC_BYPASS = 263, 8, 20
_VLAN_VALID, _TPID_VALID = 0x10, 0x40
_AUXDATA = struct.Struct("=IIIHHHH")
_MARKER = 0x88B5
"""Local experimental EtherType 1 (IEEE 802): no program and no stack takes it for anything."""


def unique(word: str) -> str:
    """Return a name that no other test run on this machine has."""
    return f"{word}{os.getpid()}x{next(_NUMBER)}"


def cgroup2() -> Path:
    """Return the mount point of cgroup v2."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            return Path(fields[4])
    raise AssertionError("cgroup v2 is not mounted")


class Namespace:
    """A network namespace of its own, with loopback up; gone after close()."""

    def __init__(self, word: str = "sp") -> None:
        self.name = unique(word)
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.path = Path("/run/netns") / self.name
        self.ip("link", "set", "lo", "up")

    def ip(self, *words: str) -> str:
        done = subprocess.run(["ip", "-n", self.name, *words], check=True, capture_output=True, text=True)
        return done.stdout

    def command(self, *words: str | Path) -> list[str]:
        """Return the command line that runs `words` inside: `ip netns exec` would hide bpffs and cgroups."""
        return ["nsenter", f"--net={self.path}", *map(str, words)]

    def call(self, work: Callable[[], T]) -> T:
        """Run `work` inside, in a thread of its own; a socket that it makes stays there for good."""
        results: list[T] = []
        failures: list[BaseException] = []

        def enter() -> None:
            try:
                fd = os.open(self.path, os.O_RDONLY)
                try:
                    if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                finally:
                    os.close(fd)
                results.append(work())
            except BaseException as error:  # noqa: BLE001 - raised again below
                failures.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]
        return results[0]

    def close(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=True)


def join(left: Namespace, right: Namespace, left_device: str, right_device: str, network: int = 77) -> None:
    """Connect two namespaces by a veth pair: 10.N.0.1 and fd00:N::1 on the left, .2 and ::2 on the right."""
    left.ip("link", "add", left_device, "type", "veth", "peer", "name", right_device, "netns", right.name)
    for space, device, host in ((left, left_device, 1), (right, right_device, 2)):
        space.ip("address", "add", f"10.{network}.0.{host}/24", "dev", device)
        space.ip("address", "add", f"fd00:{network}::{host}/64", "dev", device, "nodad")
        space.ip("link", "set", device, "up")


class Agent:
    """A Python process inside a namespace (and a control group) that carries out statements.

    Its sockets are named by the statements, time out long before a test would hang, and close with a reset, so that
    nothing of one test is sent again during the next.
    """

    def __init__(self, space: Namespace, cgroup: Path | None = None) -> None:
        self._process = subprocess.Popen(
            [*space.command(sys.executable, "-I", "-S", "-c", _AGENT), str(cgroup or "")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        # By hand: a buffered reader takes two answers at once, and select() then waits for the second one for ever.
        self._unread = b""
        self._waiting = 0
        self.do("0")  # it runs, inside its control group

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        return self._out.fileno()

    def start(self, statements: str) -> None:
        """Begin; result() waits for the end."""
        self._in.write(repr(statements).encode() + b"\n")
        self._in.flush()
        self._waiting += 1

    def finished(self) -> bool:
        return b"\n" in self._unread or bool(select.select([self], [], [], 0)[0])

    def result(self) -> Any:
        """Return the value of the last expression; raise the OSError that ended the statements."""
        assert self._waiting, "nothing was started"
        while b"\n" not in self._unread:
            assert select.select([self], [], [], DEADLINE)[0], "the agent gave no answer"
            data = os.read(self.fileno(), 1 << 16)
            assert data, "the agent has ended"
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        self._waiting -= 1
        kind, value = ast.literal_eval(line.decode())
        if kind == "errno":
            raise OSError(value, os.strerror(value))
        assert kind == "value", value
        return value

    def do(self, statements: str) -> Any:
        self.start(statements)
        return self.result()

    def close(self) -> None:
        self._in.close()
        self._process.kill()
        self._process.wait()
        self._out.close()


_AGENT = r"""
import ast, errno, os, socket, struct, sys
if sys.argv[1]:
    open(sys.argv[1] + "/cgroup.procs", "w").write("0")
def made(kind, address):
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    made.settimeout(14)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if kind == socket.SOCK_STREAM:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made
def tcp(address=""):
    return made(socket.SOCK_STREAM, address)
def udp(address=""):
    return made(socket.SOCK_DGRAM, address)
def connected(address, port):
    s = tcp(address)
    s.connect((address, port))
    return s
def listening(address, port):
    s = tcp(address)
    s.bind((address, port))
    s.listen(64)
    return s
def bound(address, port):
    s = udp(address)
    s.bind((address, port))
    return s
def accepted(listener):
    s = listener.accept()[0]
    s.settimeout(14)
    return s
def exactly(s, size):
    data = b""
    while len(data) < size:
        piece = s.recv(size - len(data))
        if not piece:
            break
        data += piece
    return data
names = globals()
for line in sys.stdin:
    try:
        tree = ast.parse(ast.literal_eval(line))
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "agent", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "agent", "eval"), names) if last else None
        answer = ("value", value)
    except OSError as error:
        answer = ("errno", error.errno or errno.ETIMEDOUT)
    except Exception as error:
        answer = ("error", repr(error))
    text = repr(answer)
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        text = repr((answer[0], None))
    print(text, flush=True)
"""


class Wire:
    """Everything that reaches one device, frame by frame, tags in place; and a way to put raw frames onto it."""

    def __init__(self, space: Namespace, device: str) -> None:
        self._in = space.call(lambda: self._packet_socket(device, _ETH_P_ALL))
        self._in.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
        self._in.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        self._in.setblocking(False)
        self._out = space.call(lambda: self._packet_socket(device, 0))
        self._around = space.call(lambda: self._packet_socket(device, 0))
        self._around.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)

    @staticmethod
    def _packet_socket(device: str, protocol: int) -> socket.socket:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        opened.bind((device, protocol))
        return opened

    def send(self, frame: bytes) -> None:
        """Send as a program with a packet socket would: through TC."""
        try:
            self._out.send(frame)
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # what TC drops
                raise

    def mark(self) -> bytes:
        """Send a frame past TC and return it: what was sent before it has arrived at the other end before it."""
        marker = b"\xff" * 6 + b"\2" * 6 + struct.pack("!HQ", _MARKER, next(_NUMBER)) + bytes(40)
        self._around.send(marker)
        return marker

    def until(self, wanted: Callable[[bytes], bool]) -> list[bytes]:
        """Return the frames up to and without the first wanted one."""
        end = time.monotonic() + DEADLINE
        seen: list[bytes] = []
        while True:
            left = end - time.monotonic()
            assert left > 0, f"the frame did not come; {len(seen)} others did"
            if not select.select([self._in], [], [], left)[0]:
                continue
            frame = self._receive()
            if frame is None:
                continue
            if wanted(frame):
                return seen
            seen.append(frame)

    def until_mark(self, marker: bytes) -> list[bytes]:
        return self.until(lambda frame: frame == marker)

    def _receive(self) -> bytes | None:
        data, ancillary, _, address = self._in.recvmsg(1 << 18, 256)
        if address[2] == socket.PACKET_OUTGOING:
            return None
        for level, kind, value in ancillary:
            if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
                status, _, _, _, _, tci, tpid = _AUXDATA.unpack(value[: _AUXDATA.size])
                if status & _VLAN_VALID:
                    data = data[:12] + struct.pack("!HH", tpid if status & _TPID_VALID else 0x8100, tci) + data[12:]
        return data

    def close(self) -> None:
        for opened in (self._in, self._out, self._around):
            opened.close()
