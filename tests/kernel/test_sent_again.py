"""What TCP sends again is what was judged, or it does not leave: a lost packet can be lost on purpose, and a socket's
queue refers to memory that the program still writes to."""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import json
import socket
import struct
import subprocess
from collections.abc import Iterator

import pytest

from engine.abi.numbers import Counter
from tests.kernel.host import Host, awaited
from tests.kernel.lab import DEVICE, OUTSIDE
from tests.support.hello import client_hello
from tests.support.netns import Agent

PORT = 8443
NOBODY = 65534
NAMES = itertools.count()
POLICY = {
    "sallyport.rego": 'package sallyport\n\ndefault_verdict := "allow"\n',
    "rules/names/names.rego": (
        "package sallyport.rules.names\n\n"
        'scope := {"name"}\n\n'
        'deny contains "no such name" if input.name.value == "wrong.example"\n'
    ),
}
ALL, SECOND = "meta length > 200", "meta length > 200 meta length < 900"
"""What is lost: every packet with payload, or the shorter second one of two."""


class Loss:
    """Packets for PORT that get lost on the far side, from start() to stop()."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def start(self, which: str) -> None:
        rules = "add table ip lost\nadd chain ip lost in { type filter hook prerouting priority -300; }\n"
        rules += f"add rule ip lost in tcp dport {PORT} {which} counter drop\n"
        subprocess.run(self._host.outside.command("nft", "-f", "-"), check=True, text=True, input=rules)

    def happened(self) -> bool:
        shown = subprocess.run(
            self._host.outside.command("nft", "-j", "list", "table", "ip", "lost"), check=True, capture_output=True
        ).stdout
        rules = [each["rule"]["expr"] for each in json.loads(shown)["nftables"] if "rule" in each]
        return any(part.get("counter", {}).get("packets") for rule in rules for part in rule)

    def stop(self) -> None:
        subprocess.run(self._host.outside.command("nft", "delete", "table", "ip", "lost"), check=False)


@pytest.fixture(scope="module")
def running() -> Iterator[Host]:
    host = Host(POLICY)
    try:
        host.inside.call(lambda: _segment_here(DEVICE))
        host.start()
        yield host
    finally:
        host.close()


@pytest.fixture
def server(host: Host) -> Agent:
    server = host.agent(outside=True)
    server.do(f"l = listening({OUTSIDE!r}, {PORT})")
    return server


@pytest.fixture
def loss(host: Host) -> Iterator[Loss]:
    loss = Loss(host)
    yield loss
    loss.stop()


def _segment_here(device: str) -> None:
    """Have the kernel cut what a device would cut itself, so that a long packet is several on the wire."""
    word = ctypes.create_string_buffer(struct.pack("=II", 0x1F, 0))  # ETHTOOL_STSO (linux/ethtool.h)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8946, struct.pack("16sP16x", device.encode(), ctypes.addressof(word)))  # SIOCETHTOOL


def _hello(host: Host, server: Agent, *, known: bool, size: int | None = None) -> bytes:
    """A hello that is allowed; `known`: its name has a standing verdict, so that the gate decides alone."""
    hello = client_hello(f"right{next(NAMES)}.example", size=size)
    if known:
        client = host.agent()
        client.do(f"s = connected({OUTSIDE!r}, {PORT}); s.sendall({hello!r})")
        assert server.do(f"p = accepted(l); exactly(p, {len(hello)})") == hello
    return hello


def _open(host: Host, server: Agent, hello: bytes) -> Agent:
    """A program without any privilege, and a connection; the hello is in a file."""
    client = host.agent()
    client.do(
        f"import tempfile; file = tempfile.TemporaryFile(); file.write({hello!r}); file.flush()\n"
        f"os.setgid({NOBODY}); os.setuid({NOBODY}); s = connected({OUTSIDE!r}, {PORT})"
    )
    server.do("p = accepted(l)")
    return client


def _lose(client: Agent, loss: Loss, hello: bytes, which: str = ALL) -> None:
    """Send the hello from the file, and lose it."""
    loss.start(which)
    client.do(f"os.sendfile(s.fileno(), file.fileno(), 0, {len(hello)})")
    awaited(loss.happened, lambda: "nothing was lost")


def _again(host: Host) -> int:
    return int(host.engine.status()["counters"][Counter.HELD_AGAIN.name.lower()])


@pytest.mark.parametrize("known", [False, True])
def test_a_lost_hello_is_sent_again(host: Host, server: Agent, loss: Loss, *, known: bool) -> None:
    hello = _hello(host, server, known=known)
    client = _open(host, server, hello)
    before = _again(host)
    _lose(client, loss, hello)
    loss.stop()
    assert server.do(f"exactly(p, {len(hello)})") == hello
    client.do("s.sendall(b'more')")
    assert server.do("exactly(p, 4)") == b"more"
    assert _again(host) > before, "it was compared"


@pytest.mark.parametrize("known", [False, True])
def test_a_hello_whose_memory_changes_does_not_leave(host: Host, server: Agent, loss: Loss, *, known: bool) -> None:
    hello = _hello(host, server, known=known)
    client = _open(host, server, hello)
    _lose(client, loss, hello)
    client.do(f"os.pwrite(file.fileno(), {client_hello('wrong.example', size=len(hello) + 60)[: len(hello)]!r}, 0)")
    loss.stop()
    with pytest.raises(OSError, match=r"reset|abort"):
        server.do("p.recv(1)")
    host.engine.tells("refused", "what is sent again is not what the verdict was read from")


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("changes", [False, True])
def test_the_second_half_of_a_hello_is_lost(
    host: Host, server: Agent, loss: Loss, *, known: bool, changes: bool
) -> None:
    hello = _hello(host, server, known=known, size=2000)
    client = _open(host, server, hello)
    _lose(client, loss, hello, SECOND)
    server.do("exactly(p, 1000)")
    if changes:
        client.do(f"os.pwrite(file.fileno(), b'!', {len(hello) - 1})")
    loss.stop()
    if changes:
        with pytest.raises(OSError, match=r"reset|abort"):
            server.do(f"exactly(p, {len(hello) - 1000})")
    else:
        assert server.do(f"exactly(p, {len(hello) - 1000})") == hello[1000:]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("changes", [False, True])
def test_a_reload_comes_between(host: Host, server: Agent, loss: Loss, *, known: bool, changes: bool) -> None:
    """What was allowed under the policy before is asked about anew, and compared all the same."""
    hello = _hello(host, server, known=known)
    client = _open(host, server, hello)
    _lose(client, loss, hello)
    generation = host.engine.generation()
    rule = f'scope := {{"dest"}}\n\ndeny contains "another port" if input.dest.port == {9000 + next(NAMES)}\n'
    host.write({"rules/more/more.rego": f"package sallyport.rules.more\n\n{rule}"})
    awaited(lambda: host.engine.generation() > generation, host.engine.told)
    if changes:
        client.do(f"os.pwrite(file.fileno(), b'!', {len(hello) - 1})")
    loss.stop()
    if changes:
        with pytest.raises(OSError, match=r"reset|abort"):
            server.do("p.recv(1)")
    else:
        assert server.do(f"exactly(p, {len(hello)})") == hello


def test_what_comes_behind_the_hello_may_change(host: Host, server: Agent, loss: Loss) -> None:
    """The verdict was read from the hello: nobody has judged what follows it in the same packet."""
    hello = _hello(host, server, known=True)
    client = _open(host, server, hello)
    client.do("file.seek(0, 2); file.write(b'early'); file.flush()")
    _lose(client, loss, hello + b"early")
    client.do(f"os.pwrite(file.fileno(), b'later', {len(hello)})")
    loss.stop()
    assert server.do(f"exactly(p, {len(hello) + 5})") == hello + b"later"


def test_what_is_not_known_any_more_is_not_sent_again(host: Host, server: Agent, loss: Loss) -> None:
    """Another engine knows nothing of what the one before it read: the connection is ended, and the log says why."""
    hello = _hello(host, server, known=False)
    client = _open(host, server, hello)
    _lose(client, loss, hello)
    host.engine.kill()
    host.start()
    loss.stop()
    with pytest.raises(OSError, match=r"reset|abort"):
        server.do("p.recv(1)")
    host.engine.tells("refused", "is not known here any more")
