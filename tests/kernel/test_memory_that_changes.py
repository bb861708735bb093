"""What leaves is what was read: a packet that waits in a queue behind the gate may still be its sender's memory."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.kernel.cable import Cable
from tests.kernel.host import Host
from tests.kernel.lab import DEVICE, OUTSIDE
from tests.kernel.test_sent_again import POLICY as POLICY_OF_NAMES
from tests.support.hello import client_hello, handshake
from tests.support.initials import crypto, initial
from tests.support.netns import Agent

PORT, QUEUED = 8443, 9999
RIGHT, WRONG = client_hello("right.example"), client_hello("wrong.example")
POLICY = POLICY_OF_NAMES
ZEROCOPY, MSG_ZEROCOPY = 60, 0x4000000
SLOW = "rate 24kbit burst 1600 latency 60s"


@pytest.fixture
def slow(host: Host) -> Iterator[Agent]:
    """The guarded device sends three kilobytes a second; whoever is asked to fills its queue."""

    def queue(word: str) -> None:
        words = host.inside.command("tc", "qdisc", word, "dev", DEVICE, "root", "tbf", *SLOW.split())
        subprocess.run(words if word == "add" else words[:-7], check=True)

    queue("add")
    client = host.agent()
    client.do(
        f"def fill():\n\tfor _ in range(3): u.sendto(bytes(1400), ({OUTSIDE!r}, {QUEUED}))\n\n"
        f"import mmap; m = mmap.mmap(-1, 4096); u = udp(); u.sendto(b'known', ({OUTSIDE!r}, {QUEUED}))"
    )
    yield client
    queue("del")


def _arrived(cable: Cable, word: bytes) -> list[bytes]:
    """The frames up to the one with `word`."""
    frames: list[bytes] = []
    cable.far.until(lambda frame: frames.append(frame) or word in frame)  # type: ignore[func-returns-value]
    return frames


def test_a_hello_in_a_queue(host: Host, cable: Cable, slow: Agent) -> None:
    server, first = host.agent(outside=True), host.agent()
    server.do(f"l = listening({OUTSIDE!r}, {PORT})")
    first.do(f"s = connected({OUTSIDE!r}, {PORT}); s.sendall({RIGHT!r})")
    server.do(f"p = accepted(l); exactly(p, {len(RIGHT)})")
    cable.out(RIGHT)
    slow.do(
        f"m[: {len(RIGHT)}] = {RIGHT!r}; s = connected({OUTSIDE!r}, {PORT}); s.setsockopt(1, {ZEROCOPY}, 1); fill()\n"
        f"s.sendmsg([memoryview(m)[: {len(RIGHT)}]], [], {MSG_ZEROCOPY}); m[: {len(WRONG)}] = {WRONG!r}\n"
        f"u.sendto(b'the end', ({OUTSIDE!r}, {QUEUED}))"
    )
    frames = _arrived(cable, b"the end")
    assert any(b"right.example" in frame for frame in frames)
    assert not any(b"wrong.example" in frame for frame in frames)


def test_a_datagram_in_a_queue(host: Host, cable: Cable, slow: Agent) -> None:
    """The flow was decided by the name of one QUIC connection; another one may not begin in it unread."""
    hello = initial(crypto(0, handshake("right.example", alpn=["h3"])))
    other = initial(crypto(0, handshake("wrong.example", alpn=["h3"])))
    server = host.agent(outside=True)
    server.do(f"a = bound({OUTSIDE!r}, {PORT}); b = bound({OUTSIDE!r}, {QUEUED})")
    harmless = b"\x40harmless" + bytes(len(other) - 9)
    slow.do(f"v = udp(); v.connect(({OUTSIDE!r}, {PORT})); v.setsockopt(1, {ZEROCOPY}, 1); v.send({hello!r})")
    assert any(hello[:60] in frame for frame in _arrived(cable, hello[:60]))
    slow.do(
        f"m[: {len(other)}] = {harmless!r}; fill(); v.sendmsg([memoryview(m)[: {len(other)}]], [], {MSG_ZEROCOPY})\n"
        f"m[: {len(other)}] = {other!r}; u.sendto(b'the end', ({OUTSIDE!r}, {QUEUED}))"
    )
    frames = _arrived(cable, b"the end")
    assert any(b"harmless" in frame for frame in frames)
    assert not any(other[:60] in frame for frame in frames)
