"""What a socket, a tuple or a ping was allowed once reaches no further: real sockets in every order, with the engine.

The sequences of test_oracle_shared.py choose what the kernel knows of their sockets; here the kernel does. Everything
may come in but by one port, and nothing leave but for one: what a datagram socket may send depends on the peer alone,
and on who spoke first.
"""

from __future__ import annotations

import random

import pytest

from tests.kernel.host import Host, awaited
from tests.kernel.lab import INSIDE, INSIDE6, OUTSIDE, OUTSIDE6
from tests.support.netns import Agent

OPEN, SHUT, OURS, PRIVATE = 7200, (7201, 7202), (7300, 7301), 7302
"""Ports of the first test, ten more for each other one. Outside: what may leave goes to the first; here: by the last
nobody comes in."""
ENDS = {4: (INSIDE, OUTSIDE), 6: (INSIDE6, OUTSIDE6)}
POLICY = {
    "sallyport.rego": 'package sallyport\n\ndefault_verdict := "deny"\n\ninbound_verdict := "allow"\n',
    # It reads the process, so that no verdict stands for more than its flow: else connect() and sendto() refuse, and
    # no packet ever meets the gate.
    "rules/open/open.rego": (
        "package sallyport.rules.open\n\n"
        'scope := {"direction", "dest", "process"}\n\n'
        'allow contains "an open port" if {\n\tinput.direction == "egress"\n\tinput.process.pid >= 0\n'
        f"\tinput.dest.port in {{{', '.join(str(OPEN + 10 * number) for number in range(9))}}}\n}}\n"
    ),
    "rules/private/private.rego": (
        "package sallyport.rules.private\n\n"
        'scope := {"direction", "dest"}\n\n'
        'deny contains "private" if {\n\tinput.direction == "ingress"\n'
        f"\tinput.dest.port in {{{', '.join(str(PRIVATE + 10 * number) for number in range(9))}}}\n}}\n"
        'deny contains "no pings" if {\n\tinput.direction == "ingress"\n\tinput.dest.transport == "icmp"\n}\n'
    ),
}
RAW = "socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)"
DISCONNECT = "import ctypes; libc = ctypes.CDLL(None)"
"""For connect() to nobody (AF_UNSPEC), which Python's sockets cannot say."""
AGAIN = (
    "import select\n"
    "def again(work):\n"
    "    while True:\n"
    "        try:\n"
    "            return work()\n"
    "        except OSError as error:\n"
    "            if error.errno not in (errno.ECONNABORTED, errno.EDESTADDRREQ):\n"
    "                raise"
)
"""The engine ends what it refuses: a datagram socket hears of it once, whenever that is, and is as good as new."""
STEPS = 60


def stopped(host: Host) -> int:
    """How many packets the gate and the engine have kept from going on."""
    status = host.engine.status()
    return int(status["hold"]["discarded"]) + sum(
        number for name, number in status["counters"].items() if name.startswith("dropped_")
    )


class Datagrams:
    """Sockets on both sides, and what is known of who spoke first. `number`: of the test, for ports of its own."""

    def __init__(self, host: Host, version: int, number: int) -> None:
        self.host, (self.here, self.there), self.base = host, ENDS[version], 10 * number
        self.near, self.far = host.agent(), host.agent(outside=True)
        for agent in (self.near, self.far):
            agent.do(AGAIN)
        self.near.do(DISCONNECT)
        for port in (*OURS, PRIVATE):
            self.near.do(f"u{port} = bound({self.here!r}, {port + self.base})")
        for port in (OPEN, *SHUT):
            self.far.do(f"u{port} = bound({self.there!r}, {port + self.base})")
        self.begun: dict[tuple[int, int], bool] = {}
        """(port here, port there) -> was it begun from outside?"""
        self.sent = 0

    def send(self, ours: int, theirs: int, *, connected: bool) -> None:
        """Send from here; it arrives if the flow was begun from outside, or if the port there is open."""
        to = f"({self.there!r}, {theirs + self.base})"
        how = f"again(lambda: u{ours}.sendto(%r, {to}))"
        if connected:
            how = f"again(lambda: (u{ours}.connect({to}), u{ours}.send(%r)))"
            how += f"; libc.connect(u{ours}.fileno(), bytes(16), 16)"
        if theirs == OPEN or self.begun.get((ours, theirs)):
            self._arrives(self.near, how, self.far, theirs)
            self.begun.setdefault((ours, theirs), False)
        else:
            self._stops(self.near, how, self.far, theirs)

    def come(self, ours: int, theirs: int) -> None:
        """Send from outside: an answer, or the first packet of a flow."""
        answer = self.begun.get((ours, theirs)) is False
        how = f"u{theirs}.sendto(%r, ({self.here!r}, {ours + self.base}))"
        if answer or ours != PRIVATE:
            self._arrives(self.far, how, self.near, ours)
            self.begun.setdefault((ours, theirs), True)
        else:
            self._stops(self.far, how, self.near, ours)

    def _data(self) -> bytes:
        self.sent += 1
        return b"number %d" % self.sent

    def _arrives(self, sender: Agent, how: str, receiver: Agent, port: int) -> None:
        data = self._data()
        sender.do(how % data)
        assert receiver.do(f"u{port}.settimeout(14); again(lambda: u{port}.recv(64))") == data

    def _stops(self, sender: Agent, how: str, receiver: Agent, port: int) -> None:
        before = stopped(self.host)
        sender.do(how % self._data())
        look = f"bool(select.select([u{port}], [], [], 0)[0])"
        awaited(lambda: stopped(self.host) > before or receiver.do(look), self.host.engine.status)
        with pytest.raises(BlockingIOError):
            receiver.do(f"u{port}.setblocking(False); again(lambda: u{port}.recv(64))")


@pytest.mark.parametrize("seed", range(4))
def test_a_datagram_socket_is_judged_for_each_peer_as_if_it_were_the_first(host: Host, seed: int) -> None:
    chance = random.Random(seed)
    datagrams = Datagrams(host, (4, 6)[seed % 2], seed)
    for _ in range(STEPS):
        ours, theirs = chance.choice((*OURS, *OURS, PRIVATE)), chance.choice((OPEN, *SHUT, *SHUT))
        if chance.randrange(5) < 2:
            # By PRIVATE nobody comes in, so that whoever tries leaves a deny on the tuple: not part of this property.
            if ours == PRIVATE and datagrams.begun.get((ours, theirs)) is not False:
                continue
            datagrams.come(ours, theirs)
        else:
            datagrams.send(ours, theirs, connected=chance.randrange(4) == 0)


@pytest.mark.parametrize("version", [4, 6])
def test_a_stream_socket_that_connects_again_is_judged_again(host: Host, version: int) -> None:
    """What it was allowed, and that it was accepted once, ends with connect() to nobody (AF_UNSPEC)."""
    here, there = ENDS[version]
    near, far = host.agent(), host.agent(outside=True)
    far.do(f"l = listening({there!r}, {OPEN}); shut = listening({there!r}, {SHUT[0]})")
    near.do(DISCONNECT)
    near.do(f"s = connected({there!r}, {OPEN}); s.sendall(b'first')")
    assert far.do("p = accepted(l); exactly(p, 5)") == b"first"
    near.do(f"a = listening({here!r}, {OURS[0]})")
    far.do(f"c = connected({here!r}, {OURS[0]}); c.sendall(b'come')")
    assert near.do("b = accepted(a); exactly(b, 4)") == b"come"
    near.do("a.close()")
    for name in ("s", "b"):
        with pytest.raises(OSError, match=r"permitted|refused|timed out|reset|abort"):
            near.do(
                f"{name}.settimeout(2); libc.connect({name}.fileno(), bytes(16), 16); "
                f"{name}.connect(({there!r}, {SHUT[0]})); {name}.sendall(b'secret')"
            )
    with pytest.raises(BlockingIOError):
        far.do("shut.setblocking(False); shut.accept()")


def test_a_raw_socket_has_the_flow_that_it_answers_in_and_no_other(host: Host) -> None:
    ours, theirs = tuple(port + 80 for port in OURS), tuple(port + 80 for port in SHUT)
    near, far = host.agent(), host.agent(outside=True)
    near.do(f"u = bound({INSIDE!r}, {ours[0]}); r = {RAW}")
    far.do(f"c = bound({OUTSIDE!r}, {theirs[0]}); other = bound({OUTSIDE!r}, {theirs[1]})")
    far.do(f"c.sendto(b'question', ({INSIDE!r}, {ours[0]}))")
    near.do("u.recv(16)")
    raw = f"r.sendto(struct.pack('!HHHH', %d, %d, 14, 0) + b'answer', ({OUTSIDE!r}, 0))"
    near.do(raw % (ours[0], theirs[0]))
    assert far.do("c.recv(16)") == b"answer"
    for source, to, receiver in ((ours[0], theirs[1], "other"), (ours[1], theirs[0], "c")):
        before = stopped(host)
        near.do(raw % (source, to))
        awaited(lambda before=before: stopped(host) > before, host.engine.status)
        with pytest.raises(BlockingIOError):
            far.do(f"{receiver}.setblocking(False); {receiver}.recv(16)")


def test_a_ping_that_was_refused_keeps_no_error_out(host: Host) -> None:
    """An ICMP error is about a packet of this host's, whatever else its sender was told: here, that nobody listens."""
    near, far = host.agent(), host.agent(outside=True)
    before = stopped(host)
    echo = bytes([8, 0, 0xF7, 0xFF]) + bytes(4)
    far.do(f"r = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); r.sendto({echo!r}, ({INSIDE!r}, 0))")
    awaited(lambda: stopped(host) > before, host.engine.status)
    near.do(f"u = udp({OUTSIDE!r}); u.connect(({OUTSIDE!r}, {OPEN + 70})); u.send(b'nobody?')")
    with pytest.raises(ConnectionRefusedError):
        near.do("u.recv(16)")
